"""All ranks write a sharded model's files, which hold what `save_pretrained` writes of it."""

import json
import multiprocessing
import os
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from transformers.core_model_loading import Chunk, WeightConverter

from otr import MemoryConfig, ModelConfig, Objective, Workers, load_model, load_tokenizer
from otr._compat import TorchDispatchMode, is_lost_peer, storage_key, tree_leaves
from otr.loop import export
from otr.loop.checkpoint import Snapshot, UnverifiedCheckpoint, check_checkpoint, saved_weights
from otr.loop.export import Ranks, content_hash, local_part, write_weights
from otr.loop.loop import train
from otr.models.load import empty_model
from otr.training.worker import _model_notes
from tests.assets.tiny import make_tiny_model
from tests.otr.models.families import MODELS, toy
from tests.otr.models.support import weights
from tests.otr.runs import ROWS, batches, config, join_ranks

WORLD = 4
STORED_OTHERWISE = ("mixtral", "gemma3", "gpt_neox", "qwen3_next")
"""Families whose files name tensors otherwise than the module does, or hold other tensors."""


class Allocated(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, as long as they are used."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak, self.seen = 0, 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {
            storage_key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                self._count(tensor.untyped_storage(), before)
        return result

    def _count(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in before or key in self.seen:
            return

        def released() -> None:
            self.seen.discard(key)
            self.now -= size

        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, released)


def shards(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return this rank's shards of a model's saved tensors, as FSDP2 makes them."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {
        name: distribute_tensor(tensor.detach(), mesh, [Shard(0)]) if tensor.dim() else tensor
        for name, tensor in saved_weights(model, model.state_dict()).items()
    }


def _write(rank: int, bases: dict[str, Path], out: Path) -> None:
    """Write each model in both data types; only rank 0's model was loaded from files."""
    join_ranks(rank, out, WORLD)
    ranks = Ranks(dist.new_group(backend="gloo"))
    report: dict[str, Any] = {}
    for name, base in bases.items():
        loaded = load_model(ModelConfig(str(base)))
        parts = shards(loaded)
        model = loaded if rank == 0 else empty_model(ModelConfig(str(base)))
        hashes = {n: content_hash(part) for n, part in parts.items()}
        for dtype in ("float32", "bfloat16"):
            (out / f"{name}-{dtype}").mkdir(exist_ok=True)
            written = write_weights(out / f"{name}-{dtype}", model, parts, dtype, ranks, hashes)
            assert not written.difference
        report[name] = written.writers
    whole = sum(tensor.nbytes for tensor in saved_weights(loaded, loaded.state_dict()).values())
    report["shards"] = sum(local_part(part).nbytes for part in parts.values())
    (out / "rounds").mkdir(exist_ok=True)
    with patch.object(export, "FILE_BYTES", whole // 32), Allocated() as allocated:
        written = write_weights(out / "rounds", model, parts, "float32", ranks)
    report["peak"], report["whole"] = allocated.peak, whole
    report["largest"] = max(p.stat().st_size for p in (out / "rounds").glob("*.safetensors"))
    report["files"] = len(written.writers)
    # A shard that is not as it was: the rank that writes the tensor finds out.
    last = [name for name, part in parts.items() if hasattr(part, "to_local")][-1]
    hashes[last] += rank == WORLD - 1
    written = write_weights(out / "rounds", model, parts, "float32", ranks, hashes)
    report["difference"] = [last, next(filter(None, ranks.of_all(written.difference)), "")]
    (out / f"report-{rank}.json").write_text(json.dumps(report))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    found = {name: folder / name for name in STORED_OTHERWISE}
    for name, path in found.items():
        toy(MODELS[name].config()).save_pretrained(path)
    found["as held"] = folder / "as held"  # files that hold the tensors as the module does
    toy(MODELS["mixtral"].config()).save_pretrained(found["as held"], save_original_format=False)
    found["tied"] = make_tiny_model(folder / "tied", tied=True)
    deep = replace(MODELS["llama"], changes=MODELS["llama"].changes | {"num_hidden_layers": 40})
    found["deep"] = folder / "deep"
    toy(deep.config()).save_pretrained(found["deep"])
    return found


@pytest.fixture(scope="module")
def written(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written")
    mp.spawn(_write, (bases, out), nprocs=WORLD)
    return out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [*STORED_OTHERWISE, "as held", "tied"])
def test_four_ranks_write_what_one_would(
    bases: dict[str, Path], written: Path, name: str, dtype: str, tmp_path: Path
) -> None:
    found, model = weights(written / f"{name}-{dtype}"), load_model(ModelConfig(str(bases[name])))
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path)
    expected = weights(tmp_path)
    assert found.keys() == expected.keys()
    for tensor in expected:
        assert found[tensor].dtype == expected[tensor].dtype
        assert torch.equal(found[tensor], expected[tensor]), tensor
    writers = json.loads((written / "report-0.json").read_text())[name]
    assert set(writers.values()) == set(range(WORLD)), "every rank writes"
    index = json.loads((written / f"{name}-{dtype}/model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(writers)
    assert index["weight_map"].keys() == expected.keys()


def test_no_rank_holds_more_than_its_file(written: Path) -> None:
    """Beside its shards; rank 0, which held the whole model once, too."""
    for rank in range(WORLD):
        report = json.loads((written / f"report-{rank}.json").read_text())
        assert report["files"] >= 2 * WORLD
        assert report["shards"] < 1.1 * report["whole"] / WORLD
        assert 0 < report["peak"] <= 2 * report["largest"] < 0.5 * report["whole"] / WORLD


def test_a_shard_that_changed_is_found(written: Path) -> None:
    name, found = json.loads((written / "report-0.json").read_text())["difference"]
    assert found == f"its tensor {name} differs from that of the model in training"


def test_tensors_that_are_stored_as_one_go_to_one_file(tmp_path: Path) -> None:
    """A made-up form of files, in which a layer's q, k and v are one tensor."""
    model = load_model(ModelConfig(str(make_tiny_model(tmp_path / "base"))))
    parts = [f"self_attn.{name}_proj.weight" for name in "qkv"]
    model._weight_conversions = [WeightConverter("self_attn.qkv.weight", parts, [Chunk(dim=0)])]
    names = [name for name in model.state_dict() if ".layers." in name]
    empty = {name: model.state_dict()[name].to("meta") for name in names}
    groups = export._stored_together(model, empty)
    for layer in range(2):
        own = [f"model.layers.{layer}.{part}" for part in parts]
        assert any(set(own) <= set(group) for group in groups)
    assert len(groups) > 2, "no more than necessary"


def test_a_run_says_if_the_saved_model_is_too_large_to_be_loaded(tmp_path: Path) -> None:
    model = load_model(ModelConfig(str(make_tiny_model(tmp_path))))
    assert _model_notes(model) == []
    with patch.object(export, "RELOAD_SHARE", 1e-9):
        [note] = _model_notes(model)
    assert note.startswith("the last checkpoint is compared tensor by tensor, and not loaded again")


def fsdp_run(model: Path, **change: Any) -> Any:
    return config(
        model,
        Objective("sft"),
        1,
        micro_batch_size=ROWS // 2,
        workers=Workers(2),
        memory=MemoryConfig("fsdp"),
        **change,
    )


def snapshot_of(rank: int, model: Path, **change: Any) -> Snapshot:
    """Return the last snapshot of a run on two ranks."""
    half, taken = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2), []
    rows = [{name: column[half] for name, column in batch.items()} for batch in batches(1)]
    run = fsdp_run(model, **change)
    train(load_model(run.model), rows, run, lambda _, snapshot: taken.append(snapshot))
    return taken[-1]


def _on_two_ranks(rank: int, model: Path, out: Path) -> None:
    join_ranks(rank, out)
    group, tokenizer = dist.new_group(backend="gloo"), load_tokenizer(ModelConfig(str(model)))
    for dtype in ("float32", "bfloat16"):
        snapshot = snapshot_of(rank, model, save_dtype=dtype)
        for reloads in (0.5, 0):
            with patch.object(export, "RELOAD_SHARE", reloads):
                own = out / f"{dtype}-{reloads}-{rank}"
                snapshot.write(own / "step", tokenizer, group=group, shared=False)
    with patch.object(export, "RELOAD_SHARE", 0):
        if rank == 1:
            [*snapshot.weights.values()][-1].to_local().mul_(1.5)
        with pytest.raises(UnverifiedCheckpoint, match=r"trusted: its tensor .* differs from that"):
            snapshot.write(out / "wrong", tokenizer, group=group)


def test_ranks_without_a_shared_directory_write_their_own_parts(tmp_path: Path) -> None:
    """As for an object store. If the saved model is loaded again, rank 0 writes all of it."""
    model = make_tiny_model(tmp_path / "model")
    mp.spawn(_on_two_ranks, (model, tmp_path), nprocs=2)
    for dtype in ("float32", "bfloat16"):
        found = []
        for reloads in (0.5, 0):
            parts = [tmp_path / f"{dtype}-{reloads}-{rank}" / "step" for rank in (0, 1)]
            names = [{str(p.relative_to(d)) for p in d.rglob("*") if p.is_file()} for d in parts]
            assert not names[0] & names[1]
            for name in names[1]:
                (parts[1] / name).rename(parts[0] / name)
            check_checkpoint(parts[0])
            found.append(weights(parts[0]))
            written_by_1 = any(name.endswith(".safetensors") for name in names[1])
            assert written_by_1 == (not reloads or dtype == "bfloat16")
        assert found[0].keys() == found[1].keys()
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
        assert {str(t.dtype) for t in found[0].values()} == {f"torch.{dtype}"}
    check_checkpoint(tmp_path / "unverified-wrong")


def _until_one_is_lost(rank: int, model: Path, out: Path) -> None:
    join_ranks(rank, out)
    group, tokenizer = dist.new_group(backend="gloo"), load_tokenizer(ModelConfig(str(model)))
    snapshot = replace(snapshot_of(rank, model), probe=None)
    snapshot.write(out / "step-1", tokenizer, group=group)
    save = export.save_file

    def saved(*args: Any, **kwargs: Any) -> None:
        save(*args, **kwargs)
        if rank == 1:
            os._exit(1)

    with patch.object(export, "save_file", saved):
        try:
            snapshot.write(out / "step-2", tokenizer, group=group)
        except RuntimeError as error:
            (out / "error").write_text(str(is_lost_peer(error)))
            os._exit(0)  # without the other rank, destroying the process group may abort


def test_a_lost_rank_leaves_nothing_half_written(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model")
    spawned = multiprocessing.get_context("spawn")
    processes = [
        spawned.Process(target=_until_one_is_lost, args=(rank, model, tmp_path)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert (tmp_path / "error").read_text() == "True"
    check_checkpoint(tmp_path / "step-1")
    assert not [path.name for path in tmp_path.iterdir() if "step-2" in path.name]
