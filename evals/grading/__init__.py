"""Whether an answer is right: extraction of the final answer, and its comparison."""

from evals.grading.answers import (
    choice_equal,
    code_passes,
    exact_equal,
    extract_code,
    final_answer,
    grade_all,
    marked_answer,
    math_equal,
)

__all__ = [
    "choice_equal",
    "code_passes",
    "exact_equal",
    "extract_code",
    "final_answer",
    "grade_all",
    "marked_answer",
    "math_equal",
]
