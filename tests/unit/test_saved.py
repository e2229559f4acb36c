"""The checkpoints of a run on an object store, put in order before it begins again."""

import json

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem

from otr.checkpoint import STATE, TRAINER
from otr.training.saved import settle


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


def test_the_newest_whole_one_is_found(store: AbstractFileSystem) -> None:
    save(store, "step-000002")
    save(store, "step-000004")
    save(store, "step-000006", b"weigh")  # cut off
    save(store, "step-000008")
    store.rm(f"/run/step-000008/{TRAINER}/{STATE}")
    save(store, ".step-000010")  # half-written
    found, notes = settle("memory://run")
    assert found == "step-000004"
    assert "step-000008 is incomplete" in notes[0] and "is not as it was" in notes[1]
    left = sorted(path.rpartition("/")[2] for path in store.ls("/run", detail=False))
    whole = ["step-000002", "step-000004"]
    assert left == ["damaged-step-000006", "damaged-step-000008", *whole]


def test_there_is_none(store: AbstractFileSystem) -> None:
    assert settle("memory://run") == (None, [])
    save(store, "step-000002", b"")
    found, [note] = settle("memory://run")
    assert found is None and "step-000002/model.safetensors is not as it was written" in note
