"""Published answer rules: examples of their authors, and the faults that affect their scores."""

import time

import pytest

from evals.grading import published

MMLU_PRO = {
    "So the answer is (C).": "C",
    "the answer is A, no, the answer is B": "A",
    "Answer: D\nanswer: E": "D",
    "answer: D, Answer: E": "E",
    "B is wrong, so it must be C.": "C",
    "BAD": "",
    "": "",
}
SUPERGPQA = {
    "The final answer to this question is: A.": "",
    "The best option is $\\boxed{B}:": "B",
    "The correct answer is (C).": "C",
    "ANSWER: A": "A",
    "Answer: $\\boxed{B}.": "B",
    "Thinking of (A).\n**Answer:** (J)": "",
    "(C).": "C",
    "[D]:": "D",
    "The answer is E\nso I hope": "E",
    "The answer is b.": "b",
    "The answer is blue whale.": "B",
    "blue": "",
    "": "",
}
BBEH = [
    ("Ok The final answer is: \\boxed{4}.", "4", "3"),
    ("Alright! The final answer is: 2, 3, 4", "2,3,4", "2,3,5"),
    ("Ok The answer is: (A)", "a", "b"),
    ("Ok The answer is: A", "(a)", "(b)"),
    ("Ok The answer is: **25**\nHere's why.", "25.0", "26.0"),
    ("The answer is $\\text{Yes}$", "yes", "no"),
    ("The answer is: [1, 2]", "1,2", "2,1"),
    ("The answer is: who?", "who", "whom"),
    ("The answer is 1. No. The answer is: it's 2.", "its 2", "1"),
]


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("so 3 + 4 = 7\n#### 7\n#### 8", "7", "8"),
        ("#### $1,234", "", "1234"),
        ("#### -1,234.", "-1234", "-1234"),
        ("She pays $5.", "", "5"),
        ("#### 7 apples. 2 * 3.50", "7", "3.50"),
        ("none", "", ""),
    ],
)
def test_gsm8k(text, strict, flexible) -> None:
    assert published.gsm8k_strict(text) == strict
    assert published.gsm8k_flexible(text) == flexible


@pytest.mark.parametrize("text", MMLU_PRO)
def test_mmlu_pro(text) -> None:
    assert published.mmlu_pro(text) == MMLU_PRO[text]


@pytest.mark.parametrize("text", SUPERGPQA)
def test_supergpqa(text) -> None:
    assert published.supergpqa(text, ["red (dark)", "blue whale", "x^2"]) == SUPERGPQA[text]


def test_bbh_drops_the_last_character_whatever_it_is() -> None:
    assert published.bbh("So the answer is (A).\nthe answer is (B).") == "(A)"
    assert published.bbh("So the answer is ] ) }.") == "] ) }"
    assert published.bbh("So the answer is (A)") == "(A"
    assert published.bbh("So the answer is: (A)") == ""


@pytest.mark.parametrize(("text", "right", "wrong"), BBEH)
def test_bbeh(text, right, wrong) -> None:
    assert published.bbeh_equal(text, right)
    assert not published.bbeh_equal(text, wrong)
    assert published.bbeh_equal(published.bbeh(text), right)


@pytest.mark.parametrize(
    "loop", ["(" * 20_000, "answer " * 5_000, "the x " * 5_000, "A " * 9_000, " \n" * 9_000]
)
def test_a_model_that_repeats_itself_is_graded_in_linear_time(loop) -> None:
    started = time.process_time()
    published.mmlu_pro(loop), published.supergpqa(loop, ["x"]), published.bbeh(loop)
    published.gsm8k_flexible(loop), published.bbh(loop)
    assert time.process_time() - started < 5  # seconds; it takes 0.1, the originals take hours
