"""Each optimizer updates weights as its paper or library says, in two steps of random gradients."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from torch import Tensor, nn

from otr import LoraConfig, ModelConfig, OptimConfig, load_model
from otr.models.freeze import freeze
from otr.models.lora import add_adapters
from otr.optim import OPTIMIZERS, make_optimizer
from otr.optim import optimizers as registry
from tests.otr.models.families import make_family

LR, BETAS, EPS, DECAY = 1e-2, (0.8, 0.9), 1e-6, 0.1


def optim(optimizer: str) -> OptimConfig:
    return OptimConfig(lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, optimizer=optimizer)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    directory = make_family(tmp_path_factory.mktemp("model"), "qwen2", tied=request.param)
    return load_model(ModelConfig(str(directory)))


def gradients(model: nn.Module, step: int) -> dict[str, Tensor]:
    """Return full-rank gradients, whose singular values Newton-Schulz treats well."""
    generator = torch.Generator().manual_seed(step)
    return {n: torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()}


def updated(model: nn.Module, config: OptimConfig) -> dict[str, Tensor]:
    """Return the weights after two steps of otr's optimizer."""
    model = copy.deepcopy(model)
    optimizer = make_optimizer(model, config)
    for step in range(2):
        for name, gradient in gradients(model, step).items():
            model.get_parameter(name).grad = gradient
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}


Update = Callable[[Tensor, list[Tensor]], Tensor]


def check(model: nn.Module, config: OptimConfig, update_of: Callable[[str], Update]) -> None:
    after = updated(model, config)
    for name, before in model.named_parameters():
        steps = [gradients(model, step)[name] for step in range(2)]
        wanted = update_of(name)(before.detach().double(), [g.double() for g in steps])
        torch.testing.assert_close(after[name].double(), wanted, rtol=0, atol=2e-6, msg=name)
        assert (wanted - before).abs().mean() > 1e-4


def adamw(weight: Tensor, steps: list[Tensor]) -> Tensor:
    first = second = torch.zeros_like(weight)
    for t, gradient in enumerate(steps, 1):
        weight = weight * (1 - LR * DECAY * (weight.ndim >= 2))
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
        root = (second / (1 - BETAS[1] ** t)).sqrt()
        weight = weight - LR * first / (1 - BETAS[0] ** t) / (root + EPS)
    return weight


def muon(weight: Tensor, steps: list[Tensor]) -> Tensor:
    """Orthogonalize Nesterov momentum by five quintic iterations in bfloat16 (arXiv:2502.16982)."""
    momentum = torch.zeros_like(weight)
    for gradient in steps:
        momentum = 0.95 * momentum + 0.05 * gradient
        x = (0.95 * momentum + 0.05 * gradient).float().bfloat16()
        tall = len(x) > len(x.T)
        x = x.T if tall else x
        x = x / x.norm().clamp(min=1e-7)
        for _ in range(5):
            a = x @ x.T
            x = torch.addmm(x, torch.addmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
        weight = weight * (1 - LR * DECAY)
        scale = 0.2 * math.sqrt(max(weight.shape))
        weight = weight - LR * scale * (x.T if tall else x).double()
    return weight


def adafactor(weight: Tensor, steps: list[Tensor]) -> Tensor:
    """arXiv:1804.04235, with torch's mean instead of sum, and lr as the largest relative step."""
    smallest = torch.finfo(torch.float32).eps
    rows = columns = second = torch.zeros(())
    for t, gradient in enumerate(steps, 1):
        beta = 1 - t**-0.8
        size = max(1e-3, weight.square().mean().sqrt().item()) * min(LR, 1 / math.sqrt(t))
        weight = weight * (1 - LR * DECAY * (weight.ndim >= 2))
        if weight.ndim >= 2:
            rows = beta * rows + (1 - beta) * gradient.square().mean(-1, keepdim=True)
            columns = beta * columns + (1 - beta) * gradient.square().mean(-2, keepdim=True)
            second = rows * columns / rows.mean().clamp(min=smallest)
        else:
            second = beta * second + (1 - beta) * gradient**2
        step = gradient / second.clamp(min=smallest**2).sqrt()
        weight = weight - size * step / max(1, step.square().mean().sqrt().item())
    return weight


def test_adamw(model: nn.Module) -> None:
    check(model, optim("adamw"), lambda name: adamw)


def test_muon_takes_hidden_matrices_and_adamw_the_rest(model: nn.Module) -> None:
    hidden = {name for name, p in model.named_parameters() if "proj.weight" in name}
    assert len(hidden) == 14
    check(model, optim("muon"), lambda name: muon if name in hidden else adamw)


def test_adafactor(model: nn.Module) -> None:
    check(model, optim("adafactor"), lambda name: adafactor)


def test_adamw_8bit_is_that_of_bitsandbytes(model: nn.Module) -> None:
    """The same as its class used plainly, and near AdamW, with quantized moments."""
    plain = copy.deepcopy(model)
    names = [name for name, _ in model.named_parameters()]
    groups = [
        {"params": [plain.get_parameter(n) for n in names if plain.get_parameter(n).ndim >= 2]},
        {
            "params": [plain.get_parameter(n) for n in names if plain.get_parameter(n).ndim < 2],
            "weight_decay": 0.0,
        },
    ]
    reference = AdamW8bit(groups, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)
    for step in range(2):
        for name, gradient in gradients(model, step).items():
            plain.get_parameter(name).grad = gradient
        reference.step()
    after, exact = updated(model, optim("adamw_8bit")), updated(model, optim("adamw"))
    kinds = {state["state1"].dtype for state in reference.state.values()}
    assert kinds == {torch.uint8, torch.float32}
    for name, weight in plain.named_parameters():
        torch.testing.assert_close(after[name], weight.detach(), rtol=0, atol=0)
        assert (after[name] - exact[name]).abs().mean() < 0.1 * LR


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_bytes_of_the_state(model: nn.Module, name: str) -> None:
    model, found = copy.deepcopy(model), 0
    optimizer = make_optimizer(model, optim(name))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    counted = ("step", "qmap1", "qmap2")  # a number, and tables that all parameters share
    for state in optimizer.state.values():
        found += sum(v.nbytes for k, v in state.items() if k not in counted)
    assert registry.state_bytes(model, optim(name)) == found > 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_adapters_alone_are_trained(model: nn.Module, name: str) -> None:
    adapted = add_adapters(copy.deepcopy(model), LoraConfig(rank=2))
    optimizer = make_optimizer(adapted, optim(name))
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for n, p in adapted.named_parameters() if "lora_" in n}


@pytest.mark.parametrize("frozen", ["*proj.*", "*norm.*", "model.layers.*"])
def test_muon_without_one_kind_of_parameters(model: nn.Module, frozen: str) -> None:
    model = copy.deepcopy(model)
    freeze(model, (frozen,))
    before = copy.deepcopy(model)
    optimizer = make_optimizer(model, optim("muon"))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    changed = {
        n for n, p in model.named_parameters() if not torch.equal(p, before.get_parameter(n))
    }
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad} != set()
    assert all(group["params"] for group in optimizer.param_groups)


def test_a_missing_package_is_named(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"bitsandbytes is not installed: run pip install bitsandbytes"
    ):
        make_optimizer(model, optim("adamw_8bit"))


def test_families_without_a_head_of_their_own(tmp_path: Path) -> None:
    """A model's body alone has embeddings, which Muon does not take."""
    body = load_model(ModelConfig(str(make_family(tmp_path, "llama")))).model
    optimizer = make_optimizer(body, optim("muon"))
    muons = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert id(body.embed_tokens.weight) not in muons and len(muons) == 14
