"""The final formula of a text on mathematics.

It is what the text marks as its answer (`evals.grading.marks`). A text that marks none has the
formula with its last number (in plain words: `evals.grading.prose`).
"""

import re

from evals.grading import units
from evals.grading.marks import (
    MAX_ANSWER_CHARS,
    boxed_or_hashed,
    final_part,
    first_sentence,
    stated_answer,
    without_retracted,
)
from evals.grading.math_mode import CONNECTIVE, FORMULA, content, leading_formulas
from evals.grading.prose import changing_word, has_words, kept_words, last_number

_NUMBER = re.compile(r"(?<![\d.])-?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")
_CLAUSE = re.compile(  # "5 because ...", "5; we are done", "5, as shown"
    r",?\s+(?:because|since|as\s+shown|as\s+required|which|where|so\s+that|after|when|if|given|"
    r"rounded|i\.e\.|rather\s+than|instead\s+of)(?![a-z]).*|;\s+[a-z]{2,}.*|,\s+(?:as|so|not|no|but|then|that|therefore|hence|thus|meaning|in|for|"
    r"with|and\s+(?:the|we|it|this|so|not))\b.*|,\s*[\u3040-\u30ff\u4e00-\u9fff].*",
    re.DOTALL,
)
_FOR_A_VALUE = re.compile(r",?\s+(?:for|at|with)\s+[a-z]\s*=.*", re.DOTALL)  # "5 for x = 2"
_ASIDE = re.compile(  # "5 (five)"
    r"\s*\((?:[A-Za-z][A-Za-z ,'-]{2,}|(?:not|or|about|for|at|when|if|with)\s[^()]*)\)$"
)
_LABEL = re.compile(r"(?:\([A-J]\)|[A-J][.)])\s+(?=[-$\\(\d])")  # of an option: "(C) 5", "C. 5"
_NOT_BUT = re.compile(r"not\s[^.;\n]{0,99}?,?\sbut\s+(?:rather\s+)?")  # "not $5$ but $6$"
_OPERATION_OF = re.compile(
    r"\b(?:sum|product|difference|quotient|average|mean|square|cube|union|intersection)\s+of\b"
)


def final_formula(text: str) -> str:
    """Return the final answer of a text on mathematics; "" if there is none.

    After "answer is", it is the formulas of that sentence, or the sentence without its subordinate
    clauses. A text that marks no answer has the formula that its last number belongs to.
    """
    text = final_part(text)
    found = boxed_or_hashed(text)
    if found is None:
        text = without_retracted(text)
        stated = stated_answer(text)
        found = _last_formula(text) if stated is None else _stated_formula(stated)
    return found if len(found) <= MAX_ANSWER_CHARS else ""


def _stated_formula(text: str) -> str:
    """Return the formulas of the sentence that a text starts with, else its words."""
    rejected = _NOT_BUT.match(text)
    text = text[rejected.end() :] if rejected else text
    label = _LABEL.match(text)
    if label:
        return f"{label.group()}{_stated_formula(text[label.end() :])}"
    text = re.sub(r"^(?:either|both)\s+", "", text)
    leading = leading_formulas(text)
    if leading:
        return f"{leading.formula}{kept_words(text[leading.end :], units.CHANGING)}"
    sentence = first_sentence(text)
    first = FORMULA.search(sentence)
    if first:
        before = sentence[: first.start()].lower()
        words = re.findall(r"[a-z]+", before)
        changes = units.CHANGING_BEFORE.intersection(words) or units.is_negative(words)
        if changes or _OPERATION_OF.search(before) or re.search(r"\d", before):
            return sentence
        return _stated_formula(text[first.start() :])
    sentence = _FOR_A_VALUE.sub("", _CLAUSE.sub("", sentence.replace("`", ""))).rstrip("!*_ ")
    sentence = re.sub(r"^(['\"])(.*)\1$", r"\2", sentence)
    return _ASIDE.sub("", sentence)


def _last_formula(text: str) -> str:
    """Return the formula that holds the last number of the text, or that number."""
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        lines = text.strip().splitlines()
        only = FORMULA.fullmatch(lines[-1].strip().rstrip(".")) if lines else None
        return content(only) if only else ""
    last, list_start, end = numbers[-1], 0, -1
    for found in FORMULA.finditer(text):
        if end < 0 or not CONNECTIVE.fullmatch(text, end, found.start()):
            list_start = found.start()
        end = found.end()
        if found.start() <= last.start() < end:
            formulas = leading_formulas(text[list_start:end])
            formula = formulas.formula if formulas else content(found)
            return f"{changing_word(text[:list_start], formula)}{formula}{kept_words(text[end:])}"
    before = text[: last.start()].rpartition("\n")[2][-MAX_ANSWER_CHARS:]
    line = f"{before}{text[last.start() :].partition(chr(10))[0]}"[: 2 * MAX_ANSWER_CHARS].strip()
    if not has_words(line) or "\\begin" in line:
        return line
    return last_number(line) or last.group()
