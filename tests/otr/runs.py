"""Small runs of the training loop and process groups, shared by the tests of otr."""

from multiprocessing.util import Finalize
from pathlib import Path

import torch

from otr import DataConfig, ModelConfig, Objective, OptimConfig, TrainConfig
from otr.data import pack
from otr.loop.batch import PackedBatch
from otr.loop.policy import Policy
from otr.models.load import load_model

ROWS, LENGTH = 8, 48


def examples(count: int, seed: int = 0) -> list[tuple[list[int], list[bool]]]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        length = int(torch.randint(6, 20, (), generator=generator))
        ids = torch.randint(0, 250, (length,), generator=generator).tolist()
        made.append((ids, [i >= length // 2 for i in range(length)]))
    return made


def batches(steps: int) -> list[dict[str, torch.Tensor]]:
    packed = pack(examples(ROWS * steps * 4), LENGTH)
    columns = {name: torch.from_numpy(column) for name, column in packed.items()}
    assert len(columns["input_ids"]) >= ROWS * steps
    return [{k: v[i * ROWS : (i + 1) * ROWS] for k, v in columns.items()} for i in range(steps)]


def with_start(
    model_dir: Path, made: list[dict[str, torch.Tensor]]
) -> list[dict[str, torch.Tensor]]:
    """Return batches with each target's log-probability under a model."""
    policy, found = Policy(load_model(ModelConfig(str(model_dir))).eval(), Objective("sft")), []
    for batch in made:
        packed = PackedBatch.of(batch)
        with torch.no_grad():
            nll_T = policy.predict(packed).nll_T
        start_BS = torch.zeros(batch["input_ids"].shape)
        start_BS.view(-1)[packed.layout.place_N[packed.index_T] + 1] = -nll_T
        found.append({**batch, "start": start_BS})
    return found


def config(model_dir: Path, objective: Objective, steps: int, **change: object) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(str(model_dir)),
        data=DataConfig(("none",), sequence_length=LENGTH),
        objective=objective,
        optim=OptimConfig(lr=1e-2, warmup_steps=2),
        max_steps=steps,
        log_interval=1,
        **{"global_batch_size": ROWS, "micro_batch_size": ROWS} | change,
    )


def join_ranks(rank: int, directory: Path, world: int = 2) -> None:
    """Join the process group of a test with several ranks; each process calls this first."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=world
    )
    # A gloo thread that still runs when the process ends can abort it.
    Finalize(None, torch.distributed.destroy_process_group, exitpriority=1)
