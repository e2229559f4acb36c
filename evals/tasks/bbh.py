"""BIG-Bench Hard (Suzgun et al., 2022): 6,511 questions of 27 kinds.

In: `bbh/*.json` of suzgunmirac/BIG-Bench-Hard (their canary string stays in the files). Out: a
`Benchmark`. Zero-shot and greedy, unlike the paper's three worked examples: a chat model is told
the form of the final answer instead. The score is the mean over all questions.
"""

import re
from pathlib import Path

from evals.benchmark import Benchmark, Decoding, Item
from evals.grading import choice_equal, exact_equal
from evals.tasks._files import check, read_json

INSTRUCTION = 'Think step by step. End with one line of the form "So the answer is {form}."'


def load(directory: Path) -> Benchmark:
    """Reads all 27 files in alphabetical order; the kind goes into `Item.meta`."""
    folder = directory / "bbh"
    paths = sorted(folder.glob("*.json")) or [folder / "boolean_expressions.json"]
    return Benchmark(
        name="bbh",
        domain="reasoning",
        items=tuple(item for path in paths for item in _items(path)),
        grade=grade,
        decoding=Decoding(max_tokens=1024),
        metric="accuracy",
        source="suzgunmirac/BIG-Bench-Hard@9ee07bd",
    )


def grade(item: Item, text: str) -> bool:
    """The option's letter where there are options, else the answer itself."""
    is_choice = re.fullmatch(r"\([A-Z]\)", item.answer)
    return (choice_equal if is_choice else exact_equal)(text, item.answer)


def _items(path: Path) -> list[Item]:
    content = read_json(path)
    check(content, {"examples": list}, str(path))
    items = []
    for number, example in enumerate(content["examples"]):
        check(example, {"input": str, "target": str}, f"{path}, example {number}")
        items.append(
            Item(
                id=f"{path.stem}/{number}",
                prompt=f"{example['input']}\n\n{INSTRUCTION.format(form=_form(example))}",
                answer=example["target"],
                meta={"subject": path.stem},
            )
        )
    return items


def _form(example: dict[str, str]) -> str:
    return "(LETTER)" if re.fullmatch(r"\([A-Z]\)", example["target"]) else "ANSWER"
