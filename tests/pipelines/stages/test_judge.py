"""The judge between trials and the engine: errors, ended trials, a run that stops."""

import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from evals.benchmark import TaskScore
from pipelines.config.presets import debug
from pipelines.runtime import cluster
from pipelines.stages.judge import JudgeTrials, RemoteJudge
from tests.integration.conftest import ray_cluster  # noqa: F401

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]


def test_a_local_cluster_has_cpus_for_the_engine_beside_the_trials() -> None:
    config = replace(debug(), engine=replace(debug().engine, num_replicas=1))
    search = replace(config.search, benchmark="gsm8k", max_concurrent=1)
    beside = cluster.logical_cpus(replace(config, search=search))
    assert beside == config.train.workers.cpus + 1


class Scoring:
    """Scores that say which checkpoint they are of; "broken" can't be scored."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, str]] = []
        self.may_go_on = Event()
        self.may_go_on.set()

    def __call__(self, trial: str, step: int, path: Path) -> TaskScore:
        self.asked.append((trial, step, str(path)))
        self.may_go_on.wait(60)
        if trial == "broken":
            raise ValueError("no weights\nand more")
        value = step / 100
        return TaskScore("any", "accuracy", value, value - 0.098, value + 0.098, 100, {})


@pytest.fixture
def scoring() -> Scoring:
    return Scoring()


@pytest.fixture
def trials(scoring: Scoring, tmp_path: Path) -> Iterator[JudgeTrials]:
    with JudgeTrials(scoring, str(tmp_path / "stop")) as made:
        yield made


@ray.remote(num_cpus=0.1)
def elsewhere(judge: RemoteJudge, trial: str, step: int) -> dict[str, float]:
    """Ask from another process, as a trial does."""
    return judge(trial, step, "/checkpoint")


def test_trials_in_other_processes_get_their_own_scores(scoring, trials) -> None:
    asked = [elsewhere.remote(trials.judge, "a", step) for step in (10, 20, 30)]
    found = ray.get(asked)
    assert [each["answers"] for each in found] == [0.1, 0.2, 0.3]
    assert found[0]["answers_se"] == pytest.approx(0.05, abs=1e-3)
    assert sorted(scoring.asked) == [("a", step, "/checkpoint") for step in (10, 20, 30)]


def test_an_error_is_told_and_the_next_request_is_served(trials) -> None:
    with pytest.raises(RuntimeError, match="ValueError: no weights"):
        trials.judge("broken", 1, "/checkpoint")
    assert trials.judge("a", 50, "/checkpoint")["answers"] == 0.5


@pytest.mark.parametrize("end", ["on_trial_complete", "on_trial_error"])
def test_a_trial_that_has_ended_is_not_scored(end, scoring, trials) -> None:
    trial: Any = SimpleNamespace(config={"trial": asdict(debug().trials[0])})
    getattr(trials, end)(1, [], trial)
    with pytest.raises(RuntimeError, match="the trial has ended"):
        trials.judge(debug().trials[0].name, 1, "/checkpoint")
    assert scoring.asked == []


def test_a_run_that_stops_does_not_wait_for_a_score(scoring, trials, tmp_path) -> None:
    scoring.may_go_on.clear()
    said: list[str] = []

    def ask() -> None:
        try:
            trials.judge("a", 1, "/checkpoint")
        except RuntimeError as error:
            said.append(str(error))

    thread = Thread(target=ask)
    thread.start()
    while not scoring.asked:
        time.sleep(0.01)
    (tmp_path / "stop").touch()
    thread.join(60)
    scoring.may_go_on.set()
    assert said == ["the run stops; it is scored when the run continues"]
