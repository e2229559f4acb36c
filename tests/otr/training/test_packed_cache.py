"""The cache of packed rows: the same rows, made once, and never those of another corpus."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import fsspec
import numpy as np
import pytest

import otr.data
from otr.config import DataConfig, ModelConfig
from otr.training import corpus, packed_cache
from tests.assets.tiny import make_tiny_model

NAMES = ("input_ids", "loss_mask", "segment_ids", "position", "audit")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return ModelConfig(str(make_tiny_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """Corpus of three parts, the second without a record, and an empty cache."""
    monkeypatch.setenv("OTR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpus, "BATCH", 10)
    roomy = shutil.disk_usage(tmp_path)._replace(total=2**40, free=2**40)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: roomy)
    directory = tmp_path / "corpus"
    directory.mkdir()
    for name, count in (("a", 25), ("b", 0), ("c", 12)):
        write(directory / f"{name}.jsonl", count)
    return DataConfig((str(directory),), sequence_length=32)


def write(path: Path, count: int) -> None:
    rows = [{"prompt": f"{i}?", "completion": "no" if i % 3 else "a"} for i in range(count)]
    text = "".join(json.dumps(row) + "\n" for row in [*rows, "broken"][: count and None])
    path.write_text(text)


def made(config: DataConfig, model: ModelConfig, part: int = 0, batch: int = 0) -> dict[str, Any]:
    """Return what a task of Ray Data makes, from a batch on."""
    parts = corpus._parts(corpus.list_chunks(config.paths))
    task = {"part": np.arange(part, len(parts))}
    return joined(corpus._read_and_pack(task, parts, (part, batch), config, model))


def direct(config: DataConfig, model: ModelConfig, part: int = 0, batch: int = 0) -> dict[str, Any]:
    return joined(corpus.stream_packed(config, model, part, batch, max_rows=100))


def joined(blocks: Any) -> dict[str, Any]:
    blocks = list(blocks)
    return {name: np.concatenate([block[name] for block in blocks]) for name in NAMES}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    kinds = all(one[n].dtype == other[n].dtype for n in ("input_ids", "loss_mask", "segment_ids"))
    return kinds and all(np.array_equal(one[name], other[name]) for name in NAMES)


@pytest.fixture
def no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Function after whose call tokenizing is an error."""

    def tokenize(*_: Any, **__: Any) -> None:
        raise AssertionError("tokenized again")

    return lambda: monkeypatch.setattr(otr.data, "tokenize", tokenize)


def test_a_part_is_tokenized_once_and_read_from_any_batch(files, model, no_tokenizer) -> None:
    first = made(files, model)
    later = [made(files, model, 0, 1), made(files, model, 2, 0)]
    no_tokenizer()
    for read in (made, direct):  # in a task, and without Ray, which is not started here
        assert same(read(files, model), first)
        assert same(read(files, model, 0, 1), later[0])
        assert same(read(files, model, 2, 0), later[1])
    assert first["position"][:, 0].tolist() == sorted(first["position"][:, 0]) and first["audit"][0]


CHANGES = {
    "text": lambda config, model: write(Path(config.paths[0]) / "a.jsonl", 24),
    "tokenizer": lambda config, model: append(Path(model.path) / "tokenizer.json", "\n"),
}


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_text_or_tokenizer_is_noticed(files, model, no_tokenizer, what) -> None:
    made(files, model)
    CHANGES[what](files, model)
    no_tokenizer()
    with pytest.raises(AssertionError, match="tokenized again"):
        made(files, model)


def test_a_copy_of_the_model_uses_the_same_cache(files, model, no_tokenizer, tmp_path) -> None:
    first = made(files, model)
    copy = shutil.copytree(model.path, tmp_path / "copy", copy_function=shutil.copyfile)
    no_tokenizer()
    assert same(made(files, ModelConfig(str(copy))), first)


def test_another_length_or_other_columns_do_not_use_the_cache(files, model, no_tokenizer) -> None:
    made(files, model)
    no_tokenizer()
    for other in (
        DataConfig(files.paths, sequence_length=48),
        DataConfig(files.paths, sequence_length=32, columns={"prompt": "completion"}),
    ):
        with pytest.raises(AssertionError, match="tokenized again"):
            made(other, model)


