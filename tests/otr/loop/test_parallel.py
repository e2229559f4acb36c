"""A run is the same however its ranks share the model; it can resume with another strategy."""

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.multiprocessing as mp

from otr import MemoryConfig, ModelConfig, Objective, TrainConfig, Workers
from otr.loop.checkpoint import Snapshot, UnverifiedCheckpoint, check_checkpoint
from otr.loop.loop import train
from otr.models.load import load_model
from otr.models.tokenizer import load_tokenizer
from tests.assets.tiny import make_tiny_model
from tests.otr.models.support import weights as weights_by_name
from tests.otr.runs import ROWS, batches, config, join_ranks

STEPS = 4


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {tied: make_tiny_model(folder / f"tied-{tied}", tied=tied) for tied in (True, False)}


def run_of(model_dir: Path, strategy: str, world: int) -> TrainConfig:
    run = config(
        model_dir,
        Objective(num_samples=8),
        STEPS,
        micro_batch_size=ROWS // 2,
        checkpoint_interval=2,
        workers=Workers(count=world),
        memory=MemoryConfig(strategy=strategy),
    )
    return replace(run, data=replace(run.data, validation=("held out",)))


def share(first: int, rank: int, world: int) -> list[dict[str, torch.Tensor]]:
    """Return a rank's micro-batches from step `first` on; a step has the same rows in any world."""
    half = ROWS // 2
    parts = [
        {k: v[i * half : (i + 1) * half] for k, v in batch.items()}
        for batch in batches(STEPS)[first:]
        for i in (0, 1)
    ]
    return parts if world == 1 else parts[rank::2]


def run_training(run: TrainConfig, out: Path, rank: int, resume_from: Path | None = None) -> None:
    world = run.workers.count
    group = torch.distributed.new_group(backend="gloo") if world > 1 else None
    source = run.model if resume_from is None else ModelConfig(str(resume_from))
    tokenizer = load_tokenizer(source)
    log: list[dict[str, float]] = []
    if rank == 0:
        out.mkdir(parents=True)

    def report(metrics: dict[str, float], snapshot: Snapshot | None) -> None:
        log.append(metrics)
        if snapshot is not None:
            snapshot.write(out / f"step-{snapshot.step}", tokenizer, group=group)

    held_out = share(0, 0, 1)[:1] if rank == 0 else []
    train(
        load_model(source),
        share(2 if resume_from else 0, rank, world),
        run,
        report,
        resume_from=resume_from,
        validation=held_out,
    )
    torch.save(log, out / f"log-{rank}.pt")


STRATEGIES = ("ddp", "fsdp", "fsdp_offload")


def _by_rank_0_s_clock(rank: int, model: Path, out: Path) -> None:
    """Train with a checkpoint every 15 minutes, while 10 pass per step on rank 0 and 30 on rank 1.

    Writes the steps with a checkpoint to by-clock-RANK.json.
    """
    now, saved = 0.0, []

    def report(metrics: dict[str, float], snapshot: Snapshot | None) -> None:
        nonlocal now
        now += 60 * (10 if rank == 0 else 30)
        saved.extend([int(metrics["step"])] if snapshot else [])

    run = replace(run_of(model, "ddp", 2), checkpoint_interval=0)
    with patch("otr.loop.loop.time.monotonic", lambda: now):
        train(load_model(run.model), share(0, rank, 2), run, report, validation=[])
    (out / f"by-clock-{rank}.json").write_text(json.dumps(saved))


def _both(rank: int, models: dict[bool, Path], alone: Path, out: Path) -> None:
    """Run all trainings of two ranks: complete ones, and ones that resume from step 2."""
    join_ranks(rank, out)
    _by_rank_0_s_clock(rank, models[True], out)
    for strategy in STRATEGIES:
        for tied, path in models.items():
            run_training(run_of(path, strategy, 2), out / f"{strategy}-{tied}", rank)
    for before, after in (("fsdp", "fsdp"), ("ddp", "fsdp"), ("single", "ddp")):
        first = alone / "True" if before == "single" else out / f"{before}-True"
        run = run_of(models[True], after, 2)
        run_training(run, out / f"{before}-then-{after}", rank, first / "step-2")


