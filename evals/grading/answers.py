"""The graders: whether the final answer of a text is right.

`evals.grading.marks` says where the final answer stands.
"""

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

from evals.benchmark import Benchmark, Item
from evals.grading import notation, units, value_parser
from evals.grading.final_formulas import final_formula
from evals.grading.marks import (
    boxed_or_hashed,
    final_part,
    last_boxed,
    marked_answer,
    stated_answer,
    without_retracted,
)
from evals.grading.option_letters import option_letter
from evals.grading.quantities import Quantity
from evals.grading.value_equality import equal

_LABEL = re.compile(  # of an option, as in \textbf{(C)}\ 5, "(C) 5", "C. 5"
    r"(?:\\(?:text|textbf|mathrm|mathbf)\s*\{\s*)?(?:\((?P<inside>[A-J])\)|(?P<label>[A-J])[).:]\s)"
    r"\s*\}?(?P<text>.*\d.*)",
    re.DOTALL,
)
_ASIDE = re.compile(  # 42 (apples)
    r"(?P<number>-?[\d.,/]*\d)(?:\\?[ ,;~])*(?:\\text\s*\{)?"
    r"\s*\((?P<words>[A-Za-z][A-Za-z ,'-]{2,})\)\s*\}?"
)
_AROUND = "\"'`*$. \u201c\u201d\u2018\u2019\u00ab\u00bb\u3002"  # quotes, emphasis, full stops
_CHANGING = units.CHANGING_BEFORE | {"negative"}
_PLAIN = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Comparison:
    """How an answer compares with the reference.

    Attributes:
        equal: whether it is right.
        as_text: whether one of the two could not be parsed, so that their spelling was compared.
    """

    equal: bool
    as_text: bool = False


def math_equal(prediction: str, gold: str) -> bool:
    r"""Return whether the final answer in `prediction` equals `gold` in value.

    Answers are parsed as a whole (`evals.grading.value_parser`) and compared by the rules in
    docs/reference/grading.md. What cannot be parsed is compared as normalized text.

    Args:
        prediction: the model's whole answer text.
        gold: the reference answer, LaTeX or plain, with or without `\boxed{}`.
    """
    return compare(prediction, gold).equal


def compare(prediction: str, gold: str) -> Comparison:
    r"""Compare the final answer in `prediction` with `gold`, as `math_equal`."""
    answer, gold = final_formula(prediction), last_boxed(gold) or gold
    found = _compare(answer, gold)
    if found.equal:
        return found
    for reading in _other_readings(re.sub(r"[\s~]+", " ", answer).strip()):
        other = _compare(reading, gold)
        if other.equal:
            return other
    return found


def _other_readings(answer: str) -> Iterator[str]:
    """Yield what an answer that does not equal the reference as it stands may say as well."""
    regional = notation.regional_number(answer)
    if regional:
        yield regional
    aside = _ASIDE.fullmatch(answer)
    if aside and not _CHANGING.intersection(re.findall(r"[a-z]+", aside["words"].lower())):
        # Its words may be a unit.
        yield f"{aside['number']} \\text{{ {aside['words']} }}"
    labelled = _LABEL.fullmatch(answer)
    if labelled:
        yield f"({labelled['inside'] or labelled['label']})"
        yield labelled["text"]


@lru_cache(1 << 16)
def _compare(answer: str, gold: str) -> Comparison:
    if _PLAIN.fullmatch(answer) and _PLAIN.fullmatch(gold):  # fast, for most answers
        number, gold_number = notation.parse_number(answer), notation.parse_number(gold)
        if number and gold_number:
            return Comparison(number.equals(gold_number))
    answer, gold = notation.normalize(answer), notation.normalize(gold)
    if not answer or not gold:
        return Comparison(False)
    short, gold_short = notation.compact(answer), notation.compact(gold)
    gold_number, number = notation.parse_number(gold_short), notation.parse_number(short)
    if gold_number and number:
        return Comparison(short == gold_short or number.equals(gold_number))
    gold_based = notation.parse_based_number(gold_short)
    based = notation.parse_based_number(short)
    if gold_based and based:
        return Comparison(gold_based == based)
    gold_value, value = value_parser.parse(gold), value_parser.parse(answer, leading_words=True)
    if short == gold_short:
        return Comparison(True, as_text=gold_value is None)
    if gold_value is not None and value is not None:
        return Comparison(equal(value, gold_value))
    gold_words = notation.normalize_words(gold)
    return Comparison(
        bool(gold_words) and gold_words == notation.normalize_words(answer), as_text=True
    )


def final_answer(text: str) -> str:
    """Return the final answer of `text` in a canonical spelling, for majority voting; "" for none.

    Rational numbers of equal value are one vote, and so are lists without brackets in any order.
    Other equal formulas in different spellings are different votes.
    """
    answer = notation.normalize(final_formula(text))
    value = value_parser.parse(answer, leading_words=True)
    if isinstance(value, Quantity) and value.literal:
        return f"{value.literal.value}{'%' if value.literal.percent else ''}"
    answer = answer.replace("\\lor", ",")
    short = notation.normalize_words(answer) or notation.compact(answer)
    return short if re.search(r"[(\[{]", short) else ",".join(sorted(short.split(",")))


def choice_equal(prediction: str, gold: str) -> bool:
    """Return whether the option letter in `prediction` is `gold`, with or without parentheses."""
    letter = option_letter(prediction)
    return bool(letter) and letter == re.sub(r"\W", "", gold).upper()


def exact_equal(prediction: str, gold: str) -> bool:
    """Return whether the final answer or last line is `gold`, up to case, commas and spaces.

    A text that is `gold` as a whole is right, too.
    """
    final = final_part(prediction)
    answer = marked_answer(final)
    line = _stated_line(final)  # the full stop in "J. K. Rowling" ends no sentence
    if answer is None:
        answer = final.strip().rpartition("\n")[2]
    reasoned = re.split(r",?\s(?:because|since)\s", answer, maxsplit=1)[0]
    readings = (answer, line, reasoned, final, prediction)
    return _normalize_text(gold) in map(_normalize_text, readings)


def _stated_line(text: str) -> str:
    """Return the rest of the line after "answer is" or "Answer:"; "" if there is neither."""
    if boxed_or_hashed(text) is not None:
        return ""
    return (stated_answer(without_retracted(text)) or "").partition("\n")[0]


def grading_pool() -> ThreadPoolExecutor:
    """Return a pool with one thread per core that this process may use.

    Threads suffice: programs run in other processes, and comparisons of answers take milliseconds.
    """
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)))


def grade_all(benchmark: Benchmark, answers: Sequence[tuple[Item, str]]) -> list[bool]:
    """Return the verdict on each answer, in order."""
    with grading_pool() as pool:
        return list(pool.map(lambda answer: benchmark.grade(*answer), answers))


def _normalize_text(answer: str) -> str:
    answer = unicodedata.normalize("NFC", answer).replace("\u2212", "-")
    answer = re.sub(r"\\(?:text(?:bf|it|rm|tt)?|math(?:rm|bf|it))\s*\{([^{}]*)\}", r"\1", answer)
    answer = notation.DIGIT_GROUP.sub("", answer).replace(",", " ").strip(_AROUND + "\n\t")
    answer = re.sub(r"(?<=[^\W\d_])!$", "", answer)  # "Paris!", but not "5!"
    if re.fullmatch(r"[\[\](){}<>\s]*", answer):
        return "".join(answer.split())
    return " ".join(answer.casefold().split()).strip(_AROUND)
