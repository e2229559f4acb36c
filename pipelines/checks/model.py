"""Check that a model can be trained and scored as configured, without loading its weights."""

import math
import os
from pathlib import Path

from evals import hardware
from evals.hardware import GIB, count_weights
from evals.settings import EngineSettings
from otr.config import ModelConfig, TrainConfig
from pipelines.checks.machine import valid_config_of
from pipelines.config.prepared import PreparedRun
from pipelines.config.presets import SweepConfig
from pipelines.model_size import count_parameters

# Imports are inside the functions: each check loads no more of transformers than it needs, which
# saves seconds.


def check_model(config: SweepConfig) -> str:
    """Check that tokenizer and weights exist and fit together, and the chat template is usable.

    A model may have no chat template; the data or a benchmark may need one.

    Raises:
        ValueError: one of them is missing, or the vocabulary is too large for the model.
    """
    from otr.models.architecture import load_architecture
    from otr.models.tokenizer import load_tokenizer

    model = config.train.model
    tokenizer = load_tokenizer(model)
    # From a directory without tokenizer files transformers makes an empty tokenizer.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError(
            f"no tokenizer at {model.path!r}: add the files of the model's tokenizer, such as "
            "tokenizer.json"
        )
    architecture = load_architecture(model)
    embeddings = architecture.get_text_config().vocab_size
    if len(tokenizer) > embeddings:
        raise ValueError(
            f"vocabulary mismatch at {model.path!r}: the tokenizer has {len(tokenizer)} tokens, "
            f"the model {embeddings} embeddings; use the model's own tokenizer"
        )
    if Path(model.path).is_dir() and not count_weights(Path(model.path)):
        raise ValueError(
            f"no weights at {model.path!r}: it has no .safetensors file; convert other weights "
            "with save_pretrained of transformers"
        )
    return (
        f"{architecture.model_type}, {embeddings} embeddings, {len(tokenizer)} tokens, "
        f"{'a' if tokenizer.chat_template else 'no'} chat template"
    )


def check_training(config: SweepConfig) -> str:
    """Check precision, sequence length, attention, adapters, optimizer and FSDP as configured.

    Raises:
        ValueError: the model or this machine does not support one of them.
    """
    from otr.models.architecture import check_sequence_length
    from otr.optim.optimizers import check_installed

    train = config.train
    slow = _check_dtype(train)
    positions = check_sequence_length(train)
    found = [f"{train.model.dtype}{slow}"]
    found.append(f"sequence length {train.data.sequence_length}{_limit(positions)}")
    if train.model.attention != "auto":
        found.append(f"attention {_check_attention(train.model)}")
    if train.lora.rank:
        from otr.models.lora import count_adapter_weights
        from otr.models.quantize import require_package

        if train.lora.quantize != "none":
            require_package()
        trained = count_adapter_weights(train.model, train.lora)
        whole = " and modules" if train.lora.modules_to_save else ""
        found.append(f"{trained} trained weights in {train.lora.method} adapters{whole}")
    trials = [train, *(valid_config_of(train, trial) for trial in config.trials)]
    for optim in {trial.optim for trial in trials}:
        check_installed(optim)
    for patterns in {trial.freeze for trial in trials} - {()}:
        found.append(_check_freeze(train.model, patterns))
    if train.memory.strategy.startswith("fsdp"):
        found.append(f"sharded by {_count_layers(train.model)} layers")
    return ", ".join(found)


def _check_dtype(train: TrainConfig) -> str:
    """Check that this machine computes in the precision of training; a cluster's is unknown.

    Returns:
        A remark on a precision that this device computes slowly; else nothing.

    Raises:
        ValueError: the GPU has no instructions for it.
    """
    dtype, on_gpu = train.model.dtype, train.workers.gpus > 0
    machine = hardware.this_machine()
    if os.environ.get("RAY_ADDRESS"):
        return ""
    if machine.is_fast(dtype, on_gpu=on_gpu):
        slow = on_gpu and dtype == "float32" and machine.is_fast("bfloat16", on_gpu=True)
        return " (slow on a GPU, which --train.model.dtype bfloat16 is not)" if slow else ""
    if on_gpu:
        raise ValueError(
            f"--train.model.dtype is {dtype}, but this GPU has no instructions for it: give "
            "--train.model.dtype float32"
        )
    return " (slow: this CPU has no instructions for it; --train.model.dtype float32 is faster)"


