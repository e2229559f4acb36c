r"""Is this answer right? Extraction of the final answer from a model's text, and its comparison.

In: the whole text of an answer and the reference answer. Out: right or wrong. The final answer is
looked for in the order of Qwen2.5-Math's evaluation: the last complete `\boxed{}`, what follows
the last "####", what follows the last "answer is", the last number (mathematics) or line (others).
"""

import ast
import os
import re
import textwrap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from evals.benchmark import Benchmark, Item
from evals.grading import notation, symbolic
from evals.sandbox import runner

CPU_SECONDS = 5.0
MAX_ANSWER_CHARS = 1_000  # no reference answer is a third as long; a loop of a model is
_NUMBER = re.compile(r"(?<![\d.])-?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")
_OPTION = re.compile(r"\(([A-Za-z])\)|(?<![A-Za-z'])([A-Z])(?![A-Za-z'])")
_STATEMENT = re.compile(r"^(?:from [\w.]+ import|import \w|(?:async )?def \w|class \w|@\w)", re.M)
_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\\\(?!boxed|fbox)|\\[{}]|[{}]")
_BRACE_OR_ESCAPED = re.compile(r"\\(?:boxed|fbox)\s*\{|[{}]")
_FENCED = re.compile(r"^[ \t]*```[ \t]*\w*[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.M | re.S)
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def math_equal(prediction: str, gold: str) -> bool:
    r"""True if the final answer in `prediction` equals `gold`, by value and not by spelling.

    Rational numbers and equal spellings are settled here, the rest by math-verify (Kydlicek, 2025)
    in a process of its own with a limit on CPU time: safe in threads and with hostile input.

    Args:
        prediction: the model's whole answer text.
        gold: the reference answer, LaTeX or plain, with or without `\boxed{}`.
    """
    answer = _final(prediction)
    answer, gold = notation.plain(answer), notation.plain(_last_boxed(gold) or gold)
    short, gold_short = notation.squeezed(answer), notation.squeezed(gold)
    if not answer or not gold or short == gold_short:
        return bool(answer) and short == gold_short
    if notation.words(gold) and notation.words(gold) == notation.words(answer):
        return True
    gold_value, value = notation.number(gold_short), _value(answer)
    if gold_value and value:
        return gold_value.equals(value)
    gold_digits, digits = notation.in_base(gold_short), notation.in_base(short)
    if gold_digits and digits:
        return gold_digits == digits
    return symbolic.equal(*notation.same_sides(gold, answer))


def final_answer(text: str) -> str:
    """The final answer of `text` in one spelling, "" for none: what majority voting counts.

    Rational numbers go by value and lists without brackets by content; other expressions that are
    equal but written otherwise are different votes.
    """
    answer = notation.plain(_final(text))
    value = _value(answer)
    if value:
        return f"{value.value}{'%' if value.percent else ''}"
    short = notation.words(answer) or notation.squeezed(answer)
    return short if re.search(r"[(\[{]", short) else ",".join(sorted(short.split(",")))


def choice_equal(prediction: str, gold: str) -> bool:
    """True if the option letter in `prediction` is `gold`, with or without parentheses.

    In an answer marked as final the first letter counts ("(B) the owl"); in running text the last
    "(B)", or a last line that is or opens with a letter ("B", "B. the owl").
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
    """True if the final answer, else the last line, is `gold` but for case, commas and spaces."""
    answer = marked_answer(prediction)
    if answer is None:
        answer = prediction.strip().rpartition("\n")[2]
    return _words(gold) in (_words(answer), _words(prediction))


def code_passes(item: Item, text: str) -> bool:
    """True if the code in `text` passes `item.tests` in the sandbox.

    `item.meta["code_prompt"]`, where present, is the head of the function that was to be completed;
    `item.meta["cpu_seconds"]` the time that the tests may take.
    """
    program = extract_code(text, item.meta.get("code_prompt", ""))
    cpu_seconds = item.meta.get("cpu_seconds", CPU_SECONDS)
    return runner.run(program, tests=item.tests, cpu_seconds=cpu_seconds).passed


def graders() -> ThreadPoolExecutor:
    """For as many answers at a time as this process may use cores.

    Threads suffice: code and symbolic comparison run in processes of their own, with time limits.
    """
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)))


def grade_all(benchmark: Benchmark, answers: Sequence[tuple[Item, str]]) -> list[bool]:
    """Grades all answers; order is kept."""
    with graders() as pool:
        return list(pool.map(lambda answer: benchmark.grade(*answer), answers))


def marked_answer(text: str) -> str | None:
    r"""What `text` marks as final by `\boxed{}`, "####", "answer is" or "Answer:"; else None."""
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


def extract_code(text: str, prompt: str = "") -> str:
    """The program in a model's answer: from its last fitting fenced block, else from its text.

    Args:
        text: the whole answer; a block cut off by the token limit counts as far as it goes.
        prompt: the code that was to be completed, if any. An answer that repeats its last function
            replaces it and keeps what stands above; any other answer is its continuation.
    """
    headers = list(re.finditer(r"^def\s+(\w+)", prompt, re.MULTILINE))
    name = headers[-1].group(1) if headers else r"\w+"
    definition = re.compile(rf"^(?:async\s+)?def\s+{name}\b", re.MULTILINE)
    blocks = _FENCED.findall(text)
    fitting = [block for block in map(textwrap.dedent, blocks) if definition.search(block)]
    code = (fitting or blocks or [text])[-1]
    if not headers:
        return code if blocks else _from_first_statement(code)
    if definition.search(code):
        above = prompt[: headers[-1].start()]
        return above + (code if blocks else _from_first_statement(code))
    if code.strip() and not code.lstrip("\n")[0].isspace():
        code = textwrap.indent(code, "    ")
    return _without_trailing_prose(prompt + code)


def _last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{}` whose braces close and that is not empty; linear in time."""
    # "\}" is no brace in LaTeX, but one reference answer of MATH is broken: "\frac{\}{p}i2".
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
    """The first sentence of `tail`, on one line, or the formula that it opens with."""
    line = tail.lstrip(" \t\n:*").partition("\n")[0]
    formula = re.match(r"\$\$?([^$]+?)\$\$?(?![\d])|\\\((.+?)\\\)|\\\[(.+?)\\\]", line)
    if formula:
        return next(group for group in formula.groups() if group)
    return re.split(r"\.(?:\s|\*|$)", line, maxsplit=1)[0].strip()


def _final(prediction: str) -> str:
    """What is marked as final, else the last number; "" where that is longer than any answer."""
    answer = marked_answer(prediction)
    if answer is None:
        answer = "".join(_NUMBER.findall(prediction)[-1:])
    return answer if len(answer) <= MAX_ANSWER_CHARS else ""


def _value(answer: str) -> notation.Number | None:
    return notation.number(notation.squeezed(notation.without_words(answer)))


def _words(answer: str) -> str:
    answer = re.sub(r"\\text\{([^{}]*)\}", r"\1", answer)
    answer = _GROUPED.sub("", answer).replace(",", " ").strip("\"'`*$. \n\t")
    if re.fullmatch(r"[\[\](){}<>\s]*", answer):
        return "".join(answer.split())
    return " ".join(answer.casefold().split()).strip("\"'`*$. ")


def _from_first_statement(text: str) -> str:
    """Drops prose before the first line that looks like code, unless all of it is code."""
    start = _STATEMENT.search(text)
    return (
        text if start is None or _parses(text) else _without_trailing_prose(text[start.start() :])
    )


def _without_trailing_prose(program: str) -> str:
    """The longest head of `program`, in whole lines, that parses; all of it if none does."""
    lines = program.splitlines()
    heads = ("\n".join(lines[:count]) for count in range(len(lines), 0, -1))
    return next(filter(_parses, heads), program)


def _parses(program: str) -> bool:
    try:
        ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
