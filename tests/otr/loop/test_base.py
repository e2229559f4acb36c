"""Runs that compare with the model they started from: KL to the base, and PSFT's ratios."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from otr import LoraConfig, MemoryConfig, ModelConfig, Objective, TrainConfig, Workers
from otr.loop.batch import PackedBatch
from otr.loop.checkpoint import Snapshot
from otr.loop.loop import train
from otr.loop.policy import Policy
from otr.models.load import as_base, empty_model, load_model
from otr.models.lora import add_adapters, load_adapters
from otr.models.tokenizer import load_tokenizer
from tests.assets.tiny import make_tiny_model
from tests.otr.runs import ROWS, batches, config, join_ranks, with_start

STEPS = 4
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"dora": True},
    "saved": {"modules_to_save": ("lm_head", "model.norm")},
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


DFT = Objective("dft")


def run_of(model_dir: Path, objective: Objective = DFT, **change: Any) -> TrainConfig:
    run = config(
        model_dir, objective, STEPS, **{"kl_weight": 0.5, "checkpoint_interval": 2} | change
    )
    return replace(run, data=replace(run.data, validation=("held out",)))


def base_of(run: TrainConfig, empty: bool = False) -> Any:
    return as_base((empty_model if empty else load_model)(run.model), run.model.dtype)


def log_of(
    run: TrainConfig,
    out: Path | None = None,
    resume_from: Path | None = None,
    parts: Any = None,
    model: Any = None,
    base: Any = None,
) -> tuple[list[dict[str, float]], Any]:
    """Train on one rank, from a checkpoint if one is given; return the metrics and the model."""
    log: list[dict[str, float]] = []
    tokenizer = load_tokenizer(run.model)
    source = run.model if resume_from is None else ModelConfig(str(resume_from))
    if model is None and run.lora.rank:
        model = (
            add_adapters(load_model(run.model), run.lora)
            if resume_from is None
            else load_adapters(resume_from, run.model)
        )
    model = load_model(source) if model is None else model

    def report(metrics: dict[str, float], snapshot: Snapshot | None) -> None:
        log.append(metrics)
        if snapshot is not None and out is not None:
            snapshot.write(out / f"step-{snapshot.step}", tokenizer)

    todo = batches(STEPS) if parts is None else parts
    if base is None and run.kl_weight and not run.lora.rank:
        base = base_of(run)
    held_out = batches(STEPS)[:1]
    train(
        model, todo[2 if resume_from else 0 :], run, report,
        resume_from=resume_from, validation=held_out, base=base,
    )  # fmt: skip
    return log, model


def weights(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_run_is_kept_near_its_base(model_dir: Path) -> None:
    """The KL begins at 0, grows, and grows less with a weight."""
    kls = {}
    for weight in (0.01, 30.0):
        run = run_of(model_dir, Objective("sft"), kl_weight=weight, eval_interval=2)
        log, _ = log_of(run)
        assert log[0]["kl_to_base"] == pytest.approx(0, abs=1e-6)
        kls[weight] = [log[-1]["kl_to_base"], log[-1]["val_kl_to_base"]]
        assert min(kls[weight]) > 1e-4
    assert all(near < 0.9 * far for near, far in zip(kls[30.0], kls[0.01], strict=True)), kls


def test_the_loss_has_the_kl_of_two_models(model_dir: Path) -> None:
    """By the definition, from all logits of both."""
    run = run_of(model_dir)
    other = load_model(run.model)
    generator = torch.Generator().manual_seed(3)
    for parameter in other.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    batch = PackedBatch.of(batches(1)[0])
    plain, near = Policy(other, run.objective), Policy(other, run.objective, 0.5, base_of(run))
    one, two = plain(batch, 0), near(batch, 0)
    ids, target_T = batch.input_ids_BS, batch.target_N[batch.index_T]
    logp = {}
    for name, model in (("other", other), ("base", load_model(run.model))):
        rows = [model(input_ids=ids[b, segment == s][None].long()).logits[0]
                for b, segment in enumerate(batches(1)[0]["segment_ids"])
                for s in range(1, int(segment.max()) + 1)]  # fmt: skip
        logp[name] = torch.cat(rows)[batch.index_T].log_softmax(-1)
    kl = (logp["base"].exp() * (logp["base"] - logp["other"])).sum().detach()
    assert float(kl) > 1 and len(target_T) == len(logp["base"])
    assert float(two.kl_sum) == pytest.approx(float(kl), rel=1e-4)
    assert float(near.kl_to_base(batch)) == pytest.approx(float(kl), rel=1e-4)
    assert float(two.loss_sum - one.loss_sum) == pytest.approx(0.5 * float(kl), rel=1e-4)
    assert one.kl_sum is None and not plain.has_base


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_off_equal_a_second_model(model_dir: Path, kind: str) -> None:
    run = replace(run_of(model_dir), lora=LoraConfig(rank=4, **KINDS[kind]))
    (off, one), (second, two) = (
        log_of(run, base=base)
        for base in (None, base_of(run))
    )  # fmt: skip
    assert off[-1]["kl_to_base"] > 1e-3
    for a, b in zip(off, second, strict=True):
        for name in ("loss", "kl_to_base", "grad_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-7)
    assert off[-1]["val_kl_to_base"] == pytest.approx(second[-1]["val_kl_to_base"], rel=1e-5)
    torch.testing.assert_close(weights(one), weights(two)[: len(weights(one))], rtol=0, atol=1e-5)


def test_adapters_without_a_weight_measure_the_kl_when_they_evaluate(model_dir: Path) -> None:
    run = replace(run_of(model_dir, kl_weight=0.0), lora=LoraConfig(rank=4))
    log, _ = log_of(run)
    assert log[-1]["val_kl_to_base"] > 1e-4 and "kl_to_base" not in log[-1]


@pytest.mark.parametrize("kind", ["full", "lora", "psft"])
def test_a_run_resumes_bitwise(model_dir: Path, kind: str, tmp_path: Path) -> None:
    """The base is the model that the run started from, not the checkpoint."""
    run = run_of(model_dir, Objective("psft" if kind == "psft" else "dft"))
    run = replace(run, lora=LoraConfig(rank=4)) if kind == "lora" else run
    parts = with_start(model_dir, batches(STEPS))
    first, _ = log_of(run, tmp_path, parts=parts)
    again, _ = log_of(run, tmp_path / "again", resume_from=tmp_path / "step-2", parts=parts)
    names = ("loss", "kl_to_base", "grad_norm")
    assert [[each[n] for n in names] for each in again] == [
        [each[n] for n in names] for each in first[2:]
    ]
    assert again[-1]["val_kl_to_base"] == first[-1]["val_kl_to_base"] > 1e-4


def test_psft_begins_as_sft_and_leaves_alone_what_became_likely(model_dir: Path) -> None:
    parts = with_start(model_dir, batches(STEPS))
    run = run_of(model_dir, Objective("psft"), kl_weight=0.0)
    ours, _ = log_of(run, parts=parts)
    sft, _ = log_of(replace(run, objective=Objective("sft")), parts=parts)
    assert ours[0]["loss"] == pytest.approx(-1, abs=1e-5), "r is 1"
    assert ours[0]["grad_norm"] == pytest.approx(sft[0]["grad_norm"], rel=1e-4)
    assert ours[-1]["nll"] > sft[-1]["nll"] and all(each["loss"] >= -1.28 for each in ours)
    with pytest.raises(ValueError, match="objective 'psft' needs start_T"):
        log_of(run)


def test_in_bfloat16_the_base_predicts_what_the_model_does(model_dir: Path) -> None:
    """Its linear layers are stored in bfloat16, to which autocast rounds the model's."""
    run = run_of(model_dir)
    run = replace(run, model=replace(run.model, dtype="bfloat16"))
    base = base_of(run)
    assert {p.dtype for p in base.parameters()} == {torch.float32, torch.bfloat16}
    log, _ = log_of(run)
    assert log[0]["kl_to_base"] == pytest.approx(0, abs=1e-6) and log[-1]["kl_to_base"] > 1e-3