def check_engine(run: PreparedRun) -> str:
    """Check that the engine can load the model with a context that fits the benchmarks.

    Raises:
        ValueError: the context is longer than the model's or too short for a benchmark, its KV
            cache is too small, the hardware lacks the data type, the model needs code of its own
            or more GPUs, or vLLM is built for another device.
    """
    from otr.models.architecture import load_architecture, max_positions

    model, length = run.config.train.model, run.config.engine.max_model_len
    hardware.check_build(run.config.engine)
    if model.trust_remote_code:
        raise ValueError(
            "--train.model.trust-remote-code is set, but scoring never runs code that comes with a "
            "model: use a model whose architecture transformers has, or `otr train`, which does "
            "not score"
        )
    positions = max_positions(model)
    if positions and length > positions:
        raise ValueError(
            f"--engine.max-model-len is {length}, but {model.path!r} has {positions} positions: "
            f"give --engine.max-model-len {positions} or less"
        )
    engine = run.engine
    if engine.gpus:  # of a model on the hub, no file with weights is here yet
        text = load_architecture(model).get_text_config()
        hardware.check_gpus(engine, text, count_parameters(model.path) or 0)
    _check_kv_cache(model, engine)
    return f"context length {engine.max_model_len}{_limit(positions)}, {hardware.describe(engine)}"


def _check_kv_cache(model: ModelConfig, engine: EngineSettings) -> None:
    """Check that the KV cache holds one sequence; only of models with plain attention layers."""
    from otr.models.architecture import load_architecture

    text = load_architecture(model).get_text_config()
    per_token = hardware.cache_bytes_per_token(text, engine.dtype)
    if per_token is None or not engine.kv_cache_gib:
        return
    needed = per_token * engine.max_model_len / GIB
    if needed > engine.kv_cache_gib:
        raise ValueError(
            f"--engine.kv-cache-gib is {engine.kv_cache_gib:g}, but one sequence of "
            f"{engine.max_model_len} tokens takes {needed:.2f} GiB of KV cache in {engine.dtype}: "
            f"give --engine.kv-cache-gib {math.ceil(needed)} or a smaller --engine.max-model-len"
        )


def _limit(positions: int | None) -> str:
    return f" of at most {positions}" if positions else ", no limit by the model"


def _count_layers(model: ModelConfig) -> int:
    from otr.models.load import empty_model
    from otr.models.structure import decoder_layers

    return len(decoder_layers(empty_model(model)))


def _check_freeze(model_config: ModelConfig, patterns: tuple[str, ...]) -> str:
    from otr.models.freeze import freeze
    from otr.models.load import empty_model

    model = empty_model(model_config)
    freeze(model, patterns)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() for p in model.parameters())
    return f"without {' '.join(patterns)} {trained} of {weights} weights trained"


def _check_attention(model: ModelConfig) -> str:
    from transformers import AttentionInterface

    from otr.models.load import empty_model

    name = model.attention
    known = {"auto", "eager", *AttentionInterface().valid_keys()}
    # Names with "|" are variants for generation; those with "otr_" are chosen by "auto".
    known = {one for one in known if "|" not in one and not one.startswith("otr_")}
    if name not in known and "/" not in name:  # with "/" it names a kernel on the hub
        raise ValueError(
            f"--train.model.attention is {name!r}: use one of {', '.join(sorted(known))}"
        )
    if name.startswith("flash") and model.dtype == "float32":
        raise ValueError(f"{name} has no float32: give --train.model.dtype bfloat16")
    empty_model(model)  # raises if transformers does not support this attention for the model
    return name
