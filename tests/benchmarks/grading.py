r"""The grader of mathematics against an adversary, on every published reference answer.

For each file of OTR_BENCHMARKS, prints how many reference answers equal themselves, how many twins
(the same answer, written differently) are refused, and how many wrong answers are accepted:

    digit     one digit of the answer is another one
    sign      the sign of the answer, or one sign in it, is the other one
    plus one  the answer, or one integer in it, is larger by one
    other     the answer of another item
    part      one number of the answer stands for all of it

Wrong answers come from seed 0. Some equal the reference after all (3^0 and 7^0; another item's
1/2 and 0.5) and are counted as accepted; each pair that was misjudged is listed.

`python -m tests.benchmarks.grading [--json FILE] [--sample N] [SET ...]`; needs OTR_BENCHMARKS.
"""

import argparse
import json
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from evals.grading import math_equal
from evals.grading.answers import compare
from tests.benchmarks import gold

Pair = tuple[str, str]
MAX_REFUSED, MAX_ACCEPTED, MAX_SECONDS = 0.003, 0.002, 5.0
MAX_ACCEPTED_OF = {"minerva_math/test": 0.005}
_DIGIT = re.compile(r"(?<![_\d\\])\d(?!\d*_)")
_INTEGER = re.compile(r"(?<![\d._^{])\d+(?![\d.])")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass
class Row:
    """Counts of one file.

    Attributes:
        name: the file, without its ending.
        answers: reference answers; `same`: those that equal themselves.
        as_text: those that are compared as text.
        twins: other spellings of them; `refused`: those that are judged wrong.
        wrong: wrong answers of each kind; `accepted`: those that are judged right.
        seconds: CPU time of all comparisons; `slowest`: of the slowest one.
        misjudged: (kind, answer, reference) of each.
    """

    name: str
    answers: int = 0
    same: int = 0
    as_text: int = 0
    twins: int = 0
    refused: int = 0
    wrong: dict[str, int] = field(default_factory=dict)
    accepted: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    slowest: float = 0.0
    misjudged: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def comparisons(self) -> int:
        """Number of comparisons."""
        return self.answers + self.twins + sum(self.wrong.values())

    def faults(self) -> list[str]:
        """Return the bars that are missed, in words."""
        found = []
        if self.same < self.answers:
            found.append(f"{self.answers - self.same} answers do not equal themselves")
        if self.refused > MAX_REFUSED * self.twins:
            found.append(f"{self.refused} of {self.twins} twins are refused")
        wrong, accepted = sum(self.wrong.values()), sum(self.accepted.values())
        if accepted > MAX_ACCEPTED_OF.get(self.name, MAX_ACCEPTED) * wrong:
            found.append(f"{accepted} of {wrong} wrong answers are accepted")
        if self.slowest > MAX_SECONDS:
            found.append(f"one comparison took {self.slowest:.1f} s of CPU time")
        return found


def changed_digit(answer: str, generator: random.Random) -> str | None:
    """Change one digit to another."""
    places = list(_DIGIT.finditer(answer))
    if not places:
        return None
    place = generator.choice(places)
    other = generator.choice([digit for digit in "123456789" if digit != place.group()])
    return answer[: place.start()] + other + answer[place.end() :]


def changed_sign(answer: str, generator: random.Random) -> str | None:
    """Turn one sign in the answer, or that of the answer itself."""
    signs = list(re.finditer(r"(?<=[\w})\]])\s*([+-])(?=\s*[\w\\({])", answer))
    if signs and generator.random() < 0.5:
        place = generator.choice(signs)
        other = "-" if place.group(1) == "+" else "+"
        return answer[: place.start(1)] + other + answer[place.end(1) :]
    bare = answer.strip("$ ")
    if re.fullmatch(r"-?(?:[\d.]+|\\[dt]?frac\{\d+\}\{\d+\}|\d*\\sqrt\{?\d+\}?)", bare):
        return None if not bare.strip("0.-") else (bare[1:] if bare[0] == "-" else f"-{bare}")
    return None


def plus_one(answer: str, generator: random.Random) -> str | None:
    """Add one to the answer if it is a formula, or else to one integer in it."""
    bare = answer.strip("$ ")
    if re.fullmatch(r"[\w\\{}^+\-*/(). ]+", bare) and not re.search(r"text|mbox|^\(.*,", bare):
        return str(int(bare) + 1) if re.fullmatch(r"-?\d+", bare) else f"{bare} + 1"
    places = list(_INTEGER.finditer(answer))
    if not places:
        return None
    place = generator.choice(places)
    return answer[: place.start()] + str(int(place.group()) + 1) + answer[place.end() :]


