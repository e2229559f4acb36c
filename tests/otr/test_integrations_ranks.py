"""Two gloo ranks train with `use_objective` as one does: DDP, FSDP2, accelerate, the Trainer."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from otr import Objective
from otr.integrations import use_objective
from tests.assets.tiny import make_tiny_model
from tests.otr.runs import join_ranks
from tests.otr.trainers import examples, load, make_trainer, padded

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "own-trainer.md"
WORLD = 2
OBJECTIVES = {"dft": Objective("dft"), "otr": Objective("otr", estimator="expected")}
WAYS = ("ddp", "fsdp2", "fsdp2-tied", "fsdp2-lora", "trainer")
Weights = dict[str, Tensor]


def documented_step() -> Any:
    """The step with accelerate that the documentation shows."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    [source] = [block for block in blocks if "def step" in block]
    named: dict[str, Any] = {}
    exec(source, named)
    return named["step"]


def trained(way: str, objective: Objective, directory: Path, world: int) -> Weights:
    """Return the weights that a rank has after a step on two batches of one example per rank."""
    model = load(directory / ("tied" if way == "fsdp2-tied" else "untied"))
    torch.manual_seed(0)  # of LoRA's matrices
    if way == "trainer":
        settings = {"per_device_train_batch_size": WORLD // world, "max_steps": 1}
        trainer = make_trainer("transformers", model, directory, **settings)
        use_objective(trainer, objective).train()
        return dict(trainer.model.state_dict())
    if way == "fsdp2-lora":
        lora = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(model, lora)
    use_objective(model, objective)
    accelerator = Accelerator(cpu=True)
    if way.startswith("fsdp2") and world > 1:
        # accelerate shards on accelerators only; what it would call there runs on the CPU too.
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            cpu_ram_efficient_loading=False,
        )
        model = fsdp2_prepare_model(accelerator, model)
        assert any(hasattr(p, "device_mesh") for p in model.parameters())
    else:
        model = accelerator.prepare_model(model)
        assert isinstance(model, nn.parallel.DistributedDataParallel) == (world > 1)
    wanted = [p for p in model.parameters() if p.requires_grad]
    rank = accelerator.process_index
    batches = [padded(rows) for rows in (examples()[:2], examples()[2:])]
    own = [{k: v[rank::world] for k, v in batch.items()} for batch in batches]
    documented_step()(accelerator, model, torch.optim.SGD(wanted, 0.1), own)
    state = {k.removeprefix("module."): v for k, v in model.state_dict().items()}
    return {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in state.items()}


def run_rank(rank: int, directory: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD))
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="0", ACCELERATE_USE_CPU="true")
    join_ranks(rank, directory, WORLD)
    made = {
        f"{way}-{name}": trained(way, objective, directory, WORLD)
        for way in WAYS
        for name, objective in OBJECTIVES.items()
    }
    torch.save(made, directory / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ranks")
    for tied in (True, False):
        make_tiny_model(directory / ("tied" if tied else "untied"), tied=tied)
    return directory


@pytest.fixture(scope="module")
def made(directory: Path) -> list[dict[str, Weights]]:
    """The weights on each rank, by way and objective."""
    mp.spawn(run_rank, (directory,), nprocs=WORLD)
    return [torch.load(directory / f"rank-{r}.pt", weights_only=True) for r in range(WORLD)]


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("way", WAYS)
def test_a_step_is_that_of_one_rank(
    way: str, name: str, made: list[dict[str, Weights]], directory: Path
) -> None:
    wanted = trained(way, OBJECTIVES[name], directory, 1)
    start = load(directory / ("tied" if way == "fsdp2-tied" else "untied")).state_dict()
    for of_rank in made:
        found = of_rank[f"{way}-{name}"]
        assert found.keys() == wanted.keys()
        for key, weight in wanted.items():
            torch.testing.assert_close(found[key], weight, rtol=1e-4, atol=1e-6, msg=key)
    if way != "fsdp2-lora":
        assert any((wanted[key] - weight).abs().max() > 1e-4 for key, weight in start.items())
