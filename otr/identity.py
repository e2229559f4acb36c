"""Whether a run that goes on is still the run that began.

In: a `TrainConfig` and what its corpus holds. Out: a flat dict of what decides the outcome, and the
differences between two of them.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from otr.config import TrainConfig

SAMPLES, SAMPLE_BYTES = 16, 4096  # of each file of weights
_FREE = (
    "memory.",
    "workers.",
    "micro_rows",
    "log_every",
    "eval_every",
    "save_every",
    "data.validation",
    "data.max_rejected",
    "data.skip_bad",
    "data.paths",  # in their place stands what they hold
    "model.trust_remote_code",
    "model.attention",
)
"""Dotted keys, or beginnings of them, that may change from one start of a run to the next."""


def identity(config: TrainConfig, corpus: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """What decides the outcome: dotted keys to values that JSON has.

    Args:
        config: the run.
        corpus: name and size of each of its files.
    """
    kept = {key: value for key, value in flat(config).items() if not key.startswith(_FREE)}
    # A moved model is the same one; its name is what a person would compare.
    kept["model.path"] = str(kept["model.path"]).rstrip("/").rpartition("/")[2]
    kept["model.weights"] = _sampled(Path(config.model.path))
    return kept | {"data.files": [[name, size] for name, size in corpus]}


def _sampled(model: Path) -> str | None:
    """Digest of the sizes of a directory's weights and of some of their bytes; of the hub, None."""
    if not model.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(model.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            for part in range(SAMPLES):
                file.seek(size * part // SAMPLES)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Compare a run's identity with that of its beginning.

    Raises:
        ValueError: they differ; the message names the keys with both values.
    """
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if keys:
        told = "; ".join(f"{k} was {_short(before.get(k))}, is {_short(now.get(k))}" for k in keys)
        raise ValueError(
            f"{where} holds a run with other settings: {told}: put them back, or give another name"
        )


def flat(config: TrainConfig) -> dict[str, Any]:
    """Every leaf under its dotted name; tuples as lists."""

    def leaves(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, inner in value.items():
            if isinstance(inner, Mapping) and key != "columns":
                yield from leaves(inner, f"{prefix}{key}.")
            else:
                yield prefix + key, [*inner] if isinstance(inner, tuple) else inner

    return dict(leaves(asdict(config), ""))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
