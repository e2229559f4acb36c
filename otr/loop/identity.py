"""Whether a run that goes on is still the run that began.

In: a `TrainConfig` and what its corpus holds. Out: a flat dict of what decides the outcome, and the
differences between two of them.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from otr.config import TrainConfig

PLACES = 16  # in which a large file is looked at
WEIGHT_BYTES = 64 * 2**10  # of each file of weights
_FREE = (
    "memory.",
    "workers.",
    "micro_batch_size",
    "log_interval",
    "eval_interval",
    "checkpoint_interval",
    "data.validation",
    "data.max_rejected",
    "data.skip_bad",
    "data.paths",  # in their place stands what they hold
    "model.trust_remote_code",
    "model.attention",
)
"""Dotted keys, or beginnings of them, that may change from one start of a run to the next."""


def identity(config: TrainConfig, corpus: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """What decides the outcome: dotted keys to values that JSON has.

    Args:
        config: the run.
        corpus: of each of its files what tells it from others.
    """
    kept = {key: value for key, value in flatten(config).items() if not key.startswith(_FREE)}
    # A moved model is the same one; its name is what a person would compare.
    kept["model.path"] = str(kept["model.path"]).rstrip("/").rpartition("/")[2]
    kept["model.weights"] = _weights(Path(config.model.path))
    return kept | {"data.files": [[*file] for file in corpus]}


def _weights(model: Path) -> list[list[Any]] | None:
    """Of each of a directory's files of weights name, size and digest; None for the hub's."""
    if not model.is_dir():
        return None
    paths = sorted(model.glob("*.safetensors"))
    return [[path.name, path.stat().st_size, sampled_digest(path, WEIGHT_BYTES)] for path in paths]


def sampled_digest(path: str | Path, most: int) -> str:
    """Of a file's bytes; of one that has more than `most`, of so many in PLACES places.

    Raises:
        OSError: it can't be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        places, each = (1, size) if size <= most else (PLACES, most // PLACES)
        for place in range(places):
            file.seek((size - each) * place // max(1, places - 1))
            digest.update(file.read(each))
    return digest.hexdigest()[:16]


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Compare a run's identity with that of its beginning.

    Raises:
        ValueError: they differ; the message names the keys with both values.
    """
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if keys:
        both = [(key, before.get(key), now.get(key)) for key in keys]
        told = "; ".join(
            f"{k} was {_short(old, new)}, is {_short(new, old)}" for k, old, new in both
        )
        raise ValueError(
            f"{where} holds a run with other settings: {told}: put them back, or give another name"
        )


def flatten(config: TrainConfig) -> dict[str, Any]:
    """Every leaf under its dotted name; tuples as lists."""

    def leaves(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, inner in value.items():
            if isinstance(inner, Mapping) and key != "columns":
                yield from leaves(inner, f"{prefix}{key}.")
            else:
                yield prefix + key, [*inner] if isinstance(inner, tuple) else inner

    return dict(leaves(asdict(config), ""))


def _short(value: Any, other: Any) -> str:
    """Of two lists of files, those whose name and size, or else digest, the other has not."""
    if value and other and isinstance(value, list) and isinstance(value[0], list):
        known = [each[:2] for each in other]
        named = [each for each in value if each[:2] not in known]
        value = named or [each for each in value if each not in other] or value
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