def test_an_unreadable_or_unfinished_part_is_not_cached(files, model, tmp_path) -> None:
    bad = tmp_path / "bad.jsonl.gz"
    bad.write_bytes(b"\x1f\x8b no gzip")
    made(DataConfig((str(bad),), sequence_length=32), model)
    parts = corpus._parts(corpus.list_chunks(files.paths))
    some = corpus._read_and_pack({"part": np.arange(1)}, parts, (0, 0), files, model)
    next(some)
    some.close()
    assert not list((tmp_path / "cache").glob("*")) and not list((tmp_path / "cache").glob(".*"))


@pytest.mark.parametrize("fault", ["a file", "no room", "full", "torn", "switched off"])
def test_a_cache_that_fails_changes_no_row(files, model, monkeypatch, tmp_path, fault) -> None:
    folder = tmp_path / "cache"
    if fault == "a file":
        folder.write_text("")
    elif fault == "no room":
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    elif fault == "full":
        monkeypatch.setattr(packed_cache.pa.ipc, "new_file", _full)
    elif fault == "switched off":
        monkeypatch.setenv("OTR_CACHE", "")
    first = made(files, model)
    if fault == "torn":
        for path in folder.iterdir():
            os.truncate(path, path.stat().st_size // 2)
    assert same(made(files, model), first)
    if fault not in ("torn", "a file"):
        assert not folder.exists() or not [p for p in folder.iterdir() if p.stat().st_size]


def _full(*_: Any, **__: Any) -> None:
    raise OSError(28, "no space left on device")


def test_files_unused_for_a_day_make_room(files, model, monkeypatch, tmp_path) -> None:
    made(files, model)
    folder = tmp_path / "cache"
    old, *others = sorted(path for path in folder.iterdir() if path.stat().st_size)
    os.utime(old, (0, time.time() - packed_cache.UNUSED_SECONDS - 60))
    others.append(folder / "thesis.tex")
    others[-1].write_text("somebody's")
    os.utime(others[-1], (0, 0))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    made(DataConfig(files.paths, sequence_length=48), model)
    assert not old.exists() and all(path.exists() for path in others)


def test_a_part_that_changes_while_it_is_read_is_not_cached(files, model, tmp_path) -> None:
    parts = corpus._parts(corpus.list_chunks(files.paths))
    blocks = corpus._read_and_pack({"part": np.arange(1)}, parts, (0, 0), files, model)
    next(blocks)
    append(Path(files.paths[0]) / "a.jsonl", "\n")
    assert len(list(blocks)) == 2
    assert not list((tmp_path / "cache").iterdir())


def test_files_without_a_version_are_not_cached(files, model, tmp_path) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(Path(files.paths[0]) / "a.jsonl"), "/rows.jsonl")
    made(DataConfig(("memory://rows.jsonl",), sequence_length=32), model)
    assert not list((tmp_path / "cache").glob("*"))


def test_a_hub_data_set_is_cached_by_commit(files, model) -> None:
    """A local server answers as the hub does; processes of their own may use it, unlike tests."""
    script = (
        "from otr.config import *; from otr.training import packed_cache, sources;"
        f"model = ModelConfig({model.path!r}); config = DataConfig(('x',), sequence_length=32);"
        "part = [sources.SourceChunk('hub', 'hf:group/rows', 0, 2, 'train')];"
        "print(packed_cache.cache_path(part, config, model))"
    )

    def path(endpoint: str) -> str:
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
        words = [sys.executable, "-c", script]
        return subprocess.check_output(words, env=environment, text=True).strip()

    paths = []
    for commit in ("a" * 40, "a" * 40, "b" * 40, None):
        with hub(commit) as endpoint:
            paths.append(path(endpoint))
    one, again, other, unknown = paths
    assert one == again != other and Path(one).suffix == ".arrow"
    assert unknown == "None" == path(endpoint)  # the server has ended


@contextmanager
def hub(commit: str | None) -> Iterator[str]:
    """Serve a hub with one data set, or with none."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = commit and self.path.startswith("/api/datasets/group/rows")
            body = json.dumps({"id": "group/rows", "sha": commit} if found else {}).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