def test_without_a_base_a_weight_is_refused(model_dir: Path) -> None:
    run = run_of(model_dir)
    with pytest.raises(ValueError, match=r"kl_weight is 0\.5, but there is no base model"):
        train(load_model(run.model), batches(STEPS), run, lambda *_: None)
    with pytest.raises(ValueError, match=r"kl_weight is -1: use a number >= 0"):
        run_of(model_dir, kl_weight=-1)


TWO_RANKS = [("ddp", 0), ("ddp", 4), ("fsdp", 0), ("fsdp", 4)]


def shared_run(model_dir: Path, strategy: str, rank: int, objective: str = "psft") -> TrainConfig:
    memory = MemoryConfig(strategy=strategy)
    shared = {"micro_batch_size": ROWS // 2, "workers": Workers(count=2), "memory": memory}
    run = run_of(model_dir, Objective(objective), **shared)
    return replace(run, lora=LoraConfig(rank=rank))


def _on_two_ranks(rank: int, model_dir: Path, parts: Any, out: Path) -> None:
    join_ranks(rank, out)
    half = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    mine = [{k: v[half] for k, v in batch.items()} for batch in parts]
    for strategy, lora in TWO_RANKS:
        run = shared_run(model_dir, strategy, lora)
        empty = strategy == "fsdp" and rank > 0
        model: Any = (empty_model if empty else load_model)(run.model)
        model = add_adapters(model, run.lora) if lora else model
        base = None if lora else base_of(run, empty)
        log, _ = log_of(run, parts=mine, model=model, base=base)
        if rank == 0:
            (out / f"{strategy}-{lora}.json").write_text(json.dumps(log))


def test_two_ranks_equal_one(model_dir: Path, tmp_path: Path) -> None:
    parts = with_start(model_dir, batches(STEPS))
    mp.spawn(_on_two_ranks, (model_dir, parts, tmp_path), nprocs=2)
    for strategy, lora in TWO_RANKS:
        log = json.loads((tmp_path / f"{strategy}-{lora}.json").read_text())
        run = replace(
            shared_run(model_dir, strategy, lora), workers=Workers(), memory=MemoryConfig()
        )
        run = replace(run, micro_batch_size=ROWS)
        alone, _ = log_of(run, parts=parts)
        assert alone[-1]["kl_to_base"] > 1e-3
        for a, b in zip(alone, log, strict=True):
            for name in ("loss", "nll", "kl_to_base", "grad_norm"):
                assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-5), (strategy, lora, name)
        assert log[-1]["val_kl_to_base"] == pytest.approx(alone[-1]["val_kl_to_base"], rel=1e-3)