@pytest.fixture(scope="module")
def done(models: dict[bool, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of all runs: {strategy}-{tied}, and {strategy}-then-{strategy} of tied models."""
    out = tmp_path_factory.mktemp("runs")
    for tied, path in models.items():
        run_training(run_of(path, "single", 1), out / "single" / str(tied), 0)
    mp.spawn(_both, (models, out / "single", out), nprocs=2)
    run = run_of(models[True], "single", 1)
    run_training(run, out / "single-then-single", 0, out / "single" / "True" / "step-2")
    run_training(run, out / "fsdp-then-single", 0, out / "fsdp-True" / "step-2")
    return out


def _in_bfloat16(rank: int, model: Path, out: Path) -> None:
    """Train on two ranks; write the last snapshot as it is, and with a wrong weight."""
    join_ranks(rank, out)
    group = torch.distributed.new_group(backend="gloo")
    tokenizer = load_tokenizer(ModelConfig(str(model)))
    for strategy in ("ddp", "fsdp"):
        run = replace(run_of(model, strategy, 2), checkpoint_interval=0)
        run = replace(run, model=replace(run.model, dtype="bfloat16"))
        taken: list[Snapshot] = []
        train(
            load_model(run.model),
            share(0, rank, 2),
            run,
            lambda _, snapshot, taken=taken: taken.append(snapshot) if snapshot else None,
        )
        [snapshot] = taken
        assert snapshot.probe is not None
        assert snapshot.probe.dtype == ("bfloat16" if strategy == "fsdp" else "float32")
        snapshot.write(out / f"{strategy}-right", tokenizer, group=group)
        if snapshot.weights is not None:
            snapshot.weights["model.layers.1.mlp.down_proj.weight"].mul_(1.5)
        with pytest.raises(UnverifiedCheckpoint, match=f"{strategy}-wrong, but not trusted: its"):
            snapshot.write(out / f"{strategy}-wrong", tokenizer, group=group)


def test_the_written_model_is_checked_in_bfloat16_on_two_ranks(
    models: dict[bool, Path], tmp_path: Path
) -> None:
    mp.spawn(_in_bfloat16, (models[True], tmp_path), nprocs=2)
    for strategy in ("ddp", "fsdp"):
        check_checkpoint(tmp_path / f"{strategy}-right")
        check_checkpoint(tmp_path / f"unverified-{strategy}-wrong")  # complete, with both lists
        assert not (tmp_path / f"{strategy}-wrong").exists()


def test_the_clock_of_rank_0_decides_for_all_when_to_save(done: Path) -> None:
    """Steps 1 to 3 begin after 0, 10 and 20 minutes; the last step always saves."""
    for rank in (0, 1):
        assert json.loads((done / f"by-clock-{rank}.json").read_text()) == [3, 4]


FROZEN = ("lm_head.*", "model.layers.0.*")
OPTIMIZERS = [
    *(("ddp", name) for name in ("adamw", "adamw_8bit", "muon", "adafactor")),
    *((kind, name) for kind in ("fsdp", "fsdp_offload") for name in ("adamw", "muon")),
]


def frozen_run(model: Path, strategy: str, optimizer: str, world: int = 2) -> TrainConfig:
    """Return a run in which one of two layers and the tied embeddings are frozen."""
    run = replace(run_of(model, strategy, world), freeze=FROZEN)
    return replace(run, optim=replace(run.optim, lr=1e-3, optimizer=optimizer))


def _with_optimizers(rank: int, model: Path, out: Path) -> None:
    """Train with each optimizer and strategy, to the end and again from step 2."""
    join_ranks(rank, out)
    for strategy, optimizer in OPTIMIZERS:
        run, first = frozen_run(model, strategy, optimizer), out / f"{strategy}-{optimizer}"
        run_training(run, first, rank)
        run_training(run, out / f"{strategy}-{optimizer}-again", rank, first / "step-2")


@pytest.fixture(scope="module")
def optimized(models: dict[bool, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of runs with frozen parameters: {strategy}-{optimizer}, and ...-again."""
    out = tmp_path_factory.mktemp("optimizers")
    for optimizer in ("adamw", "adamw_8bit", "muon", "adafactor"):
        run = frozen_run(models[True], "single", optimizer, 1)
        run_training(run, out / f"single-{optimizer}", 0)
    mp.spawn(_with_optimizers, (models[True], out), nprocs=2)
    return out


@pytest.mark.parametrize(("strategy", "optimizer"), OPTIMIZERS)
def test_optimizers_and_frozen_parameters_on_two_ranks(
    models: dict[bool, Path], optimized: Path, strategy: str, optimizer: str
) -> None:
    """The whole model is saved, and resumed bitwise; frozen parameters are those of the base."""
    both, alone = optimized / f"{strategy}-{optimizer}", optimized / f"single-{optimizer}"
    check_checkpoint(both / "step-4")
    found, expected, before, again = (
        weights_by_name(directory)
        for directory in (
            *(both / "step-4", alone / "step-4", models[True]),
            optimized / f"{strategy}-{optimizer}-again" / "step-4",
        )
    )
    assert found.keys() == before.keys() == expected.keys()
    same = {name for name in before if torch.equal(found[name], before[name])}
    assert same == {n for n in before if "embed_tokens" in n or n.startswith("model.layers.0.")}
    # Where a gradient has few directions, Muon gives rounding errors the size of an update.
    far = 0.1 if optimizer == "muon" else 2e-3
    for name in before:
        torch.testing.assert_close(again[name], found[name], rtol=0, atol=0, msg=name)
        moved = (expected[name] - before[name]).norm()
        assert (found[name] - expected[name]).norm() <= far * moved, name
    assert torch.load(both / "log-0.pt")[-1]["val_nll"] == pytest.approx(
        torch.load(alone / "log-0.pt")[-1]["val_nll"], rel=1e-3
    )


def weights(directory: Path) -> torch.Tensor:
    model = load_model(ModelConfig(str(directory)))
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_equal_one(done: Path, strategy: str, tied: bool) -> None:
    both, alone = done / f"{strategy}-{tied}", done / "single" / str(tied)
    check_checkpoint(both / "step-4")
    names = sorted(p.name for p in both.glob("step-4/*.safetensors"))
    by_rank = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert names == (["model.safetensors"] if strategy == "ddp" else by_rank)
    for rank in (0, 1):
        logs = torch.load(both / f"log-{rank}.pt"), torch.load(alone / "log-0.pt")
        for one, two in zip(*logs, strict=True):
            for name in ("loss", "nll", "reward", "hit_rate", "entropy", "val_nll"):
                if name in two:
                    assert one[name] == pytest.approx(two[name], rel=1e-5), name
            assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)
    torch.testing.assert_close(
        weights(both / "step-4"), weights(alone / "step-4"), rtol=1e-3, atol=2e-5
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("single", "single"),
        ("fsdp", "fsdp"),
        ("fsdp", "single"),
        ("ddp", "fsdp"),
        ("single", "ddp"),
    ],
)
def test_a_checkpoint_resumes(done: Path, before: str, after: str) -> None:
    """Bitwise with the same strategy, up to rounding with another one."""
    first = done / "single" / "True" if before == "single" else done / f"{before}-True"
    tolerance = {"rtol": 0, "atol": 0} if before == after else {"rtol": 1e-3, "atol": 2e-5}
    again = weights(done / f"{before}-then-{after}" / "step-4")
    torch.testing.assert_close(again, weights(first / "step-4"), **tolerance)
    assert not torch.equal(again, weights(first / "step-2"))
