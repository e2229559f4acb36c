"""MMLU's 18 subjects of science, technology, engineering and mathematics: 3,018 questions.

The subjects are those of Hendrycks et al. (2021), categories.py, as counted by QwenLM/Qwen2.5-Math;
lm-evaluation-harness also includes anatomy. Source, prompt and rule: see `mmlu`.
"""

import dataclasses
from pathlib import Path

from evals.benchmark import Benchmark
from evals.tasks import mmlu
from evals.tasks.mmlu import SHOTS, SOURCE, base

__all__ = ["SHOTS", "SOURCE", "base", "load"]

SUBJECTS = (
    *("abstract algebra", "astronomy", "computer security", "conceptual physics"),
    *("college biology", "college chemistry", "college computer science"),
    *("college mathematics", "college physics", "electrical engineering"),
    *("elementary mathematics", "high school biology", "high school chemistry"),
    *("high school computer science", "high school mathematics", "high school physics"),
    *("high school statistics", "machine learning"),
)


def load(directory: Path | None) -> Benchmark:
    """Load MMLU and select the subjects."""
    every = mmlu.load(directory)
    items = tuple(item for item in every.items if item.meta["subject"] in SUBJECTS)
    return dataclasses.replace(every, name="mmlu_stem", items=items)
