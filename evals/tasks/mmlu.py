"""MMLU (Hendrycks et al., 2021): 14,042 questions with four options, from 57 subjects.

Source: `mmlu/test/*.csv` of hendrycks/test (MIT; the copy of GAIR-NLP/LIMO, 2284c6a) or the hub.
Chat: see `_choice`, zero-shot with reasoning. Base models: the five questions of `mmlu/dev` as
worked examples, then the letter alone, as in EleutherAI/lm-evaluation-harness (mmlu, 4e7e0d4). The
harness compares the log-likelihoods of the four letters; here the most likely token must be the
letter.
"""

import csv
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

from evals.benchmark import Benchmark, Decoding, Item
from evals.tasks import _choice, _hub
from evals.tasks._files import read_text

SOURCE = _hub.Source(
    "mmlu/test/abstract_algebra_test.csv",
    "cais/mmlu",
    "c30699e8356da336a370243923dbaf21066bb9fe",
    config="all",
)
SHOTS = dataclasses.replace(SOURCE, file="mmlu/dev/abstract_algebra_dev.csv", split="dev")
FIELDS = {"subject": str, "question": str, "choices": list, "answer": int}


def load(directory: Path | None) -> Benchmark:
    """Load all subjects in alphabetical order; they are in `Item.meta["subject"]`."""
    examples: dict[str, str] = {}
    for subject, asked, letter in _questions(SHOTS, directory):
        head = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        shots = examples.get(subject, head)
        examples[subject] = f"{shots}{asked.strip()}\nAnswer: {letter}\n\n"
    items = [
        Item(
            id=f"mmlu/{number}",
            prompt=_choice.prompt(subject, asked),
            answer=letter,
            meta={"subject": subject},
            completion=_completion(examples.get(subject), asked),
        )
        for number, (subject, asked, letter) in enumerate(_questions(SOURCE, directory))
    ]
    return _choice.benchmark("mmlu", items, "hendrycks/test; GAIR-NLP/LIMO@2284c6a")


def _completion(examples: str | None, asked: str) -> str:
    return f"{examples}{asked.strip()}\nAnswer:" if examples else ""


def base(benchmark: Benchmark) -> Benchmark:
    """Return the variant with five worked examples, answered by the letter alone."""
    return _choice.letter_only(benchmark, Decoding(max_tokens=4, stop=("\n",)))


def _questions(source: _hub.Source, directory: Path | None) -> Iterator[tuple[str, str, str]]:
    """Yield subject, question with its options, and letter."""
    first = source.path(directory)
    if first is None:
        for _, found in _hub.hub_rows(source, FIELDS):
            asked = f"{found['question']}\n{_choice.lettered(found['choices'])}"
            yield found["subject"].replace("_", " "), asked, _choice.LETTERS[found["answer"]]
        return
    ending = f"_{source.split}.csv"
    for path in sorted(first.parent.glob(f"*{ending}")) or [first] * (source is SOURCE):
        reader = csv.reader(io.StringIO(read_text(path), newline=""))
        for row in reader:
            if len(row) != 6 or row[5] not in list("ABCD"):
                raise ValueError(
                    f"{path}, line {reader.line_num}: expected question, four options and an "
                    f"answer letter, found {len(row)} columns that end with {row[-1:]!r:.40}"
                )
            asked = f"{row[0]}\n{_choice.lettered(row[1:5])}"
            yield path.name.removesuffix(ending).replace("_", " "), asked, row[5]
