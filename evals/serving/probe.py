"""Verification that an engine serves the weights of a Hugging Face directory.

The engine's log-probabilities of fixed token sequences are compared with those of transformers on
the same directory: computed in float32 from the weights as the engine holds them, rounded to its
data type. How much they may differ follows from what rounding changes in this very model, which
transformers shows by computing in the lower data type, too. This detects faults of the engine, of
its kernels and of a weight swap.
"""

from __future__ import annotations

import math
import os
import random
import socket
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from evals.hardware import GIB, count_weights
from evals.serving.requests import Request, Response

if TYPE_CHECKING:
    from evals.settings import EngineSettings


class Difference(NamedTuple):
    """Largest and mean difference of log-probabilities, in nats."""

    largest: float
    mean: float

    @classmethod
    def of(cls, some: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> Difference:
        """Return the difference of two lists of rows; infinite if a value is not finite."""
        pairs = zip(chain(*some), chain(*others), strict=True)
        found = [abs(one - other) for one, other in pairs]
        if not all(map(math.isfinite, found)):
            return cls(math.inf, math.inf)
        return cls(max(found, default=0.0), fmean(found or [0.0]))


@dataclass(frozen=True)
class Reference:
    """Log-probabilities of some token sequences by transformers, and their rounding error."""

    logprobs: list[list[float]]
    """log p(token | preceding tokens) for each token but the first, in nats."""
    rounding: Difference
    """What rounding in the lower data type (bfloat16 for a float32 engine) changes."""

    def allowed(self, dtype: str) -> Difference:
        """Return the largest accepted difference of an engine that computes in `dtype`."""
        share = _FINER if dtype == "float32" else 1.0
        return Difference(
            FLOOR + 4 * share * self.rounding.largest, FLOOR + 2 * share * self.rounding.mean
        )


# An engine that rounds in other places differs from the reference about as much as transformers
# does in the same data type: on average within a factor of 2, at single tokens within 4.
FLOOR = 2**-16
"""Difference in nats that is always accepted: how float32 rounds a logit of 128 to 256."""
_FINER = 2**-10
"""Float32 rounds 2^16 times as finely as bfloat16; 2^6 is left for sums in another order."""
_TF32 = 2**-2
"""TF32 rounds 2^3 times as finely as bfloat16; a factor of 2 is left."""

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
    refer: Callable[..., Reference] | None = None,
) -> None:
    """Compare an engine with transformers: log-probs of given tokens and of a greedy continuation.

    Args:
        respond: returns the engine's responses to requests with options (see
            `evals.serving.requests.Backend`), in their order.
        directory: the model that the engine should serve.
        adapters: LoRA adapters served with it, name -> directory.
        settings: settings of the engine.
        refer: calls `reference` on the host that has the memory for it; by default this one.

    Raises:
        NotServedError: it serves something else.
    """
    refer = refer or reference
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
        expected = refer(directory, rows, settings.dtype, path)
        check_logprobs(served, expected, settings.dtype, str(path or directory))


def reference(
    directory: Path, rows: Sequence[Sequence[int]], dtype: str, adapter: Path | None = None
) -> Reference:
    """Compute what an engine should serve with transformers, on this host's CPU.

    Needs 4 bytes of memory per parameter.

    Args:
        directory: a model directory.
        rows: token sequences.
        dtype: the engine's data type.
        adapter: directory of a LoRA adapter to apply.

    Raises:
        RuntimeError: this host has too little memory.
    """
    _check_memory(directory)
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

    def logprobs_in(weights: torch.dtype) -> list[list[float]]:
        for parameter in model.parameters():  # buffers stay: rotary frequencies need float32
            parameter.data = parameter.data.to(weights)
        return [_logprobs(model, row) for row in rows]

    exact = logprobs_in(torch.float32)
    rounded = logprobs_in(torch.float16 if dtype == "float16" else torch.bfloat16)
    exact_of_rounded = logprobs_in(torch.float32)  # the weights remain rounded
    return Reference(
        exact if dtype == "float32" else exact_of_rounded, Difference.of(rounded, exact_of_rounded)
    )


def _check_memory(directory: Path) -> None:
    import psutil

    needed, free = 4 * count_weights(directory), psutil.virtual_memory().available
    if needed > free:
        raise RuntimeError(
            f"to verify what the engine serves, transformers needs {needed / GIB:.0f} GiB of "
            f"memory on {socket.gethostname()}, and {free / GIB:.0f} GiB are free there: end other "
            "programs, or use hosts with more memory"
        )


def _logprobs(model: Any, row: Sequence[int]) -> list[float]:
    import torch

    ids = torch.tensor([list(row)])
    with torch.inference_mode():
        logp = model(ids).logits[0, :-1].float().log_softmax(-1)
    return list(logp.gather(-1, ids[0, 1:, None]).squeeze(-1).tolist())


def check_logprobs(
    served: Sequence[Sequence[float]], expected: Reference, dtype: str, what: str
) -> Difference:
    """Check the log-probabilities that an engine in `dtype` serves; return their difference.

    Raises:
        NotServedError: the difference is larger than `expected.allowed`, or a value is missing or
            not finite.
    """
    if [*map(len, served)] != [*map(len, expected.logprobs)]:
        raise NotServedError(
            f"the engine returned {[*map(len, served)]} log-probabilities for {what} instead of "
            f"{[*map(len, expected.logprobs)]}"
        )
    found, allowed = Difference.of(served, expected.logprobs), expected.allowed(dtype)
    finite = math.isfinite(allowed.mean)
    if finite and found.largest <= allowed.largest and found.mean <= allowed.mean:
        return found
    remedy = "" if finite else f"; the model overflows in {dtype}: give --engine.dtype bfloat16"
    if dtype == "float32" and found.mean <= _TF32 * expected.rounding.mean:
        remedy = (
            "; as much as a GPU's TF32 changes: set TRITON_F32_DEFAULT=ieee in the environment, or "
            "give --engine.dtype bfloat16"
        )
    raise NotServedError(
        f"the engine does not serve {what}: log-probabilities differ by up to {found.largest:.3g} "
        f"and on average {found.mean:.3g} nats from transformers' (allowed for this model in "
        f"{dtype}: {allowed.largest:.2g} and {allowed.mean:.2g}){remedy}; nothing it generates may "
        "be scored"
    )


def _config(directory: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(os.fspath(directory), local_files_only=True)
