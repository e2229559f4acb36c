"""Texts that end in a loop, and texts that do not."""

import random

import pytest

from evals.repetition import ends_in_loop

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "until", "noon"]
PROSE = " ".join(random.Random(0).choices(WORDS, k=500))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", False),
        ("So the answer is 4. ", False),
        (PROSE, False),
        (PROSE + "So the answer is 4. " * 9, False),  # 180 characters: short enough to be meant
        (PROSE + "So the answer is 4. " * 11, True),
        (PROSE + ("So the answer is 4. " * 11)[:-7], True),  # cut off within a repetition
        (("So the answer is 4. " * 50) + "Therefore, 4.", False),  # it found its way out
        (PROSE + PROSE[:490] * 5, True),
        (PROSE + PROSE[:490] * 3, False),
        ("0." + "3" * 400, True),
        ("".join(f"Step {n}: add {n}. " for n in range(99)), False),
    ],
)
def test_loops(text: str, expected: bool) -> None:
    assert ends_in_loop(text) is expected
