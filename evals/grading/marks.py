r"""How a text marks its final answer: `\boxed{}`, "####", "the answer is", a heading "Answer".

The order is that of the evaluation of Qwen2.5-Math (a45202b, evaluation/parser.py): the last
complete `\boxed{}`, the text after the last "####", the text after the last "answer is" or after
the heading. Thoughts do not count, and if there are `<answer>` tags, only the text in the last one
does. Nor do statements count that the text takes back, or that are not the writer's own.
"""

import json
import re

from evals.grading.math_mode import leading_formulas
from evals.grading.thoughts import after_thinking

MAX_ANSWER_CHARS = 1_000  # reference answers have under a third of it; a model's loop has more
MAX_STATEMENTS = 100  # of "answer is" in one text

_ANSWER_TAG = re.compile("<answer>", re.IGNORECASE)
_ANSWER_KEYS = ("answer", "final_answer", "final answer")  # of a JSON object
_BOXED_WITHOUT_BRACES = re.compile(  # \boxed 5
    r"\\(?:boxed|fbox)\s*(?![\s{a-zA-Z])([^\s${}]+?)[.,;]?(?=[\s$]|\\[)\]]|$)"
)
_HASHES = re.compile(r"####+")
_TITLE = re.compile(  # of a section: "#### Step 1: the sum", "#### 2. The product"
    r"\W*(?:\d{1,2}[.)]\s+[A-Za-z]{3,}.*|[A-Za-z]{3,}(?:[ :].*|:)|(?:conclusion|solution"
    r"|explanation|summary|result|verification|check|reasoning|calculation|analysis)s?\W*)$",
    re.IGNORECASE,
)
_TITLE_OF_ANSWER = re.compile(
    r"\W*(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|ans)\b", re.IGNORECASE
)
_BOLD = re.compile(r"(?<![\w)])\*\*(?=\S)|(?<=\S)\*\*(?=[\s.,;:!?)]|$)")  # no power
_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\\\(?!boxed|fbox)|\\[{}]|[{}]")
_BRACE_OR_ESCAPED = re.compile(r"\\(?:boxed|fbox)\s*\{|[{}]")
IS_IN_OTHER_LANGUAGES = (  # "la respuesta correcta es"
    r"(?:respuesta|resposta|réponse|antwort|risposta)\s+(?:[^\W\d]+\s+)?(?:es|est|é|è|ist|lautet)(?!\w)"
    r"|答案(?:是|为|為)|答えは|답은"
)
TO_A_QUESTION = r"(?:\s+here|\s+to\s+(?:this|the|your)\s+\w+|,\s+\w+,)?"
"""What may stand between "the answer" and "is"."""
_ANSWER_IS = re.compile(
    rf"answers?{TO_A_QUESTION}\s+(?:is|are)\b|{IS_IN_OTHER_LANGUAGES}"
    r"|answers?\s+(?:should|would|must)\s+be(?=[\s:*_]*(?:\\?[$(\[]\s*)*-?\d)",
    re.IGNORECASE,
)
_HEADING = re.compile(  # "**Final Answer:**"
    r"^[^\w\n]*(?:(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|ans\.?)"
    r"|(?:最终|正确)?答案|정답|ответ|respuesta|resposta|réponse|antwort)"
    r"[*_ \t)]*(?:[:\uff1a\n]|$)",
    re.IGNORECASE | re.MULTILINE,
)
_SUPPOSED = re.compile(  # "I first thought the", "one might say that the"
    r"(?:\bthought|\bif|\bwhether|(?:n['\u2019]t|\bnot|\bmight|\bmay|\bsome|\bpeople)\s+(?:\w+\s+)?"
    r"(?:think|say|believe|assume|guess))\s+(?:that\s+)?(?:the\s+)?(?:\w+\s+)?$",
    re.IGNORECASE,
)
_TAKEN_BACK = re.compile(
    r"\b(?:wait|hmm|oops)\W+no\b|[,.!?\u2026-]\s*no,?\s+wait\b|\bactually,?\s+no\b|\bscratch\s+that\b"
    r"|\bI\s+made\s+an?\s+(?:mistake|error)\b|\bcorrection:|\banswer\s+is\s+\S{1,20}\?\s+no\b",
    re.IGNORECASE,
)
_NO_ANSWER = re.compile(  # "the answer is correct"
    r"(?:correct|right|wrong|incorrect|clear|reasonable|verified|obvious|unclear)\W*$",
    re.IGNORECASE,
)


