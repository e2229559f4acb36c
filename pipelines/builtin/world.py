"""Procedurally generated small problems in the paper's three domains.

`items` generates them by skill, split, count and seed, and always returns the same ones for the
same arguments. Splits of a skill do not overlap: "train" and "heldout" have the same distribution
and are separated by a hash of the prompt; "harder" has longer problems than both.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

SPLITS = ("train", "heldout", "harder")
_HELDOUT_SHARE = 0.2
_MAX_TRIES = 5000  # in succession without a new item


@dataclass(frozen=True)
class Item:
    """One problem: the user's turn, a worked solution, and how to grade an answer."""

    prompt: str
    completion: str
    answer: str
    grader: str
    """"math", "exact" or "code"."""
    tests: str = ""
    """Python assertions, for code."""


@dataclass(frozen=True)
class Skill:
    """A kind of problem."""

    domain: str
    make: Callable[[random.Random, bool], Item]
    """Draws a problem; with True, a longer one."""


def items(skill: str, split: str, count: int, seed: int = 0) -> list[Item]:
    """Return `count` different items of one skill and split.

    Raises:
        ValueError: unknown skill or split, or the split has fewer items.
    """
    if skill not in SKILLS:
        raise ValueError(f"skill {skill!r}: use one of {', '.join(SKILLS)}")
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: use one of {', '.join(SPLITS)}")
    rng = random.Random(f"{skill}/{split}/{seed}")
    found: dict[str, Item] = {}
    tries = 0
    while len(found) < count:
        item = SKILLS[skill].make(rng, split == "harder")
        if split in ("harder", _split_of(item.prompt)) and item.prompt not in found:
            found[item.prompt] = item
            tries = 0
        tries += 1
        if tries > _MAX_TRIES:
            raise ValueError(f"{skill}/{split} has no {count} different items: ask for fewer")
    return list(found.values())


def _split_of(prompt: str) -> str:
    share = hashlib.sha256(prompt.encode()).digest()[0] / 256
    return "heldout" if share < _HELDOUT_SHARE else "train"


# mathematics ---------------------------------------------------------------------------------


def _sum(rng: random.Random, hard: bool) -> Item:
    a, b = _pair(rng, hard)
    return _worked(rng.choice(("What is {} + {}?", "Add {} and {}.")).format(a, b), [], a + b)


def _difference(rng: random.Random, hard: bool) -> Item:
    b, a = sorted(_pair(rng, hard))
    return _worked(rng.choice(("What is {} - {}?", "From {} take {}.")).format(a, b), [], a - b)


def _pair(rng: random.Random, hard: bool) -> tuple[int, int]:
    if hard:
        return rng.randint(300, 999), rng.randint(100, 999)
    return rng.randint(2, rng.choice((99, 299))), rng.randint(2, 99)


def _series(rng: random.Random, hard: bool) -> Item:
    """Draw a chain of operations; the solution has a line per operation."""
    value = rng.randint(20, 99)
    text, work = str(value), []
    for _ in range(rng.randint(4, 5) if hard else rng.randint(2, 3)):
        operation, value, line = _operation(rng, value, ("+", "-", "-"))
        text += operation
        work.append(line)
    return _worked(f"Compute {text}.", work, value)


_GAINS = ("buys", "finds", "is given", "picks up")
_LOSSES = ("eats", "loses", "gives away", "sells")
_PEOPLE = ("Ann", "Ben", "Cam", "Dan", "Eve", "Fay", "Gus", "Ida")
_THINGS = ("apples", "stamps", "coins", "cards", "shells", "pens", "nuts", "beads")


def _step(rng: random.Random, hard: bool) -> Item:
    """Draw a word problem of one step."""
    return _story(rng, rng.randint(200, 399) if hard else rng.randint(20, 199), 1)


def _chain(rng: random.Random, hard: bool) -> Item:
    """Draw a word problem of several steps."""
    return _story(rng, rng.randint(20, 99), rng.randint(4, 5) if hard else rng.randint(2, 3))


