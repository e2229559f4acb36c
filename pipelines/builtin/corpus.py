"""The built-in world as files: what ``builtin:NAME`` stands for wherever a path is asked for.

In: a name and a directory. Out: a file in that directory, written whole or not at all, reused
when there. Corpora are JSONL of {"prompt", "completion"}, benchmarks JSONL of {"id", "prompt",
"answer", "domain", "grader", "tests"}, the model is the directory beside this file.
"""

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path

from pipelines.builtin.world import SKILLS, Item, items

PREFIX = "builtin:"
TARGET = "chain"
BENCHMARKS = (
    "target-heldout",
    "target-harder",
    "target-train",
    "retained-mathematics",
    "retained-code",
    "retained-reasoning",
)
_MODEL = Path(__file__).parent / "base"
_KEPT = [skill for skill in SKILLS if skill != TARGET]
_TRAIN, _VALIDATION, _QUESTIONS = 6000, 108, 200
_VALIDATION_EACH = _VALIDATION // len(_KEPT)  # of each kept skill, beside _VALIDATION of the target


def folder(output: str) -> Path:
    """Where the files of this version of the world belong under a run's output directory.

    Raises:
        ValueError: the output is a file.
    """
    if Path(output).is_file():
        raise ValueError(f"output {output!r} is a file: give a directory")
    sources = [Path(__file__), Path(__file__).with_name("world.py")]
    version = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    return Path(output).absolute() / "builtin" / version[:12]


def materialise(name: str, directory: Path) -> str:
    """The path that `name` stands for; a name without the prefix stands for itself.

    Raises:
        ValueError: there is no such built-in file, or the base model was never made.
    """
    if not name.startswith(PREFIX):
        return name
    name = name.removeprefix(PREFIX)
    if name == "base":
        if not (_MODEL / "config.json").is_file():
            raise ValueError(
                "the built-in model is not there: python -m pipelines.builtin.pretrain "
                "pipelines/builtin/base"
            )
        return str(_MODEL)
    if name not in _FILES:
        near = get_close_matches(name, [*_FILES, "base"], 1, 0)[0]
        raise ValueError(f"no built-in file {PREFIX}{name}: did you mean {PREFIX}{near}?")
    path = directory / f"{name}.jsonl"
    if not path.is_file():
        _write(path, _FILES[name]())
    return str(path)


def _write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scratch.replace(path)


def _train() -> list[dict[str, str]]:
    return _examples(items(TARGET, "train", _TRAIN))


def _validation() -> list[dict[str, str]]:
    """As much of the target as of all other skills together: to learn the one and keep the rest."""
    drawn = items(TARGET, "heldout", _VALIDATION)
    for skill in _KEPT:
        drawn += items(skill, "heldout", _VALIDATION_EACH)
    return _examples(drawn)


def _examples(drawn: Iterable[Item]) -> list[dict[str, str]]:
    return [{"prompt": item.prompt, "completion": item.completion} for item in drawn]


def _questions(skills: Iterable[str], split: str, first: int = 0) -> list[dict[str, str]]:
    """`_QUESTIONS` of them in all, shuffled, so that any part has some of each skill."""
    skills = list(skills)
    each = -(-_QUESTIONS // len(skills))
    questions = [
        _question(f"{skill}-{i}", skill, item)
        for skill in skills
        for i, item in enumerate(items(skill, split, first + each)[first:])
    ]
    random.Random(split).shuffle(questions)
    return questions[:_QUESTIONS]


def _question(name: str, skill: str, item: Item) -> dict[str, str]:
    return {
        "id": name,
        "prompt": item.prompt,
        "answer": item.answer,
        "domain": SKILLS[skill].domain,
        "grader": item.grader,
        "tests": item.tests,
    }


def _retained(domain: str) -> list[dict[str, str]]:
    skills = [skill for skill in _KEPT if SKILLS[skill].domain == domain]
    return _questions(skills, "heldout", first=_VALIDATION_EACH)


_FILES: dict[str, Callable[[], list[dict[str, str]]]] = {
    "train": _train,
    "validation": _validation,
    "target-heldout": lambda: _questions([TARGET], "heldout", first=_VALIDATION),
    "target-harder": lambda: _questions([TARGET], "harder"),
    "target-train": lambda: _questions([TARGET], "train"),
    "retained-mathematics": lambda: _retained("mathematics"),
    "retained-code": lambda: _retained("code"),
    "retained-reasoning": lambda: _retained("reasoning"),
}