def one_number(answer: str, generator: random.Random) -> str | None:
    """Return one number of an answer that has more than it."""
    numbers, bare = _NUMBER.findall(answer), answer
    for around in (  # what leaves the value as it is: names, units, spaces
        r"^[\s$]*(?:[a-zA-Z]|[a-z]\([a-z]\))\s*=",
        r"\\(?:text|mbox|mathrm)\s*\{[^{}\d]*\}(?:\^\{?\d\}?)?|\^\{?\\circ\}?|\\?%",
        r"\\(?:text|boxed|approx)|\\[,;!$]|[\s${}+]",
    ):
        bare = re.sub(around, "", bare)
    if not numbers or re.fullmatch(r"-?[\d,.]+", bare):
        return None
    return generator.choice(numbers)


MUTATIONS: dict[str, Callable[[str, random.Random], str | None]] = {
    "digit": changed_digit,
    "sign": changed_sign,
    "plus one": plus_one,
    "part": one_number,
}


def wrong_answers(answers: Sequence[str], seed: int = 0) -> Iterator[tuple[str, str, str]]:
    """Yield (kind, wrong answer, reference answer) for each distinct reference answer."""
    generator, different = random.Random(seed), sorted(set(answers))
    for answer in different:
        for kind, mutate in MUTATIONS.items():
            wrong = mutate(answer, generator)
            if wrong is not None and wrong != answer:
                yield kind, wrong, answer
    for other, answer in gold.others(different, 1):
        yield "other", other, answer


def measure(name: str, answers: Sequence[str], sample: int | None = None) -> Row:
    """Return the counts for the answers of one file, or for an even sample of them."""
    if sample is not None and sample < len(answers):
        answers = [answers[i * len(answers) // sample] for i in range(sample)]
    row = Row(name, answers=len(answers))
    for answer in answers:
        right = _judge(row, answer, answer)
        row.same += right
        row.as_text += compare(_text(answer), answer).as_text
        if not right:
            row.misjudged.append(("itself", answer, answer))
    for twin, answer in gold.twins(answers):
        row.twins += 1
        if not _judge(row, twin, answer):
            row.refused += 1
            row.misjudged.append(("twin", twin, answer))
    for kind, wrong, answer in wrong_answers(answers):
        row.wrong[kind] = row.wrong.get(kind, 0) + 1
        right = _judge(row, wrong, answer)
        row.accepted[kind] = row.accepted.get(kind, 0) + right
        if right:
            row.misjudged.append((kind, wrong, answer))
    return row


def _judge(row: Row, answer: str, reference: str) -> bool:
    started = time.thread_time()
    verdict = bool(math_equal(_text(answer), reference))
    spent = time.thread_time() - started
    row.seconds, row.slowest = row.seconds + spent, max(row.slowest, spent)
    return verdict


def _text(answer: str) -> str:
    return f"So \\boxed{{{answer}}}"


def main() -> None:
    """Print the table; exit with 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sets", nargs="*", default=list(gold.FILES), metavar="SET")
    parser.add_argument("--json", type=Path, help="file for the counts")
    parser.add_argument("--sample", type=int, help="answers per set, evenly spread")
    arguments = parser.parse_args()
    folder = gold.published_files()
    kinds = [*MUTATIONS, "other"]
    print(
        "| set | answers | equal themselves | as text | twins refused | wrong accepted: "
        + " | ".join(kinds)
        + " | all | answers per s of CPU | slowest |"
    )
    print("|---" * (8 + len(kinds)) + "|")
    rows = []
    for name in arguments.sets:
        rows.append(measure(name, gold.golds(folder, name), arguments.sample))
        _print(rows[-1], kinds)
    print("\n| set | kind | answer | reference |\n|---|---|---|---|")
    for row in rows:
        for kind, *pair in sorted(set(row.misjudged)):
            cells = " | ".join(f"`{text}`".replace("|", "\\|").replace("\n", " ") for text in pair)
            print(f"| {row.name} | {kind} | {cells} |")
    if arguments.json:
        content = [{**asdict(row), "misjudged": len(row.misjudged)} for row in rows]
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    faults = [f"{row.name}: {fault}" for row in rows for fault in row.faults()]
    if faults:
        raise SystemExit("\n".join(faults))


def _print(row: Row, kinds: Sequence[str]) -> None:
    wrong, accepted = sum(row.wrong.values()), sum(row.accepted.values())
    cells = [
        row.name,
        row.answers,
        row.same,
        row.as_text,
        f"{row.refused} of {row.twins} ({row.refused / max(row.twins, 1):.2%})",
        *(f"{row.accepted.get(kind, 0)} of {row.wrong.get(kind, 0)}" for kind in kinds),
        f"{accepted} of {wrong} ({accepted / max(wrong, 1):.2%})",
        f"{row.comparisons / max(row.seconds, 1e-9):,.0f}",
        f"{row.slowest:.2f} s",
    ]
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
