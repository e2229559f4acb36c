r"""Where the final answer stands in a model's text.

What a model writes while it thinks is no answer: only the text after the last `</think>` counts,
and a thought that does not end has none. In that text, the final answer is searched for in the
order of the evaluation of Qwen2.5-Math (a45202b, evaluation/parser.py): the last complete
`\boxed{}`, the text after the last "####", the text after the last "answer is" or the heading
"Answer", and last the last number (mathematics, see `evals.grading.prose`) or line (other domains).
If there are `<answer>` tags, only the text in the last one counts.
"""

import re
from collections.abc import Iterator

from evals.grading import units
from evals.grading.prose import changing_word, has_words, kept_words, last_number

MAX_ANSWER_CHARS = 1_000  # reference answers have under a third of it; a model's loop has more
_MAX_STATEMENTS = 100  # of "answer is" in one text

_THOUGHT = r"(?:think|thinking|thought|reasoning|seed:think)"
_OPENED = re.compile(
    rf"<{_THOUGHT}>|\[THINK\]|<\|channel\|>analysis|<\|begin_of_thought\|>", re.IGNORECASE
)
_CLOSED = re.compile(
    rf"</{_THOUGHT}>|\[/THINK\]|<\|channel\|>final<\|message\|>|<\|end_of_thought\|>", re.IGNORECASE
)
_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\\\(?!boxed|fbox)|\\[{}]|[{}]")
_BRACE_OR_ESCAPED = re.compile(r"\\(?:boxed|fbox)\s*\{|[{}]")
_NUMBER = re.compile(r"(?<![\d.])-?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")
_OTHER_LANGUAGES = (
    r"(?:respuesta|resposta|réponse|antwort|risposta)\s+(?:[^\W\d]+\s+)?(?:es|est|é|è|ist|lautet)(?!\w)"
    r"|答案(?:是|为|為)|答えは|답은"
)
_ANSWER_IS = re.compile(rf"answers?\s+(?:is|are)\b|{_OTHER_LANGUAGES}", re.IGNORECASE)
_HEADING = re.compile(
    r"^[^\w\n]*(?:(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|ans\.?)"
    r"|(?:最终|正确)?答案|정답|ответ|respuesta|resposta|réponse|antwort)"
    r"[*_ \t)]*(?:[:\uff1a\n]|$)",
    re.IGNORECASE | re.MULTILINE,
)
_SUPPOSED = re.compile(
    r"(?:\bthought|\bif|\bwhether|(?:n['\u2019]t|\bnot|\bmight|\bmay|\bsome|\bpeople)\s+(?:\w+\s+)?"
    r"(?:think|say|believe|assume|guess))\s+(?:that\s+)?(?:the\s+)?(?:\w+\s+)?$",
    re.IGNORECASE,
)
_TAKEN_BACK = re.compile(
    r"\b(?:wait|hmm|oops)\W+no\b|[,.!?\u2026-]\s*no,?\s+wait\b|\bactually,?\s+no\b|\bscratch\s+that\b"
    r"|\bI\s+made\s+an?\s+(?:mistake|error)\b|\bcorrection:|\banswer\s+is\s+\S{1,20}\?\s+no\b",
    re.IGNORECASE,
)
_FORMULA = re.compile(
    r"\$\$(.+?)\$\$|(?<!\\)\$(?!\$)([^$\n]+?)(?<!\\)\$(?![\d$])|\\\((.+?)\\\)|\\\[(.+?)\\\]",
    re.DOTALL,
)
_CONNECTIVE = re.compile(r"\s*(?:,?\s*\b(?:and|or)\b|,|;)\s*")
_NO_ANSWER = re.compile(
    r"(?:correct|right|wrong|incorrect|clear|reasonable|verified|obvious|unclear)\W*$",
    re.IGNORECASE,
)
_CLAUSE = re.compile(
    r",?\s+(?:because|since|as\s+shown|as\s+required|which|where|so\s+that|after|when|if|given|"
    r"rounded|i\.e\.|rather\s+than|instead\s+of)(?![a-z]).*|;\s+[a-z]{2,}.*|,\s+(?:as|so|not|no|but|then|that|therefore|hence|thus|meaning|in|for|"
    r"with|and\s+(?:the|we|it|this|so|not))\b.*|,\s*[\u3040-\u30ff\u4e00-\u9fff].*",
    re.DOTALL,
)
_ASIDE = re.compile(r"\s*\((?:[A-Za-z][A-Za-z ,'-]{2,}|(?:not|or|about)\s[^()]*)\)$")
_NOT_BUT = re.compile(r"not\s[^.;\n]{0,99}?,?\sbut\s+(?:rather\s+)?")
_OPERATION_OF = re.compile(
    r"\b(?:sum|product|difference|quotient|average|mean|square|cube|union|intersection)\s+of\b"
)

