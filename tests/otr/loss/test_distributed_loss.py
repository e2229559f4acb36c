"""Sharded or replicated over two ranks, the loss has the gradients of one process.

Each rank's loss is multiplied by world / global count, since gradients are averaged over ranks.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from otr import IGNORE_INDEX, LossOutput, Objective, linear_token_loss
from tests.otr.runs import join_ranks

WORLD, T, V, D = 2, 10, 11, 6
OBJECTIVE = Objective(num_samples=4)
Gradients = dict[str, Tensor]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.body = nn.Embedding(V, D), nn.Linear(D, D)
        self.head = nn.Linear(D, V)

    def forward(self, ids: Tensor, target: Tensor, position: Tensor) -> LossOutput:
        return linear_token_loss(
            torch.tanh(self.body(self.embed(ids))),
            self.head.weight,
            target,
            OBJECTIVE,
            bias=self.head.bias,
            generator=torch.Generator().manual_seed(7),
            position_T=position,
        )


def inputs(empty_rank: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return token ids, targets (none in the second half if `empty_rank`) and positions."""
    numbers = torch.Generator().manual_seed(1)
    ids, target = (torch.randint(V, (T,), generator=numbers) for _ in range(2))
    target[1] = IGNORE_INDEX
    if empty_rank:
        target[T // 2 :] = IGNORE_INDEX
    return ids, target, torch.arange(T)


def sharded(net: Net) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    fully_shard(net.body)
    return fully_shard(net)


def sharded_head(net: Net) -> nn.Module:
    """Shard the head too: without its own hooks, weight and bias reach the loss as DTensors."""
    from torch.distributed.fsdp import fully_shard

    fully_shard(net.head)
    return fully_shard(net)


def replicated(net: Net) -> nn.Module:
    return nn.parallel.DistributedDataParallel(net)


WAYS: dict[str, Callable[[Net], nn.Module]] = {
    "fsdp": sharded,
    "fsdp-head": sharded_head,
    "ddp": replicated,
}


def gradients(net: nn.Module, rank: int, world: int, empty_rank: bool) -> Gradients:
    part = slice(rank * T // world, (rank + 1) * T // world)
    ids, target, position = inputs(empty_rank)
    count = (target != IGNORE_INDEX).sum()
    out = net(ids[part], target[part], position[part])
    (out.loss_sum * (world / count)).backward()
    named = {name.removeprefix("module."): p.grad for name, p in net.named_parameters()}
    return {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in named.items()}


def dtensor_gradients(rank: int, empty_rank: bool) -> Gradients:
    """Return the gradients of a head that is sharded by hand, without FSDP."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    net = Net()
    mesh = init_device_mesh("cpu", (WORLD,))
    for name in ("weight", "bias"):
        parameter = distribute_tensor(getattr(net.head, name).detach(), mesh, [Shard(0)])
        setattr(net.head, name, nn.Parameter(parameter))
    made = gradients(net, rank, WORLD, empty_rank)
    return {name: made[name] for name in ("head.weight", "head.bias")}


def run_rank(rank: int, directory: Path) -> None:
    join_ranks(rank, directory, WORLD)
    made: dict[str, Gradients] = {}
    for empty_rank in (False, True):
        made[f"dtensor-{empty_rank}"] = dtensor_gradients(rank, empty_rank)
        for way, wrap in WAYS.items():
            made[f"{way}-{empty_rank}"] = gradients(wrap(Net()), rank, WORLD, empty_rank)
    torch.save(made, directory / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Gradients]]:
    """Gradients on each rank, by way of sharding."""
    directory = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, (directory,), nprocs=WORLD)
    return [torch.load(directory / f"rank-{r}.pt", weights_only=True) for r in range(WORLD)]


@pytest.mark.parametrize("empty_rank", [False, True], ids=["", "one-rank-empty"])
@pytest.mark.parametrize("way", ["dtensor", *WAYS])
def test_gradients_are_those_of_one_process(made, way: str, empty_rank: bool) -> None:
    wanted = gradients(Net(), 0, 1, empty_rank)
    for of_rank in made:
        got = of_rank[f"{way}-{empty_rank}"]
        assert len(got) == (2 if way == "dtensor" else 5)
        for name, grad in got.items():
            torch.testing.assert_close(grad, wanted[name], rtol=1e-5, atol=1e-7)
