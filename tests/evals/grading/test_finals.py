r"""Where the final answer stands: thoughts, headings, formulas, clauses, letters."""

import pytest

from evals.grading import choice_equal, exact_equal, extract_code, marked_answer, math_equal
from evals.grading.finals import is_unfinished_thought, option_letter, written

# Each text, the reference answer, and whether it is right.
MATHEMATICS = [
    ("<think>I guess \\boxed{7}. Wait,", "7", False),
    ("<think>maybe \\boxed{7}? no</think>\nThe answer is 8.", "8", True),
    ("maybe \\boxed{7}? no</think>\nThe answer is 8.", "7", False),
    ("[THINK]5[/THINK] 6", "6", True),
    ("<think>a</think> b <think> \\boxed{5}", "5", False),
    ("The answer is:\n\\[\nx = \\frac{1}{2}\n\\]", "0.5", True),
    ("The final answer is\n\n$$\\frac{1}{2}$$\n", "0.5", True),
    ("## Final Answer\n\n$\\frac{1}{2}$", "1/2", True),
    ("### Answer: 5", "5", True),
    ("**Final Answer**\n\n5", "5", True),
    ("The answer is $x=1$ and $y=2$.", "(1,2)", True),
    ("The answers are $1$ and $2$.", "1,2", True),
    ("The answer is $1$ or $2$.", "1", False),
    ("So the roots are $1$, $2$ and $3$.", "1,2,3", True),
    ("With $x=1$ we get $2$, so $y = 3$.", "3", True),
    ("The answer is $5$ because $x=2$.", "5", True),
    ("The answer is the interval $(1,2)$.", "(1,2)", True),
    ("The answer is not $5$.", "5", False),
    ("The answer is $5$ million.", "5", False),
    ("The answer is $5$ million.", "5000000", True),
    ("The answer is $5 million.", "5", False),
    ("The answer is 5; we are done.", "5", True),
    ("The answer is 5 since 2+3=5.", "5", True),
    ("The answer is 5, as shown.", "5", True),
    ("The answer is 5!", "5", True),
    ("The answer is 5 (five).", "5", True),
    ("The answer is `5`", "5", True),
    ("I am not sure what the answer is. Total: 5", "5", True),
    ("I hope the answer is correct. So 5", "5", True),
    ("The answer is 1/2.", "2", False),
    ("The answer is x+5", "5", False),
    ("x + 5", "5", False),
    ("\\frac{1}{5}", "5", False),
    ("So $\\frac{1}{2}$.", "0.5", True),
    ("Thus $x+5$", "5", False),
    ("Total = $5 + $6 = $11", "11", True),
    ("The answer is 3,000 dollars", "3000", True),
    ("#### 5 apples", "5", True),
]

LETTERS = {
    "<think>The answer is (A)</think>\nC": "C",
    "<think>The answer is (A)? hmm no": "",
    "**C**": "C",
    "**Answer: C**": "C",
    "### Answer\nC": "C",
    "The answer is:\n(C) foo": "C",
    "\\boxed{\\textbf{(C)}\\ 5}": "C",
    "The correct option is C.": "C",
    "C is correct.": "C",
    "Option C is the correct answer.": "C",
    "Correct answer: C": "C",
    "(C) is correct. Note that (A) and (B) are wrong.": "C",
    "The answer is B because not C": "B",
    "So the answer is, I believe, (B).": "B",
    "The answer is not (A) but (B).": "B",
    "The answer is 'B'.": "B",
    "The answer is $\\text{(B)}$.": "B",
    "A is incorrect. The answer is C": "C",
    "The answer is A, B is wrong": "A",
    "I would go with option (D).": "D",
    "Therefore, D": "D",
    "B) 7": "B",
    "A and B": "",
    "The answer is A or B": "",
    "Both (A) and (B)": "",
    "The answer is not A.": "",
    "(A) is incorrect": "",
}


@pytest.mark.parametrize(("text", "gold", "right"), MATHEMATICS)
def test_the_final_answer_of_a_text_on_mathematics(text, gold, right) -> None:
    assert math_equal(text, gold) is right


@pytest.mark.parametrize("text", LETTERS)
def test_the_option_that_a_text_chooses(text) -> None:
    assert option_letter(text) == LETTERS[text]
    for letter in "ABCD":
        assert choice_equal(text, f"({letter})") is (letter == LETTERS[text])


def test_thoughts_are_no_answers_of_any_grader() -> None:
    thought = "<think>#### yes\n```python\nx = 1\n```\n</think>"
    assert not exact_equal(thought + "no", "yes")
    assert exact_equal(thought + "no", "no")
    assert extract_code(thought + "```python\nx = 2\n```") == "x = 2\n"
    assert marked_answer(thought + "The answer is 3.") == "3"


def test_a_thought_that_the_prompt_begins_is_one() -> None:
    prompt = "<|im_start|>assistant\n<think>\n"
    assert is_unfinished_thought(written(prompt, "So \\boxed{7}."))
    assert not is_unfinished_thought(written(prompt, "Hm.</think>\\boxed{7}"))
    assert not is_unfinished_thought(written("<think></think>\n", "\\boxed{7}"))
