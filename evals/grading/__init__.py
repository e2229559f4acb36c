"""Grading: extraction of the final answer from a text, and its comparison with the reference."""

from evals.grading.answers import (
    choice_equal,
    compare,
    exact_equal,
    final_answer,
    grade_all,
    math_equal,
)
from evals.grading.code import code_passes
from evals.grading.marks import marked_answer
from evals.grading.option_letters import option_letter
from evals.grading.programs import extract_code
from evals.grading.thoughts import after_thinking

__all__ = [
    "after_thinking",
    "choice_equal",
    "code_passes",
    "compare",
    "exact_equal",
    "extract_code",
    "final_answer",
    "grade_all",
    "marked_answer",
    "math_equal",
    "option_letter",
]

# Stored scores are identified by the name of their grader. This name must not depend on the file.
for _name in __all__:
    globals()[_name].__module__ = __name__
