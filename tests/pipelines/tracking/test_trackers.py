"""Trackers besides MLflow: what they hold is read back from their files."""

import builtins
import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from evals.benchmark import TaskScore
from evals.settings import free_port
from pipelines import trackers
from pipelines.checks.preflight import check_trackers
from pipelines.config.options import UsageError, load_config
from pipelines.config.presets import PRESETS, SweepConfig
from pipelines.config.run_json import fingerprint
from pipelines.tracking import beside
from pipelines.tracking.mlflow_store import SWEEP
from pipelines.tracking.tracker import Tracker

PARAMS = {"arm": "sft", "optim.lr": 1e-4, "lora.dora": False, "data.paths": ["a.jsonl"]}
SCORE = TaskScore("gsm8k", "accuracy", 0.5, 0.4, 0.6, 100, {})
TRIAL = "sft-seed0"


def make_tracker(directory: Path, *names: str) -> Tracker:
    return Tracker(f"sqlite:///{directory / 'mlflow.db'}", "sweep", "run-id", directory, names)


def events(folder: Path) -> Iterator[Any]:
    """The events of a folder in the order in which TensorBoard reads them.

    A record is its length (8 bytes), a checksum (4), the event, and a checksum (4).
    """
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            yield Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length


def shown(folder: Path) -> dict[str, dict[int, float]]:
    """Value by step of each scalar that TensorBoard shows: a start hides the steps from its own."""
    found: dict[str, dict[int, float]] = {}
    for event in events(folder):
        if event.HasField("session_log"):
            assert event.session_log.status == event.session_log.START
            for steps in found.values():
                for step in [s for s in steps if s >= event.step]:
                    del steps[step]
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                found.setdefault(value.tag, {})[event.step] = round(value.simple_value, 4)
    return {tag: steps for tag, steps in found.items() if steps}


def session_params(folder: Path) -> dict[str, Any]:
    """The parameters that TensorBoard's page HPARAMS shows."""
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    for event in events(folder):
        for value in event.summary.value:
            if value.tag == "_hparams_/session_start_info":
                content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                params = content.session_start_info.hparams
                return {k: getattr(v, v.WhichOneof("kind")) for k, v in params.items()}
    raise LookupError(f"no parameters in {folder}")


def history(*steps: int, nll: float = 0.0) -> list[tuple[int, dict[str, float]]]:
    return [(step, {"curves/nll": nll or 1 / step}) for step in steps]


def run_trial(directory: Path, *names: str, ok: bool = True) -> None:
    """A trial of three reports and its scores, as `otr sweep` records it."""
    tracker = make_tracker(directory, *names)
    with tracker.run({}, {}) as outcome:
        tracker.start_trial(TRIAL, PARAMS)
        for step, metrics in history(1, 2, 4):
            tracker.log(TRIAL, metrics, step)
        tracker.end(TRIAL, ok=ok)
        tracker.reconcile(TRIAL, PARAMS, history(1, 2, 4))
        tracker.end(TRIAL, ok=ok)
        tracker.log_scores(TRIAL, [SCORE])
        tracker.log_scores(SWEEP, [SCORE])
        tracker.log_measures(TRIAL, {"kl/target": {"value": 0.2, "low": 0.1, "high": 0.3}})
        outcome.ok = True


def test_the_event_files_hold_metrics_params_and_scores(tmp_path: Path) -> None:
    run_trial(tmp_path, "tensorboard")
    folder = tmp_path / "tensorboard" / TRIAL
    held = shown(folder)
    assert held["curves/nll"] == {1: 1.0, 2: 0.5, 4: 0.25}
    assert held["score/gsm8k"] == {4: 0.5} and held["score/gsm8k_low"] == {4: 0.4}
    assert held["kl/target"] == {4: 0.2} and held["kl/target_high"] == {4: 0.3}
    params = {"arm": "sft", "optim.lr": 1e-4, "lora.dora": False, "data.paths": "['a.jsonl']"}
    assert session_params(folder) == params
    assert [p.name for p in (tmp_path / "tensorboard").iterdir() if p.is_dir()] == [TRIAL]


def test_the_same_command_again_writes_nothing_twice(tmp_path: Path) -> None:
    run_trial(tmp_path, "tensorboard")
    folder = tmp_path / "tensorboard" / TRIAL
    before = {path: path.read_bytes() for path in folder.iterdir()}
    tracker = make_tracker(tmp_path, "tensorboard")
    with tracker.run({}, {}):
        tracker.reconcile(TRIAL, PARAMS, history(1, 2, 4))
        tracker.end(TRIAL, ok=True)
        tracker.log_scores(TRIAL, [SCORE])
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_tracker_that_was_added_later_gets_everything(tmp_path: Path) -> None:
    tracker = make_tracker(tmp_path, "tensorboard")
    with tracker.run({}, {}):
        tracker.reconcile(TRIAL, PARAMS, history(1, 2, 4))
        tracker.end(TRIAL, ok=True)
    assert shown(tmp_path / "tensorboard" / TRIAL) == {"curves/nll": {1: 1.0, 2: 0.5, 4: 0.25}}


