"""Weights & Biases: one of its runs per trial, in a group per run of otr.

W&B's own variables set the rest: WANDB_API_KEY, WANDB_MODE, WANDB_PROJECT (by default "otr"),
WANDB_ENTITY, WANDB_BASE_URL. With WANDB_MODE=offline, everything stays in `<run>/wandb`, and
`wandb sync` uploads it.
"""

import logging
import os
from collections.abc import Mapping

from pipelines.trackers import TrialToTrack

PROJECT = "otr"
_SECONDS = 30.0  # for W&B to answer


def check() -> None:
    """Check that wandb is installed, and has a key or is offline.

    Raises:
        ValueError: the package or the key is missing.
    """
    offline = os.environ.get("WANDB_MODE", "online") in ("offline", "dryrun", "disabled")
    if not (offline or os.environ.get("WANDB_API_KEY")):
        raise ValueError(
            "--trackers wandb needs a key: set WANDB_API_KEY, or WANDB_MODE=offline to write to "
            "the run's directory alone"
        )
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"--trackers wandb needs wandb ({error}): pip install '.[wandb]' or pip install wandb"
        ) from error


class WandbRun:
    """The run of a trial; a `TrialLog`."""

    def __init__(self, trial: TrialToTrack) -> None:
        import wandb

        logging.getLogger("wandb").setLevel(logging.CRITICAL)
        # Where vLLM is imported, W&B else prints an advertisement of another package of its own.
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
        settings = wandb.Settings(
            silent=True,
            console="off",  # what the driver prints is about all trials
            disable_git=True,
            save_code=False,
            init_timeout=_SECONDS,
            finish_timeout=_SECONDS,
            x_disable_stats=True,  # of the driver, which does not train
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=trial.run,
            name=trial.name,
            id=trial.id,
            resume="allow",
            config=dict(trial.params),
            allow_val_change=True,  # a run may become longer
            dir=trial.directory,
            reinit="create_new",  # trials run side by side
            settings=settings,
        )
        # Offline, W&B does not know what it has of a run that is opened again.
        self._last = max(self._run.step - 1, trial.step)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write the metrics of a step; steps that W&B holds keep their values, which it demands."""
        if step > self._last:
            self._run.log(dict(metrics), step=step)
            self._last = step

    def log_scores(self, scores: Mapping[str, float], step: int) -> None:
        """Write scores to the run's summary."""
        self._run.summary.update(dict(scores))

    def close(self, *, ok: bool) -> None:
        """Finish the run; W&B may take some seconds for what it has not sent yet."""
        self._run.finish(exit_code=0 if ok else 1)


def open_trial(trial: TrialToTrack) -> WandbRun:
    """Open the run of a trial, or resume it."""
    return WandbRun(trial)
