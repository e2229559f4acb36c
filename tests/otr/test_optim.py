"""The learning-rate schedule has the values computed by hand."""

import pytest

from otr import OptimConfig
from otr.optim import learning_rate


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        (0, 0.2),  # the first of ten warm-up steps: lr / 10
        (4, 1.0),
        (9, 2.0),  # the last warm-up step: lr
        (10, 2.0),  # the start of the cosine
        (60, 1.1),  # halfway between lr and lr * final_lr
        (110, 0.2),
    ],
)
def test_warm_up_then_half_a_cosine(step: int, wanted: float) -> None:
    config = OptimConfig(lr=2.0, warmup_steps=10, final_lr=0.1)
    assert learning_rate(config, step, 110) == pytest.approx(wanted)


def test_schedules_of_cosine_or_warm_up_alone() -> None:
    assert learning_rate(OptimConfig(lr=2.0, warmup_steps=0), 0, 100) == 2.0
    assert learning_rate(OptimConfig(lr=2.0, warmup_steps=10), 4, 5) == pytest.approx(1.0)


def test_a_final_share_of_one_is_a_constant_rate() -> None:
    config = OptimConfig(lr=2.0, warmup_steps=0, final_lr=1.0)
    assert {learning_rate(config, step, 7) for step in range(7)} == {2.0}
