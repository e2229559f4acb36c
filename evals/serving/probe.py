"""Verification that an engine serves the weights of a Hugging Face directory.

The engine's log-probabilities of fixed token sequences are compared with those of transformers in
float32 on the same directory. This detects faults of the engine, of its kernels and of a weight
swap.
"""

from __future__ import annotations

import math
import os
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from evals.serving.requests import Request, Response

if TYPE_CHECKING:
    from evals.settings import EngineSettings


class Tolerance(NamedTuple):
    """Largest and mean difference of log-probabilities, in nats."""

    largest: float
    mean: float


# Measured on a trained model of 1.4 M parameters and random tokens (largest, mean): float32 1e-5
# and 3e-6 (order of summation), bfloat16 0.21 and 0.03, float16 0.02 and 0.003 (rounding). Wrong
# weights are off by nats. A nearby checkpoint is off by less: in bfloat16 only the mean
# distinguishes it from rounding.
TOLERANCE = {
    "float32": Tolerance(1e-3, 1e-4),
    "bfloat16": Tolerance(0.75, 0.1),
    "float16": Tolerance(0.1, 0.01),
}

# Keys of config.json in which two checkpoints of the same engine may differ.
_FREE_KEYS = {
    "_name_or_path", "architectures", "bos_token_id", "dtype", "eos_token_id", "pad_token_id",
    "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip

NUM_CONTINUATION_TOKENS = 8


class NotServedError(RuntimeError):
    """The engine serves other weights than it should."""


def check_directory(directory: str | Path) -> Path:
    """Return the absolute path of a model directory.

    Raises:
        ValueError: the directory holds no config.json or no safetensors weights.
    """
    path = Path(directory).absolute()
    for pattern in ("config.json", "*.safetensors"):
        if not any(path.glob(pattern)):
            raise ValueError(
                f"{directory} is not a model directory: it holds no {pattern}; "
                "give a Hugging Face directory with config, safetensors weights and tokenizer"
            )
    return path


def check_same_architecture(served: Path, candidate: Path) -> None:
    """Check that the weights of `candidate` fit an engine started on `served`.

    Raises:
        ValueError: they don't; the message has each config key that differs, with both values.
    """
    ours, theirs = _config(served).to_dict(), _config(candidate).to_dict()
    different = [
        f"{key}: {ours.get(key)!r} there, {theirs.get(key)!r} here"
        for key in sorted(set(ours) | set(theirs))
        if key not in _FREE_KEYS and ours.get(key) != theirs.get(key)
    ]
    if different:
        raise ValueError(
            f"{candidate} does not fit the engine started on {served} ({'; '.join(different)}); "
            "start another engine for it"
        )


def sequences(directory: Path, max_model_len: int) -> list[list[int]]:
    """Make two pseudo-random token sequences, the same on each call.

    One is short, the other longer than a block of the KV cache (at most 128 tokens): if a swap left
    the prefix cache in place, vLLM would use the old weights' keys and values for it.
    """
    rng = random.Random(0)
    vocab_size = _config(directory).get_text_config().vocab_size
    longest = max_model_len - NUM_CONTINUATION_TOKENS
    return [[rng.randrange(vocab_size) for _ in range(min(n, longest))] for n in (24, 160)]


def verify(
    respond: Callable[[Sequence[Request], Mapping[str, Any]], Sequence[Response]],
    directory: Path,
    adapters: Mapping[str, Path],
    settings: EngineSettings,
) -> None:
    """Compare an engine with transformers: log-probs of given tokens and of a greedy continuation.

    Args:
        respond: returns the engine's responses to requests with options (see
            `evals.serving.requests.Backend`), in their order.
        directory: the model that the engine should serve.
        adapters: LoRA adapters served with it, name -> directory.
        settings: settings of the engine.

    Raises:
        NotServedError: it serves something else.
    """
    prompts = sequences(directory, settings.max_model_len)
    for name, path in {"": None, **adapters}.items():
        shared = {"temperature": 0.0, "ignore_eos": True, "adapter": name}
        given = respond([Request(row, 1) for row in prompts], shared | {"prompt_logprobs": 0})
        # In separate requests: vLLM bypasses its prefix cache if prompt_logprobs are requested.
        longer = [Request(row, NUM_CONTINUATION_TOKENS) for row in prompts]
        continued = respond(longer, shared | {"logprobs": 0})
        rows = [[*row, *then.token_ids] for row, then in zip(prompts, continued, strict=True)]
        served = [
            [*first.prompt_logprobs, *then.logprobs]
            for first, then in zip(given, continued, strict=True)
        ]
        expected = reference_logprobs(directory, rows, path)
        check_logprobs(served, expected, settings.dtype, str(path or directory))


def reference_logprobs(
    directory: Path, rows: Sequence[Sequence[int]], adapter: Path | None = None
) -> list[list[float]]:
    """Compute log p(token | preceding tokens) with transformers, in float32 on this host's CPU.

    Needs 4 bytes of memory per parameter.

    Args:
        directory: a model directory.
        rows: token sequences.
        adapter: directory of a LoRA adapter to apply.

    Returns:
        For each sequence of n tokens, n - 1 values in nats.
    """
    # Imported here: both take seconds, and most users of this module need neither.
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True
    ).eval()
    if adapter is not None:
        from peft import PeftModel

        with warnings.catch_warnings(action="ignore"):  # peft uses a deprecated name
            model = PeftModel.from_pretrained(model, adapter).eval()
    result = []
    for row in rows:
        ids = torch.tensor([list(row)])
        with torch.inference_mode():
            logp = model(ids).logits[0, :-1].float().log_softmax(-1)
        result.append(logp.gather(-1, ids[0, 1:, None]).squeeze(-1).tolist())
    return result


def check_logprobs(
    served: Sequence[Sequence[float]], expected: Sequence[Sequence[float]], dtype: str, what: str
) -> float:
    """Check served log-probabilities; return the largest difference in nats.

    Raises:
        NotServedError: the largest or the mean difference exceeds TOLERANCE[dtype], or a value is
            missing or not finite.
    """
    if [*map(len, served)] != [*map(len, expected)]:
        raise NotServedError(
            f"the engine returned {[*map(len, served)]} log-probabilities for {what} instead of "
            f"{[*map(len, expected)]}"
        )
    differences = [
        abs(got - true)
        for got_row, true_row in zip(served, expected, strict=True)
        for got, true in zip(got_row, true_row, strict=True)
    ]
    if not all(map(math.isfinite, differences)):
        differences = [math.inf]
    worst, mean = max(differences, default=0.0), fmean(differences or [0.0])
    allowed = TOLERANCE[dtype]
    if worst > allowed.largest or mean > allowed.mean:
        raise NotServedError(
            f"the engine does not serve {what}: log-probabilities differ by up to {worst:.3g} and "
            f"on average {mean:.3g} nats from transformers' in float32 (allowed in {dtype}: "
            f"{allowed.largest:g} and {allowed.mean:g}); nothing it generates may be scored"
        )
    return worst


def _config(directory: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(os.fspath(directory), local_files_only=True)
