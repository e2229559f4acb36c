"""OlympiadBench (He et al., 2024): 675 problems of mathematical olympiads, English, text only.

Source: `olympiadbench/test.jsonl` of QwenLM/Qwen2.5-Math (a45202b, MIT) or the hub, which has 674
of them. Prompt and rule: see `_mathematics`. The reference answer is `final_answer[0]` without
dollar signs; several answers form one list, separated by commas.
"""

from pathlib import Path

from evals.benchmark import Benchmark
from evals.tasks import _hub, _mathematics
from evals.tasks._files import Fields

SOURCE = _hub.Source(
    "olympiadbench/test.jsonl",
    "math-ai/olympiadbench",
    "4faaf1e6ec17d11a4218a9bf4c049ecaf954dd84",
)
FIELDS: Fields = {"id": (int, str), "question": str, "final_answer": list, "subfield": str}


def load(directory: Path | None) -> Benchmark:
    """Load the problems; `Item.meta["subject"]` is the subfield."""
    items = []
    for location, row in _hub.rows(SOURCE, directory, FIELDS):
        if not row["final_answer"] or not isinstance(row["final_answer"][0], str):
            raise ValueError(f'{location}: field "final_answer" is {row["final_answer"]!r:.80}')
        id, answer = f"olympiadbench/{row['id']}", row["final_answer"][0].replace("$", "")
        items.append(_mathematics.item(id, row["question"], answer, subject=row["subfield"]))
    return _mathematics.benchmark("olympiadbench", items, "QwenLM/Qwen2.5-Math@a45202b")
