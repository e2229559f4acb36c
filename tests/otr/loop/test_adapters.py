"""Each kind of adapter trains, saves, reloads, resumes bitwise and merges; so on two ranks."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor

from otr import LoraConfig, MemoryConfig, ModelConfig, Objective, TrainConfig, Workers
from otr.loop.batch import PackedBatch
from otr.loop.checkpoint import Snapshot, UnverifiedCheckpoint, check_checkpoint
from otr.loop.loop import train
from otr.loop.policy import Policy
from otr.models.checks import check_head, check_packing
from otr.models.load import empty_model, load_model
from otr.models.lora import WEIGHTS_FILE, add_adapters, load_adapters, merge_adapters
from otr.models.tokenizer import load_tokenizer
from tests.assets.tiny import make_tiny_model
from tests.otr.models.test_lora import log_probs
from tests.otr.runs import ROWS, batches, config, join_ranks

STEPS = 4
LAYER = "model.layers.1.mlp.down_proj"
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rs": True},
    "dora": {"dora": True},
    "saved": {"modules_to_save": ("lm_head", "model.norm")},
    "qlora": {"quantize": "nf4"},
    "all": {"rs": True, "dora": True, "modules_to_save": ("lm_head",), "quantize": "nf4"},
}


class Run(NamedTuple):
    """A run of STEPS steps with a checkpoint after each second one."""

    model: Any
    log: list[Mapping[str, float]]
    out: Path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {tied: make_tiny_model(folder / f"tied-{tied}", tied=tied) for tied in (True, False)}


def run_of(model: Path, kind: str, **change: Any) -> TrainConfig:
    run = config(model, Objective("sft"), STEPS, checkpoint_interval=2, **change)
    return replace(run, lora=LoraConfig(rank=4, **KINDS[kind]))


def run_training(run: TrainConfig, out: Path, *, resume_from: Path | None = None) -> Run:
    """Train on one rank, as a worker does."""
    log: list[Mapping[str, float]] = []
    tokenizer = load_tokenizer(run.model)
    base = load_model(run.model, tokenizer, quantize=run.lora.quantize)
    if resume_from is None:
        check_head(base)
        check_packing(base)
        model: Any = add_adapters(base, run.lora, seed=run.seed)
    else:
        model = load_adapters(resume_from, run.model)

    def report(metrics: dict[str, float], snapshot: Snapshot | None) -> None:
        log.append(metrics)
        if snapshot is not None:
            snapshot.write(out / f"step-{snapshot.step}", tokenizer)  # the last one is checked

    todo = batches(STEPS)[2 if resume_from else 0 :]
    train(model, todo, run, report, resume_from=resume_from)
    return Run(model, log, out)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def done(
    request: pytest.FixtureRequest,
    kind: str,
    models: dict[bool, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[TrainConfig, Run]:
    run = run_of(models[request.param], kind)
    return run, run_training(run, tmp_path_factory.mktemp("run"))


@torch.no_grad()
def nll(model: Any) -> float:
    nll_T = Policy(model, Objective("sft")).predict(PackedBatch.of(batches(STEPS)[0])).nll_T
    return float(nll_T.mean())


def trained(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_it_learns_and_its_checkpoint_is_the_model_in_training(
    done: tuple[TrainConfig, Run],
) -> None:
    run, (model, _, out) = done
    before = load_model(run.model, quantize=run.lora.quantize)
    assert nll(model) < nll(before) - 0.1
    check_checkpoint(out / f"step-{STEPS}")
    loaded = load_adapters(out / f"step-{STEPS}", run.model)
    for name, parameter in trained(loaded).items():
        assert torch.equal(parameter, trained(model)[name]), name
    assert trained(loaded).keys() == trained(model).keys()
    assert torch.equal(log_probs(loaded), log_probs(model))


def test_frozen_weights_stay(done: tuple[TrainConfig, Run]) -> None:
    run, (model, *_) = done
    base = dict(load_model(run.model, quantize=run.lora.quantize).named_parameters())
    seen = 0
    for name, parameter in model.named_parameters(remove_duplicate=False):
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        plain = plain.replace(".original_module", "")
        if plain in base:
            assert not parameter.requires_grad and torch.equal(parameter, base[plain]), name
            seen += 1
    assert seen >= 22


def test_a_run_resumes_bitwise(done: tuple[TrainConfig, Run], tmp_path: Path) -> None:
    run, (_, log, out) = done
    again = run_training(run, tmp_path, resume_from=out / "step-2")
    last = f"step-{STEPS}/{WEIGHTS_FILE}"
    one, two = load_file(out / last), load_file(tmp_path / last)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert [each["loss"] for each in again.log] == [each["loss"] for each in log[2:]]
    half = load_file(out / f"step-2/{WEIGHTS_FILE}")
    assert not any(torch.equal(half[name], one[name]) for name in one)


def test_the_merged_model_is_the_adapted_one(done: tuple[TrainConfig, Run], tmp_path: Path) -> None:
    run, (model, _, out) = done
    adapted = load_adapters(out / f"step-{STEPS}", run.model, dequantized=True)
    merge_adapters(adapted).save_pretrained(tmp_path / "full")
    assert "quantization_config" not in json.loads((tmp_path / "full/config.json").read_text())
    full = load_model(ModelConfig(str(tmp_path / "full")))
    torch.testing.assert_close(log_probs(full), log_probs(model), rtol=0, atol=2e-5)
    plain = load_model(run.model)
    shapes = {name: p.shape for name, p in plain.named_parameters()}
    assert {name: p.shape for name, p in full.named_parameters()} == shapes, "ties stay ties"
    assert (log_probs(full) - log_probs(plain)).abs().max() > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_only_a_checkpoint_of_the_trained_model_is_accepted(
    models: dict[bool, Path],
    tmp_path: Path,
    tied: bool,
    dtype: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The base model that it is reloaded on is in 4 bits too: in 32 bits it is another model."""
    run = replace(run_of(models[tied], "all"), model=ModelConfig(str(models[tied]), dtype=dtype))
    taken: list[Snapshot] = []
    model: Any = add_adapters(load_model(run.model, quantize="nf4"), run.lora)
    train(model, batches(STEPS), run, lambda _, s: taken.append(s) if s else None)
    tokenizer, snapshot = load_tokenizer(run.model), taken[-1]
    snapshot.write(tmp_path / "right", tokenizer)
    assert snapshot.weights is not None
    with monkeypatch.context() as patch:
        patch.setattr("otr.models.lora.base_quantization", lambda _: "none")
        with pytest.raises(UnverifiedCheckpoint, match="NLL differs"):
            snapshot.write(tmp_path / "other base", tokenizer)
    length = f"{LAYER}.lora_magnitude_vector"
    snapshot.weights[f"base_model.model.{length}"].mul_(1.05)
    with pytest.raises(UnverifiedCheckpoint, match="NLL differs"):
        snapshot.write(tmp_path / "wrong", tokenizer)


