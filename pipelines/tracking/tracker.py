"""The record of a sweep in MLflow: a parent run for the sweep, a child run for each trial.

In: the address of a store, then what happens in a sweep. Out: entries of an outbox in the run's
directory, from where they go to the store in the background: none of the calls here waits for it,
nor fails when it is away. Only the driver writes. A sweep that goes on after an interruption sends
first what the outbox still holds, and goes on in the same runs.
"""

import os
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.benchmark import TaskScore
from pipelines.runtime import console
from pipelines.tracking.mlflow_sender import Sender, quiet_client
from pipelines.tracking.mlflow_store import Store, is_server, own_schema
from pipelines.tracking.outbox import Outbox, without_login

OUTBOX = "outbox.jsonl"
DRAIN_SECONDS = 30
"""How long the end of a run waits for a store that is away."""
_LOCK_SECONDS = 5


def store_uri(output: str) -> str:
    """MLFLOW_TRACKING_URI, or the sqlite store in the output directory."""
    path = Path(output).absolute() / "mlflow.db"
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{path}"


def check_store(uri: str) -> str:
    """See whether the store can be written to; returns what was found.

    Raises:
        ValueError: it is locked, of another version's schema, or can't be opened.
    """
    if uri.startswith("file:") or not (is_server(uri) or "://" in uri):
        raise ValueError(
            f"MLFLOW_TRACKING_URI is {uri!r}, and MLflow keeps runs in plain files no longer: give "
            "a server's address or sqlite:///PATH, or unset it"
        )
    if not uri.startswith("sqlite:///"):
        return f"{without_login(uri)} (a server: a run goes on while it is away)"
    path = Path(uri.removeprefix("sqlite:///"))
    if not path.exists():
        return f"{path} will be made"
    try:
        with closing(sqlite3.connect(path, timeout=_LOCK_SECONDS)) as store:
            store.execute("BEGIN IMMEDIATE")
            tables = {row[0] for row in store.execute("SELECT name FROM sqlite_master")}
            version = (
                "alembic_version" in tables
                and store.execute("SELECT version_num FROM alembic_version").fetchone()
            )
            store.rollback()
    except sqlite3.Error as error:
        raise ValueError(
            f"the MLflow store {path} can't be used ({error}): end the process that holds it or "
            "give another --output"
        ) from error
    if version and version[0] != own_schema():
        raise ValueError(
            f"the MLflow store {path} has schema {version[0]}, this MLflow writes {own_schema()}: "
            f"use the MLflow that made it, `mlflow db upgrade sqlite:///{path}` if that one was "
            "older, or another --output"
        )
    return str(path)


@dataclass
class Outcome:
    """Whether all went well; to be set by the body of `Tracker.run`."""

    ok: bool = False


class Tracker:
    """The runs of one sweep: of its name, and of the id that no other sweep has."""

    def __init__(self, uri: str, sweep: str, sweep_id: str, directory: Path) -> None:
        """`directory` is the run's: the outbox lies there."""
        self.sweep = sweep
        self._store = Store(uri, sweep, sweep_id)
        send = Sender(self._store).send
        self._outbox = Outbox(
            directory / OUTBOX, send, f"MLflow at {without_login(uri)}", console.note
        )

    @contextmanager
    def run(self, params: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[Outcome]:
        """Keep the sweep's run open while the body runs; the same one again when it goes on."""
        with quiet_client():
            self._outbox.start()
            self._put("start", "", name=self.sweep, tags=dict(tags), **_start(params))
            outcome, patience = Outcome(), DRAIN_SECONDS
            try:
                yield outcome
            except KeyboardInterrupt:
                patience = 0
                raise
            finally:
                self.end(ok=outcome.ok)
                self._close(patience)

    def start_trial(self, trial: str, params: Mapping[str, Any]) -> None:
        """Open a trial's run under the sweep's, or the same one again."""
        self._put("start", trial, name=trial, tags={}, **_start(params))

    def restore(
        self,
        trial: str,
        params: Mapping[str, Any],
        history: Iterable[tuple[int, Mapping[str, float]]],
    ) -> None:
        """See that the store has the trial's run with all its reports (step, metrics)."""
        now = _now()
        reports = [
            {"step": step, "time": now, "metrics": _plain(metrics)} for step, metrics in history
        ]
        self._put("restore", trial, name=trial, tags={}, history=reports, **_start(params))

    def run_id(self, trial: str = "") -> str | None:
        """The id of a trial's run, or of the sweep's; None when the store has not told it yet.

        Waits for what is on its way, but not for a store that is away.
        """
        self._outbox.wait(0)
        return self._store.runs.get(trial)

    def log(self, trial: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Write the metrics of a step."""
        self._put("log", trial, step=step, time=_now(), metrics=_plain(metrics))

    def log_scores(self, trial: str, scores: Iterable[TaskScore]) -> None:
        """Write each score with the ends of its interval; once, also when it is told again.

        Further metrics of a benchmark stand under its name: score/gsm8k_at_8/pass_at_4.
        """
        metrics: dict[str, float] = {}
        for score in scores:
            told = {"": [score.value, score.low, score.high], **score.also}
            for metric, values in told.items():
                name = _metric_name(f"score/{score.task}" + (f"/{metric}" if metric else ""))
                metrics |= zip((name, f"{name}_low", f"{name}_high"), values, strict=True)
        self._put("scores", trial, step=0, time=_now(), metrics=_plain(metrics))

    def tag(self, trial: str, key: str, value: str) -> None:
        """Tag a run."""
        self._put("tag", trial, key=key, value=value)

    def describe(self, text: str) -> None:
        """What the page of the sweep's run says at its top (Markdown)."""
        self.tag("", "mlflow.note.content", text)

    def end(self, trial: str = "", *, ok: bool) -> None:
        """Close a run, if it is open."""
        self._put("end", trial, status="FINISHED" if ok else "FAILED", time=_now())

    def keep(self, paths: Sequence[Path], trial: str = "", folder: str = "") -> None:
        """Store files, and directories by their name, as artifacts of a run; files in `folder`."""
        self._put("keep", trial, paths=[str(path.absolute()) for path in paths], folder=folder)

    def register(self, trial: str, checkpoint: Path) -> None:
        """Register a trial's checkpoint as the newest version of the sweep's model, once."""
        self._put("register", trial, checkpoint=str(checkpoint.absolute()))

    def _put(self, do: str, trial: str, **words: Any) -> None:
        self._outbox.put({"do": do, "trial": trial, **words})

    def _close(self, patience: float) -> None:
        if waiting := self._outbox.close(patience):
            console.note(
                f"{waiting} entries for {self._outbox.service} wait in {self._outbox.path}: all "
                "results are on disk, and the same command again sends them"
            )


def _start(params: Mapping[str, Any]) -> dict[str, Any]:
    return {"params": {key: str(value)[:6000] for key, value in params.items()}, "time": _now()}


def _plain(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _metric_name(name: str) -> str:
    """As MLflow takes it: no @, as in gsm8k@8, nor other signs."""
    return re.sub(r"[^\w\-. /:]", "_", name.replace("@", "_at_"))


def _now() -> int:
    return int(time.time() * 1000)
