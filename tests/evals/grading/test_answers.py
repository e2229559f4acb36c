"""Extraction and comparison of answers, extraction of code, limits on hostile expressions."""

import pickle
import threading
import time

import pytest

from evals import grading
from evals.benchmark import Benchmark, Decoding, Item
from evals.grading import (
    answers,
    choice_equal,
    exact_equal,
    marked_answer,
    math_equal,
)
from evals.tasks import _code

RIGHT = [
    (r"so \boxed{18}.", "18"),
    (r"\boxed{1} no, \boxed{2}", "2"),
    (r"\boxed{1} and then \boxed{2 was cut", "1"),
    (r"\boxed{\boxed{5}}", "5"),
    (r"\boxed{\frac{\sqrt{3}}{2}}", r"\frac{\sqrt3}{2}"),
    (r"\boxed{\{2, 1\}}", r"\{1,2\}"),
    (r"\boxed{18 \text{ dollars}}", "18"),
    (r"\boxed{\$18.00}", "18"),
    (r"\boxed{50\%}", "50"),
    (r"\boxed{x = 18}", "18"),
    (r"\boxed{10,\!080}", "10080"),
    (r"\boxed{\text{Evelyn}}", "Evelyn"),
    (r"\boxed{023}", "23"),
    (r"\boxed{5^\circ}", "5"),
    (r"\boxed{42;}", "42"),
    ("3 + 4 = 7\n#### 1,234", "1234"),
    ("#### 12\n\nDone, in 3 steps.", "12"),
    ("The answer is 18 dollars per day.", "18"),
    ("The final answer is $\\frac{1}{2}$. I hope it is correct.", "0.5"),
    ("The answer is:\n$$5$$", "5"),
    ("**Answer:** 42", "42"),
    ("She pays $1,000.", "1000"),
    ("10-5 is 5", "5"),
    ("so 3 - 4 = -1", "-1"),
    (r"\boxed{2 \times 10^{-8}}", "2e-8"),
    (r"\boxed{1 \frac{4}{5}}", "1.8"),
    (r"\boxed{(1)/(4) n(n+1)}", r"$\frac{1}{4} n(n+1)$"),
    (r"\boxed{0.5}", r"50\%"),
    (r"\boxed{-2 \text{ or } -12}", "-2{or}-12"),
    (r"\boxed{sqrt(3)/2}", r"\frac{\sqrt{3}}{2}"),
    (r"\boxed{x \in [-2, 7)}", "[-2,7)"),
    (r"\boxed{(-∞, 3) ∪ (3, ∞)}", r"(-\infty,3)\cup(3,\infty)"),  # noqa: RUF001
    (r"\boxed{4:30 PM}", r"\text{4:30 p.m.}"),
    (r"\boxed{110101_{2}}", "110101_2"),
    (r"\boxed{2007+\frac{\}{p}i2}", r"2007+\frac{\}{p}i2"),
]

WRONG = [
    ("", "5"),
    ("no idea", "5"),
    (r"\boxed{}", "5"),
    (r"\boxed{6} is near 5", "5"),
    ("#### 12\n13", "13"),
    ("the answer is 4, not 5", "5"),
    (r"\boxed{(1,2)}", "(2,1)"),
    (r"\boxed{[1,2)}", "(1,2]"),
    (r"\boxed{x+1}", "x-1"),
    (r"\boxed{0.3}", r"\frac{1}{3}"),
    (r"\boxed{\text{Mike}}", "Evelyn"),
    (r"\boxed{12,3}", "123"),
    (r"\boxed{" + "1" * 5000 + "}", "1"),
    (r"\boxed{1 \times 10^{-8}}", "3.3e-10"),
    (r"\boxed{0.333}", r"\frac{1}{3}"),
    (r"\boxed{1(4)/(5)}", r"1\frac{4}{5}"),
    (r"\boxed{f(x)/(2)}", r"f\frac{x}{2} + 1"),
    (r"\boxed{500\%}", "0.5"),
    (r"\boxed{May 20}", r"\text{June 20}"),
    (r"\boxed{110101_3}", "110101_2"),
    (r"\boxed{1,2}", "1"),
    (r"\boxed{2}", "1,2"),
]


@pytest.mark.parametrize(("prediction", "gold"), RIGHT)
def test_right_answers_in_any_spelling(prediction, gold) -> None:
    assert math_equal(prediction, gold)


@pytest.mark.parametrize(("prediction", "gold"), WRONG)
def test_wrong_answers(prediction, gold) -> None:
    assert not math_equal(prediction, gold)


def test_answers_are_extracted_in_the_published_order() -> None:
    text = "1\nThe answer is 2\n#### 3\n\\boxed{4}\nand 5"
    assert marked_answer(text) == "4"
    assert marked_answer(text.replace("\\boxed", "")) == "3"
    assert marked_answer("1\nThe answer is 2\nand 5") == "2"
    assert marked_answer("1 and 5") is None
    assert marked_answer(r"\boxed{\boxed{5} m}") == "5"
    assert math_equal("1 and 5", "5")


@pytest.mark.parametrize(
    ("vote", "texts"),
    {
        "1/2": [r"\boxed{\frac12}", "#### 0.5", "The answer is 1/2.", r"\boxed{1/2 \text{ cm}}"],
        "1234": ["it costs $1,234", r"\boxed{1{,}234}", "The answer is $1,234$ dollars."],
        "1,2": [r"\boxed{2,\,1}", r"\boxed{1 \text{ and } 2}"],
        "(2,1)": [r"\boxed{\left( 2, 1 \right)}"],
        "evelyn": [r"\boxed{\text{Evelyn}}", "The answer is Evelyn."],
        "": ["", "no idea", r"\boxed{" + "1" * 5000 + "}"],
    }.items(),
)
def test_equal_answers_are_one_vote(vote, texts) -> None:
    assert {answers.final_answer(text) for text in texts} == {vote}


