"""MBPP (Austin et al., 2021): short Python functions from one sentence and three assertions.

In: `mbpp/mbpp.jsonl`. Out: a `Benchmark` of the 500 test problems (ids 11 to 510). Zero-shot,
greedy; the assertions are part of the prompt, as in the paper, since they give the function's name.
"""

from pathlib import Path

from evals.benchmark import Benchmark, Decoding, Item
from evals.grading import code_passes
from evals.tasks._files import read_jsonl

FIELDS = {"task_id": int, "text": str, "code": str, "test_setup_code": str, "test_list": list}
TEST_IDS = range(11, 511)


def load(directory: Path) -> Benchmark:
    """Reads the test problems; `Item.answer` is the reference program."""
    items = tuple(
        Item(
            id=f"mbpp/{row['task_id']}",
            prompt=_prompt(row["text"], row["test_list"]),
            answer=row["code"],
            tests="\n".join([row["test_setup_code"], *row["test_list"]]),
        )
        for row in read_jsonl(directory / "mbpp" / "mbpp.jsonl", FIELDS)
        if row["task_id"] in TEST_IDS
    )
    return Benchmark(
        name="mbpp",
        domain="code",
        items=items,
        grade=code_passes,
        decoding=Decoding(max_tokens=1024),
        metric="pass@1",
        source="google-research/mbpp; prompt after Austin et al. (2021), section 3.1",
    )


def _prompt(text: str, tests: list[str]) -> str:
    return (
        f"You are an expert Python programmer, and here is your task: {text.strip()} "
        "Your code should pass these tests:\n\n" + "\n".join(tests) + "\n\n"
        "Write the program in a markdown code block."
    )