def _story(rng: random.Random, have: int, steps: int) -> Item:
    person, thing = rng.choice(_PEOPLE), rng.choice(_THINGS)
    story, work = [f"{person} has {have} {thing}."], []
    for _ in range(steps):
        operation, have, line = _operation(rng, have, ("+", "-", "-", "*"))
        sign, number = operation.split()
        if sign == "*":
            story.append(f"Then the number of {thing} doubles.")
        else:
            story.append(f"{person} {rng.choice(_GAINS if sign == '+' else _LOSSES)} {number}.")
        work.append(line)
    return _worked(f"{' '.join(story)} How many {thing} does {person} have now?", work, have)


def _operation(rng: random.Random, value: int, signs: tuple[str, ...]) -> tuple[str, int, str]:
    """Draw an operation on `value`; return its text, its result, and both as a line of work."""
    sign = rng.choice(signs)
    if sign == "*" and value < 100:
        number, result = 2, value * 2
    elif sign == "-" and value > 4:
        number = rng.randint(2, min(99, value - 1))
        result = value - number
    else:
        sign, number = "+", rng.randint(2, 99)
        result = value + number
    return f" {sign} {number}", result, f"{value} {sign} {number} = {result}"


def _worked(prompt: str, work: list[str], answer: int) -> Item:
    return Item(prompt, "\n".join([*work, f"\\boxed{{{answer}}}"]), str(answer), "math")


# code ----------------------------------------------------------------------------------------

_FILTERS = (
    ("even numbers", "x % 2 == 0"),
    ("odd numbers", "x % 2 == 1"),
    ("numbers greater than {n}", "x > {n}"),
    ("numbers less than {n}", "x < {n}"),
    ("multiples of {n}", "x % {n} == 0"),
)
_MAPS = (
    ("the", "x"),
    ("the squares of the", "x * x"),
    ("twice the", "2 * x"),
    ("{m} plus the", "x + {m}"),
    ("{m} times the", "{m} * x"),
)
_REDUCTIONS = (
    ("the sum of", "sum({m} for x in xs if {f})"),
    ("the largest of", "max(({m} for x in xs if {f}), default=0)"),
    ("the smallest of", "min(({m} for x in xs if {f}), default=0)"),
    ("a list of", "[{m} for x in xs if {f}]"),
    ("a sorted list of", "sorted({m} for x in xs if {f})"),
)
_FUNCTIONS = ("solve", "pick", "work", "task", "calc", "run", "fold", "take")


def _function(rng: random.Random, hard: bool) -> Item:
    """Draw a one-line function over a list, to be written from its docstring.

    A hard one excepts a number that would pass the filter, and a test has only that number.
    """
    name, n, m = rng.choice(_FUNCTIONS), rng.randint(2, 12), rng.randint(2, 12)
    (filtered, test), (mapped, value) = rng.choice(_FILTERS), rng.choice(_MAPS)
    reduced, body = rng.choice(_REDUCTIONS)
    filtered, test = filtered.format(n=n), test.format(n=n)
    lists: list[list[int]] = []
    if hard:
        passing = [x for x in range(1, 25) if eval(test, {"x": x})]  # text from above
        if len(passing) < 2:  # nothing would be left
            return _function(rng, hard)
        excepted = rng.choice(passing)
        filtered, test = f"{filtered} other than {excepted}", f"{test} and x != {excepted}"
        lists = [[excepted]]
    doc = f"Return {reduced} {mapped.format(m=m)} {filtered} in xs."
    head = f'def {name}(xs):\n    """{doc}"""'
    solution = f"def {name}(xs):\n    return {body.format(m=value.format(m=m), f=test)}"
    return Item(
        f"Complete this function.\n{head}",
        solution,
        solution,
        "code",
        _tests(name, solution, rng, lists),
    )


