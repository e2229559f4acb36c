"""The built-in corpora, benchmarks and models: what ``builtin:NAME`` stands for as a path.

Corpora are JSONL of {"prompt", "completion"}; benchmarks are JSONL of {"id", "prompt", "answer",
"domain", "grader", "tests"}. They are generated from `pipelines.builtin.world` on first use, except
the training sets of GSM8K and MBPP: gsm8k-train, gsm8k-validation, mbpp-train and mbpp-validation.
Each skill of the world has files of its own: function-train, function-validation, function-heldout
and function-harder. The model `base` is the directory beside this file; `smollm2` is made by
`pipelines.builtin.smollm2`.
"""

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from evals import tasks
from evals.tasks import gsm8k, mbpp
from otr.files import write_text
from otr.hints import did_you_mean
from pipelines.builtin import smollm2
from pipelines.builtin.world import SKILLS, Item, items

PREFIX = "builtin:"
TARGET = "chain"
"""The skill that a fine-tune is to learn; the others are to be retained."""
BENCHMARKS = (
    "target-heldout",
    "target-harder",
    "target-train",
    "retained-mathematics",
    "retained-code",
    "retained-reasoning",
)
_MODEL = Path(__file__).parent / "base"
_RETAINED = [skill for skill in SKILLS if skill != TARGET]
_TRAIN, _VALIDATION, _QUESTIONS = 6000, 108, 200  # items of the target skill; of a benchmark
_TRAINING_SETS: dict[str, Callable[[Path | None], list[dict[str, str]]]] = {
    "gsm8k-train": lambda directory: gsm8k.training_examples(directory)[:-256],
    "gsm8k-validation": lambda directory: gsm8k.training_examples(directory)[-256:],
    "mbpp-train": partial(mbpp.examples, "train"),
    "mbpp-validation": partial(mbpp.examples, "validation"),
}
"""Training sets of published benchmarks, made from the directory of their files."""
_VALIDATION_EACH = _VALIDATION // len(_RETAINED)  # items of each retained skill


def builtin_dir(output: str) -> Path:
    """Return the directory below a run's output for the files of this version of the world.

    Raises:
        ValueError: the output is a file.
    """
    if Path(output).is_file():
        raise ValueError(f"output {output!r} is a file: give a directory")
    here = Path(__file__)
    sources = [here, here.with_name("world.py"), Path(gsm8k.__file__), Path(mbpp.__file__)]
    version = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    return Path(output).absolute() / "builtin" / version[:12]


def resolve_path(name: str, directory: Path, benchmark_dir: str = "") -> str:
    """Return the path that ``builtin:NAME`` stands for; return any other name unchanged.

    Args:
        name: the name.
        directory: where built-in files are written; an existing file is reused.
        benchmark_dir: folder of the published benchmark files, for their training sets; see
            `evals.tasks.load`.

    Raises:
        ValueError: there is no such built-in file, or it can't be made here.
    """
    if not name.startswith(PREFIX):
        return name
    name = name.removeprefix(PREFIX)
    if name == "base":
        if not (_MODEL / "config.json").is_file():
            raise ValueError(
                "the built-in model does not exist: python -m pipelines.builtin.pretrain "
                "pipelines/builtin/base"
            )
        return str(_MODEL)
    if name == smollm2.NAME:
        return str(smollm2.model_dir())
    files = dict(_FILES)
    published = benchmark_dir or os.environ.get(tasks.FOLDER_VARIABLE)
    source = Path(published) if published else None
    files.update({each: partial(make, source) for each, make in _TRAINING_SETS.items()})
    if name not in files:
        known = [f"{PREFIX}{file}" for file in (*files, "base", smollm2.NAME)]
        raise ValueError(f"no built-in file {PREFIX}{name}: {did_you_mean(PREFIX + name, known)}")
    path = directory / f"{name}.jsonl"
    if not path.is_file():
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"{directory} can't be written to ({error.strerror}): give another --output"
            ) from error
        write_text(path, "".join(json.dumps(record) + "\n" for record in files[name]()))
    return str(path)


def _validation() -> list[dict[str, str]]:
    return _examples(item for _, item in _validation_items())


def _validation_questions() -> list[dict[str, str]]:
    """Return the items of the validation data as questions; the benchmarks have none of them."""
    numbered = [
        _question(f"{skill}-{number}", skill, item)
        for number, (skill, item) in enumerate(_validation_items())
    ]
    random.Random("validation").shuffle(numbered)
    return numbered


def _validation_items() -> list[tuple[str, Item]]:
    """Return each item with its skill, as many of the target as of all retained skills together.

    The validation loss then measures both, learning and forgetting.
    """
    each = {TARGET: _VALIDATION} | dict.fromkeys(_RETAINED, _VALIDATION_EACH)
    return [(s, item) for s, count in each.items() for item in items(s, "heldout", count)]


def _examples(chosen: Iterable[Item]) -> list[dict[str, str]]:
    return [{"prompt": item.prompt, "completion": item.completion} for item in chosen]


def _questions(skills: Iterable[str], split: str, first: int = 0) -> list[dict[str, str]]:
    """Return `_QUESTIONS` questions; they are shuffled, so that any part has some of each skill.

    Args:
        skills: skills that get an equal number of questions.
        split: split of the world.
        first: items of each skill to leave out, since the validation data has them.
    """
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
    skills = [skill for skill in _RETAINED if SKILLS[skill].domain == domain]
    return _questions(skills, "heldout", first=_VALIDATION_EACH)


Make = Callable[[], list[dict[str, str]]]
"""Makes the records of a file."""


def _files_of(skill: str) -> dict[str, Make]:
    """Return the corpora and benchmarks of one skill, which share no item."""
    return {
        "train": lambda: _examples(items(skill, "train", _TRAIN)),
        "validation": lambda: _examples(items(skill, "heldout", _VALIDATION)),
        "heldout": lambda: _questions([skill], "heldout", first=_VALIDATION),
        "harder": lambda: _questions([skill], "harder"),
    }


_OF_TARGET = _files_of(TARGET)
_FILES: dict[str, Make] = {
    "train": _OF_TARGET["train"],
    "validation": _validation,
    "validation-questions": _validation_questions,
    "target-heldout": _OF_TARGET["heldout"],
    "target-harder": _OF_TARGET["harder"],
    "target-train": lambda: _questions([TARGET], "train"),
    "retained-mathematics": lambda: _retained("mathematics"),
    "retained-code": lambda: _retained("code"),
    "retained-reasoning": lambda: _retained("reasoning"),
    **{f"{skill}-{part}": make for skill in SKILLS for part, make in _files_of(skill).items()},
}
