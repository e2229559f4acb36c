"""BIG-Bench Hard (Suzgun et al., 2022): 6,511 questions of 27 kinds; the mean over all of them.

In: `bbh/*.json` of suzgunmirac/BIG-Bench-Hard (9ee07bd, MIT; with their canary string) or the hub.
Out: a `Benchmark`. Chat: zero-shot, the form of the answer told. Base models: the paper's three
worked examples, which the hub lacks, and the exact match of EleutherAI/lm-evaluation-harness
(bbh_cot_fewshot, 4e7e0d4); its stop "Q" is "Q:" here, since it would end answers with that letter.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from evals.benchmark import Benchmark, Decoding, Item
from evals.grading import answers, published
from evals.tasks import _hub
from evals.tasks._files import examples, read_json

SOURCE = _hub.Source(
    "bbh/boolean_expressions.json", "lukaemon/bbh", "982bb89fd79532a8ac676a61fc42eb1aeec63f99"
)
SHOTS = dataclasses.replace(SOURCE, file="bbh/cot_prompts/cot_prompts.json")
INSTRUCTION = 'Think step by step. End with one line of the form "So the answer is {form}."'


def load(directory: Path | None) -> Benchmark:
    """Reads all kinds in alphabetical order; the kind goes into `Item.meta`."""
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
    """Three worked examples; exact match."""
    decoding = Decoding(max_tokens=1024, stop=("</s>", "Q:", "\n\n"))
    return dataclasses.replace(
        benchmark, decoding=decoding, grade=grade_exactly, extract=extract_exactly
    )


def grade(item: Item, text: str) -> bool:
    """The option's letter where there are options, else the answer itself."""
    is_choice = re.fullmatch(r"\([A-Z]\)", item.answer)
    return (answers.choice_equal if is_choice else answers.exact_equal)(text, item.answer)


def grade_exactly(item: Item, text: str) -> bool:
    """What follows "the answer is", without the full stop, is the target to the letter."""
    return published.bbh(text) == item.answer


def extract(item: Item, text: str) -> str:
    """The target where the text gives it, else what it marks as final or its last line."""
    if grade(item, text):
        return item.answer
    return answers.marked_answer(text) or text.strip().rpartition("\n")[2].strip()


def extract_exactly(item: Item, text: str) -> str:
    """What follows "the answer is", without the full stop."""
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