def test_repeated_steps_replace_what_was_after_the_checkpoint(tmp_path: Path) -> None:
    """After a lost worker in the same process, and after a new start of the process."""
    for steps, nll in [((1, 2, 3, 4, 6), 1.0), ((3, 5), 2.0)]:
        tracker = make_tracker(tmp_path, "tensorboard")
        with tracker.run({}, {}):
            tracker.start_trial(TRIAL, PARAMS)
            for step, metrics in history(*steps, nll=nll):
                tracker.log(TRIAL, metrics, step)
            if nll == 2.0:
                tracker.log(TRIAL, {"curves/nll": 3.0}, 4)
    held = shown(tmp_path / "tensorboard" / TRIAL)["curves/nll"]
    assert held == {1: 1.0, 2: 1.0, 3: 2.0, 4: 3.0}, "what was step 5 is gone"


KILLED = """
import os, sys, time
from pathlib import Path
from pipelines.tracking.beside import BesideMlflow
from tests.pipelines.tracking.test_trackers import PARAMS, TRIAL, history
tracker = BesideMlflow(sys.argv[2], "sweep", "run-id", Path(sys.argv[1]))
tracker.start()
tracker.start_trial(TRIAL, PARAMS)
for step, metrics in history(1, 2, 3, 5):
    tracker.log(TRIAL, metrics, step)
while tracker._trials.get(TRIAL) is None or tracker._trials[TRIAL].step < 5:
    time.sleep(0.01)
os._exit(9)
"""


def test_what_a_killed_process_wrote_stays_and_the_rest_is_added(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), "tensorboard"]
    assert subprocess.run(command).returncode == 9
    folder = tmp_path / "tensorboard" / TRIAL
    assert [*shown(folder)["curves/nll"]] == [1, 2, 3, 5]
    tracker = make_tracker(tmp_path, "tensorboard")
    with tracker.run({}, {}):
        tracker.start_trial(TRIAL, PARAMS)
        for step, metrics in history(3, 4):  # its checkpoint was that of step 2
            tracker.log(TRIAL, metrics, step)
    assert [*shown(folder)["curves/nll"]] == [1, 2, 3, 4]


class Failing:
    """A tracker that opens and then fails, as without a network."""

    def __init__(self) -> None:
        self.calls = 0

    def open_trial(self, trial: object) -> "Failing":
        return self

    def log(self, metrics: object, step: int) -> None:
        self.calls += 1
        raise ConnectionError("no route to host")

    def close(self, *, ok: bool) -> None:
        pass


def test_a_tracker_that_fails_costs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    failing, load = Failing(), trackers.load
    monkeypatch.setattr(trackers, "load", lambda n: failing if n == "wandb" else load(n))
    run_trial(tmp_path, "wandb", "tensorboard")
    said = [line for line in capsys.readouterr().err.splitlines() if "wandb" in line]
    assert len(said) == 1 and "no route to host" in said[0] and "the run goes on" in said[0]
    assert failing.calls == 1
    assert len(shown(tmp_path / "tensorboard" / TRIAL)["curves/nll"]) == 3, "the other goes on"


def test_a_tracker_that_hangs_does_not_keep_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from threading import Event

    released = Event()
    monkeypatch.setattr(Failing, "log", lambda *_: released.wait(60))
    monkeypatch.setattr(trackers, "load", lambda _: Failing())
    monkeypatch.setattr(beside, "_STOP_SECONDS", 0.2)
    tracker = beside.BesideMlflow("wandb", "sweep", "run-id", tmp_path)
    tracker.start()
    tracker.start_trial(TRIAL, PARAMS)
    tracker.log(TRIAL, {"curves/nll": 1.0}, 1)
    tracker.close(0)
    released.set()
    assert "it does not answer" in capsys.readouterr().err


