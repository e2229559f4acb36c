"""Train the trials of a run under Ray Tune; an interrupted run resumes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from otr.hints import counted
from pipelines.config.prepared import PreparedRun
from pipelines.runtime import console
from pipelines.runtime.stopping import save_at_signal
from pipelines.stages.pack import pack_on_cluster, packed_dir
from pipelines.tracking.tracker import Tracker

if TYPE_CHECKING:
    from ray.tune import Callback

    from tuning.judge import Judge
    from tuning.sweep import Experiment, TrialResult


def train(
    run: PreparedRun,
    tracker: Tracker,
    callbacks: Sequence["Callback"] = (),
    judge: "Judge | None" = None,
) -> "list[TrialResult]":
    """Train every trial to its end; checkpoints are written below `<run>/trials`.

    Ray must be running.

    Args:
        run: the run.
        tracker: records the trials.
        callbacks: further callbacks of Ray Tune, called in this process.
        judge: scores checkpoints for the search; see `tuning.judge`.

    Raises:
        SystemExit: a signal asked to stop; the trials have saved.
    """
    # Imported here: Ray Tune and Train take seconds, which a failing check need not wait for.
    from pipelines.tracking.trial_callbacks import TrialRecorder, finalize_trial
    from tuning import sweep

    config, stop_file = run.config, run.stop_file
    pack_on_cluster(run)
    tracker.is_stopping = stop_file.exists
    with save_at_signal(stop_file), console.stage("train") as stage:
        recorder = TrialRecorder(tracker, config.train, stage, len(config.trials))
        experiment = experiment_of(run, "trials", [recorder, *callbacks], judge)
        results = sweep.run(experiment, config.trials, resume=True)
        for result in results:
            finalize_trial(tracker, config.train, result)
        stopped = stop_file.exists()  # a trial that saved and stopped has the status failed
        stage.done = not stopped and all(result.status != "failed" for result in results)
        stage.say(_outcome(results, stopped=stopped))
        return results


def experiment_of(
    run: PreparedRun, folder: str, callbacks: "Sequence[Callback]", judge: "Judge | None"
) -> "Experiment":
    """Return the experiment of Ray Tune in a folder of the run's directory."""
    from tuning.sweep import Experiment

    return Experiment(
        run.config.train,
        run.config.search,
        storage=str(run.directory),
        name=folder,
        callbacks=callbacks,
        stop_file=str(run.stop_file),
        packed=packed_dir(run),
        judge=judge,
    )


def _outcome(results: "Sequence[TrialResult]", *, stopped: bool) -> str:
    """Return how many trials ended in which way."""
    count = len(results)
    states = [result.status for result in results]
    if stopped:
        return f"stopped: {states.count('finished')} of {count} trials finished"
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    return f"{counted(count, 'trial')}: {', '.join(counts)}"
