"""A bfloat16 run on a GPU learns, resumes, and uses the memory that was planned."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from otr import LoraConfig, ModelConfig, Objective, TrainConfig, Workers
from otr.loop.batch import PackedBatch
from otr.loop.checkpoint import load_checkpoint
from otr.loop.loop import train
from otr.loop.policy import Policy
from otr.memory.planner import plan
from otr.models.checks import check_packing
from otr.models.load import load_model
from otr.models.lora import add_adapters
from otr.models.tokenizer import load_tokenizer
from otr.optim import OPTIMIZERS
from tests.assets.tiny import make_tiny_model
from tests.benchmarks import memory
from tests.otr.runs import batches, config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
DEVICE = "cuda"
STEPS, SAVED = 8, 4


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def train_from(run: TrainConfig, source: Path, to: Path, resume_from: Path | None) -> list[float]:
    """Train from `source`'s weights, write checkpoints to `to`, and return each step's NLL."""
    model = torch.nn.Module.to(load_model(replace(run.model, path=str(source))), DEVICE)
    tokenizer, log = load_tokenizer(run.model), []

    def report(metrics: dict[str, float], snapshot: Any) -> None:
        log.append(metrics["nll"])
        if snapshot is not None:
            snapshot.write(to / f"step-{snapshot.step}", tokenizer)

    done = 0 if resume_from is None else load_checkpoint(resume_from)["step"]
    left = (batches(1) * STEPS)[done:]
    train(model, left, run, report, resume_from=resume_from)
    return log


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_learns_and_resumes(model_dir: Path, tmp_path: Path, optimizer: Any) -> None:
    if optimizer == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    run = config(model_dir, Objective("sft"), STEPS, checkpoint_interval=SAVED)
    run = replace(run, model=replace(run.model, dtype="bfloat16"))
    # Adafactor's rate is relative to the weights, whose RMS is 0.1.
    lr = 10 * run.optim.lr if optimizer == "adafactor" else run.optim.lr
    run = replace(run, optim=replace(run.optim, optimizer=optimizer, lr=lr))
    whole = train_from(run, model_dir, tmp_path, None)
    assert whole[-1] < whole[0]
    halfway = tmp_path / f"step-{SAVED}"
    again = train_from(run, halfway, tmp_path / "again", halfway)
    assert again == pytest.approx(whole[SAVED:], rel=2e-2)


def test_a_deterministic_run_repeats_bitwise(model_dir: Path, tmp_path: Path) -> None:
    run = config(model_dir, Objective(), STEPS, deterministic=True)
    run = replace(run, model=replace(run.model, dtype="bfloat16"))
    for name in ("once", "again"):
        train_from(run, model_dir, tmp_path / name, None)
    once, again = (
        load_file(tmp_path / name / f"step-{STEPS}" / "model.safetensors")
        for name in ("once", "again")
    )
    assert all(torch.equal(once[name], again[name]) for name in once)


@pytest.mark.parametrize("dora", [False, True], ids=["qlora", "qdora"])
def test_a_base_model_in_4_bits_is_the_same_on_the_gpu(
    model_dir: Path, tmp_path: Path, dora: bool
) -> None:
    """The last checkpoint's check reloads it on the CPU."""
    pytest.importorskip("bitsandbytes")
    run = config(model_dir, Objective("sft"), 2)
    run = replace(run, model=replace(run.model, dtype="bfloat16"))
    run = replace(run, lora=LoraConfig(rank=4, dora=dora, quantize="nf4"))
    model: Any = add_adapters(load_model(run.model, quantize="nf4"), run.lora)
    name, batch = "model.layers.1.mlp.up_proj.base_layer", batches(1)[0]
    policy = Policy(model, Objective("sft")).eval()
    with torch.no_grad():
        on_cpu = policy.predict(PackedBatch.of(batch)).nll_T
        bits = model.get_base_model().get_submodule(name).weight.clone()
        policy.to(DEVICE)
        found = policy.predict(PackedBatch.of(batch).to(torch.device(DEVICE))).nll_T
    torch.testing.assert_close(found.cpu(), on_cpu, rtol=0, atol=1e-3)

    def report(_: object, snapshot: Any) -> None:
        if snapshot is not None:
            snapshot.write(tmp_path / f"step-{snapshot.step}", load_tokenizer(run.model))

    train(model, batches(2), run, report)
    assert torch.equal(model.get_base_model().get_submodule(name).weight.cpu(), bits)


@pytest.mark.parametrize("attention", ["auto", "sdpa", "flex_attention"])
def test_packed_examples_do_not_see_each_other(model_dir: Path, attention: Any) -> None:
    model = load_model(ModelConfig(str(model_dir), attention=attention))
    check_packing(torch.nn.Module.to(model, DEVICE))


@pytest.mark.parametrize(
    "name",
    [
        *("bf16", "bf16 checkpointed", "lora bf16 checkpointed"),
        *("8 bits", "muon", "adafactor", "half frozen"),
    ],
)
def test_a_step_uses_the_planned_memory(name: str, tmp_path: Path) -> None:
    if name == "8 bits":
        pytest.importorskip("bitsandbytes")
    case = next(case for case in memory.CASES if case.name == name)
    run = replace(memory.written(case, tmp_path), workers=Workers(gpus=1))
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    memory.train_briefly(run, case.vocabulary, DEVICE)
    measured = torch.cuda.max_memory_allocated() - before
    assert plan(run, 2**40).device.total == pytest.approx(measured, rel=0.15)
