"""BIG-Bench Hard (Suzgun et al., 2022): 6,511 questions of 27 kinds; mean over all of them.

Source: `bbh/*.json` of suzgunmirac/BIG-Bench-Hard (9ee07bd, MIT; with their canary string) or the
hub. Chat: zero-shot; the prompt gives the form of the answer. Base models: the three worked
examples of the paper, which the hub lacks, and the exact match of EleutherAI/lm-evaluation-harness
(bbh_cot_fewshot, 4e7e0d4). Its stop string "Q" is "Q:" here, since "Q" would cut answers.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from evals.benchmark import Benchmark, Decoding, Item
from evals.grading import choice_equal, exact_equal, marked_answer, published
from evals.tasks import _hub
from evals.tasks._files import examples, read_json

SOURCE = _hub.Source(
    "bbh/boolean_expressions.json", "lukaemon/bbh", "982bb89fd79532a8ac676a61fc42eb1aeec63f99"
)
SHOTS = dataclasses.replace(SOURCE, file="bbh/cot_prompts/cot_prompts.json")
INSTRUCTION = 'Think step by step. End with one line of the form "So the answer is {form}."'


def load(directory: Path | None) -> Benchmark:
    """Load all kinds in alphabetical order; `Item.meta["subject"]` is the kind."""
    path = SHOTS.path(directory)
    shots = read_json(path) if path and path.exists() else {}
    return Benchmark(
        name="bbh",
        domain="reasoning",
        items=tuple(_item(shots, *question) for question in _questions(directory)),
        grade=grade,
        decoding=Decoding(max_tokens=1024),
        metric="accuracy",
        source="suzgunmirac/BIG-Bench-Hard@9ee07bd",
        extract=extract,
    )


def base(benchmark: Benchmark) -> Benchmark:
    """Return the variant with three worked examples and exact match."""
    decoding = Decoding(max_tokens=1024, stop=("</s>", "Q:", "\n\n"))
    return dataclasses.replace(
        benchmark, decoding=decoding, grade=grade_exactly, extract=extract_exactly
    )


def grade(item: Item, text: str) -> bool:
    """Compare the letter of the option if the reference is one, else the answer itself."""
    is_choice = re.fullmatch(r"\([A-Z]\)", item.answer)
    return (choice_equal if is_choice else exact_equal)(text, item.answer)


def grade_exactly(item: Item, text: str) -> bool:
    """Compare the text after "the answer is", without the full stop, with the target exactly."""
    return published.bbh(text) == item.answer


def extract(item: Item, text: str) -> str:
    """Return the target if the text is right, else what it marks as final, or its last line."""
    if grade(item, text):
        return item.answer
    return marked_answer(text) or text.strip().rpartition("\n")[2].strip()


def extract_exactly(item: Item, text: str) -> str:
    """Return the text after "the answer is", without the full stop."""
    return published.bbh(text)


def _item(shots: dict[str, str], kind: str, number: int, row: dict[str, str]) -> Item:
    form = "(LETTER)" if re.fullmatch(r"\([A-Z]\)", row["target"]) else "ANSWER"
    prompt = f"{row['input']}\n\n{INSTRUCTION.format(form=form)}"
    worked = shots.get(kind, "").partition("-----\n")[2].strip()  # below the canary
    completion = worked and f"{worked}\n\nQ: {row['input']}\nA: Let's think step by step.\n"
    return Item(f"{kind}/{number}", prompt, row["target"], "", {"subject": kind}, completion)


def _questions(directory: Path | None) -> Iterator[tuple[str, int, dict[str, str]]]:
    first = SOURCE.path(directory)
    if first is not None:
        yield from examples(sorted(first.parent.glob("*.json")) or [first])
        return
    for kind in _hub.configs(SOURCE):
        source = dataclasses.replace(SOURCE, config=kind)
        for number, (_, row) in enumerate(_hub.hub_rows(source, {"input": str, "target": str})):
            yield kind, number, row
