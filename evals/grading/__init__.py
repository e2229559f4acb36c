"""Grading: extraction of the final answer from a text, and its comparison with the reference."""

from evals.grading.answers import (
    choice_equal,
    exact_equal,
    final_answer,
    grade_all,
    marked_answer,
    math_equal,
)
from evals.grading.code import code_passes, extract_code

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

# Stored scores are identified by the name of their grader. This name must not depend on the file.
for _name in __all__:
    globals()[_name].__module__ = __name__
