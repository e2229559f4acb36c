"""Trackers besides MLflow: a thread for each, so that neither training nor MLflow waits for it.

What a tracker has of each trial is in `<run>/<tracker>/sent.json`. So the same command again writes
only what is missing.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from otr.files import write_json
from pipelines import trackers
from pipelines.runtime import console
from pipelines.trackers import TrialLog, TrialToTrack

SENT = "sent.json"
_MAX_REASON = 160  # characters
_STOP_SECONDS = 5  # for what is queued when a signal ends the run
_Report = tuple[int, Mapping[str, float]]


@dataclass
class _Trial:
    """A trial, and how much of it the tracker has."""

    params: Mapping[str, Any] = field(default_factory=dict)
    step: int = -1
    """The last step that was written; -1: none."""
    ended: bool = False
    """Whether all steps up to `step` are certain to be there."""
    scores: dict[str, float] = field(default_factory=dict)
    """The scores that were written of the model at `step`."""
    log: TrialLog | None = None
    """The open log."""


class BesideMlflow:
    """One tracker for the trials of a run; its methods return at once and never raise.

    After the first error, which is a line on the terminal, it does nothing more.

    Args:
        name: the tracker's name.
        run: the run's name.
        run_id: id that no other run has.
        directory: the run's directory.
    """

    def __init__(self, name: str, run: str, run_id: str, directory: Path) -> None:
        self.name, self.run, self.run_id = name, run, run_id
        self.directory = directory.absolute()
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._trials: dict[str, _Trial] = {}
        self._failed = False
        self._thread = Thread(target=self._work, name=name, daemon=True)

    def start(self) -> None:
        """Start to write."""
        self._queue.put(self._read_sent)
        self._thread.start()

    def start_trial(self, trial: str, params: Mapping[str, Any]) -> None:
        """Take the parameters of a trial, whose log opens with its first report."""
        self._queue.put(lambda: self._start_trial(trial, params))

    def log(self, trial: str, metrics: Mapping[str, float], step: int) -> None:
        """Write the metrics of a step."""
        self._queue.put(lambda: self._log(trial, metrics, step))

    def reconcile(self, trial: str, params: Mapping[str, Any], history: Sequence[_Report]) -> None:
        """Write what is missing of a trial that has ended."""
        self._queue.put(lambda: self._reconcile(trial, params, history))

    def log_scores(self, trial: str, scores: Mapping[str, float]) -> None:
        """Write scores, once however often it is repeated."""
        self._queue.put(lambda: self._log_scores(trial, scores))

    def end(self, trial: str, *, ok: bool) -> None:
        """Close the log of a trial."""
        self._queue.put(lambda: self._end(trial, ok=ok))

    def close(self, patience: float) -> None:
        """Write what is queued, for `patience` seconds or a little longer, and stop."""
        self._queue.put(self._end_all)
        self._queue.put(None)
        self._thread.join(max(patience, _STOP_SECONDS))
        if self._thread.is_alive():
            self._say("it does not answer")

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            if self._failed:
                continue
            try:
                call()
            except (Exception, SystemExit) as error:  # the run must not end with a tracker
                self._failed = True
                self._say(" ".join(f"{type(error).__name__}: {error}".split())[:_MAX_REASON])

    def _say(self, reason: str) -> None:
        console.note(
            f"{self.name} gets no more of this run ({reason}): the run goes on, MLflow has "
            "everything, and the same command again sends what is missing"
        )

    def _start_trial(self, trial: str, params: Mapping[str, Any]) -> None:
        self._trials.setdefault(trial, _Trial()).params = params

    def _log(self, trial: str, metrics: Mapping[str, float], step: int) -> None:
        known = self._trials[trial]
        self._open(trial).log(metrics, step)
        known.step, known.ended, known.scores = step, False, {}

    def _reconcile(self, trial: str, params: Mapping[str, Any], history: Sequence[_Report]) -> None:
        self._start_trial(trial, params)
        known = self._trials[trial]
        if known.ended and history and known.step >= history[-1][0]:
            return
        for step, metrics in history:
            self._log(trial, metrics, step)

    def _log_scores(self, trial: str, scores: Mapping[str, float]) -> None:
        known = self._trials.setdefault(trial, _Trial())
        new = {key: value for key, value in scores.items() if known.scores.get(key) != value}
        if not new:
            return
        was_open = known.log is not None
        self._open(trial).log_scores(new, max(known.step, 0))
        known.scores |= new
        if not was_open:  # a sweep may have a thousand trials
            self._end(trial, ok=True)

    def _end(self, trial: str, *, ok: bool) -> None:
        known = self._trials.get(trial)
        if known is None or known.log is None:
            return
        log, known.log = known.log, None
        log.close(ok=ok)
        known.ended = True
        sent = {name: {"step": t.step, "scores": t.scores} for name, t in self._ended()}
        path = self.directory / self.name / SENT
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, sent)

    def _end_all(self) -> None:
        for trial in self._trials:
            self._end(trial, ok=False)

    def _ended(self) -> list[tuple[str, _Trial]]:
        return [(name, trial) for name, trial in self._trials.items() if trial.ended]

    def _open(self, trial: str) -> TrialLog:
        known = self._trials[trial]
        if known.log is None:
            digest = hashlib.sha256(f"{self.run_id}/{trial}".encode()).hexdigest()[:16]
            known.log = trackers.load(self.name).open_trial(
                TrialToTrack(self.directory, self.run, trial, digest, known.params, known.step)
            )
        return known.log

    def _read_sent(self) -> None:
        path = self.directory / self.name / SENT
        if path.is_file():
            for name, sent in json.loads(path.read_text()).items():
                self._trials[name] = _Trial({}, sent["step"], True, sent["scores"])
