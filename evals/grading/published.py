r"""Published answer rules, faults included, for scores that are comparable with published ones.

Each function returns the answer that a rule finds in a model's whole answer text, or "". Benchmarks
without a published rule use the more lenient `evals.grading.answers`. Each rule is an independent
implementation of the source that its docstring names, in linear time even if the original is not.
"""

import re
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJ"

_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")

# SuperGPQA: what may precede the letter or the text of an option, and what must follow it.
_WRAPPER = r"\\(?:boxed|mathbf|mathrm|text)\{"
_OPENING = rf"\s*(?:(?:{_WRAPPER}|[*${{(\[\\])+?\s*)?"
_BY_ITSELF = rf"^[^\w\r\n]*(?:{_WRAPPER}(?:{_WRAPPER}|[*${{(\[\\])*?\s*|[\r\n]\s*)?"
_THE_ANSWER_IS = rf"[Tt]he\s+(?:\w+\s+)?(?:answer|option)(?:\w+\s+)?\s+is?:?{_OPENING}"
_LABEL_LEADS = (_THE_ANSWER_IS, rf"(?i:answer)[*\s]*:{_OPENING}", _BY_ITSELF)
_CONTENT_LEADS = (_THE_ANSWER_IS, rf"(?i:answer){_OPENING}", _BY_ITSELF)
_CLOSING = r"[\\}$)\]]*(?:[\s:.*)]|$)"

_BBEH_LEADS = ("The answer is:", "The final answer is ", "The final answer is: ", "The answer is ")


def gsm8k_strict(text: str) -> str:
    """Return the first number after "#### ", without commas, dollar signs and a final full stop.

    Source: EleutherAI/lm-evaluation-harness, tasks/gsm8k/gsm8k.yaml, filter "strict-match".
    """
    found = _STRICT.search(text)
    return _gsm8k_plain(found.group(1)) if found else ""


def gsm8k_flexible(text: str) -> str:
    """Return the last string that looks like a number, cleaned as in `gsm8k_strict`.

    Source: EleutherAI/lm-evaluation-harness, tasks/gsm8k/gsm8k.yaml, filter "flexible-extract".
    """
    found = _FLEXIBLE.findall(text)
    return _gsm8k_plain(found[-1]) if found else ""


def mmlu_pro(text: str) -> str:
    """Return the letter, A to J, after "answer is", else after "Answer:", else the last lone one.

    If there is none, the authors draw a letter at random; here the answer is wrong.

    Source: TIGER-AI-Lab/MMLU-Pro, compute_accuracy.py.
    """
    found = re.search(r"answer is \(?([A-J])", text)
    found = found or re.search(r"^.*[aA]nswer:\s*([A-J])", text, re.MULTILINE)
    return found.group(1) if found else "".join(re.findall(r"\b[A-J]\b", text)[-1:])


def supergpqa(text: str, options: Sequence[str]) -> str:
    """Return the letter that three patterns find on the last line, else anywhere, else by its text.

    The patterns ignore case but the comparison does not: "the answer is b" gives "b", which is a
    wrong answer in the original too.

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
    """Return the rest of the line after the first "the answer is ", less its last character.

    That character is a full stop in the worked examples. The rule drops any character.

    Source: EleutherAI/lm-evaluation-harness, tasks/bbh/cot_fewshot/_cot_fewshot_template_yaml.
    """
    found = re.search(r"(?<=the answer is )(.*)(?=.)", text)
    return found.group(1).strip() if found else ""


def bbeh(text: str) -> str:
    r"""Return the first line after the last "The (final) answer is(:)", in lower case, unwrapped.

    Source: google-deepmind/bbeh, bbeh/evaluate.py.
    """
    answer = text.strip()
    for lead in _BBEH_LEADS:
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
    """Return whether `bbeh(text)` is `gold`, up to parentheses, number format, quotes and brackets.

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
    for searched in (text.rpartition("\n")[2], text):
        for lead in leads:
            found = re.search(f"{lead}({wanted}){_CLOSING}", searched, flags)
            if found:
                return found.group(1)
    return ""


def _same_number(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return False
