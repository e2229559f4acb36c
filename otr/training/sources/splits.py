"""Splits of a data set, told by the names of its files.

A file belongs to the split whose word is part of its name, or else of the nearest directory's name.
Words are separated by anything but letters: ``train-00000-of-00001.parquet`` and ``data_val.jsonl``
tell a split, ``latest.jsonl`` does not. If any file of a directory tells a split, those that tell
none belong to train.
"""

import re
from collections.abc import Mapping, Sequence

SPLIT_OF_WORD = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "evaluation": "validation",
}
"""The split that each word of a name stands for."""


def split_of(path: str) -> str | None:
    """Return the split that the parts of a path tell, the last part first; None for no split."""
    for part in reversed(path.split("/")):
        for word in re.findall(r"[^\W\d_]+", part.lower()):
            if word in SPLIT_OF_WORD:
                return SPLIT_OF_WORD[word]
    return None


def by_split(paths: Sequence[str], split: str) -> Mapping[str, Sequence[str]]:
    """Return the paths of each split, in order; all are of `split` if none tells a split.

    Args:
        paths: relative to the directory that was named, whose own name does not count.
        split: the split that is wanted. One with a name of its own, such as train_sft, has the
            files whose names contain it.

    Raises:
        ValueError: there are splits, but not this one; the message names them.
    """
    told = {path: split_of(path) for path in paths}
    if not any(told.values()):
        return {split: paths}
    found: dict[str, list[str]] = {}
    own_name = re.compile(rf"(?<![^\W\d_]){re.escape(split.lower())}(?![^\W\d_])")
    if split not in SPLIT_OF_WORD and any(own_name.search(path.lower()) for path in paths):
        for path in paths:
            name = split if own_name.search(path.lower()) else told[path] or "train"
            found.setdefault(name, []).append(path)
        return found
    wanted = SPLIT_OF_WORD.get(split, split)
    for path in paths:
        name = told[path] or "train"
        found.setdefault(split if name == wanted else name, []).append(path)
    if split not in found:
        raise ValueError(
            f"no file of split {split!r}: the names tell {', '.join(found)}: set data.split to one "
            "of them, or name the files themselves"
        )
    return found