@pytest.mark.parametrize("name", trackers.names())
def test_a_missing_package_is_one_error_before_the_run(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = {"tensorboard": "tensorboardX"}.get(name, name)
    imported = builtins.__import__

    def missing(module: str, *rest: Any) -> Any:
        if module == package:
            raise ImportError(f"No module named {module!r}")
        return imported(module, *rest)

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(builtins, "__import__", missing)
    config = load_config("debug", "", {"trackers": (name,)})
    with pytest.raises(ValueError, match=f"--trackers {name} needs .*pip install"):
        check_trackers(config)


def test_a_key_or_offline_mode_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = load_config("debug", "", {"trackers": ("wandb",)})
    with pytest.raises(ValueError, match="set WANDB_API_KEY, or WANDB_MODE=offline"):
        check_trackers(config)


def test_the_option() -> None:
    plain = PRESETS["debug"]()
    assert plain.trackers == () and check_trackers(plain) == "MLflow"
    both = load_config("debug", "", {"trackers": ("tensorboard", "wandb")})
    assert fingerprint(both) == fingerprint(plain), "a run may get a tracker when it resumes"
    with pytest.raises(UsageError, match=r"no tracker 'tensorbord'.*'tensorboard'"):
        load_config("debug", "", {"trackers": ("tensorbord",)})
    assert isinstance(both, SweepConfig)


def wandb_records(folder: Path) -> Iterator[Any]:
    """The records of W&B's files below a run's directory, in the order that `wandb sync` takes.

    A file is a header of 7 bytes and LevelDB log blocks of 32 KiB; each chunk in them is a
    checksum (4 bytes), its length (2), its kind (1: whole; 2, 3, 4: first, middle, last), and data.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        data, at, whole = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if 2**15 - at % 2**15 < 7:
                at += 2**15 - at % 2**15
                continue
            _, length, kind = struct.unpack_from("<IHB", data, at)
            whole += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):
                yield Record.FromString(whole)
                whole = b""


def wandb_history(folder: Path) -> list[dict[str, Any]]:
    rows = [r.history for r in wandb_records(folder) if r.WhichOneof("record_type") == "history"]
    items = [{i.key or "/".join(i.nested_key): i.value_json for i in row.item} for row in rows]
    return [{key: json.loads(value) for key, value in row.items()} for row in items]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> str:
    """Sets W&B up to work offline; returns a key that nothing may write."""
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    key = "planted5f3a" * 4
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", key)
    return key


def test_wandb_offline_holds_metrics_params_and_scores(
    tmp_path: Path, offline: str, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openai", ModuleType("openai"))  # as vLLM imports it
    run_trial(tmp_path, "wandb")
    records = [*wandb_records(tmp_path)]
    runs = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert {run.display_name for run in runs} == {TRIAL}
    assert {(run.project, run.run_group) for run in runs} == {("otr", "sweep")}
    assert len({run.run_id for run in runs}) == 1, "opened again, it is the same run"
    config = {i.key: json.loads(i.value_json) for i in runs[0].config.update}
    assert config["optim.lr"] == 1e-4 and config["data.paths"] == ["a.jsonl"]
    rows = [(row["_step"], row["curves/nll"]) for row in wandb_history(tmp_path)]
    assert rows == [(1, 1.0), (2, 0.5), (4, 0.25)]
    summaries = [r.summary for r in records if r.WhichOneof("record_type") == "summary"]
    scores = {i.key or "/".join(i.nested_key): i.value_json for s in summaries for i in s.update}
    assert math.isclose(float(scores["score/gsm8k"]), 0.5) and "kl/target" in scores
    exits = [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"]
    assert set(exits) == {0}
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "mlflow.db"]
    assert not [path for path in written if offline.encode() in path.read_bytes()]
    out, err = capfd.readouterr()
    assert "wandb" not in out + err, "W&B prints nothing of its own"


def test_a_resumed_run_is_the_same_run_of_wandb(tmp_path: Path, offline: str) -> None:
    for steps in ((1, 2), (2, 3, 4)):  # the checkpoint of step 1 or 2
        tracker = make_tracker(tmp_path, "wandb")
        with tracker.run({}, {}):
            tracker.start_trial(TRIAL, PARAMS)
            for step, metrics in [*history(*steps), *history(*steps)]:  # the second is a restart
                tracker.log(TRIAL, metrics, step)
    assert [row["_step"] for row in wandb_history(tmp_path)] == [1, 2, 3, 4]
    runs = [r.run for r in wandb_records(tmp_path) if r.WhichOneof("record_type") == "run"]
    assert len({run.run_id for run in runs}) == 1
    exits = [r.exit.exit_code for r in wandb_records(tmp_path) if r.HasField("exit")]
    assert exits == [1, 1], "cut off"


RECORDED = """
import sys
from pathlib import Path
from pipelines.trackers import wandb
from tests.pipelines.tracking.test_trackers import run_trial
wandb._SECONDS = 2.0
run_trial(Path(sys.argv[1]), "wandb")
print("the end")
"""


def test_a_server_of_wandb_that_does_not_answer_costs_one_line(
    tmp_path: Path, offline: str
) -> None:
    environment = {
        **os.environ,
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": f"http://127.0.0.1:{free_port()}",
    }
    command = [sys.executable, "-c", RECORDED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout.endswith("the end\n")
    assert done.stderr.count("the run goes on") == 1 and offline not in done.stderr + done.stdout