# Option letters
_LETTER = (
    r"(?:\(([A-Za-z])\)|(?<![A-Za-z])(?<![A-Za-z]['\u2019])(?<![A-Za-z]\.)([A-Z])"
    r"(?!['\u2019]?[A-Za-z])(?![.-][A-Za-z]|\s*=))"
)
_OPTION = re.compile(_LETTER)
_STATES = re.compile(
    r"(?:\b(?:answer|option|choice|ans|antwort|réponse|respuesta|resposta)s?\b|答案|정답|ответ)[\s*_]*"
    r"(?:(?:\s(?:is|are|would\s+be|must\s+be|should\s+be|has\s+to\s+be|appears\s+to\s+be))\b"
    r"|[*_]*\s*[:=\uff1a]|\s[-\u2013]\s)[\s:*_]*"
    rf"|(?:{_OTHER_LANGUAGES})[\s:\uff1a*_]*",
    re.IGNORECASE,
)
_IS_CORRECT = re.compile(
    rf"{_LETTER}[\s*_\"'$}}]*\s+(?:is|must\s+be|would\s+be|seems)\s+(?:therefore\s+|thus\s+|clearly\s+)?"
    r"(?:the\s+)?(?:correct|right|best|true|answer|only\s+correct|most\s+\w+\s+answer)"
)
_CONCLUDES = re.compile(
    r"\b(?:so|thus|hence|therefore|choose|pick|select|with|leaves|it[\u2019']s|it\s+is|must\s+be|correct|right)\b[:,]?"
    r"\s+(?:option\s+|choice\s+)?[*_\"']*([A-Z])[*_\"'.)]*$",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"\(([A-Za-z])\)[*_]*\s+(?:is|are|was|can|does)\s*(?:not|n[\u2019']t|in(?:correct|valid)|wrong|false|un)"
)
_SEVERAL = re.compile(
    r"[\s*_]*(?:,|/|&|\+|,?\s*\b(?:and|or|and/or)\b)[\s*_]*(?:\(([A-Z])\)|([A-Z])(?![A-Za-z'\u2019]))"
    r"(?![\s*_]+(?:is|was|are|does|has|have|can|could|would|fails|isn)\b)"
)
_AFTER_A_LETTER = re.compile(
    r"\s+(?:and|or|is|was|has|because|since|as|which|that|but|not|by|for|in|so|it|due|given|being|"
    r"rather|instead|based|from|while|if|must|may|can|would|should|seems|also|only)\b"
)
_BEFORE_A_LETTER = re.compile(
    r"\W*(?:(?:most|likely|probably|clearly|definitely|thus|therefore|hence|indeed|simply|the|an?|"
    r"option|choice|letter|answer|statement|number|I|think|believe|be|to)\b\W*)*"
)
_LONE_LETTER = re.compile(r"\W*(?:(?:option|choice)\W+)?([A-Za-z])\W*", re.IGNORECASE)
_OPTION_LINE = re.compile(r"\W*([A-Z])(?:[).:][*_]*\s|[).:*_]*$)")
_VERDICT = re.compile(
    r"^\W*(?:option\s+|choice\s+)?([A-Z])\b[ \t.:)*_\u2013\u2014-]+(?:is\s+)?"
    r"(correct|right|incorrect|wrong|not\s+correct)\b",
    re.IGNORECASE | re.MULTILINE,
)


