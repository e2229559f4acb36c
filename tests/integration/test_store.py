"""A corpus is packed once, by Ray Data, and every row that training takes is what was packed."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fsspec
import numpy as np
import pytest
import torch

from otr import DataConfig, ModelConfig, TrainConfig, Workers, load_tokenizer
from otr.training.sources import listing
from otr.training.store import write
from otr.training.store.feed import micro_batches
from otr.training.store.read import PackedStore, local_copy
from otr.training.store.statistics import (
    Statistic,
    block_rows,
    missing_blocks,
    write_block,
)
from otr.training.store.write import ensure_store, read_index
from tests.assets.tiny import make_tiny_model

pytestmark = pytest.mark.integration

FILES = (3000, 1, 1, 200)  # records


def lines(file: int, count: int) -> str:
    records = ({"prompt": f"{n:06}?", "completion": f"file {file}"} for n in range(count))
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return ModelConfig(str(make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Four files, each a part; one record can't be used."""
    folder = tmp_path_factory.mktemp("data")
    for file, count in enumerate(FILES):
        (folder / f"{file}.jsonl").write_text(lines(file, count) + "{\n" * (file == 1))
    paths = tuple(str(folder / f"{file}.jsonl") for file in range(len(FILES)))
    return DataConfig(paths, sequence_length=96)


