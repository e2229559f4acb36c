r"""Extraction of the final answer from a model's text, and its comparison with the reference.

The final answer is searched for in the order of the evaluation of Qwen2.5-Math: the last complete
`\boxed{}`, the text after the last "####", the text after the last "answer is", and last the last
number (mathematics) or line (other domains).
"""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from evals.benchmark import Benchmark, Item
from evals.grading import notation, symbolic

MAX_ANSWER_CHARS = 1_000  # reference answers have under a third of it; a model's loop has more
_NUMBER = re.compile(r"(?<![\d.])-?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")
_OPTION = re.compile(r"\(([A-Za-z])\)|(?<![A-Za-z'])([A-Z])(?![A-Za-z'])")
_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\\\(?!boxed|fbox)|\\[{}]|[{}]")
_BRACE_OR_ESCAPED = re.compile(r"\\(?:boxed|fbox)\s*\{|[{}]")


def math_equal(prediction: str, gold: str) -> bool:
    r"""Return whether the final answer in `prediction` equals `gold` in value.

    Equal spellings and rational numbers are compared here. Everything else goes to math-verify
    (Kydlicek, 2025) in a separate process with a limit on CPU time, which makes the comparison safe
    in threads and with hostile input.

    Args:
        prediction: the model's whole answer text.
        gold: the reference answer, LaTeX or plain, with or without `\boxed{}`.
    """
    answer = notation.normalize(_final(prediction))
    gold = notation.normalize(_last_boxed(gold) or gold)
    short, gold_short = notation.compact(answer), notation.compact(gold)
    if not answer or not gold or short == gold_short:
        return bool(answer) and short == gold_short
    gold_words = notation.normalize_words(gold)
    if gold_words and gold_words == notation.normalize_words(answer):
        return True
    gold_value, value = notation.parse_number(gold_short), _value(answer)
    if gold_value and value:
        return gold_value.equals(value)
    gold_based = notation.parse_based_number(gold_short)
    based = notation.parse_based_number(short)
    if gold_based and based:
        return gold_based == based
    return symbolic.equal(*notation.drop_names(gold, answer))


def final_answer(text: str) -> str:
    """Return the final answer of `text` in a canonical spelling, for majority voting; "" for none.

    Rational numbers of equal value are one vote, and so are lists without brackets in any order.
    Other equal expressions in different spellings are different votes.
    """
    answer = notation.normalize(_final(text))
    value = _value(answer)
    if value:
        return f"{value.value}{'%' if value.percent else ''}"
    short = notation.normalize_words(answer) or notation.compact(answer)
    return short if re.search(r"[(\[{]", short) else ",".join(sorted(short.split(",")))


def choice_equal(prediction: str, gold: str) -> bool:
    """Return whether the option letter in `prediction` is `gold`, with or without parentheses.

    In an answer marked as final, the first letter counts ("(B) the owl"). In other text, the last
    "(B)" counts, or a last line that is a letter or starts with one ("B", "B. the owl").
    """
    marked = marked_answer(prediction)
    if marked is not None:
        found = _OPTION.findall(marked)[:1] or re.findall(r"^\W*([a-z])()\W*$", marked)
    else:
        last_line = prediction.strip().rpartition("\n")[2].strip()
        found = re.findall(r"\(([A-Za-z])\)()", prediction)[-1:]
        found = found or re.findall(r"^\W*([A-Z])()(?:[.:)*]|$)", last_line)
    return bool(found) and "".join(found[0]).upper() == re.sub(r"\W", "", gold).upper()


def exact_equal(prediction: str, gold: str) -> bool:
    """Return whether the final answer or last line is `gold`, up to case, commas and spaces.

    A text that is `gold` as a whole is right, too.
    """
    answer = marked_answer(prediction)
    if answer is None:
        answer = prediction.strip().rpartition("\n")[2]
    return _normalize_text(gold) in (_normalize_text(answer), _normalize_text(prediction))


def grading_pool() -> ThreadPoolExecutor:
    """Return a pool with one thread per core that this process may use.

    Threads suffice, because code and symbolic comparisons run in other processes with time limits.
    """
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)))


def grade_all(benchmark: Benchmark, answers: Sequence[tuple[Item, str]]) -> list[bool]:
    """Return the verdict on each answer, in order."""
    with grading_pool() as pool:
        return list(pool.map(lambda answer: benchmark.grade(*answer), answers))


def marked_answer(text: str) -> str | None:
    r"""Return what `\boxed{}`, "####", "answer is" or "Answer:" marks as final, or None."""
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed
    if "####" in text:
        return text.rpartition("####")[2].strip().partition("\n")[0].strip()
    tails = re.split(r"answer\s+is\b", text, flags=re.IGNORECASE)
    if len(tails) == 1:
        tails = re.split(
            r"^[^\w\n]*(?:final\s+)?answer[^\w\n]*:", text, flags=re.IGNORECASE | re.MULTILINE
        )
    return _sentence(tails[-1]) if len(tails) > 1 else None


def _last_boxed(text: str) -> str | None:
    r"""Return the content of the last complete `\boxed{}` that is not empty, in linear time."""
    # "\}" is not a brace in LaTeX, but one reference answer of MATH is broken: "\frac{\}{p}i2".
    return _boxed(_BRACE, text) or _boxed(_BRACE_OR_ESCAPED, text)


def _boxed(braces: re.Pattern[str], text: str) -> str | None:
    open_at: list[int | None] = []
    last, content = -1, None
    for token in braces.finditer(text):
        if token.group() == "{":
            open_at.append(None)
        elif "box" in token.group():
            open_at.append(token.end())
        elif token.group() == "}" and open_at:
            start = open_at.pop()
            if start is not None and start > last and text[start : token.start()].strip():
                last, content = start, text[start : token.start()].strip()
    return content


def _sentence(tail: str) -> str:
    """Return the formula that `tail` starts with, else the first sentence on its first line."""
    line = tail.lstrip(" \t\n:*").partition("\n")[0]
    formula = re.match(r"\$\$?([^$]+?)\$\$?(?![\d])|\\\((.+?)\\\)|\\\[(.+?)\\\]", line)
    if formula:
        return next(group for group in formula.groups() if group)
    return re.split(r"\.(?:\s|\*|$)", line, maxsplit=1)[0].strip()


def _final(prediction: str) -> str:
    """Return what is marked as final, else the last number; "" if it is longer than any answer."""
    answer = marked_answer(prediction)
    if answer is None:
        answer = "".join(_NUMBER.findall(prediction)[-1:])
    return answer if len(answer) <= MAX_ANSWER_CHARS else ""


def _value(answer: str) -> notation.Number | None:
    return notation.parse_number(notation.compact(notation.extract_number(answer)))


def _normalize_text(answer: str) -> str:
    answer = re.sub(r"\\text\{([^{}]*)\}", r"\1", answer)
    answer = notation.DIGIT_GROUP.sub("", answer).replace(",", " ").strip("\"'`*$. \n\t")
    if re.fullmatch(r"[\[\](){}<>\s]*", answer):
        return "".join(answer.split())
    return " ".join(answer.casefold().split()).strip("\"'`*$. ")
