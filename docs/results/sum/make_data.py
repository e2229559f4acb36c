"""Write the data of this study: sums, answered in words that the base model uses itself.

    python docs/results/sum/make_data.py DIRECTORY

train.jsonl, validation.jsonl and heldout.jsonl have sums of two numbers from 2 to 99, no pair in
two of them; harder.jsonl has a first number from 100 to 399. questions.jsonl has the sums of
validation.jsonl as questions of a benchmark.
"""

import json
import random
import sys
from pathlib import Path

from otr.files import write_text

SIZES = {"heldout": 200, "validation": 200, "train": 4000}


def main(directory: Path) -> None:
    """Write the five files."""
    rng = random.Random(0)
    pairs = [(a, b) for a in range(2, 100) for b in range(2, 100)]
    rng.shuffle(pairs)
    directory.mkdir(parents=True, exist_ok=True)
    parts = {}
    for name, size in SIZES.items():
        parts[name], pairs = pairs[:size], pairs[size:]
        write(directory / f"{name}.jsonl", rng, parts[name])
    harder = [(rng.randint(100, 399), rng.randint(2, 99)) for _ in range(200)]
    write(directory / "harder.jsonl", rng, harder)
    write(directory / "questions.jsonl", rng, parts["validation"])


def write(path: Path, rng: random.Random, pairs: list[tuple[int, int]]) -> None:
    """Write training examples, or questions with their answers."""
    lines = []
    for a, b in pairs:
        record = {"prompt": rng.choice(("What is {} + {}?", "Add {} and {}.")).format(a, b)}
        if path.stem in ("train", "validation"):
            record["completion"] = f"The answer is {a + b}."
        else:
            record |= {"answer": str(a + b), "grader": "math"}
        lines.append(json.dumps(record) + "\n")
    write_text(path, "".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
