"""Checkpoints of a run: recovery when it starts, and which of them stay."""

import errno
import json
import math
from pathlib import Path

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem
from ray.train import WorkerGroupError

from otr import Objective
from otr.loop.checkpoint import (
    STATE,
    TRAINER,
    UNVERIFIED,
    UnverifiedCheckpoint,
    check_checkpoint,
    checkpoint_name,
)
from otr.loop.loop import train
from otr.models.load import load_model
from otr.models.tokenizer import load_tokenizer
from otr.training import _compat
from otr.training.checkpoint_store import (
    CheckpointStore,
    best_checkpoint,
    check_can_go_on,
    delete_old,
    list_checkpoints,
    recover,
)
from otr.training.driver import worker_error
from tests.assets.tiny import make_tiny_model
from tests.otr.runs import batches, config


@pytest.fixture
def store() -> AbstractFileSystem:
    fs = fsspec.filesystem("memory")
    if fs.exists("/run"):
        fs.rm("/run", recursive=True)
    return fs


def save(fs: AbstractFileSystem, name: str, weights: bytes = b"weights") -> None:
    fs.pipe(
        {
            f"/run/{name}/model.safetensors": weights,
            f"/run/{name}/{TRAINER}/{STATE}": b'{"world": 1}',
            f"/run/{name}/{TRAINER}/files-0.json": json.dumps(
                {"model.safetensors": [len(b"weights"), "digest"]}
            ).encode(),
        }
    )


def test_the_newest_complete_checkpoint_is_found(store: AbstractFileSystem) -> None:
    save(store, "step-000002")
    save(store, "step-000004")
    save(store, "step-000006", b"weigh")  # truncated
    save(store, "step-000008")
    store.rm(f"/run/step-000008/{TRAINER}/{STATE}")
    save(store, ".step-000010")  # half-written
    newest, notes = recover("memory://run")
    assert newest == "step-000004"
    assert "step-000008 is incomplete" in notes[0] and "is not as it was" in notes[1]
    left = sorted(path.rpartition("/")[2] for path in store.ls("/run", detail=False))
    complete = ["step-000002", "step-000004"]
    assert left == ["damaged-step-000006", "damaged-step-000008", *complete]


def test_a_run_without_a_complete_checkpoint_starts_anew(store: AbstractFileSystem) -> None:
    assert recover("memory://run") == (None, [])
    save(store, "step-000002", b"")
    newest, [note] = recover("memory://run")
    assert newest is None and "step-000002/model.safetensors is not as it was written" in note


def test_an_unavailable_store_costs_no_checkpoint(
    store: AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, "step-000002")

    def unavailable(path: str) -> int:
        raise OSError(16, "please reduce your request rate")

    with monkeypatch.context() as patched:
        patched.setattr(store, "size", unavailable)
        with pytest.raises(OSError, match="reduce your request rate"):
            recover("memory://run")
    assert recover("memory://run") == ("step-000002", [])


