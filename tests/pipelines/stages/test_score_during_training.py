"""Scoring during training: only if the engine fits, and only trials that have finished."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event, get_ident
from types import SimpleNamespace
from typing import Any

import pytest

from otr.config import Workers
from pipelines.config.presets import debug
from pipelines.stages.score_during_training import EngineFits, ScoreDuringTraining, engine_fits
from tuning.space import config_of

STEPS = debug().train.max_steps
CONFIGS = {trial.name: config_of(debug().train, trial) for trial in debug().trials}


def fits(
    free: dict[str, float], *, gpus: float = 0, engine_gpus: float = 0, max_concurrent: int = 0
) -> EngineFits:
    """`engine_fits` for two trials, each with a CPU and `gpus` GPUs."""
    train = replace(debug().train, workers=Workers(cpus=1, gpus=gpus))
    engine = replace(debug().engine, gpus=engine_gpus)
    return engine_fits([train, train], max_concurrent, engine, free)


@pytest.mark.parametrize(
    ("free", "unfinished", "expected"),
    [
        ({"CPU": 2}, 2, False),  # two trials take all
        ({"CPU": 2}, 1, True),
        ({"CPU": 3}, 2, True),
        ({"CPU": 2}, 5, False),
        ({"CPU": 1}, 0, True),
        ({"CPU": 0.5}, 1, False),  # no trial fits either
    ],
)
def test_the_engine_leaves_enough_for_the_trials(
    free: dict, unfinished: int, expected: bool
) -> None:
    assert fits(free)(unfinished) is expected


def test_the_engine_takes_no_core_from_the_trials() -> None:
    train = replace(debug().train, workers=Workers(cpus=1))
    for threads, expected in ((4, [True, False, False]), (3, [True, True, False])):
        engine = replace(debug().engine, threads=threads)
        beside = engine_fits([train, train], 0, engine, {"CPU": 64}, cores=4)
        assert [beside(unfinished) for unfinished in (0, 1, 2)] == expected
    on_gpu = replace(engine, threads=4, gpus=1)
    assert engine_fits([train], 0, on_gpu, {"CPU": 64, "GPU": 1}, cores=1)(1)


def test_the_engine_gets_no_gpu_that_a_trial_needs() -> None:
    free = {"CPU": 64, "GPU": 2}
    both = fits(free, gpus=1, engine_gpus=1)
    assert fits({"CPU": 64, "GPU": 1}, gpus=0.45, engine_gpus=0.1)(2), "1 - 2 x 0.45 is 0.1"
    assert [both(n) for n in (3, 2, 1, 0)] == [False, False, True, True]
    assert fits(free, gpus=1, engine_gpus=1, max_concurrent=1)(3)
    one = fits({"CPU": 64, "GPU": 1}, gpus=1, engine_gpus=1)
    assert [one(n) for n in (2, 1, 0)] == [False, False, True], "they take turns on it"
    shared = fits({"CPU": 64, "GPU": 1}, gpus=0.6, engine_gpus=0.4)
    assert shared(2), "they share it"
    several = fits({"CPU": 64, "GPU": 8}, gpus=1, engine_gpus=4)
    assert [several(n) for n in (2, 0)] == [False, True], "its GPUs may be on two nodes"


def ended(scoring: ScoreDuringTraining, number: int, step: int = STEPS, path: str = "/c") -> None:
    trial: Any = SimpleNamespace(
        trial_id=str(number),
        config={"trial": asdict(debug().trials[number])},
        last_result={"step": step},
    )
    scoring.on_trial_result(1, [], trial, {"checkpoint_path": path} if path else {})
    scoring.on_trial_result(2, [], trial, {"step": step})
    scoring.on_trial_complete(3, [], trial)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_finished_trials_are_scored_in_another_thread_once_the_engine_fits() -> None:
    scored: list[tuple[str, str, bool]] = []
    here = get_ident()

    def score(name: str, path: Path) -> None:
        scored.append((name, str(path), get_ident() != here))

    scoring = ScoreDuringTraining(score, lambda unfinished: unfinished < 2, CONFIGS)
    with scoring:
        scoring.add("base", Path("/base"))
        time.sleep(0.05)
        assert scored == [], "the engine does not fit yet"
        ended(scoring, 0, path="/a")
        until(lambda: len(scored) == 2)
    assert scored == [("base", "/base", True), ("sft-seed0", "/a", True)]


def test_a_trial_that_an_interrupted_sweep_had_finished_needs_no_resources() -> None:
    scored: list[str] = []
    trials: list[Any] = [
        SimpleNamespace(trial_id=str(f), is_finished=lambda f=f: f) for f in (True, False)
    ]
    with ScoreDuringTraining(
        lambda name, _: scored.append(name), lambda left: left < 2, CONFIGS
    ) as scoring:
        scoring.add("base", Path("/base"))
        scoring.on_trial_start(0, trials, trials[1])
        until(lambda: scored)
    assert scored == ["base"]


def test_a_trial_that_was_stopped_early_is_not_scored_but_frees_resources() -> None:
    scored: list[str] = []
    with ScoreDuringTraining(
        lambda name, _: scored.append(name), lambda left: left < 2, CONFIGS
    ) as scoring:
        ended(scoring, 0, step=STEPS - 1)
        ended(scoring, 1)
        until(lambda: scored)
    assert scored == ["otr-k16-seed0"]


def test_the_end_of_training_does_not_wait_and_starts_no_other_model() -> None:
    started, resume, scored = Event(), Event(), []

    def score(name: str, path: Path) -> None:
        started.set()
        resume.wait(30)
        scored.append(name)

    with ScoreDuringTraining(score, lambda unfinished: True, CONFIGS) as scoring:
        scoring.add("base", Path("/base"))
        scoring.add("other", Path("/other"))
        started.wait(30)
    assert scored == []
    resume.set()
    scoring._thread.join(30)
    assert scored == ["base"]


def test_an_error_is_left_to_the_scoring_stage() -> None:
    def score(name: str, path: Path) -> None:
        raise RuntimeError("no engine")

    with ScoreDuringTraining(score, lambda unfinished: True, CONFIGS) as scoring:
        scoring.add("base", Path("/base"))
        scoring._thread.join(30)
    assert not scoring._thread.is_alive()