def _tests(name: str, solution: str, rng: random.Random, more_lists: list[list[int]]) -> str:
    """Return assertions on random lists and `more_lists`, with the solution's values."""
    scope: dict[str, Callable[[list[int]], object]] = {}
    exec(solution, scope)  # text generated above
    lists = [[], *([rng.randint(0, 24) for _ in range(rng.randint(4, 9))] for _ in range(5))]
    lists += more_lists
    more = random.Random(solution)
    while len({repr(scope[name](xs)) for xs in lists}) < 2:  # so that no constant passes
        lists.append([more.randint(0, 24) for _ in range(9)])
    return "\n".join(f"assert {name}({xs}) == {scope[name](xs)!r}" for xs in lists)


# general reasoning ---------------------------------------------------------------------------


def _boolean(rng: random.Random, hard: bool) -> Item:
    def expression(leaves: int) -> str:
        if leaves == 1:
            return rng.choice(("", "not ")) + rng.choice(("True", "False"))
        left = rng.randint(1, leaves - 1)
        parts = [expression(n) for n in (left, leaves - left)]
        parts = [f"( {p} )" if " and " in p or " or " in p else p for p in parts]
        return rng.choice((" and ", " or ")).join(parts)

    text = expression(rng.randint(5, 6) if hard else rng.randint(2, 4))
    value = str(eval(text))  # text generated above
    return Item(f"Evaluate: {text}", f"Answer: {value}", value, "exact")


_OBJECTS = ("ball", "book", "cup", "hat", "key", "map")


def _tracking(rng: random.Random, hard: bool) -> Item:
    people, objects = rng.sample(_PEOPLE, 3), rng.sample(_OBJECTS, 3)
    holds = dict(zip(people, objects, strict=True))
    story = [", ".join(f"{p} has the {o}" for p, o in holds.items()) + "."]
    work = []
    for _ in range(rng.randint(3, 4) if hard else rng.randint(1, 2)):
        a, b = rng.sample(people, 2)
        holds[a], holds[b] = holds[b], holds[a]
        story.append(f"{a} and {b} swap.")
        work.append(", ".join(f"{p} {o}" for p, o in holds.items()))
    person = rng.choice(people)
    prompt = f"{' '.join(story)} What does {person} have?"
    completion = "\n".join([*work, f"Answer: {holds[person]}"])
    return Item(prompt, completion, holds[person], "exact")


_WORDS = (
    "ant", "bee", "cat", "dog", "elk", "fox", "goat", "hen", "ibis", "jay", "koala", "lion", "mole",
    "newt", "owl", "pig", "quail", "rat", "seal", "toad", "urchin", "vole", "wolf", "yak", "zebra",
)  # fmt: skip


def _sorting(rng: random.Random, hard: bool) -> Item:
    words = rng.sample(_WORDS, rng.randint(6, 7) if hard else rng.randint(3, 5))
    answer = " ".join(sorted(words))
    return Item(f"Sort: {' '.join(words)}", f"Answer: {answer}", answer, "exact")


_MONTHS = (
    ("January", 31), ("February", 28), ("March", 31), ("April", 30), ("May", 31), ("June", 30),
    ("July", 31), ("August", 31), ("September", 30), ("October", 31), ("November", 30),
    ("December", 31),
)  # fmt: skip


def _dates(rng: random.Random, hard: bool) -> Item:
    month = rng.randrange(12)
    day = rng.randint(1, _MONTHS[month][1])
    days = rng.randint(31, 59) if hard else rng.randint(1, 30)
    prompt = f"Today is {day} {_MONTHS[month][0]} 2025. What is the date in {days} days?"
    end = day + days
    while end > _MONTHS[month][1]:
        end, month = end - _MONTHS[month][1], (month + 1) % 12
    answer = f"{end} {_MONTHS[month][0]}"
    return Item(prompt, f"Answer: {answer}", answer, "exact")


SKILLS = {
    "sum": Skill("mathematics", _sum),
    "difference": Skill("mathematics", _difference),
    "series": Skill("mathematics", _series),
    "step": Skill("mathematics", _step),
    "chain": Skill("mathematics", _chain),
    "function": Skill("code", _function),
    "boolean": Skill("reasoning", _boolean),
    "tracking": Skill("reasoning", _tracking),
    "sorting": Skill("reasoning", _sorting),
    "dates": Skill("reasoning", _dates),
}