def test_a_directory_that_can_not_be_read_costs_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On NFS, for example, while the server has no answer."""
    trainer = tmp_path / "step-000002" / TRAINER
    trainer.mkdir(parents=True)
    (trainer / STATE).write_text('{"world": 1}')
    (trainer / "files-0.json").write_text("{}")
    read = Path.read_text

    for name in (STATE, "files-0.json"):

        def stale(path: Path, name: str = name) -> str:
            if path.name == name:
                raise OSError(errno.ESTALE, "Stale file handle", str(path))
            return read(path)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_text", stale)
            with pytest.raises(OSError, match="Stale file handle"):
                recover(str(tmp_path))
    assert recover(str(tmp_path)) == ("step-000002", [])


def test_an_unverified_checkpoint_is_uploaded_beside_and_not_resumed_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bucket").mkdir()
    remote = SubTreeFileSystem(str(tmp_path / "bucket"), LocalFileSystem())
    monkeypatch.setattr(_compat, "run_storage", lambda: (remote, "run"))
    run, taken = config(make_tiny_model(tmp_path / "model"), Objective("sft"), 1), []
    train(load_model(run.model), batches(1), run, lambda _, snapshot: taken.append(snapshot))
    [snapshot] = taken
    snapshot.weights["model.norm.weight"].mul_(1.1)
    store = CheckpointStore("unused", None)
    with pytest.raises(UnverifiedCheckpoint, match="kept as run/unverified-step-000001, but"):
        store._write(snapshot, load_tokenizer(run.model), None, None, "step-000001")
    [kept] = (tmp_path / "bucket" / "run").iterdir()
    check_checkpoint(kept)
    assert (kept / UNVERIFIED).is_file()
    assert recover(str(kept.parent)) == (None, []) and kept.exists()


def test_the_error_of_an_unverified_checkpoint_is_what_a_run_reports() -> None:
    failure = UnverifiedCheckpoint("run/unverified-step-000006", "its NLL differs")
    assert worker_error(WorkerGroupError("a worker failed", {0: failure})) == str(failure)


def save_state(fs: AbstractFileSystem, step: int, nll: float | None = None, ranks: int = 1) -> None:
    """Save a checkpoint of two ranks, of which the first `ranks` have written their part."""
    state = {"world": 2, "metrics": {} if nll is None else {"val_nll": nll}}
    files = {f"files-{rank}.json": b"{}" for rank in range(ranks)}
    files[STATE] = json.dumps(state).encode()
    directory = f"/run/{checkpoint_name(step)}/{TRAINER}"
    fs.pipe({f"{directory}/{name}": content for name, content in files.items()})


def left(fs: AbstractFileSystem) -> list[int]:
    return sorted(int(path.rpartition("step-")[2]) for path in fs.ls("/run", detail=False))


def test_the_last_two_checkpoints_and_the_best_stay(store: AbstractFileSystem) -> None:
    for step, nll in ((2, math.nan), (4, 0.1), (6, 0.3), (8, None), (10, 0.2)):
        save_state(store, step, nll, ranks=2)
    save_state(store, 12, 0.01)  # the other rank is still writing
    delete_old("memory://run", retained=3)
    assert left(store) == [4, 6, 8, 10, 12]
    delete_old("memory://run")
    assert left(store) == [4, 8, 10, 12]
    store.rm("/run/step-000012", recursive=True)
    assert best_checkpoint("memory://run") == "step-000004"


@pytest.mark.parametrize(
    ("dtypes", "adapter", "remedy"),
    [
        (["bfloat16"], False, "another run from it with --model memory://run/step-000002$"),
        (["bfloat16"], True, "from OUT after `otr merge memory://run/step-000002 OUT`$"),
        (["float32", "float32", "bfloat16"], False, "or remove it to go on from step-000004$"),
    ],
)
def test_a_run_can_t_become_longer_from_rounded_weights(
    store: AbstractFileSystem, dtypes: list[str], adapter: bool, remedy: str
) -> None:
    for number, dtype in enumerate(dtypes, 1):
        save(store, name := f"step-00000{2 * number}")
        store.pipe(f"/run/{name}/{TRAINER}/{STATE}", json.dumps({"dtype": dtype}).encode())
        if adapter:
            store.pipe(f"/run/{name}/adapter_config.json", b"{}")
    with pytest.raises(ValueError, match=f"holds weights rounded to bfloat16 .*{remedy}"):
        check_can_go_on("memory://run")
    store.rm(f"/run/{name}", recursive=True)
    check_can_go_on("memory://run")


def test_the_newest_whole_checkpoint_is_named_after_a_million_steps(
    store: AbstractFileSystem,
) -> None:
    for step, dtype in ((999_999, "float32"), (1_000_000, "float32"), (1_000_001, "bfloat16")):
        save(store, f"step-{step}")
        store.pipe(f"/run/step-{step}/{TRAINER}/{STATE}", json.dumps({"dtype": dtype}).encode())
    with pytest.raises(ValueError, match=r"or remove it to go on from step-1000000$"):
        check_can_go_on("memory://run")


def test_checkpoints_are_ordered_by_step_number(store: AbstractFileSystem) -> None:
    for step in (999_998, 999_999, 1_000_000, 1_000_001):
        save_state(store, step, ranks=2)
    delete_old("memory://run")
    assert left(store) == [1_000_000, 1_000_001]
    assert best_checkpoint("memory://run") is None


def test_no_checkpoint_is_deleted_if_the_storage_can_t_be_read(
    store: AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (2, 4, 6):
        save_state(store, step, 1 / step, ranks=2)

    def fail(path: str, **how: object) -> bytes:
        raise OSError("slow down")

    with monkeypatch.context() as patch:
        patch.setattr(store, "cat_file", fail)
        with pytest.raises(OSError, match="slow down"):
            delete_old("memory://run")
    assert left(store) == [2, 4, 6]
    store.pipe_file(f"/run/step-000002/{TRAINER}/{STATE}", b"\xff{")  # damaged: it has no NLL
    delete_old("memory://run")
    assert left(store) == [4, 6]


def test_an_interrupted_deletion_leaves_no_valid_looking_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = fsspec.filesystem("file")
    for step in (2, 4, 6):
        trainer = tmp_path / checkpoint_name(step) / TRAINER
        trainer.mkdir(parents=True)
        (trainer / STATE).write_text('{"world": 1}')
        (trainer / "files-0.json").write_text("{}")

    def fail(self: object, path: str, **how: object) -> None:
        raise OSError("the power failed")

    with monkeypatch.context() as patch:
        patch.setattr(type(fs), "rm", fail)
        with pytest.raises(OSError, match="power"):
            delete_old(str(tmp_path))
    assert list_checkpoints(str(tmp_path)) == ["step-000004", "step-000006"]
    recover(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000004", "step-000006"]
