"""Scoring beside training: only where the engine has a place, and only what has ended."""

import time
from dataclasses import asdict, replace
from threading import Event, get_ident
from types import SimpleNamespace
from typing import Any

import pytest

from otr.config import Workers
from pipelines.config.presets import SweepConfig, debug
from pipelines.stages.score_during_training import Ahead, room

STEPS = debug().train.max_steps


def config(gpus: float = 0, engine_gpus: float = 0) -> SweepConfig:
    made = debug()
    train = replace(made.train, workers=Workers(cpus=1, gpus=gpus))
    return replace(made, train=train, engine=replace(made.engine, gpus=engine_gpus))


@pytest.mark.parametrize(
    ("free", "unfinished", "fits"),
    [
        ({"CPU": 4}, 2, False),  # two trials of 1.91 take all
        ({"CPU": 4}, 1, True),
        ({"CPU": 5}, 2, True),
        ({"CPU": 2}, 5, False),
        ({"CPU": 2}, 0, True),
        ({"CPU": 1}, 1, False),  # no trial fits either
    ],
)
def test_the_engine_takes_no_place_of_a_trial(free: dict, unfinished: int, fits: bool) -> None:
    assert room(config(), free)(unfinished) is fits


def test_a_gpu_that_a_trial_needs_is_not_the_engines() -> None:
    free = {"CPU": 64, "GPU": 2}
    fits = room(config(gpus=1, engine_gpus=1), free)
    assert [fits(n) for n in (3, 2, 1, 0)] == [False, False, True, True]
    one_at_once = replace(config(gpus=1, engine_gpus=1))
    one_at_once = replace(one_at_once, search=replace(one_at_once.search, max_concurrent=1))
    assert room(one_at_once, free)(3)


def ended(ahead: Ahead, number: int, step: int = STEPS, path: str = "/c") -> None:
    trial: Any = SimpleNamespace(
        trial_id=str(number),
        config={"trial": asdict(debug().trials[number])},
        last_result={"step": step},
    )
    ahead.on_trial_result(1, [], trial, {"checkpoint_path": path} if path else {})
    ahead.on_trial_result(2, [], trial, {"step": step})
    ahead.on_trial_complete(3, [], trial)


def until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_has_ended_is_scored_in_another_thread_when_there_is_room() -> None:
    scored: list[tuple[str, str, bool]] = []
    here = get_ident()

    def score(name: str, path: str) -> None:
        scored.append((name, path, get_ident() != here))

    ahead = Ahead(score, lambda unfinished: unfinished < 2, debug())
    with ahead:
        ahead.ready("base", "/base")
        time.sleep(0.05)
        assert scored == [], "no room yet"
        ended(ahead, 0, path="/a")
        until(lambda: len(scored) == 2)
    assert scored == [("base", "/base", True), ("sft-seed0", "/a", True)]


def test_a_trial_that_was_stopped_early_is_not_scored_but_makes_room() -> None:
    scored: list[str] = []
    with Ahead(lambda name, path: scored.append(name), lambda left: left < 2, debug()) as ahead:
        ended(ahead, 0, step=STEPS - 1)
        ended(ahead, 1)
        until(lambda: scored)
    assert scored == ["otr-k16-seed0"]


def test_the_end_of_training_does_not_wait_and_begins_nothing_else() -> None:
    scoring, go_on, scored = Event(), Event(), []

    def score(name: str, path: str) -> None:
        scoring.set()
        go_on.wait(30)
        scored.append(name)

    with Ahead(score, lambda unfinished: True, debug()) as ahead:
        ahead.ready("base", "/base")
        ahead.ready("other", "/other")
        scoring.wait(30)
    assert scored == []
    go_on.set()
    ahead._thread.join(30)
    assert scored == ["base"]


def test_an_error_is_left_to_the_scoring_stage() -> None:
    def score(name: str, path: str) -> None:
        raise RuntimeError("no engine")

    with Ahead(score, lambda unfinished: True, debug()) as ahead:
        ahead.ready("base", "/base")
        ahead._thread.join(30)
    assert not ahead._thread.is_alive()
