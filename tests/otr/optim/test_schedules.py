"""The learning-rate schedules have the values computed by hand."""

import typing

import pytest

from otr import OptimConfig
from otr.optim import OPTIMIZERS, SCHEDULES, learning_rate


@pytest.mark.parametrize(
    ("schedule", "step", "wanted"),
    [
        *(("cosine", 10, 2.0), ("cosine", 60, 1.1), ("cosine", 110, 0.2)),
        *(("cosine", 35, 0.2 + 1.8 * (1 + 0.5**0.5) / 2),),  # cos 45 degrees
        *(("linear", 10, 2.0), ("linear", 35, 1.55), ("linear", 60, 1.1), ("linear", 110, 0.2)),
        *(("constant", 10, 2.0), ("constant", 60, 2.0), ("constant", 110, 2.0)),
        # stays for 75 of 100 steps; after 4 of the 16 parts of the decay half of it is done
        *(("wsd", 10, 2.0), ("wsd", 85, 2.0), ("wsd", 91.25, 1.1), ("wsd", 110, 0.2)),
    ],
)
def test_a_warm_up_then_the_schedule(schedule: str, step: int, wanted: float) -> None:
    config = OptimConfig(lr=2.0, warmup_steps=10, final_lr=0.1, schedule=schedule, decay_share=0.25)
    assert learning_rate(config, 0, 110) == pytest.approx(0.2)  # a tenth of the warm-up
    assert learning_rate(config, 4, 110) == pytest.approx(1.0)
    assert learning_rate(config, 9, 110) == pytest.approx(2.0)
    assert learning_rate(config, step, 110) == pytest.approx(wanted)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_without_warm_up_or_with_nothing_else(schedule: str) -> None:
    plain = OptimConfig(lr=2.0, warmup_steps=0, schedule=schedule)
    assert learning_rate(plain, 0, 100) == 2.0
    assert learning_rate(plain, 0, 1) == 2.0
    short = OptimConfig(lr=2.0, warmup_steps=10, schedule=schedule)
    assert learning_rate(short, 4, 5) == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_final_share_of_one_is_a_constant_rate(schedule: str) -> None:
    config = OptimConfig(lr=2.0, warmup_steps=0, final_lr=1.0, schedule=schedule)
    assert {learning_rate(config, step, 7) for step in range(7)} == {2.0}


def test_the_decay_of_wsd_may_take_all_steps() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=0, final_lr=0.0, schedule="wsd", decay_share=1.0)
    assert learning_rate(config, 25, 100) == pytest.approx(0.5)


@pytest.mark.parametrize(("field", "known"), [("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)])
def test_every_name_that_the_config_allows_is_registered(field: str, known: dict) -> None:
    assert typing.get_args(typing.get_type_hints(OptimConfig)[field]) == tuple(known)
    assert all(kind.source for kind in known.values())
