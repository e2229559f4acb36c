"""Scores of a trial's checkpoints by the answers that they give, in the reports that Tune gets.

A judge scores one checkpoint and returns values for its report. It is given from outside, since
this package knows no benchmarks; it must be picklable.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ray.train import Checkpoint
from ray.tune.integration.ray_train import TuneReportCallback

from otr.config import TrainConfig
from otr.loop.progress import is_over

Judge = Callable[[str, int, str], Mapping[str, float]]
"""Return {"answers": share of right answers, "answers_se": its standard error}.

It is given the trial's name, the step and the checkpoint's directory; what it raises is reported as
a note.
"""


class JudgedReports(TuneReportCallback):
    """Ray Train callback that passes reports on to Tune, those of evaluations with their score.

    It runs in Ray Train's controller and waits for the score. The workers train on meanwhile: Ray
    keeps one report of each, and the next one waits. Ray Train's own `ValidationConfig` (2.60)
    does not serve here: its results reach neither callbacks nor Tune.

    Args:
        judge: scores a checkpoint.
        trial: name of the trial.
        config: the trial's config.
    """

    def __init__(self, judge: Judge, trial: str, config: TrainConfig) -> None:
        super().__init__()
        self._judge, self._trial, self._config = judge, trial, config

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Pass on rank 0's metrics."""
        report = metrics[0]
        if checkpoint is not None and self._is_evaluation(report):
            report = report | self._scores(report, checkpoint.path)
        super().after_report(run_context, [report], checkpoint)

    def _is_evaluation(self, report: Mapping[str, Any]) -> bool:
        is_due = report["step"] % self._config.eval_interval == 0
        return is_due or is_over(report, self._config.max_steps)

    def _scores(self, report: Mapping[str, Any], path: str) -> dict[str, Any]:
        """Return the scores; on an error a note, since a missing score costs nothing but itself."""
        try:
            return dict(self._judge(self._trial, report["step"], path))
        except Exception as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            note = f"step {report['step']} has no score of answers: {reason}"
            return {"note": "; ".join(filter(None, [report.get("note", ""), note]))}
