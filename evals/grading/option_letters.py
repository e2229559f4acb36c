"""The letter of the option that a text chooses.

An answer that is marked as final counts first, then "C is correct". A text with neither may consist
of the letter, judge each option, start with the answer and explain it, or end with it.
"""

import re
from collections.abc import Iterator

from evals.grading.marks import (
    IS_IN_OTHER_LANGUAGES,
    MAX_ANSWER_CHARS,
    MAX_STATEMENTS,
    TO_A_QUESTION,
    boxed_or_hashed,
    final_part,
    is_only_supposed,
    stated_answer,
    without_retracted,
)

_LETTER = (  # "(c)" or "C", but not the letter of "E=mc", "X-ray", "U.S." or "I'm"
    r"(?:\(([A-Za-z])\)|(?<![A-Za-z])(?<![A-Za-z]['\u2019])(?<![A-Za-z]\.)([A-Z])"
    r"(?!['\u2019]?[A-Za-z])(?![.-][A-Za-z]|\s*=))"
)
_OPTION = re.compile(_LETTER)
_STATES = re.compile(  # "the correct option is", "Answer:", "choice -"
    r"(?:\b(?:answers?|option|choice|(?:correct|right|final)\s+letter|ans|antwort|réponse|respuesta"
    r"|resposta)\b|答案|答え|正解|정답|ответ|उत्तर)"
    rf"{TO_A_QUESTION}[\s*_]*"
    r"(?:(?:\s(?:is|are|would\s+be|must\s+be|should\s+be|has\s+to\s+be|(?:appears|seems)\s+to\s+be))\b"
    r"|[*_]*\s*[:=\uff1a]|\s[-\u2013]\s)[\s:*_]*"
    rf"|(?:{IS_IN_OTHER_LANGUAGES}|正解は|الإجابة الصحيحة هي)[\s:\uff1a*_]*"
    r"|(?:^|[故应應]|因此|所以)[选選][择擇]?[\s:\uff1a*_]*(?=[(\uff08]?[A-Z])",  # "故选 C"
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(r"(?<=[\w)'\"*])[.!?;](?:\s|$)|[\n。]")
_IS_CORRECT = re.compile(
    rf"{_LETTER}[\s*_\"'$}}]*\s+(?:is|must\s+be|would\s+be|seems)\s+(?:therefore\s+|thus\s+|clearly\s+)?"
    r"(?:the\s+)?(?:correct|right|best|true|answer|only\s+correct|most\s+\w+\s+answer)"
)
_CONCLUDES = re.compile(  # "that leaves option C."
    r"\b(?:so|thus|hence|therefore|choose|pick|select|with|leav(?:es|ing)|it[\u2019']s|it\s+is|must\s+be|correct|right)\b[:,]?"
    r"\s+(?:option\s+|choice\s+)?[*_\"']*([A-Z])[*_\"'.)]*$",
    re.IGNORECASE,
)
_IS_OPTION = re.compile(  # "which is Paris, option B."
    r"\b(?:option|choice)\s+[*_\"']*\(?([A-Z])\)?[*_\"'.]*$", re.IGNORECASE
)
_REJECTS = re.compile(
    r"\b(?:rules?|ruled|ruling)\s+out\b|\b(?:eliminat|exclud|reject|discard|except|incorrect|wrong|not\b|n't\b)",
    re.IGNORECASE,
)
_DENIED = re.compile(  # "(A) is wrong"
    r"\(([A-Za-z])\)[*_]*\s+(?:is|are|was|can|does)\s*(?:not|n[\u2019']t|in(?:correct|valid)|wrong|false|un)"
)
_NEGATED = re.compile(  # "neither A"
    r"\b(?:not|neither|nor|isn[\u2019']t)\s+[*_\"']*(?:\([A-Z]\)|[A-Z]\b)[*_\"']*"
)
_JOINED = re.compile(  # behind a letter: " and B", ", (C)"
    r"[\s*_]*(?:,|/|&|\+|,?\s*\b(?:and|or|and/or)\b)[\s*_]*(?:\(([A-Z])\)|([A-Z])(?![A-Za-z'\u2019]))"
    r"(?![\s*_]+(?:is|was|are|does|has|have|can|could|would|fails|isn)\b)"
)
_JOINED_BEFORE = re.compile(  # before the last "(B)": "(A) or "
    r"\(([A-Za-z])\)[\s*_]*(?:,|and|or|&|,\s*and|,\s*or)[\s*_]*$"
)
_AFTER_A_LETTER = re.compile(  # words that show that an "A" before them is no article
    r"\s+(?:and|or|is|was|has|because|since|as|which|that|but|not|by|for|in|so|it|due|given|being|"
    r"rather|instead|based|from|while|if|must|may|can|would|should|seems|also|only)\b"
)
_BEFORE_A_LETTER = re.compile(
    r"\W*(?:(?:most|likely|probably|clearly|definitely|thus|therefore|hence|indeed|simply|the|an?|"
    r"option|choice|letter|answer|statement|number|I|think|believe|be|to)\b\W*)*"
)
_LONE_LETTER = re.compile(r"\W*(?:(?:option|choice|answer|ans)\W+)?([A-Za-z])\W*", re.IGNORECASE)
_OPTION_LINE = re.compile(r"\W*([A-Z])(?:[).:][*_]*\s|[).:*_]*$)")
_FIRST_LETTER = re.compile(r"\W*([A-Z])\W*$")
_LAST_LINE = re.compile(  # "**C**", "C. the owl", "C - the owl", "C, because ..."
    r"^\W*([A-Z])(?:[.:)*_$\"`]|'(?![a-z])|,\s+(?:because|since|as)\b|\s*$|\s+[-\u2013\u2014]\s)"
)
_VERDICT = re.compile(  # "A. Incorrect"
    r"^\W*(?:option\s+|choice\s+)?([A-Z])\b[ \t.:)*_\u2013\u2014-]+(?:is\s+)?"
    r"(correct|right|incorrect|wrong|not\s+correct)\b",
    re.IGNORECASE | re.MULTILINE,
)


def option_letter(text: str) -> str:
    """Return the option that a text chooses, as a capital letter; "" for none or several."""
    text = final_part(text)
    marked = boxed_or_hashed(text)
    if marked is not None:
        return _letter_of_any_case(marked)
    text = without_retracted(text)
    stated = [each for each in _STATES.finditer(text) if not is_only_supposed(text, each.start())]
    for each in reversed(stated[-MAX_STATEMENTS:]):
        rest = text[each.end() : each.end() + MAX_ANSWER_CHARS].lstrip()
        letter = _letter_of_any_case(_SENTENCE_END.split(rest, maxsplit=1)[0])
        if letter:
            return letter
    correct = list(_IS_CORRECT.finditer(text))
    if correct:
        return _matched_letter(correct[-1])
    answer = stated_answer(text)
    if stated or answer is not None:
        return _letter(answer or "")
    return _unmarked_letter(text)


def _letter_of_any_case(text: str) -> str:
    """Return the letter as `_letter`; a small one counts if there is no other word."""
    letter = _letter(text)
    if letter:
        return letter
    small = re.fullmatch(r"\W*([a-z])(?:\W*|\)\s.*)", text.strip(), re.DOTALL)
    return small.group(1).upper() if small else ""


def _letter(text: str) -> str:
    """Return the first option that `text` does not negate; "" if several are joined.

    A letter in the middle of a sentence, as in "vitamin C", is one only if no "(B)" follows.
    """
    text = re.sub(r"\\(?:text|textbf|mathbf|mathrm|bf|boxed)\s*\{([^{}]*)\}", r"\1", text)
    text = _NEGATED.sub("", text)
    letters = list(_letters(text))
    if not letters:
        return ""
    first = letters[0]
    if first.group(2) and not _BEFORE_A_LETTER.fullmatch(text[: first.start()]):
        first = next((found for found in letters if found.group(1)), first)
    joined = _JOINED.match(text, first.end())
    letter = _matched_letter(first)
    return "" if joined and _matched_letter(joined) != letter else letter


def _letters(text: str) -> Iterator[re.Match[str]]:
    """Yield the letters that may be options: not "I believe", not "A common error"."""
    for found in _OPTION.finditer(text):
        is_word = found.group() in ("A", "I") and re.match(r"\s+[a-z]", text[found.end() :])
        is_first = not text[: found.start()].strip("*_$\"' \\{")
        joined = re.match(r"\s+(?:and|or)\b", text[found.end() :])
        follows = joined or (is_first and _AFTER_A_LETTER.match(text, found.end()))
        if not is_word or (found.group() == "A" and follows):
            yield found


def _matched_letter(found: re.Match[str]) -> str:
    return next(group for group in found.groups() if group).upper()


def _unmarked_letter(text: str) -> str:
    """Return the letter of a text that does not say that it is the answer."""
    lone = _LONE_LETTER.fullmatch(text)
    if lone:
        return lone.group(1).upper()
    verdicts = _VERDICT.findall(text)
    if len(verdicts) > 1:
        right = [letter for letter, verdict in verdicts if verdict.lower() in ("correct", "right")]
        return right[0].upper() if len(right) == 1 else ""
    text = _DENIED.sub("", text)
    lines = text.strip().splitlines()
    explained = _explained_letter(lines)
    if explained:
        return explained
    last_line = lines[-1].strip() if lines else ""
    last_line = re.sub(r"\\(?:text|textbf|mathbf|mathrm)\s*\{([^{}]*)\}", r"\1", last_line)
    concluded = _CONCLUDES.search(last_line)
    if not concluded and not _REJECTS.search(last_line):
        concluded = _IS_OPTION.search(last_line)
    if concluded and concluded.group(1).isupper():
        return concluded.group(1)
    bracketed = list(re.finditer(r"\(([A-Za-z])\)", text))
    if bracketed:
        joined = _JOINED_BEFORE.search(text[: bracketed[-1].start()])
        return "" if joined else bracketed[-1].group(1).upper()
    found = _LAST_LINE.match(last_line)
    return found.group(1) if found else ""


def _explained_letter(lines: list[str]) -> str:
    """Return the letter of a first line that has an explanation and no other option below.

    Without an empty line before the explanation, the line must be the letter alone.

    An explanation that ends with "so ..." has a conclusion, which counts instead.
    """
    if len(lines) < 2:
        return ""
    is_apart = not lines[1].strip()
    first = (_OPTION_LINE if is_apart else _FIRST_LETTER).match(lines[0])
    if not is_apart and len(lines[1].split()) < 3:
        return ""
    concludes = re.match(r"\W*(?:so|thus|hence|therefore)\b", lines[-1].lower())
    if not first or concludes or any(map(_OPTION_LINE.match, lines[1:])):
        return ""
    return first.group(1)
