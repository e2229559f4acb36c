"""Proof that an engine serves the weights of a Hugging Face directory.

In: the directory and the log-probabilities that the engine served for fixed token sequences.
Out: nothing, or a NotServedError. The truth is transformers in float32 on the same directory, so a
fault of the engine, of its kernels or of a weight swap can't hide.
"""

from __future__ import annotations

import math
import os
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from evals.serving.requests import Request, Response

if TYPE_CHECKING:
    from evals.settings import EngineSettings

# Largest and mean difference of served log-probabilities from the truth, in nats. Measured on a
# trained model of 1.4 M parameters and random tokens: float32 1e-5 and 3e-6 (the order of
# summation), bfloat16 0.21 and 0.03, float16 0.02 and 0.003 (rounding). Wrong weights are off by
# nats; those of a nearby checkpoint by less, which in bfloat16 only the mean tells from rounding.
TOLERANCE = {"float32": (1e-3, 1e-4), "bfloat16": (0.75, 0.1), "float16": (0.1, 0.01)}

# What two directories may differ in and still fit the same engine.
_FREE_KEYS = {
    "_name_or_path", "architectures", "bos_token_id", "dtype", "eos_token_id", "pad_token_id",
    "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip

NUM_CONTINUED = 8


class NotServedError(RuntimeError):
    """The engine does not serve the weights that it should."""


def check_directory(directory: str | Path) -> Path:
    """Return the absolute path of a model directory.

    Raises:
        ValueError: it holds no config.json or no safetensors weights.
    """
    path = Path(directory).absolute()
    for pattern in ("config.json", "*.safetensors"):
        if not any(path.glob(pattern)):
            raise ValueError(
                f"{directory} is no model directory: it holds no {pattern}; "
                "give a Hugging Face directory with config, safetensors weights and tokenizer"
            )
    return path


def check_same_architecture(served: Path, candidate: Path) -> None:
    """Check that the weights of `candidate` fit an engine started on `served`.

    Raises:
        ValueError: with each config key that differs and both values.
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
    """Fixed pseudo-random token sequences: a short one, and one longer than a KV-cache block.

    The second would be answered from the cache of the old weights (blocks of up to 128 tokens) if
    a swap forgot to reset it.
    """
    draw = random.Random(0)
    vocab_size = _config(directory).get_text_config().vocab_size
    longest = max_model_len - NUM_CONTINUED
    return [[draw.randrange(vocab_size) for _ in range(min(n, longest))] for n in (24, 160)]


def verify(
    ask: Callable[[Sequence[Request], Mapping[str, Any]], Sequence[Response]],
    directory: Path,
    adapters: Mapping[str, Path],
    settings: EngineSettings,
) -> None:
    """Compare an engine with transformers: log-probs of given tokens and of a greedy continuation.

    Args:
        ask: gets the engine's answers to requests with options, see `evals.serving.client.ask`.
        directory: what the engine should serve.
        adapters: LoRA adapters beside it, name to directory.
        settings: of the engine.

    Raises:
        NotServedError: it serves something else.
    """
    prompts = sequences(directory, settings.max_model_len)
    for name, path in {"": None, **adapters}.items():
        shared = {"temperature": 0.0, "ignore_eos": True, "adapter": name}
        given = ask([Request(row, 1) for row in prompts], shared | {"prompt_logprobs": 0})
        # Apart from the others, because vLLM takes nothing from its prefix cache for those.
        continued = ask([Request(row, NUM_CONTINUED) for row in prompts], shared | {"logprobs": 0})
        rows = [[*row, *answer.token_ids] for row, answer in zip(prompts, continued, strict=True)]
        served = [
            [*first.prompt_logprobs, *then.logprobs]
            for first, then in zip(given, continued, strict=True)
        ]
        truth = reference_logprobs(directory, rows, path)
        check_logprobs(served, truth, settings.dtype, str(path or directory))


def reference_logprobs(
    directory: Path, rows: Sequence[Sequence[int]], adapter: Path | None = None
) -> list[list[float]]:
    """Log p(token | tokens before it) of each row by transformers, float32, on this host's CPU.

    A row of n tokens gives n - 1 values in nats. Needs 4 bytes of memory a parameter.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True
    ).eval()
    if adapter is not None:
        from peft import PeftModel

        with warnings.catch_warnings(action="ignore"):  # of a name that transformers deprecates
            model = PeftModel.from_pretrained(model, adapter).eval()
    result = []
    for row in rows:
        ids = torch.tensor([list(row)])
        with torch.inference_mode():
            logp = model(ids).logits[0, :-1].float().log_softmax(-1)
        result.append(logp.gather(-1, ids[0, 1:, None]).squeeze(-1).tolist())
    return result


def check_logprobs(
    served: Sequence[Sequence[float]], truth: Sequence[Sequence[float]], dtype: str, what: str
) -> float:
    """Return the largest difference in nats.

    Raises:
        NotServedError: it or the mean exceeds TOLERANCE[dtype], or a value is missing or not a
            number.
    """
    if [*map(len, served)] != [*map(len, truth)]:
        raise NotServedError(
            f"the engine did not answer for all of {what}: {[*map(len, served)]} log-probabilities "
            f"instead of {[*map(len, truth)]}"
        )
    differences = [
        abs(got - true)
        for got_row, true_row in zip(served, truth, strict=True)
        for got, true in zip(got_row, true_row, strict=True)
    ]
    if not all(map(math.isfinite, differences)):
        differences = [math.inf]
    worst, mean = max(differences, default=0.0), fmean(differences or [0.0])
    most, most_on_average = TOLERANCE[dtype]
    if worst > most or mean > most_on_average:
        raise NotServedError(
            f"the engine does not serve {what}: log-probabilities differ by up to {worst:.3g} and "
            f"on average {mean:.3g} nats from transformers' in float32 (allowed in {dtype}: "
            f"{most:g} and {most_on_average:g}); nothing it generates may be scored"
        )
    return worst


def _config(directory: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(os.fspath(directory), local_files_only=True)
