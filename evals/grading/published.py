r"""Answer rules as their authors publish them, faults included: for scores to compare with theirs.

In: the whole text of an answer. Out: the answer that the rule reads from it, "" for none. Scores of
our own use the more lenient rules of `evals.grading.answers` instead. Each rule is written anew, in
linear time where the original is not, from the description or source that its docstring names.
"""

import re
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJ"

_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")

# SuperGPQA: what may stand before a letter or the text of an option, and what must stand after it.
_WRAPPER = r"\\(?:boxed|mathbf|mathrm|text)\{"
_OPENING = rf"\s*(?:(?:{_WRAPPER}|[*${{(\[\\])+?\s*)?"
_BY_ITSELF = rf"^[^\w\r\n]*(?:{_WRAPPER}(?:{_WRAPPER}|[*${{(\[\\])*?\s*|[\r\n]\s*)?"
_THE_ANSWER_IS = rf"[Tt]he\s+(?:\w+\s+)?(?:answer|option)(?:\w+\s+)?\s+is?:?{_OPENING}"
_LABEL_LEADS = (_THE_ANSWER_IS, rf"(?i:answer)[*\s]*:{_OPENING}", _BY_ITSELF)
_CONTENT_LEADS = (_THE_ANSWER_IS, rf"(?i:answer){_OPENING}", _BY_ITSELF)
_CLOSING = r"[\\}$)\]]*(?:[\s:.*)]|$)"

_BBEH_LEADS = ("The answer is:", "The final answer is ", "The final answer is: ", "The answer is ")


def gsm8k_strict(text: str) -> str:
    """The first number after "#### ", without commas, dollar signs and a final full stop.

    Source: EleutherAI/lm-evaluation-harness, tasks/gsm8k/gsm8k.yaml, filter "strict-match".
    """
    found = _STRICT.search(text)
    return _gsm8k_plain(found.group(1)) if found else ""


def gsm8k_flexible(text: str) -> str:
    """The last thing that looks like a number, cleaned as in `gsm8k_strict`.

    Source: EleutherAI/lm-evaluation-harness, tasks/gsm8k/gsm8k.yaml, filter "flexible-extract".
    """
    found = _FLEXIBLE.findall(text)
    return _gsm8k_plain(found[-1]) if found else ""


def mmlu_pro(text: str) -> str:
    """A letter from A to J after "answer is", else after "Answer:", else the last lone one, or "".

    The authors draw a letter at random where they find none; here that is a wrong answer.

    Source: TIGER-AI-Lab/MMLU-Pro, compute_accuracy.py.
    """
    found = re.search(r"answer is \(?([A-J])", text)
    found = found or re.search(r"^.*[aA]nswer:\s*([A-J])", text, re.MULTILINE)
    return found.group(1) if found else "".join(re.findall(r"\b[A-J]\b", text)[-1:])


def supergpqa(text: str, options: Sequence[str]) -> str:
    """A letter by three patterns on the last line, then on all; else that of an option's text.

    The patterns ignore case but the comparison does not: "the answer is b" gives "b", a wrong
    answer, as in the original.

    Args:
        text: the whole answer.
        options: texts of the options, in the order of their letters.

    Source: SuperGPQA/SuperGPQA, eval/eval.py, mode "zero-shot".
    """
    letter = _first_match(text, _LABEL_LEADS, f"[{LETTERS}]", re.IGNORECASE)
    if letter or not options:
        return letter
    content = _first_match(text, _CONTENT_LEADS, "|".join(map(re.escape, options)), 0)
    return chr(ord("A") + list(options).index(content)) if content in options else ""


def bbh(text: str) -> str:
    """What follows the first "the answer is " on its line, without the line's last character.

    That character is the full stop of the worked examples: compared as it is with the target.

    Source: EleutherAI/lm-evaluation-harness, tasks/bbh/cot_fewshot/_cot_fewshot_template_yaml.
    """
    found = re.search(r"(?<=the answer is )(.*)(?=.)", text)
    return found.group(1).strip() if found else ""


def bbeh(text: str) -> str:
    r"""The answer after the last "The (final) answer is(:)": first line, lower case, no `\boxed{}`.

    Source: google-deepmind/bbeh, bbeh/evaluate.py.
    """
    answer = text.strip()
    for lead in (
        "The answer is:",
        "The final answer is ",
        "The final answer is: ",
        "The answer is ",
    ):
        if lead in answer:
            answer = answer.rpartition(lead)[2].strip()
    answer = answer.removesuffix(".")
    if answer.startswith("$") and answer.endswith("$"):
        answer = answer[1:-1]
    for wrapper in ("boxed{", "text{", "texttt{"):
        if wrapper in answer and answer.endswith("}"):
            answer = answer[:-1].split(wrapper)[1]
    answer = answer.lower().replace(", ", ",").replace("**", "")
    return answer.partition("\n")[0].removesuffix(".")


def bbeh_equal(text: str, gold: str) -> bool:
    """True if `bbeh(text)` is `gold` but for parentheses, spelling of a number, quotes, brackets.

    Source: google-deepmind/bbeh, bbeh/evaluate.py.
    """
    answer, target = bbeh(text), gold.strip().lower().replace(", ", ",")
    if answer == target:
        return True
    for one, other in ((answer, target), (target, answer)):
        if len(one) == 3 and one[0] == "(" and one[2] == ")":
            return one[1] == other
    return (
        _same_number(answer, target)
        or answer.replace("'", "") == target.replace("'", "")
        or f"[{target}]" == answer
        or f"[{answer}]" == target
        or answer == f"{target}?"
    )


def _gsm8k_plain(number: str) -> str:
    return number.replace(",", "").replace("$", "").removesuffix(".")


def _first_match(text: str, leads: Sequence[str], wanted: str, flags: int) -> str:
    text = text.rstrip()
    for place in (text.rpartition("\n")[2], text):
        for lead in leads:
            found = re.search(f"{lead}({wanted}){_CLOSING}", place, flags)
            if found:
                return found.group(1)
    return ""


def _same_number(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return False
