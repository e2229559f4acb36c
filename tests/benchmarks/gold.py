r"""Published reference answers compared with themselves, with other spellings and other answers.

Prints Markdown tables of the counts, of answers per second, and of the pairs that were judged
wrongly. Needs OTR_BENCHMARKS. `python -m tests.benchmarks.gold [--others N] [FILE ...]`
"""

import argparse
import json
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from evals.benchmark import Benchmark, Decoding, Item
from evals.grading import grade_all, math_equal

FILES = {
    "gsm8k/train": lambda row: row["answer"].rpartition("####")[2].strip(),
    "gsm8k/test": lambda row: row["answer"].rpartition("####")[2].strip(),
    "math/train": lambda row: row["answer"],
    "math/test": lambda row: boxed(row["solution"]),
    "math500/test": lambda row: row["answer"],
    "olympiadbench/test": lambda row: row["final_answer"][0],
    "minerva_math/test": lambda row: boxed(row["solution"]),
    "amc23/test": lambda row: str(row["answer"]),
    "aime24/test": lambda row: str(row["answer"]),
    "aime25/test": lambda row: str(row["answer"]),
}


def boxed(solution: str) -> str:
    """Return the last boxed part, by code that is independent of the grader under test."""
    start = max(solution.rfind("\\boxed{"), solution.rfind("\\fbox{"))
    start = solution.index("{", start)
    return solution[start + 1 : closing(solution, start)]


def closing(text: str, start: int) -> int:
    depth = 0
    for index in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return index
    raise ValueError(f"no closing brace in {text!r}")


def golds(folder: Path, name: str) -> list[str]:
    """Return the reference answers of one file, without four of math/train that are empty."""
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [gold for gold in (FILES[name](json.loads(line)) for line in lines) if gold]


def slash(gold: str) -> str:
    r"""Write \frac{1}{2} as 1/2 or (1)/(2), and a mixed number 1\frac{1}{2} as 1 1/2."""
    gold = re.sub(r"\\[dt]frac", r"\\frac", gold)
    gold = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", gold)
    while (start := gold.find("\\frac{")) >= 0:
        middle = closing(gold, start + 5)
        if gold[middle + 1 : middle + 2] != "{":
            return gold
        end = closing(gold, middle + 1)
        above, below = gold[start + 6 : middle], gold[middle + 2 : end]
        mixed = re.fullmatch(r"-?\d+ ?", gold[:start])
        alone = not gold[:start].strip("-") and not gold[end + 1 :]
        bare = (mixed or alone) and (above + below).isdigit()
        written = f"{above}/{below}" if bare else f"({above})/({below})"
        gold = (
            gold[:start].rstrip()
            + (" " if gold[:start].strip() else "")
            + written
            + gold[end + 1 :]
        )
    return gold


def dfrac(gold: str) -> str:
    return re.sub(r"\\frac", r"\\dfrac", gold)


def loose(gold: str) -> str:
    """Put spaces around + and =, and after a comma outside a number."""
    gold = re.sub(r"(?<=[\w})])\s*([+=])\s*(?=[\w\\({])", r" \1 ", gold)
    return re.sub(r"(?<!\d),\s*(?!\\!)|,\s*(?!\d{3}|\\!|\})(?<!\{,)", ", ", gold)


def tight(gold: str) -> str:
    """Remove the spaces that LaTeX does not need."""
    return re.sub(r"(?<=[-+=,(){}\d])[ ]+(?=[^a-zA-Z\d])|(?<=[-+=,(])[ ]+", "", gold)


def unit(gold: str) -> str:
    """Add a unit to a number, or remove the one that it has."""
    if re.fullmatch(r"-?[\d.]+|-?\\frac\{\d+\}\{\d+\}", gold):
        return gold + r"\text{ cm}"
    with_unit = re.fullmatch(
        r"(-?[\d.]+)\s*\\(?:text|mbox)\s*\{[^{}]*[a-z]{2}[^{}]*\}(\^\d)?", gold
    )
    return with_unit.group(1) if with_unit else gold


def commas(gold: str) -> str:
    return f"{int(gold):,}" if re.fullmatch(r"-?\d{4,}", gold) else gold


def latex_commas(gold: str) -> str:
    return commas(gold).replace(",", "{,}") if re.fullmatch(r"-?\d{4,}", gold) else gold


REWRITES: tuple[Callable[[str], str], ...] = (
    slash,
    dfrac,
    loose,
    tight,
    unit,
    commas,
    latex_commas,
)


def rewritten(answers: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (rewritten answer, reference answer) for each rewrite that changes the answer."""
    for gold in answers:
        yield from ((written, gold) for write in REWRITES if (written := write(gold)) != gold)


def others(answers: list[str], count: int) -> list[tuple[str, str]]:
    """Return `count` pairs of another item's answer with each distinct reference answer."""
    different, generator = sorted(set(answers)), random.Random(0)
    return [
        (other, gold)
        for gold in different
        for other in generator.sample(different, min(count, len(different)))
        if other != gold
    ]


def judge(pairs: list[tuple[str, str]]) -> tuple[list[bool], float]:
    """Return the verdicts of the graders, and the seconds that they took."""
    items = [Item(str(number), "", gold) for number, (_, gold) in enumerate(pairs)]
    benchmark = Benchmark("gold", "mathematics", tuple(items), grade, Decoding(8), "accuracy", "")
    started = time.monotonic()
    texts = [f"So \\boxed{{{written}}}" for written, _ in pairs]
    verdicts = grade_all(benchmark, list(zip(items, texts, strict=True)))
    return verdicts, time.monotonic() - started


def grade(item: Item, text: str) -> bool:
    return math_equal(text, item.answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", default=list(FILES), metavar="FILE", help="gsm8k/test")
    parser.add_argument("--others", type=int, default=1, help="wrong answers per reference answer")
    arguments = parser.parse_args()
    folder = Path(os.environ["OTR_BENCHMARKS"])
    judge([("1", "\\sqrt{2}")])  # starts the processes
    listed, total, seconds = [], [0] * 6, 0.0
    print(
        "| file | answers | equal themselves | rewritten | equal | others | accepted | per second |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.files:
        answers = golds(folder, name)
        kinds = [(gold, gold) for gold in answers], list(rewritten(answers))
        kinds = (*kinds, others(answers, arguments.others))
        row, spent = [], 0.0
        for wanted, pairs in zip((True, True, False), kinds, strict=True):
            verdicts, took = judge(pairs)
            spent += took
            row += [len(pairs), sum(verdicts)]
            misjudged = {p for p, v in zip(pairs, verdicts, strict=True) if v != wanted}
            listed += [(name, *pair, wanted) for pair in sorted(misjudged)]
        total, seconds = [a + b for a, b in zip(total, row, strict=True)], seconds + spent
        print_row(name, row, spent)
    print_row("all", total, seconds)
    print("\n| file | answer | reference | accepted |\n|---|---|---|---|")
    for name, written, gold, wanted in listed:
        cells = (f"`{text}`".replace("|", "\\|").replace("\n", " ") for text in (written, gold))
        print(f"| {name} | {' | '.join(cells)} | {'no' if wanted else 'yes'} |")


def print_row(name: str, row: list[int], seconds: float) -> None:
    answers, same, written, equal, wrong, accepted = row
    share = f"{equal / max(written, 1):.2%}"
    print(
        f"| {name} | {answers} | {same} | {written} | {equal} ({share}) | {wrong} | {accepted} "
        f"| {(answers + written + wrong) / max(seconds, 1e-9):.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