def test_extraction_takes_linear_time() -> None:
    braces = "{" * 200_000 + r"\boxed{" * 20_000
    started = time.process_time()
    assert marked_answer(braces) is None
    assert marked_answer("```\n" * 20_000) is None
    assert time.process_time() - started < 5  # seconds; linear takes 0.1, quadratic minutes


def test_grading_works_in_threads() -> None:
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.append(math_equal(r"\boxed{0.5}", "1/2")))
    thread.start()
    thread.join()
    assert verdicts == [True]


HOSTILE = [
    "9^{9^{9^{9}}}",
    "(10^{10^{7}})!",
    r"\sin(10^{10^{6}})",
    "x^{x^{x^{x^{x}}}}",
    r"\exp(\exp(\exp(\exp(5))))",
    r"\binom{10^9}{5\cdot10^8}",
    "(" * 900,
    r"\frac{" * 160,
    "-" * 990,
    "x+" * 490 + "x",
    r"\sin " * 190 + "x",
    "a," * 490 + "a",
    "x<" * 490 + "x",
    "five " * 190,
    "1e999999999",
    "5 " + "a" * 60 + "!",
    "5 " + "ab " * 60 + "@",
    "5 m/" + "s" * 200 + "@",
    "5" + " " * 900 + "x",
    "5" + "~" * 900 + "(",
]


@pytest.mark.parametrize("expression", HOSTILE)
def test_no_expression_takes_long_or_raises(expression) -> None:
    started = time.thread_time()
    for gold in ("1", "x+1", r"\sqrt{2}", expression[:-1] + "y"):
        assert not math_equal(f"\\boxed{{{expression}}}", gold)
        assert not math_equal(gold, expression)
    assert time.thread_time() - started < 5  # seconds; they take 0.1


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        ("So the answer is (B).", "(B)"),
        ("The answer is B", "(B)"),
        (r"\boxed{b}", "B"),
        (r"\boxed{\text{(C)}}", "C"),
        ("**Answer:** (D) the owl", "D"),
        ("(A) is wrong, so it must be (B)", "B"),
        ("Because A is false:\nB. the owl", "B"),
        ("C", "(C)"),
    ],
)
def test_choice_equal(prediction, gold) -> None:
    assert choice_equal(prediction, gold)
    assert not choice_equal(prediction, "(E)")


@pytest.mark.parametrize("prediction", ["", "I think so", "The answer is the owl.", "BAD"])
def test_choice_equal_without_a_letter_is_false(prediction) -> None:
    assert not any(choice_equal(prediction, letter) for letter in "ABCDEFGHI")


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        ("not True is False.\nSo the answer is False.", "False"),
        ("So the answer is: ] ) }.", "] ) }"),
        ("So the answer is ])}.", "] ) }"),
        ("**Answer:** ] ) }", "] ) }"),
        ("So the answer is barn, damp, dot.", "barn damp dot"),
        ("step one\n-35", "-35"),
        ("#### 1,000", "1000"),
        ("valid", "Valid"),
        ("two\nlines", "two lines"),
        ("So the answer is No, because it rains.", "No"),
        ("So the answer is \u221235.", "-35"),
        ("<answer>No</answer>", "No"),
        ("\\boxed{\\mathrm{Paris}}", "Paris"),
        ("The answer is \\textbf{Paris}!", "Paris"),
        ("\u201cParis\u201d", "Paris"),
        ("\u5317\u4eac\u3002", "\u5317\u4eac"),
        ("The answer is J. K. Rowling.", "J. K. Rowling"),
        ("Answer: St. Louis. It lies in Missouri.\nYes.", "St. Louis. It lies in Missouri"),
        ("e\u0301", "\u00e9"),
        ('{"answer": "Paris"}', "Paris"),
        ('{"answer": "Paris"}', '{"answer": "Paris"}'),
    ],
)
def test_exact_equal(prediction, gold) -> None:
    assert exact_equal(prediction, gold)
    assert not exact_equal(prediction, gold + "x")


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [("The answer is 5!", "5"), ("The answer is Paris. It's big.", "big"), ("Rome!", "Paris")],
)
def test_exact_equal_refuses_another_text(prediction, gold) -> None:
    assert not exact_equal(prediction, gold)


def test_grade_all_keeps_the_order_and_raises_errors_of_a_grader() -> None:
    items = [Item(str(n), "", str(n)) for n in range(50)]

    def grade(item: Item, text: str) -> bool:
        return math_equal(text, item.answer)

    benchmark = Benchmark("b", "other", tuple(items), grade, Decoding(8), "accuracy", "here")
    texts = [(item, f"\\boxed{{{int(item.id) // 2 * 2}}}") for item in items]
    assert answers.grade_all(benchmark, texts) == [n % 2 == 0 for n in range(50)]
    with pytest.raises(AttributeError):
        answers.grade_all(benchmark, [(None, "1")])


def test_the_name_of_a_grader_in_stored_scores_is_that_of_the_package() -> None:
    grade = _code.benchmark("b", [], "here").grade
    assert f"{grade.__module__}.{grade.__qualname__}" == "evals.grading.code_passes"
    assert pickle.loads(pickle.dumps(grade)) is grading.code_passes
