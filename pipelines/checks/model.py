"""Check that a model can be trained and scored as configured; reads its config, not its weights."""

from pathlib import Path

from otr.config import ModelConfig, TrainConfig
from pipelines.config.presets import SweepConfig

# Imports are inside the functions: each check loads no more of transformers than it needs, which
# saves seconds.


def check_model(config: SweepConfig) -> str:
    """Check that tokenizer, chat template and weights exist and fit together.

    Raises:
        ValueError: one of them is missing, or the vocabulary is too large for the model.
    """
    from otr.models.architecture import load_architecture
    from otr.models.tokenizer import load_tokenizer

    model = config.train.model
    tokenizer = load_tokenizer(model)
    # From a directory without tokenizer files transformers makes an empty tokenizer.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError(f"no tokenizer at {model.path!r}: it has no vocabulary")
    architecture = load_architecture(model)
    embeddings = architecture.get_text_config().vocab_size
    if len(tokenizer) > embeddings:
        raise ValueError(
            f"vocabulary mismatch at {model.path!r}: the tokenizer has {len(tokenizer)} tokens, "
            f"the model {embeddings} embeddings; use the model's own tokenizer"
        )
    if Path(model.path).is_dir() and not any(Path(model.path).glob("*.safetensors")):
        raise ValueError(f"no weights at {model.path!r}: it has no .safetensors file")
    return (
        f"{architecture.model_type}, {embeddings} embeddings, {len(tokenizer)} tokens, "
        "a chat template"
    )


def check_training(config: SweepConfig) -> str:
    """Check sequence length, attention, adapters and FSDP against the model's architecture.

    Raises:
        ValueError: the model does not support one of them as configured.
    """
    from otr.models.architecture import check_sequence_length

    train = config.train
    positions = check_sequence_length(train)
    found = [f"sequence length {train.data.sequence_length}{_limit(positions)}"]
    if train.model.attention != "auto":
        found.append(f"attention {_check_attention(train.model)}")
    if train.lora.rank:
        found.append(f"{_count_adapter_weights(train)} trained weights in adapters")
    if train.memory.strategy.startswith("fsdp"):
        found.append(f"sharded by {_count_layers(train.model)} layers")
    return ", ".join(found)


def check_engine(config: SweepConfig) -> str:
    """Check that the engine can load the model with the configured context length.

    Raises:
        ValueError: the context is longer than the model's, or the model needs code of its own.
    """
    from otr.models.architecture import max_positions

    model, length = config.train.model, config.engine.max_model_len
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
    return f"context length {length}{_limit(positions)}, {config.engine.dtype}"


def _limit(positions: int | None) -> str:
    return f" of at most {positions}" if positions else ", no limit by the model"


def _count_adapter_weights(train: TrainConfig) -> int:
    from otr.models.load import empty_model
    from otr.models.lora import add_adapters

    adapters = add_adapters(empty_model(train.model), train.lora)
    return sum(p.numel() for p in adapters.parameters() if p.requires_grad)


def _count_layers(model: ModelConfig) -> int:
    from otr.models.load import empty_model
    from otr.models.parts import decoder_layers

    return len(decoder_layers(empty_model(model)))


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
