"""The main job: train every arm of a preset, score the results, report which objective is best.

It writes `<output>/<name>/`: run.json, data.json, leaderboard.json, report.html and its parts,
checkpoints, scores and logs; and runs in MLflow. The same name again resumes the run.

    python pipelines/full_sweep.py --preset builtin
"""

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from evals.benchmark import TaskScore
from otr.config import TrainConfig
from pipelines.checks import machine, preflight
from pipelines.config import defaults
from pipelines.config.prepared import PreparedRun, prepare, prepare_temporarily
from pipelines.config.presets import SweepConfig
from pipelines.report import data, differences, leaderboard, measures, page, terminal
from pipelines.report.leaderboard import BASE, Entry
from pipelines.report.tables import Overlaps
from pipelines.runtime import autoscaling, cluster, console, next_steps, run_directory
from pipelines.stages import contamination, measure, score, search, search_plan, train
from pipelines.stages.score import Scorer
from pipelines.tracking.recorded_run import recorded_run
from pipelines.tracking.tracker import Tracker
from tuning.resources import free_resources
from tuning.settings import ANSWERS
from tuning.space import config_of

if TYPE_CHECKING:
    from pipelines.config.commands import Sweep
    from tuning.sweep import TrialResult


def run(command: "Sweep") -> int:
    """Run a sweep, or print what it would run; return its exit code.

    Raises:
        ValueError: an option or a check failed, or the directory holds another run.
    """
    config = command.load()
    if not command.dry_run:
        return sweep(config)
    with prepare_temporarily(config) as prepared:
        terminal.print_dry_run(config, prepared)
    return 0


def sweep(config: SweepConfig) -> int:
    """Check, train, score and report; return 1 if a trial or a measurement failed.

    Raises:
        ValueError: a check failed, or the directory holds another run.
    """
    prepared = prepare(config)
    directory = prepared.directory
    run_directory.check_free(directory)
    prepared = preflight.require(prepared)
    config = defaults.with_choices(config, prepared.config)
    plan = search_plan.plan(prepared, config) if config.search.space else None
    if plan:
        search_plan.show(plan, config)
    params = run_directory.mlflow_params(config)
    with recorded_run(config, directory, params, config.trackers) as (record, tracker, outcome):
        terminal.print_choices(config, prepared.benchmarks, prepared.corpus)
        for text in filter(None, [machine.turns(config), machine.judged(config)]):
            console.say(text)
        data.write(data.summarize_run(prepared, config), directory / data.FILE)
        if plan:
            search_plan.write(plan, prepared)
        results = _train_and_score(prepared, tracker, plan)
        entries, overlaps = results.entries, results.overlaps
        benchmarks = list(entries[0].scores)
        entries = differences.with_differences(entries, benchmarks)
        entries = measures.with_measures(entries, results.measured.found, benchmarks[0])
        for entry in entries:
            tracker.log_measures(entry.trial, entry.measures)
        files = page.write(entries, benchmarks, record, directory, overlaps)
        winner = leaderboard.best_trial(entries, benchmarks[0])
        # Results are printed before the store gets a chance to refuse anything.
        terminal.print_summary(entries, benchmarks, overlaps)
        _print_next_steps(config, directory, winner)
        names = (run_directory.RUN_FILE, contamination.FILE, *((search.FILE,) if plan else ()))
        tracker.log_artifacts([*files, *(directory / name for name in names)])
        verdict = differences.verdict(entries, benchmarks[0])
        tracker.set_description(verdict)
        tracker.log_summary(leaderboard.summary(entries, benchmarks))
        won = differences.winning_arm(entries, benchmarks[0]) is not None
        if won and winner is not None and winner.checkpoint is not None:
            tracker.register(winner.trial, Path(winner.checkpoint), verdict)
        trained = all(entry.status != "failed" for entry in entries)
        outcome.ok = trained and not results.measured.errors
    return 0 if outcome.ok else 1


@dataclass(frozen=True)
class _Results:
    """The results of a sweep, before the arms are compared."""

    entries: list[Entry]
    """The base model and each trial, with their scores."""
    overlaps: Overlaps
    """The benchmarks' items in the corpus."""
    measured: measure.Outcome
    """What was measured besides accuracy."""