def _on_two_ranks(rank: int, models: dict[bool, Path], out: Path) -> None:
    join_ranks(rank, out)
    group = torch.distributed.new_group(backend="gloo")
    half = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    parts = [{k: v[half] for k, v in batch.items()} for batch in batches(STEPS)]
    for strategy, kind, tied in TWO_RANKS:
        run = run_of(
            models[tied],
            kind,
            micro_batch_size=ROWS // 2,
            workers=Workers(count=2),
            memory=MemoryConfig(strategy=strategy),
        )
        tokenizer = load_tokenizer(run.model)
        empty = strategy == "fsdp" and rank > 0  # it gets the weights of rank 0
        base = (
            empty_model(run.model) if empty else load_model(run.model, quantize=run.lora.quantize)
        )
        model: Any = add_adapters(base, run.lora)

        def report(_: object, snapshot: Snapshot | None) -> None:
            if snapshot is not None and snapshot.step == STEPS:
                name = f"{strategy}-{kind}-{tied}"  # noqa: B023 - called in this iteration
                snapshot.write(out / name, tokenizer, group=group)  # noqa: B023

        train(model, parts, run, report)


TWO_RANKS = [
    ("ddp", "all", True),
    ("fsdp", "dora", False),
    ("fsdp", "saved", False),
    ("fsdp", "saved", True),
]


def test_two_ranks_equal_one(models: dict[bool, Path], tmp_path: Path) -> None:
    mp.spawn(_on_two_ranks, (models, tmp_path), nprocs=2)
    for strategy, kind, tied in TWO_RANKS:
        name = f"{strategy}-{kind}-{tied}"
        alone = run_training(run_of(models[tied], kind), tmp_path / f"alone-{name}")
        one = load_file(alone.out / f"step-{STEPS}" / WEIGHTS_FILE)
        two = load_file(tmp_path / name / WEIGHTS_FILE)
        assert one.keys() == two.keys()
        for tensor in one:
            torch.testing.assert_close(two[tensor], one[tensor], rtol=1e-3, atol=1e-4)
