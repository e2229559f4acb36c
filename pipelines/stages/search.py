"""Search the best setting of each arm, before the sweep trains it with several seeds.

`search.json` holds the search: {settings, plan, arms, best, importance, trials}. Once it exists,
the best settings stay: the same command again trains no other ones.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otr.files import write_json
from otr.hints import counted
from pipelines.config.prepared import PreparedRun
from pipelines.config.presets import SweepConfig, arms_of_search
from pipelines.runtime import console
from pipelines.runtime.stopping import save_at_signal
from pipelines.stages.pack import pack_on_cluster
from pipelines.stages.search_plan import Plan
from pipelines.stages.train import experiment_of
from pipelines.tracking.tracker import Tracker
from tuning.arms import SearchArm
from tuning.space import Trial

if TYPE_CHECKING:
    from pipelines.stages.judge import JudgeTrials
    from tuning.sweep import TrialResult

FILE = "search.json"


def search(
    run: PreparedRun, plan: Plan, tracker: Tracker, judge: "JudgeTrials | None" = None
) -> PreparedRun:
    """Run the search, or what is left of it; return the run with the best setting in each arm.

    Ray must be running.

    Args:
        run: the run.
        plan: what the search does.
        tracker: records the trials.
        judge: scores the trials' checkpoints on `search.benchmark`.

    Raises:
        ValueError: no trial of an arm ran to its end with a value of the metric.
        SystemExit: a signal asked to stop; the trials have saved.
    """
    # Imported here: Ray Tune and Train take seconds, which a failing check need not wait for.
    from pipelines.tracking.trial_callbacks import TrialRecorder, finalize_trial
    from tuning import search as tune_search
    from tuning.searcher import SearchPlan

    config, stop_file, file = run.config, run.stop_file, run.directory / FILE
    arms = arms_of_search(config)
    before = json.loads(file.read_text()) if file.is_file() else {}
    pack_on_cluster(run)
    tracker.is_stopping = stop_file.exists
    with save_at_signal(stop_file), console.stage("search") as stage:
        recorder = TrialRecorder(tracker, config.train, stage, sum(plan.trials.values()))
        callbacks = [recorder, *([judge] if judge else [])]
        experiment = experiment_of(run, "search", callbacks, judge.judge if judge else None)
        searched = SearchPlan(tuple(arms), plan.trials, plan.seed, config.search.limits)
        results = tune_search.search(experiment, searched, resume=True, again=not before)
        for result in results:
            finalize_trial(tracker, config.train, result)
            tracker.tag(result.trial.name, "phase", "search")
        stopped = stop_file.exists()
        stage.done = not stopped
        stage.say(counted(len(results), "trial"))
        if stopped:
            return run
        chosen = before.get("best") or _best_settings(arms, results, config.search.metric)
        _write(file, config, plan, results, chosen)
        stage.say("; ".join(f"{arm}: {_in_words(each['values'])}" for arm, each in chosen.items()))
    values = {arm: each["values"] for arm, each in chosen.items()}
    trials = tuple(_with_values(trial, values.get(trial.arm, {})) for trial in config.trials)
    # What the search had to schedule; the sweep trains each of its arms to the end.
    settings = replace(config.search, scheduler="none")
    return replace(run, config=replace(config, trials=trials, search=settings))


def _with_values(trial: Trial, values: dict[str, Any]) -> Trial:
    return replace(trial, overrides={**trial.overrides, **values})


def _in_words(values: dict[str, Any]) -> str:
    short = {key.rpartition(".")[2]: value for key, value in values.items()}
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in short.items()
    )


def _best_settings(
    arms: Sequence[SearchArm], results: "Sequence[TrialResult]", metric: str
) -> dict[str, dict[str, Any]]:
    """Return {trial, values} of the best trial of each arm in which something was searched.

    Raises:
        ValueError: no trial of an arm ran to its end with a value of the metric.
    """
    from tuning.search import best_of

    best, found = best_of(results, metric), {}
    for arm in (arm for arm in arms if arm.domains):
        if arm.name not in best:
            own = [result for result in results if result.trial.arm == arm.name]
            raise ValueError(_why_none_is_best(arm.name, own, metric))
        trial = best[arm.name].trial
        values = {key: trial.overrides[key] for key in arm.domains}
        found[arm.name] = {"trial": trial.name, "values": values}
    return found


def _why_none_is_best(arm: str, results: "Sequence[TrialResult]", metric: str) -> str:
    last = [result.history[-1] for result in results if result.status == "finished"]
    if last:
        notes = [report["note"] for report in last if report.get("note")]
        return "; ".join([f"no trial of {arm} has {metric} at its last step", *notes[-1:]])
    errors = [result.error for result in results if result.error]
    why = errors[-1] if errors else "all were stopped early, or the budget was used up"
    return f"no trial of {arm} ran to its end in the search: {why}"


def _write(
    file: Path,
    config: SweepConfig,
    plan: Plan,
    results: "Sequence[TrialResult]",
    best: dict[str, dict[str, Any]],
) -> None:
    """Write search.json."""
    arms = arms_of_search(config)
    content = {
        "settings": asdict(config.search),
        "plan": asdict(plan),
        "arms": {a.name: {k: d.text for k, d in a.domains.items()} for a in arms},
        "best": best,
        "importance": {arm.name: _importance(arm, results, config) for arm in arms},
        "trials": [_stored(result, config.search.metrics) for result in results],
    }
    write_json(file, content)


def _importance(
    arm: SearchArm, results: "Sequence[TrialResult]", config: SweepConfig
) -> dict[str, list[float]]:
    from tuning.importance import importance
    from tuning.search import value_of

    own = (r for r in results if r.trial.arm == arm.name and r.status == "finished")
    pairs = ((r.trial.overrides, value_of(r, config.search.metric)) for r in own)
    return importance(arm.domains, [(o, value) for o, value in pairs if value is not None])


def _stored(result: "TrialResult", metrics: Sequence[str]) -> dict[str, Any]:
    """Return what search.json has of a trial; each curve is [[step, value], ...] of a metric."""
    from tuning.search import value_of

    own = {"trial": result.trial.name, **asdict(result.trial), "status": result.status}
    return {
        **own,
        "values": {name: value_of(result, name) for name in metrics},
        "curves": {
            name: [[r["step"], r[name]] for r in result.history if name in r] for name in metrics
        },
        "grad_norm": _mean([r["grad_norm"] for r in result.history if "grad_norm" in r]),
        "tokens": result.tokens,
        "seconds": result.seconds,
        "error": result.error,
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def read(directory: Path) -> dict[str, Any] | None:
    """Return the content of search.json in a run's directory; None if there is none."""
    file = directory / FILE
    return json.loads(file.read_text()) if file.is_file() else None