def _train_and_score(
    prepared: PreparedRun, tracker: Tracker, plan: "search_plan.Plan | None"
) -> _Results:
    """Search, train, score and measure the base model and each trial."""
    # Imports Ray Tune, which takes a second.
    from pipelines.stages.judge import JudgeTrials, judging
    from pipelines.stages.score_during_training import ScoreDuringTraining, engine_fits

    directory, models = prepared.directory, {BASE: prepared.model_dir}

    def record_scores(name: str, scores: list[TaskScore]) -> None:
        if name == BASE:
            model = prepared.config.train.model.path
            tracker.start_trial(BASE, {"arm": BASE, "model.path": model})
        tracker.log_scores(name, scores)
        answers = [directory / "scores" / name / f"{score.task}.parquet" for score in scores]
        tracker.log_artifacts(answers, name, "answers")
        if name == BASE:
            tracker.end(BASE, ok=True)

    needs = autoscaling.sweep_needs(prepared.config)
    cpus = cluster.logical_cpus(prepared.config)
    with cluster.ray_session(directory / "logs", cpus, *needs):
        with Scorer(prepared.benchmarks, prepared.engine, directory) as scorer:
            judged: AbstractContextManager[JudgeTrials | None]
            judged = judging(scorer, prepared.judge, models[BASE], prepared.stop_file)
            if plan:
                trials = sum(plan.trials.values())
                with judged as judge, autoscaling.scale_up_for_trials(prepared.config, trials):
                    prepared = search.search(prepared, plan, tracker, judge)
                judged = nullcontext()  # the sweep decides nothing
            config = prepared.config
            configs = {trial.name: config_of(config.train, trial) for trial in config.trials}
            overlaps = contamination.compare(config.train.data, prepared.benchmarks, directory)
            fits = engine_fits(
                [*configs.values()],
                config.search.max_concurrent,
                prepared.engine,
                free_resources(),
                cluster.own_cores(),
            )
            with (
                judged as judge,
                autoscaling.scale_up_for_trials(config, len(config.trials)),
                ScoreDuringTraining(scorer.score, fits, configs) as meanwhile,
            ):
                if judge is not None:  # the engine is the judge's until training ends
                    results = train.train(prepared, tracker, [judge], judge.judge)
                else:
                    meanwhile.add(BASE, models[BASE])
                    results = train.train(prepared, tracker, [meanwhile])
            models |= {
                result.trial.name: Path(result.checkpoint)
                for result in results
                if result.status == "finished" and result.checkpoint
            }
            scores = score.score_models(models, scorer, record_scores)
        # The engine has given its resources back.
        measured = measure.measure_models(prepared, models, scores)
    base = Entry(BASE, BASE, None, None, None, BASE, {})
    entries = [_entry(r, configs[r.trial.name], tracker.run_id(r.trial.name)) for r in results]
    entries = [_with_scores(entry, scores, directory) for entry in [base, *entries]]
    if plan and plan.unfair:
        entries = [replace(entry, caveat=plan.unfair) for entry in entries]
    return _Results(entries, overlaps, measured)


def _entry(result: "TrialResult", config: TrainConfig, mlflow_run: str | None) -> Entry:
    """Return the leaderboard entry of a trial, without its scores."""
    speeds = [h["tokens_per_second"] for h in result.history if "tokens_per_second" in h]
    of_validation = ("val_", ANSWERS)
    validation = {k: v for h in result.history for k, v in h.items() if k.startswith(of_validation)}
    return Entry(
        trial=result.trial.name,
        arm=result.trial.arm,
        objective=asdict(config.objective),
        kl_weight=config.kl_weight,
        lr=config.optim.lr,
        seed=result.trial.seed,
        status=result.status,
        scores={},
        tokens_per_second=median(speeds) if speeds else None,
        tokens=result.tokens or None,
        seconds=result.seconds or None,
        validation=validation,
        history=result.history,
        checkpoint=result.checkpoint,
        error=result.error,
        mlflow_run=mlflow_run,
    )


def _with_scores(entry: Entry, scores: Mapping[str, list[TaskScore]], directory: Path) -> Entry:
    found = scores.get(entry.trial, [])
    return replace(
        entry,
        scores=leaderboard.scores_by_task(found),
        verdicts=leaderboard.load_verdicts(found, directory / "scores" / entry.trial),
    )


def _print_next_steps(config: SweepConfig, directory: Path, winner: Entry | None) -> None:
    best: str | Path = config.train.model.path
    if winner is not None and winner.checkpoint is not None:
        best = Path(winner.checkpoint)
    command = next_steps.pipeline_command
    next_steps.print_next_steps(
        ("open the report", next_steps.browser_command(directory / "report.html")),
        ("see every metric of every trial", command("ui", "--output", config.output)),
        ("score a checkpoint", next_steps.score_command(best, config)),
        ("read the answers", command("show_scores", directory)),
    )


if __name__ == "__main__":
    from pipelines import cli

    sys.exit(cli.main(["sweep", *sys.argv[1:]]))