def final_part(text: str) -> str:
    """Return where a text gives its answer: after its thoughts, in the last `<answer>` if any.

    It is the value of "answer" if the text ends with a JSON object that has one.
    """
    text = after_thinking(text)
    tags = list(_ANSWER_TAG.finditer(text))
    if tags:
        text = re.split("</answer>", text[tags[-1].end() :], maxsplit=1, flags=re.IGNORECASE)[0]
        text = text.strip()
    return _answer_in_json(text) or text


def _answer_in_json(text: str) -> str:
    """Return the answer in a JSON object at the end of a text; "" if there is none."""
    text = text.rstrip("` \n")
    if not text.endswith("}") or '"' not in text:
        return ""
    starts = [found.start() for found in re.finditer(r"\{\s*\"", text)]
    for start in starts[-MAX_STATEMENTS:]:
        try:
            found = json.loads(text[start:])
        except (ValueError, RecursionError):
            continue
        values = [found[key] for key in found if key.lower() in _ANSWER_KEYS]
        if len(values) == 1 and isinstance(values[0], str | int | float):
            return str(values[0]).strip()
    return ""


def marked_answer(text: str) -> str | None:
    r"""Return what `\boxed{}`, "####", "answer is" or "Answer:" marks as final, or None.

    After the last two it is the formulas that follow at once, or else the rest of the sentence.
    """
    text = final_part(text)
    exact = boxed_or_hashed(text)
    if exact is not None:
        return exact
    stated = stated_answer(without_retracted(text))
    if stated is None:
        return None
    formulas = leading_formulas(stated)
    return (formulas.formula if formulas else "") or first_sentence(stated)


def boxed_or_hashed(text: str) -> str | None:
    r"""Return what the last `\boxed{}` or else the last "####" marks, or None."""
    boxed = last_boxed(text)
    return _hashed(text) if boxed is None and "####" in text else boxed


def _hashed(text: str) -> str | None:
    """Return the line after the last "####" that is no title of a section, or None."""
    marks = list(_HASHES.finditer(text))
    for mark in reversed(marks[-MAX_STATEMENTS:]):
        line, _, below = text[mark.end() :].strip().partition("\n")
        if _TITLE_OF_ANSWER.match(line):
            return None
        if not (below and _TITLE.match(line[:MAX_ANSWER_CHARS])):
            return line.strip()
    return None


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last complete `\boxed{}` that is not empty, in linear time."""
    # "\}" is not a brace in LaTeX, but one reference answer of MATH is broken: "\frac{\}{p}i2".
    complete = _last_boxed(_BRACE, text) or _last_boxed(_BRACE_OR_ESCAPED, text)
    if complete is None and "\\" in text:
        return (_BOXED_WITHOUT_BRACES.findall(text) or [None])[-1]
    return complete


def _last_boxed(braces: re.Pattern[str], text: str) -> str | None:
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


def stated_answer(text: str) -> str | None:
    """Return the text after the last "answer is" that says something, else after "Answer:"."""
    for pattern in (_ANSWER_IS, _HEADING):
        marks = list(pattern.finditer(text))
        for mark in reversed(marks[-MAX_STATEMENTS:]):
            if is_only_supposed(text, mark.start()):
                continue
            rest = _BOLD.sub("", text[mark.end() :][: 4 * MAX_ANSWER_CHARS])
            rest = rest.lstrip(" \t\n:\uff1a*_#=")
            says = first_sentence(rest)
            if says and not re.match(r"[.?!]", says) and not _NO_ANSWER.match(says):
                return rest
    return None


def is_only_supposed(text: str, at: int) -> bool:
    """Return whether the words before a statement say that it is not the writer's own."""
    return bool(_SUPPOSED.search(text[max(0, at - 60) : at]))


def without_retracted(text: str) -> str:
    """Return the text after the last words that take back what stands before them."""
    marks = list(_TAKEN_BACK.finditer(text))
    return text[marks[-1].end() :] if marks else text


def first_sentence(text: str) -> str:
    """Return the first sentence of the first line, without its full stop."""
    line = text.partition("\n")[0]
    return re.split(r"[.](?:\s|\*|$)|。", line, maxsplit=1)[0].strip()
