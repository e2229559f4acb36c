r"""Where the final answer stands: thoughts, headings, formulas, clauses, letters."""

import pytest

from evals.grading import (
    choice_equal,
    exact_equal,
    extract_code,
    marked_answer,
    math_equal,
    option_letter,
)
from evals.grading.thoughts import is_unfinished_thought, with_opening_mark

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
    # the last number of a sentence in words, with what belongs to it
    ("So the probability is 1/2.", "0.5", True),
    ("So the probability is 1/2.", "2", False),
    ("So the area is 12\u03c0 square units.", "12\\pi", True),
    ("So the area is 12\u03c0 square units.", "12", False),
    ("We get 2^10.", "10", False),
    ("The value is 5 x 10^3.", "5000", True),
    ("The value is 1.5e-7.", "1.5e-7", True),
    ("The value is 5 + 2\u221a3.", "5+2\\sqrt3", True),
    ("The value is \u221a5.", "5", False),
    ("The value is 5x.", "5", False),
    ("The ratio is 3:2.", "3:2", True),
    ("It happens at 3:30 pm.", "30", False),
    ("It costs $5 million.", "5", False),
    ("It costs $5$ million.", "5000000", True),
    ("It takes 3 hours and 5 minutes.", "185 \\text{ minutes}", True),
    ("It takes 3 hours and 5 minutes.", "5", False),
    ("The roots are x = 1 and x = 2.", "1,2", True),
    ("So x > 5.", "5", False),
    ("So x is not 5.", "5", False),
    ("So x is not $5$.", "5", False),
    ("It can't be 5.", "5", False),
    ("There are fewer than 5.", "5", False),
    ("The total is $20 + $30 = **$50**.", "50", True),
    ("He is (all in all) 5 years older than Tom.", "5", True),
    ("The 12-inch ruler - 15m of rope", "15", True),
    ("In 2020, 5 people came (see page 7)", "7", True),
    ("Total - 5", "5", True),
    ("She needs 2 1/2 cups.", "2.5", True),
    ("The result is x\u00b2 - 4.", "x^2-4", True),
    ("The result is 1.5 \u00d7 10\u207b\u00b3.", "0.0015", True),
    ("The result is ln 5.", "\\ln 5", True),
    ("So x = \u00b13.", "3,-3", True),
    ("So x = 3 or -3.", "3,-3", True),
    ("So x is between 2 and 5.", "5", False),
    ("So it's 1 out of 5.", "5", False),
    ("The temperature is minus 5 degrees.", "-5", True),
    ("He will be 40 in 40 - 36 = 4 years.", "4", True),
    ("We need at least $25+1=26$ times", "26", True),
    ("So $x$ is 2\\cos 15^{\\circ}$.", "15", False),
    ("She must sell at least 5 of them.", "5", True),
    ("The answer is 3 x 4 = 12.", "12", True),
    ("The answer is '5'.", "5", True),
    ("The answer is 1/2 (or 0.5).", "0.5", True),
    # statements that the text takes back, or does not make
    ("The answer is 5. Wait, no. It is 6.", "6", True),
    ("The answer is 5. Wait, no. It is 6.", "5", False),
    ("The answer is 5? No, it is 6.", "6", True),
    ("The answer is 5. Wait, let me check. Yes, the answer is 5.", "5", True),
    ("I first thought the answer is 5, but it is actually 6.", "6", True),
    ("We might think the answer is 12. So there are 8 ways.", "12", False),
    ("I think the answer is 8. (12 counts twice.)", "8", True),
    ("The answer isn't 5.", "5", False),
    ("The answer is not $5$ but $6$.", "6", True),
    ("The answer is 5 rather than 6.", "5", True),
    ("The answer is 5 (not 6).", "5", True),
    ("The answer is the sum of $2$ and $3$.", "2,3", False),
    # other languages, and tags
    ("La respuesta final es $\\frac{1}{2}$.", "0.5", True),
    ("La respuesta es 5, no 6.", "5", True),
    ("\u7b54\u6848\u662f5\u3002", "5", True),
    ("\u7b54\u6848\u662f5,\u4e0d\u662f6\u3002", "6", False),
    ("\u7b54\u6848\u662f1/2\u3002", "2", False),
    ("\u4e00\u5171\u67095\u4e07\u4eba\u3002", "5", False),
    ("\u041e\u0442\u0432\u0435\u0442: 5", "5", True),
    ("<think>5</think><answer>\\frac{1}{2}</answer>", "0.5", True),
    ("<answer>The answer is 6</answer>", "6", True),
    ("<answer>6", "6", True),
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
    "option C": "C",
    "c)": "C",
    "[C]": "C",
    "<answer>C</answer>": "C",
    "I'd pick C.": "C",
    "That leaves C.": "C",
    "Ans: C": "C",
    "The answer appears to be C.": "C",
    "La respuesta correcta es (C).": "C",
    "\u7b54\u6848\u662fC\u3002": "C",
    "C\n\nExplanation: (A) is too small.": "C",
    "(C) Paris\n\nBecause (A) is in Italy and (B) in Spain.": "C",
    "(A) is Rome.\n\nSo it must be (B)": "B",
    "A. Incorrect.\nB. Incorrect.\nC. Correct.\nD. Incorrect.": "C",
    "(A) Correct\n(B) Incorrect\n(C) Correct": "",
    "The answer is either A or B.": "",
    "The answer is A. Wait, no. It's C.": "C",
    "The answer is A? No, C.": "C",
    "The answer is A, no wait, C.": "C",
    "Some may say the answer is A, but C is correct.": "C",
    "I don't think the answer is C.": "",
    "The answer is A student.": "",
    "The answer is A because B is wrong.": "A",
    "The answer is: A student should do so, i.e. (C).": "C",
    "The answer is vitamin C, so (B).": "B",
    "The answer is B: vitamin C": "B",
    "The answer is most likely C, since (A) is too small.": "C",
    "The answer is U.S. (C)": "C",
    "A, because it is larger.": "A",
    "Answer: E=mc^2": "",
    "Answer: X-ray": "",
    "<|begin_of_thought|>The answer is A": "",
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
    assert is_unfinished_thought(with_opening_mark(prompt, "So \\boxed{7}."))
    assert not is_unfinished_thought(with_opening_mark(prompt, "Hm.</think>\\boxed{7}"))
    assert not is_unfinished_thought(with_opening_mark("<think></think>\n", "\\boxed{7}"))
