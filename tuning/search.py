"""A search before a sweep: it finds the best setting of each arm, as an experiment of Ray Tune.

Trials are named after their arm: `<storage>/<name>/otr-0007/`. A trial that has ended keeps its
reports and no checkpoint, since the best setting is trained again, with other seeds.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune

from otr.files import write_json
from otr.training.checkpoint_store import delete_all
from otr.training.worker import stop_requested
from tuning.concurrency import TrialLimit
from tuning.searcher import ArmSearcher, ResumableGenerator, SearchPlan
from tuning.settings import ANSWERS, check_metrics, lower_is_better
from tuning.space import Trial, config_of
from tuning.sweep import Experiment, TrialResult, outcome_of
from tuning.trial import ENDED, RUN


def search(
    experiment: Experiment, plan: SearchPlan, *, resume: bool = False, again: bool = True
) -> list[TrialResult]:
    """Run the trials of a search, or with `resume` continue an interrupted one.

    Args:
        experiment: what the trials have in common.
        plan: the arms and their numbers of trials.
        resume: continue the search of this storage and name, or start it if there is none.
        again: when it continues, run failed trials again.

    Returns:
        One result per trial that was started, by arm and number.

    Raises:
        ValueError: the search exists and `resume` is off, it has another space, a metric of the
            search is not reported, the storage is no directory, or the cluster is too small.
    """
    config, settings, directory = experiment.config, experiment.settings, experiment.directory
    if "://" in directory:
        raise ValueError(f"a search needs a directory that every node reaches, not {directory}")
    check_metrics(config, settings)
    assert experiment.judge or ANSWERS not in settings.metrics, "nothing scores search.benchmark"
    stop_file = experiment.stop_file  # Tune pickles the searcher, but can't pickle callbacks
    first = [config_of(config, arm.trial(1, {}, plan.seed)) for arm in plan.arms]
    exists = tune.Tuner.can_restore(directory)
    if exists and not resume:
        raise ValueError(f"{directory} holds a search already: resume it, or use another name")
    searcher = ArmSearcher(
        plan,
        settings,
        directory=directory,
        limit=TrialLimit([each.workers for each in first], settings.max_concurrent).now,
        max_steps=config.max_steps,
        on_end=lambda trial, report: _end(f"{directory}/{trial.name}", report),
        is_stopping=lambda: stop_requested(stop_file),
    )
    tuner = experiment.restored(failed=again) if exists else None
    count = sum(plan.trials.values())
    found = experiment.fit(ResumableGenerator(searcher), tuner, num_samples=count)
    if searcher.unreported:
        raise ValueError(
            f"the search compares trials by {' and '.join(settings.metrics)}, but they report "
            f"only {', '.join(searcher.unreported)}: give one of these as --search.metric"
        )
    results = []
    for each in found:
        trial = Trial(**(each.config or {})["trial"])
        results.append(outcome_of(trial, each, f"{directory}/{trial.name}", config.max_steps))
        if results[-1].status != "failed":
            delete_all(f"{directory}/{trial.name}/{RUN}")  # written after the trial was stopped
    names = [arm.name for arm in plan.arms]
    return sorted(results, key=lambda r: (names.index(r.trial.arm), r.trial.number or 0))


def value_of(result: TrialResult, metric: str) -> float | None:
    """Return the last value of a metric that a trial reported; None if it has none.

    Of a finished trial only its last step counts: a checkpoint that could not be scored must not
    be judged by an earlier one.
    """
    reports = result.history[-1:] if result.status == "finished" else result.history
    values = [report[metric] for report in reports if metric in report]
    return float(values[-1]) if values and math.isfinite(values[-1]) else None


def best_of(results: Sequence[TrialResult], metric: str) -> dict[str, TrialResult]:
    """Return the best trial of each arm among those that ran to their end.

    A trial that was stopped early was compared at an earlier step, and is not chosen.
    """
    sign = 1 if lower_is_better(metric) else -1
    best: dict[str, tuple[float, TrialResult]] = {}
    for result in results:
        value = value_of(result, metric)
        arm = result.trial.arm
        if result.status != "finished" or value is None:
            continue
        if arm not in best or sign * value < best[arm][0]:
            best[arm] = (sign * value, result)
    return {arm: result for arm, (_, result) in best.items()}


def _end(directory: str, report: Mapping[str, Any]) -> None:
    """Keep the last report of a trial that has ended, and delete its checkpoints."""
    plain = {k: v for k, v in report.items() if isinstance(v, int | float | str)}
    Path(directory).mkdir(parents=True, exist_ok=True)
    write_json(Path(directory, ENDED), plain)
    delete_all(f"{directory}/{RUN}")