def after_thinking(text: str) -> str:
    """Return what a model writes after its thoughts; "" if they do not end."""
    rest = _after_last_thought(text)
    return "" if is_unfinished_thought(rest) else rest


def written(prompt: str, text: str) -> str:
    """Return a model's text with the mark of a thought that its prompt has begun."""
    begun = re.search(rf"(?:{_OPENED.pattern})\s*$", prompt[-60:], re.IGNORECASE)
    return f"<think>{text}" if begun else text


def is_unfinished_thought(text: str) -> bool:
    """Return whether the text ends inside a thought."""
    rest = _after_last_thought(text)
    return ("<" in rest or "[" in rest) and bool(_OPENED.search(rest))


def final_part(text: str) -> str:
    """Return where a text gives its answer: after its thoughts, in the last `<answer>` if any."""
    text = after_thinking(text)
    start = text.rfind("<answer>")
    return text if start < 0 else text[start + 8 :].partition("</answer>")[0].strip()


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last complete `\boxed{}` that is not empty, in linear time."""
    # "\}" is not a brace in LaTeX, but one reference answer of MATH is broken: "\frac{\}{p}i2".
    return _boxed(_BRACE, text) or _boxed(_BRACE_OR_ESCAPED, text)


def _after_last_thought(text: str) -> str:
    if "<" not in text and "[" not in text:  # fast, for most texts
        return text
    ends = [closed.end() for closed in _CLOSED.finditer(text)]
    return text[ends[-1] :] if ends else text


def marked_answer(text: str) -> str | None:
    r"""Return what `\boxed{}`, "####", "answer is" or "Answer:" marks as final, or None."""
    text = final_part(text)
    exact = _boxed_or_hashed(text)
    if exact is not None:
        return exact
    tail = _tail(_not_taken_back(text))
    return None if tail is None else _first_formula(tail) or _sentence(tail)


def formula(text: str) -> str:
    """Return the final answer of a text on mathematics; "" if there is none.

    After "answer is", it is the formulas of that sentence, or the sentence without its subordinate
    clauses. A text that marks no answer has the formula that its last number belongs to.
    """
    text = final_part(text)
    found = _boxed_or_hashed(text)
    if found is None:
        text = _not_taken_back(text)
        tail = _tail(text)
        found = _last_formula(text) if tail is None else _mathematics(tail)
    return found if len(found) <= MAX_ANSWER_CHARS else ""


def option_letter(text: str) -> str:
    """Return the option that a text chooses, as a capital letter; "" for none or several.

    An answer that is marked as final counts first, then "C is correct", then the last "(C)", then a
    last line that starts with a letter.
    """
    text = final_part(text)
    marked = _boxed_or_hashed(text)
    if marked is not None:
        return _letter(marked) or _small_letter(marked)
    text = _not_taken_back(text)
    stated = [each for each in _STATES.finditer(text) if not _is_supposed(text, each.start())]
    for each in reversed(stated[-_MAX_STATEMENTS:]):
        tail = text[each.end() : each.end() + MAX_ANSWER_CHARS].lstrip()
        sentence = re.split(r"(?<=[\w)'\"*])[.!?;](?:\s|$)|[\n。]", tail, maxsplit=1)[0]
        letter = _letter(sentence) or _small_letter(sentence)
        if letter:
            return letter
    correct = list(_IS_CORRECT.finditer(text))
    if correct:
        return _group(correct[-1]).upper()
    if stated or _tail(text) is not None:
        return _letter(_tail(text) or "")
    return _unmarked_letter(text)


def _boxed_or_hashed(text: str) -> str | None:
    boxed = last_boxed(text)
    if boxed is None and "####" in text:
        return text.rpartition("####")[2].strip().partition("\n")[0].strip()
    return boxed


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


def _tail(text: str) -> str | None:
    """Return the text after the last "answer is" that says something, else after "Answer:"."""
    for pattern in (_ANSWER_IS, _HEADING):
        marks = list(pattern.finditer(text))
        for mark in reversed(marks[-_MAX_STATEMENTS:]):
            if _is_supposed(text, mark.start()):
                continue
            tail = text[mark.end() :][: 4 * MAX_ANSWER_CHARS].lstrip(" \t\n:\uff1a*_#=")
            says = _sentence(tail)
            if says and not re.match(r"[.?!]", says) and not _NO_ANSWER.match(says):
                return tail
    return None


def _is_supposed(text: str, at: int) -> bool:
    """Return whether the words before a statement say that it is not the writer's."""
    return bool(_SUPPOSED.search(text[max(0, at - 60) : at]))


