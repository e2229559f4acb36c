"""ARC-Challenge (Clark et al., 2018): 1,172 science questions of school exams, mostly four options.

Source: `arc/ARC-Challenge-test.jsonl` of allenai/OLMo (59a53e3, one row per question) or the
hub (CC BY-SA 4.0). Chat: see `_choice`, zero-shot with reasoning. Base models are usually scored by
the likelihood of each option, for which there is no prompt to continue here.
"""

from pathlib import Path

from evals.benchmark import Benchmark, Item
from evals.tasks import _choice, _hub
from evals.tasks._files import Fields

SOURCE = _hub.Source(
    "arc/ARC-Challenge-test.jsonl",
    "allenai/ai2_arc",
    "210d026faf9955653af8916fad021475a3f00453",
    config="ARC-Challenge",
    names={"answerKey": "gold"},
)
FIELDS: Fields = {"question": str, "choices": (list, dict), "gold": (int, str)}


def load(directory: Path | None) -> Benchmark:
    """Load the test set; options get the letters A, B, ..., also where the source numbers them."""
    items: list[Item] = []
    for _, row in _hub.rows(SOURCE, directory, FIELDS):
        options, gold = row["choices"], row["gold"]
        if isinstance(options, dict):  # of the hub: texts, their labels, and the label of the gold
            options, gold = options["text"], options["label"].index(gold)
        asked = f"{row['question']}\n{_choice.lettered(options)}"
        prompt = _choice.prompt("science", asked)
        items.append(Item(f"arc_challenge/{len(items)}", prompt, _choice.LETTERS[gold]))
    return _choice.benchmark("arc_challenge", items, "allenai/ai2_arc; allenai/OLMo@59a53e3")