@pytest.fixture(scope="module")
def packed(
    ray_cluster: None,
    data: DataConfig,
    model: ModelConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    steps: list[Any] = []
    with patch.object(write, "SMALL_BYTES", 0):  # by tasks of Ray Data
        path = ensure_store(data, model, str(tmp_path_factory.mktemp("packed")), steps.append)
    last = steps[-1]
    assert (last.parts, last.records, last.rejected) == (4, sum(FILES) + 1, 1)
    assert last.rows == read_index(path).rows
    return path


def test_every_record_is_packed_once_into_its_sources_rows(
    packed: str, data: DataConfig, model: ModelConfig
) -> None:
    store, tokenizer = PackedStore(packed), load_tokenizer(model)
    rows = store.read(np.arange(store.index.rows))
    assert {name: column.dtype for name, column in rows.items()} == {
        "input_ids": np.int32,
        "loss_mask": np.bool_,
        "segment_ids": np.int32,
    }
    found: dict[str, list[str]] = {path: [] for path in data.paths}
    owners = np.repeat(list(data.paths), list(store.index.rows_by_source().values()))
    for owner, ids, segments in zip(owners, rows["input_ids"], rows["segment_ids"], strict=True):
        for segment in range(1, segments.max() + 1):
            found[owner].append(tokenizer.decode(ids[segments == segment]))
    for file, path in enumerate(data.paths):
        assert len(set(found[path])) == len(found[path]) == FILES[file]
        assert all(f"assistant\nfile {file}<" in text for text in found[path])
    audit = store.audit()
    assert (audit.records, audit.rejected) == (sum(FILES) + 1, {"broken": 1})
    [sample] = audit.samples
    assert sample["place"] == f"{data.paths[1]}, line 2"


def test_a_complete_store_is_found_again(
    packed: str, data: DataConfig, model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "_all_steps", lambda *_: pytest.fail("packed again"))
    root = str(Path(packed).parent)
    assert ensure_store(data, model, root) == packed
    with pytest.raises(
        ValueError, match=r"^1 of 3203 records can.t be used .*more than the allowed 0%"
    ):
        ensure_store(replace(data, max_rejected=0.0), model, root)


@pytest.mark.parametrize(
    "change",
    [
        {"sequence_length": 128},
        {"train_on": "all"},
        {"over_long": "split"},
        {"columns": {"prompt": "completion"}},
    ],
)
def test_other_options_are_another_store(
    packed: str, data: DataConfig, model: ModelConfig, change: dict
) -> None:
    name = write._name(write._plan(data), data, model)
    assert packed.endswith(name)
    other = replace(data, **change)
    assert write._name(write._plan(other), other, model) != name


def test_a_text_or_a_template_that_changes_is_another_store(
    data: DataConfig, model: ModelConfig, tmp_path: Path
) -> None:
    paths = tuple(shutil.copy(path, tmp_path) for path in data.paths)
    copied = replace(data, paths=paths)

    def name(model: ModelConfig) -> str:
        return write._name(write._plan(copied), copied, model)

    before = name(model)
    assert name(replace(model, chat_template="plain")) != before
    assert name(replace(model, chat_template_args={"brief": "true"})) != before
    os.utime(paths[0], ns=(1, 1))
    assert name(model) != before


def test_packing_goes_on_after_a_kill(
    packed: str, data: DataConfig, model: ModelConfig, tmp_path: Path
) -> None:
    """Parts that are complete stay; what a killed process left half made does not count."""
    store = tmp_path / Path(packed).name
    shutil.copytree(packed, store)
    (store / "index.json").unlink()
    (store / "part-00000.json").unlink()
    (store / "part-00000.rows").write_bytes(b"half")
    for name, age in (("left", 2 * write.LEFTOVER_SECONDS), ("of-another-run", 1)):
        (store / f".part-00000.rows.{name}").write_bytes(b"half")
        os.utime(store / f".part-00000.rows.{name}", (time.time() - age,) * 2)
    kept = (store / "part-00003.rows").stat().st_mtime_ns
    steps: list[Any] = []
    assert ensure_store(data, model, str(tmp_path), steps.append) == str(store)
    assert steps[0].parts == 3 and steps[-1].parts == 4
    assert (store / "part-00003.rows").stat().st_mtime_ns == kept
    assert [file.name for file in store.glob(".*")] == [".part-00000.rows.of-another-run"]
    assert (store / "part-00000.rows").read_bytes() == (
        Path(packed) / "part-00000.rows"
    ).read_bytes()


def test_an_interrupted_packing_leaves_nothing_half_made(
    data: DataConfig, model: ModelConfig, tmp_path: Path
) -> None:
    script = (
        "import os, signal, sys\n"
        "from otr import DataConfig, ModelConfig\n"
        "from otr.training.store import write\n"
        "data = DataConfig((sys.argv[1],), sequence_length=96)\n"
        "kill = lambda progress: progress.records and os.kill(os.getpid(), signal.SIGKILL)\n"
        "write.ensure_store(data, ModelConfig(sys.argv[2]), sys.argv[3], kill)\n"
    )
    command = [sys.executable, "-c", script, data.paths[0], model.path, str(tmp_path / "packed")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    [store] = (tmp_path / "packed").iterdir()
    assert not list(store.glob("*.json")) and not list(store.glob("part-*"))
    one = replace(data, paths=data.paths[:1])
    assert ensure_store(one, model, str(tmp_path / "packed")) == str(store)


def test_two_runs_may_pack_the_same_corpus_at_once(
    packed: str, data: DataConfig, model: ModelConfig, tmp_path: Path
) -> None:
    script = (
        "import sys\n"
        "from otr import DataConfig, ModelConfig\n"
        "from otr.training.store import write\n"
        "data = DataConfig((sys.argv[1],), sequence_length=96)\n"
        "print(write.ensure_store(data, ModelConfig(sys.argv[2]), sys.argv[3]))\n"
    )
    command = [sys.executable, "-c", script, data.paths[0], model.path, str(tmp_path / "packed")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate()[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    [path] = paths
    rows = (Path(path) / "part-00000.rows").read_bytes()
    assert rows == (Path(packed) / "part-00000.rows").read_bytes()
    assert sorted(file.name for file in Path(path).iterdir()) == [
        "index.json",
        "part-00000.json",
        "part-00000.rows",
    ]


def test_a_source_that_changes_while_it_is_packed_is_refused(
    data: DataConfig, model: ModelConfig, tmp_path: Path
) -> None:
    path = Path(shutil.copy(data.paths[0], tmp_path))

    def append(progress: Any) -> None:
        if progress.records:
            with path.open("a") as file:
                file.write(lines(9, 1))

    one = replace(data, paths=(str(path),))
    with pytest.raises(ValueError, match=r"0\.jsonl changed while it was packed: run the same"):
        ensure_store(one, model, str(tmp_path / "packed"), append)
    assert not list((tmp_path / "packed").glob("*/index.json"))
    ensure_store(one, model, str(tmp_path / "packed"))


def test_a_flipped_bit_is_noticed(packed: str, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(packed, tmp_path / "store"))
    content = bytearray((copied / "part-00000.rows").read_bytes())
    content[1000] ^= 4
    (copied / "part-00000.rows").write_bytes(content)
    store = PackedStore(copied)
    with pytest.raises(ValueError, match=r"row 1 of .*part-00000\.rows is damaged: remove the"):
        store.read(np.arange(10))
    store.read(np.arange(2, 10))


def test_a_store_of_another_format_is_refused(packed: str, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(packed, tmp_path / "store"))
    index = json.loads((copied / "index.json").read_text())
    (copied / "index.json").write_text(json.dumps({**index, "format": 99}))
    with pytest.raises(ValueError, match="format 99, this otr has 1: remove it"):
        PackedStore(copied)


def test_an_unreadable_file_is_one_clear_error(
    data: DataConfig, model: ModelConfig, tmp_path: Path
) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    bad = replace(data, paths=(str(tmp_path / "bad.parquet"), data.paths[3]))
    with pytest.raises(ValueError, match=r"^can't read .*bad\.parquet: .*leave it out") as error:
        ensure_store(bad, model, str(tmp_path / "packed"))
    assert "\n" not in str(error.value)
    path = ensure_store(replace(bad, skip_bad=True), model, str(tmp_path / "packed"))
    assert PackedStore(path).audit().rejected == {"unreadable": 1}


def test_a_file_that_gives_nothing_is_refused(
    data: DataConfig, model: ModelConfig, tmp_path: Path
) -> None:
    (tmp_path / "other.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    (tmp_path / "empty.jsonl").touch()
    paths = [data.paths[3], str(tmp_path / "empty.jsonl"), str(tmp_path / "other.jsonl")]
    ensure_store(replace(data, paths=tuple(paths[:2])), model, str(tmp_path / "packed"))
    with pytest.raises(ValueError, match=r"none of the records of .*other\.jsonl can be used"):
        ensure_store(replace(data, paths=tuple(paths)), model, str(tmp_path / "packed"))


def test_a_full_disk_leaves_nothing_half_made(
    data: DataConfig, model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(write.files, "publish", fail)
    one = replace(data, paths=data.paths[3:])
    with pytest.raises(ValueError, match=r"No space left on device.*free space"):
        ensure_store(one, model, str(tmp_path / "packed"))
    [store] = (tmp_path / "packed").iterdir()
    assert list(store.iterdir()) == []


def test_a_store_of_an_object_store_is_copied_to_the_host(
    packed: str,
    data: DataConfig,
    model: ModelConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTR_CACHE", str(tmp_path / "cache"))
    one = replace(data, paths=data.paths[3:])
    path = ensure_store(one, model, "memory://packed")
    assert fsspec.filesystem("memory").exists(f"{path.removeprefix('memory:/')}/index.json")
    copied = PackedStore(local_copy(path))
    local = PackedStore(ensure_store(one, model, str(tmp_path / "packed")))
    every = np.arange(local.index.rows)
    assert (copied.read(every)["input_ids"] == local.read(every)["input_ids"]).all()


def test_a_value_per_token_is_stored_beside_the_rows(packed: str, tmp_path: Path) -> None:
    """In blocks, each of which appears complete or not at all; the feed hands it on."""
    copied = Path(shutil.copytree(packed, tmp_path / "store"))
    store = PackedStore(copied)
    rows = store.read(np.arange(store.index.rows))
    lengths = (rows["input_ids"] % 7 * rows["loss_mask"]).astype(np.float32)
    blocks = missing_blocks(str(copied), store.index, "start_1")
    assert len(blocks) > 1 and [n for b in blocks for n in block_rows(store.index, b)] == [
        *range(store.index.rows)
    ]
    for block in reversed(blocks):
        assert block in missing_blocks(str(copied), store.index, "start_1")
        inside = block_rows(store.index, block)
        write_block(str(copied), "start_1", block, lengths[inside.start : inside.stop])
    assert not missing_blocks(str(copied), store.index, "start_1")
    assert missing_blocks(str(copied), store.index, "start_2") == blocks, "of another model"
    found = Statistic(PackedStore(copied), "start_1")
    some = np.array([store.index.rows - 1, 0, 7])
    assert (found.of_rows(some) == lengths[some]).all()
    run = TrainConfig(ModelConfig("-"), DataConfig(("-",)), global_batch_size=4, micro_batch_size=4)
    batch = next(micro_batches(store, run, step=0, rank=0, start=found))
    wanted = batch["input_ids"] % 7 * batch["loss_mask"]
    assert (batch["start"] == wanted).all() and batch["start"].dtype == torch.float32
    write_block(str(copied), "start_1", 0, lengths[:3])
    with pytest.raises(ValueError, match=r"start_1-00000\.npy is damaged: remove it"):
        Statistic(PackedStore(copied), "start_1").of_rows(some)


@pytest.mark.parametrize("weights", [(), (1.0, 2.0, 1.0, 4.0)])
def test_all_ranks_together_take_the_same_rows_from_any_step(
    packed: str, data: DataConfig, weights: tuple
) -> None:
    store = PackedStore(packed)

    def taken(world: int, micro: int, step: int, steps: int) -> list[list[Any]]:
        run = TrainConfig(
            ModelConfig("none"),
            replace(data, weights=weights),
            global_batch_size=8,
            micro_batch_size=micro,
            workers=Workers(world),
        )
        feeds = [micro_batches(store, run, step=step, rank=rank) for rank in range(world)]
        found = []
        for _ in range(steps):
            rows = [
                batch["input_ids"]
                for _ in range(run.accumulation)
                for batch in (next(feed) for feed in feeds)
            ]
            found.append(np.concatenate(rows).tolist())
        return found

    whole = taken(1, 8, 0, 6)
    assert taken(2, 2, 0, 6) == taken(4, 1, 0, 6) == whole
    assert taken(2, 4, 4, 2) == whole[4:]
    assert len({json.dumps(rows) for rows in whole}) == 6


def test_a_small_corpus_is_packed_in_this_process(
    packed: str, data: DataConfig, model: ModelConfig, tmp_path: Path
) -> None:
    frozen = gc.get_freeze_count()
    with patch("ray.data.from_items", side_effect=AssertionError("a task of Ray Data")):
        path = ensure_store(data, model, str(tmp_path))
    assert gc.get_freeze_count() == frozen  # garbage collections of the process are as before
    for part in PackedStore(path).index.parts:
        name = f"{part.name}.rows"
        assert (Path(path) / name).read_bytes() == (Path(packed) / name).read_bytes()


def test_large_files_are_several_parts(
    data: DataConfig, model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "CHUNK_BYTES", 20_000)
    one = replace(data, paths=data.paths[:1])
    plan = write._plan(one)
    assert len(plan) > 5 and len({planned.name for planned in plan}) == len(plan)
    monkeypatch.setattr(write, "MAX_PARTS", 3)
    few = write._plan(one)
    chunks = [chunk for planned in few for chunk in planned.chunks]
    assert len(few) == 3 and chunks == [chunk for planned in plan for chunk in planned.chunks]