def _not_taken_back(text: str) -> str:
    """Return the text after the last words that take back what stands before them."""
    marks = list(_TAKEN_BACK.finditer(text))
    return text[marks[-1].end() :] if marks else text


def _first_formula(tail: str) -> str | None:
    """Return the formula that `tail` starts with, and those that follow in the same list."""
    found = _FORMULA.match(tail)
    if not found:
        return None
    listed = [_content(found)]
    while following := _CONNECTIVE.match(tail, found.end()):
        after = _FORMULA.match(tail, following.end())
        if not after:
            break
        separator = " \\text{ or } " if "or" in following.group() else ", "
        listed += [separator, _content(after)]
        found = after
    return "".join(listed)


def _content(found: re.Match[str]) -> str:
    return next(group for group in found.groups() if group is not None).strip()


def _sentence(tail: str) -> str:
    """Return the first sentence on the first line."""
    line = tail.partition("\n")[0]
    return re.split(r"[.](?:\s|\*|$)|。", line, maxsplit=1)[0].strip()


def _mathematics(tail: str) -> str:
    """Return the formulas of the sentence that `tail` starts with, else its words."""
    rejected = _NOT_BUT.match(tail)
    tail = tail[rejected.end() :] if rejected else tail
    listed = _first_formula(tail)
    if listed is not None:
        skipped = _list_end(tail)
        return f"{listed}{kept_words(tail[skipped:], units.CHANGING)}"
    sentence = _sentence(tail)
    first = _FORMULA.search(sentence)
    if first:
        words = re.findall(r"[a-z]+", sentence[: first.start()].lower())
        changes = units.CHANGING_BEFORE.intersection(words) or units.is_negative(words)
        operation = _OPERATION_OF.search(sentence[: first.start()].lower())
        if not (changes or operation) and not re.search(r"\d", sentence[: first.start()]):
            return _mathematics(tail[first.start() :])
        return sentence
    sentence = _CLAUSE.sub("", sentence.replace("`", "")).rstrip("!*_ ")
    sentence = re.sub(r"^(['\"])(.*)\1$", r"\2", sentence)
    return _ASIDE.sub("", sentence)


def _list_end(tail: str) -> int:
    end, found = 0, _FORMULA.match(tail)
    while found:
        end = found.end()
        following = _CONNECTIVE.match(tail, end)
        found = _FORMULA.match(tail, following.end()) if following else None
    return end


def _last_formula(text: str) -> str:
    """Return the formula that holds the last number of the text, or that number."""
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        lines = text.strip().splitlines()
        only = _FORMULA.fullmatch(lines[-1].strip().rstrip(".")) if lines else None
        return _content(only) if only else ""
    last, listed_from, end = numbers[-1], 0, -1
    for found in _FORMULA.finditer(text):
        if end < 0 or not _CONNECTIVE.fullmatch(text, end, found.start()):
            listed_from = found.start()
        end = found.end()
        if found.start() <= last.start() < end:
            listed = _first_formula(text[listed_from:end]) or _content(found)
            return f"{changing_word(text[:listed_from], listed)}{listed}{kept_words(text[end:])}"
    before = text[: last.start()].rpartition("\n")[2][-MAX_ANSWER_CHARS:]
    line = f"{before}{text[last.start() :].partition(chr(10))[0]}"[: 2 * MAX_ANSWER_CHARS].strip()
    if not has_words(line) or "\\begin" in line:
        return line
    return last_number(line) or last.group()


