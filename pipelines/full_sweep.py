"""The main job: train every arm of a preset, score what comes out, say which objective did best.

In: a preset and what is to be changed in it. Out: `<output>/<name>/` with run.json,
leaderboard.json, report.html and its parts, checkpoints, scores and logs; runs in MLflow; a table.
The same name again continues. Exit code 1 when a trial failed.

    python pipelines/full_sweep.py --preset builtin
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from evals.benchmark import TaskScore
from pipelines.builtin import corpus
from pipelines.checks import preflight
from pipelines.config import options
from pipelines.config.presets import SweepConfig
from pipelines.config.resolve import resolved
from pipelines.report import differences, leaderboard, page, terminal
from pipelines.report.leaderboard import BASE, Entry
from pipelines.report.tables import Overlaps
from pipelines.runtime import autoscaling, cluster, next_steps, run_directory
from pipelines.stages import contamination, stages
from pipelines.stages.scoring import Scorer
from pipelines.tracking.tracker import Tracker, store_uri
from tuning import resources
from tuning.space import config_of

if TYPE_CHECKING:
    from tuning.sweep import TrialResult


def main(argv: Sequence[str]) -> int:
    """Run a sweep, or print what it would be."""
    request = options.parse(argv, "otr sweep")
    if request.dry_run:
        with TemporaryDirectory() as scratch:
            terminal.print_dry_run(request.config, resolved(request.config, Path(scratch)))
        return 0
    return run(request.config)


def run(config: SweepConfig) -> int:
    """The sweep from its checks to its table; returns the exit code.

    Raises:
        ValueError: a check failed, or the directory holds another run.
    """
    directory = Path(config.output).absolute() / config.name
    local = resolved(config, corpus.folder(config.output))
    preflight.require(local)
    stages.check_prompts(local)
    told = run_directory.open_run(config, directory)
    tracker = Tracker(store_uri(config.output), config.name, told["id"], directory)
    with (
        run_directory.log_errors(directory),
        tracker.run(
            run_directory.mlflow_params(config), run_directory.mlflow_tags(told)
        ) as outcome,
    ):
        rows, overlaps = _train_and_score(local, directory, tracker)
        benchmarks = list(rows[0].scores)
        rows = differences.with_differences(rows, benchmarks)
        files = page.write(rows, benchmarks, told, directory, overlaps)
        winner = leaderboard.best_trial(rows, benchmarks[0])
        # What is there already is told before anything that the store can refuse.
        terminal.print_summary(rows, benchmarks, overlaps)
        _next(config, directory, winner)
        tracker.keep(
            [*files, *(directory / n for n in (run_directory.RUN_FILE, contamination.FILE))]
        )
        tracker.describe(differences.verdict(rows, benchmarks[0]))
        if winner is not None and winner.checkpoint is not None:
            tracker.register(winner.trial, Path(winner.checkpoint))
        outcome.ok = all(row.status != "failed" for row in rows)
    return 0 if outcome.ok else 1


def _next(config: SweepConfig, directory: Path, winner: Entry | None) -> None:
    best: str | Path = config.train.model.path
    if winner is not None and winner.checkpoint is not None:
        best = Path(winner.checkpoint)
    next_steps.print_next_steps(
        ("the report, in a browser", next_steps.browser_command(directory / "report.html")),
        (
            "every metric of every trial",
            next_steps.pipeline_command("ui", "--output", config.output),
        ),
        ("score a checkpoint", next_steps.pipeline_command("score_checkpoint", best)),
        ("its answers, one by one", next_steps.pipeline_command("show_scores", directory)),
    )


def _train_and_score(
    config: SweepConfig, directory: Path, tracker: Tracker
) -> tuple[list[Entry], Overlaps]:
    """Rows of the base model and of each trial; and what the corpus has of the benchmarks."""
    from pipelines.stages.score_during_training import Ahead, room  # imports Ray Tune: a second

    answers = directory / "scores"

    def record_scores(name: str, scores: list[TaskScore]) -> None:
        if name == BASE:
            tracker.start_trial(BASE, {"arm": BASE, "model.path": config.train.model.path})
        tracker.log_scores(name, scores)
        files = [answers / name / f"{score.task}.parquet" for score in scores]
        tracker.keep(files, name, "answers")
        if name == BASE:
            tracker.end(BASE, ok=True)

    models = {BASE: config.train.model.path}
    with (
        cluster.ray_session(
            directory / "logs", cluster.logical_cpus(config), *autoscaling.sweep_needs(config)
        ),
        Scorer(config, directory) as scorer,
    ):
        overlaps = stages.compare_with_corpus(config, scorer.benchmarks, directory)
        has_room = room(config, resources.free_resources())
        with (
            autoscaling.scale_up_for_trials(config),
            Ahead(scorer.score, has_room, config) as ahead,
        ):
            ahead.ready(BASE, models[BASE])
            results = stages.train(config, directory, tracker, [ahead])
        models |= {r.trial.name: r.checkpoint for r in results if _complete(r) and r.checkpoint}
        scores = stages.score_models(models, scorer, record_scores)
    base = Entry(BASE, BASE, None, None, None, BASE, **_told(BASE, scores, answers))
    rows = [_row(config, result, _told(result.trial.name, scores, answers)) for result in results]
    return [base, *(replace(r, mlflow_run=tracker.run_id(r.trial)) for r in rows)], overlaps


def _told(name: str, scores: stages.Scores, answers: Path) -> dict[str, Any]:
    """What a row keeps of the scores of its model."""
    found = scores.get(name, [])
    return {
        "scores": leaderboard.scores_by_task(found),
        "verdicts": leaderboard.load_verdicts(found, answers / name),
    }


def _complete(result: "TrialResult") -> bool:
    return result.status == "finished"


def _row(config: SweepConfig, result: "TrialResult", told: dict[str, Any]) -> Entry:
    trial = result.trial
    own = config_of(config.train, trial)
    speeds = [h["tokens_per_second"] for h in result.history if "tokens_per_second" in h]
    validation = {k: v for h in result.history for k, v in h.items() if k.startswith("val_")}
    return Entry(
        trial=trial.name,
        arm=trial.arm,
        objective=asdict(own.objective),
        lr=own.optim.lr,
        seed=trial.seed,
        status=result.status,
        **told,
        tokens_per_second=median(speeds) if speeds else None,
        validation=validation,
        history=result.history,
        checkpoint=result.checkpoint,
        error=result.error,
    )


if __name__ == "__main__":
    from pipelines import cli

    sys.exit(cli.main(["sweep", *sys.argv[1:]]))
