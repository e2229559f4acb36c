r"""Published reference answers, their twins (other spellings of them), and other items' answers.

`tests.benchmarks.grading` judges them. Nothing here uses the grader under test.
"""

import json
import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

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


def published_files() -> Path:
    """Return the directory of published benchmark files that OTR_BENCHMARKS names."""
    folder = os.environ.get("OTR_BENCHMARKS", "")
    if not Path(folder).is_dir() or not folder:
        raise SystemExit(f"OTR_BENCHMARKS is {folder!r}: name a directory of benchmark files")
    return Path(folder)


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


def thin_spaces(gold: str) -> str:
    return commas(gold).replace(",", "\\,") if re.fullmatch(r"-?\d{4,}", gold) else gold


def spaces(gold: str) -> str:
    return commas(gold).replace(",", " ") if re.fullmatch(r"-?\d{4,}", gold) else gold


def characters(gold: str) -> str:
    r"""Write \sqrt{2}, \pi, \infty, \cup, \le and x^2 in the characters of Unicode."""
    gold = re.sub(r"\\sqrt\s*\{(\d+)\}", "\u221a\\1", gold)
    for command, character in (
        ("pi", "\u03c0"),
        ("infty", "\u221e"),
        ("cup", "\u222a"),
        ("leq?", "\u2264"),
        ("geq?", "\u2265"),
        ("theta", "\u03b8"),
        ("pm", "\u00b1"),
    ):
        gold = re.sub(rf"\\{command}(?![a-zA-Z])", character, gold)
    return re.sub(r"(?<=[a-z)])\^2(?!\d)", "\u00b2", gold)


def plain_unit(gold: str) -> str:
    r"""Write the unit of "5 \text{ cm}" without \text."""
    return re.sub(r"^(-?[\d.]+)\s*\\(?:text|mbox|mathrm)\s*\{[ ~]*([a-z]{2,})\}$", r"\1 \2", gold)


def text_of(gold: str) -> str:
    return rf"\text{{{gold}}}" if re.fullmatch(r"[A-Z]?[a-z]{3,}", gold) else gold


def named(gold: str) -> str:
    """Give a number a name, or take a formula's name away."""
    if re.fullmatch(r"-?[\d.]+|-?\\frac\{\d+\}\{\d+\}", gold):
        return f"x = {gold}"
    return re.sub(r"^[xyz] ?= ?(?=[^=]+$)", "", gold)


def bigger_brackets(gold: str) -> str:
    if re.fullmatch(r"[(\[][^()\[\]]*[)\]]", gold):
        return rf"\left{gold[:-1]}\right{gold[-1]}"
    return gold


def inequality(gold: str) -> str:
    """Write an interval with one square bracket and finite ends as an inequality."""
    found = re.fullmatch(r"([(\[])(-?\d+), ?(-?\d+)([)\]])", gold)
    if not found or found[1] + found[4] == "()":
        return gold
    low, high = ("<" if end in "()" else r"\le" for end in (found[1], found[4]))
    return f"{found[2]} {low} x {high} {found[3]}"


def dollars(gold: str) -> str:
    return gold if "$" in gold else f"${gold}$"


REWRITES: tuple[Callable[[str], str], ...] = (
    slash,
    dfrac,
    loose,
    tight,
    unit,
    commas,
    latex_commas,
    thin_spaces,
    spaces,
    characters,
    plain_unit,
    text_of,
    named,
    bigger_brackets,
    inequality,
    dollars,
)


def twins(answers: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (rewritten answer, reference answer) for each rewrite that changes the answer."""
    for gold in answers:
        yield from ((written, gold) for write in REWRITES if (written := write(gold)) != gold)


def others(answers: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Return `count` pairs of another item's answer with each distinct reference answer."""
    different, generator = sorted(set(answers)), random.Random(0)
    return [
        (other, gold)
        for gold in different
        for other in generator.sample(different, min(count, len(different)))
        if other != gold
    ]