def _letters(text: str) -> Iterator[re.Match[str]]:
    """Yield the letters that may be options: not "I believe", not "A common error"."""
    for found in _OPTION.finditer(text):
        is_word = found.group() in ("A", "I") and re.match(r"\s+[a-z]", text[found.end() :])
        first = not text[: found.start()].strip("*_$\"' \\{")
        joined = re.match(r"\s+(?:and|or)\b", text[found.end() :])
        follows = joined or (first and _AFTER_A_LETTER.match(text, found.end()))
        if not is_word or (found.group() == "A" and follows):
            yield found


def _letter(text: str) -> str:
    """Return the first option that `text` does not negate; "" if several are joined.

    A letter in the middle of a sentence, as in "vitamin C", is one only if no "(B)" follows.
    """
    text = re.sub(r"\\(?:text|textbf|mathbf|mathrm|bf|boxed)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(
        r"\b(?:not|neither|nor|isn[\u2019']t)\s+[*_\"']*(?:\([A-Z]\)|[A-Z]\b)[*_\"']*", "", text
    )
    letters = list(_letters(text))
    if (
        letters
        and letters[0].group(2)
        and not _BEFORE_A_LETTER.fullmatch(text[: letters[0].start()])
    ):
        letters = [found for found in letters if found.group(1)] or letters
    if not letters:
        return ""
    letter = _group(letters[0]).upper()
    joined = _SEVERAL.match(text, letters[0].end())
    return "" if joined and _group(joined) != letter else letter


def _group(found: re.Match[str]) -> str:
    """Return the group that matched."""
    return next(group for group in found.groups() if group)


def _small_letter(text: str) -> str:
    found = re.fullmatch(r"\W*([a-z])\W*", text.strip())
    return found.group(1).upper() if found else ""


def _unmarked_letter(text: str) -> str:
    lone = _LONE_LETTER.fullmatch(text)
    if lone:
        return lone.group(1).upper()
    verdicts = _VERDICT.findall(text)
    if len(verdicts) > 1:
        right = [letter for letter, verdict in verdicts if verdict.lower() in ("correct", "right")]
        return right[0].upper() if len(right) == 1 else ""
    text = _DENIED.sub("", text)
    lines = text.strip().splitlines()
    first = _OPTION_LINE.match(lines[0]) if lines[1:] and not lines[1].strip() else None
    concludes = bool(lines) and re.match(r"\W*(?:so|thus|hence|therefore)\b", lines[-1].lower())
    if first and not concludes and not any(map(_OPTION_LINE.match, lines[1:])):
        return first.group(1)  # the answer, and then its explanation
    bracketed = list(re.finditer(r"\(([A-Za-z])\)", text))
    if bracketed:
        before = text[: bracketed[-1].start()]
        joined = re.search(r"\(([A-Za-z])\)[\s*_]*(?:,|and|or|&|,\s*and|,\s*or)[\s*_]*$", before)
        return "" if joined else bracketed[-1].group(1).upper()
    last_line = lines[-1].strip() if lines else ""
    last_line = re.sub(r"\\(?:text|textbf|mathbf|mathrm)\s*\{([^{}]*)\}", r"\1", last_line)
    found = re.match(
        r"^\W*([A-Z])(?:[.:)*_$\"`]|'(?![a-z])|,\s+(?:because|since|as)\b|\s*$|\s+[-\u2013\u2014]\s)",
        last_line,
    )
    found = found or _CONCLUDES.search(last_line)
    return found.group(1).upper() if found and found.group(1).isupper() else ""
