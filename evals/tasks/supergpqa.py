"""SuperGPQA (M-A-P, 2025): 26,529 questions of graduate level with up to ten options.

Source: m-a-p/SuperGPQA on the hub (ODC-BY), or `supergpqa/SuperGPQA-all.jsonl`. Prompt, rule and
limit of tokens are those of SuperGPQA/SuperGPQA (eval/, zero-shot). An answer in which the rule
finds nothing is wrong.
"""

from pathlib import Path

from evals.benchmark import Benchmark, Decoding, Item
from evals.grading import published
from evals.tasks import _choice, _hub

SOURCE = _hub.Source(
    "supergpqa/SuperGPQA-all.jsonl",
    "m-a-p/SuperGPQA",
    "4430d4458112c7d4497fdcf94d7cc223313d6acf",
    "train",
    hub_only=True,
)
FIELDS = {"uuid": str, "question": str, "options": list, "answer_letter": str, "discipline": str}
INSTRUCTION = (
    "Answer the following multiple choice question. There is only one correct answer. The last "
    "line of your response should be in the format 'Answer: $LETTER' (without quotes), where "
    "LETTER is one of A, B, C, D, E, F, G, H, I, or J."
)


def load(directory: Path | None) -> Benchmark:
    """Load the questions; `Item.meta["subject"]` is the discipline."""
    items = (
        Item(
            id=row["uuid"],
            prompt=f"{INSTRUCTION}\n\n{row['question']}\n{_choice.lettered(row['options'], ')')}",
            answer=row["answer_letter"],
            meta={"subject": row["discipline"], "options": row["options"]},
        )
        for _, row in _hub.rows(SOURCE, directory, FIELDS)
    )
    return Benchmark(
        name="supergpqa",
        domain="reasoning",
        items=tuple(items),
        grade=grade,
        decoding=Decoding(max_tokens=4096),
        metric="accuracy",
        source=str(SOURCE),
        extract=extract,
    )


def grade(item: Item, text: str) -> bool:
    """Compare the letter that the authors' rule finds with the reference."""
    return extract(item, text) == item.answer


def extract(item: Item, text: str) -> str:
    """Return the letter that the authors' rule finds."""
    return published.supergpqa(text, item.meta["options"])
