"""The registry of objectives, and what holds for every one of them."""

import dataclasses
import math
import os
import pickle
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from otr import IGNORE_INDEX, Objective, token_loss
from otr.loss.functional import _plain
from otr.loss.objective import kind_of, names, setting_types, stored
from tests.otr.loss.losses import (
    EXACT,
    OBJECTIVES,
    SFT,
    Inputs,
    both,
    by_logits,
    by_rows,
    by_token_loss,
    rows,
)
from tests.otr.loss.oracle import generator
from tests.otr.loss.test_linear_work import Operations

ROOT = Path(__file__).parents[3]
every_name = pytest.mark.parametrize("name", names())
every_weighted = pytest.mark.parametrize("name", [n for n in names() if Objective(n).is_weighted])
Z_LOSSES = [
    Objective("sft", label_smoothing=smoothing, z_loss=z_loss)
    for smoothing in (0.0, 0.2)
    for z_loss in (0.0, 0.01)
]


@every_name
@both
def test_the_worked_example(function, name: str) -> None:
    """p = (1/4, 3/4) and the target is the first token."""
    example = kind_of(name).example
    logits = torch.tensor([[0.0, math.log(3)]], requires_grad=True)
    start = torch.tensor([math.log(0.25)])  # as likely before training
    out = function(logits, torch.tensor([0]), Objective(name, **example.settings), start_T=start)
    out.loss_sum.backward()
    assert out.loss_sum.item() == pytest.approx(example.loss, rel=1e-6)
    assert logits.grad[0].tolist() == pytest.approx([example.gradient, -example.gradient], rel=1e-6)


@every_name
def test_an_entry_is_complete(name: str) -> None:
    kind = kind_of(name)
    for words in (kind.label, kind.loss, kind.gradient, kind.meaning):
        assert words.strip() == words != ""
    assert kind.meaning.endswith(".")
    assert not kind.arxiv or (len(kind.arxiv) == 10 and kind.arxiv[4] == ".")


def test_objectives_look_different() -> None:
    styles = [
        style
        for objective in (*map(Objective, names()), Objective(estimator="expected"))
        if (style := objective.style) is not None
    ]
    assert len(styles) >= len(names()) - 1
    for part in ("color", "dark", "marker"):
        assert len({getattr(style, part) for style in styles}) == len(styles), part


def test_a_setting_that_objectives_share_has_one_default_and_type() -> None:
    seen: dict[str, tuple] = {}
    for name in names():
        for field in dataclasses.fields(kind_of(name))[1:]:
            assert seen.setdefault(field.name, (field.type, field.default)) == (
                field.type,
                field.default,
            )
    assert {"name", *seen} == set(setting_types())


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_an_objective_survives_pickling_storing_and_replacing(objective: Objective) -> None:
    assert pickle.loads(pickle.dumps(objective)) == objective
    assert stored(dataclasses.asdict(objective)) == objective
    assert dataclasses.replace(objective) == objective
    assert hash(dataclasses.replace(objective)) == hash(objective)


def test_what_an_earlier_version_stored() -> None:
    """Every objective was stored with all settings of otr, which had no effect on the others."""
    of_otr = dataclasses.asdict(Objective(num_samples=16, temperature=1.0))
    assert stored(of_otr) == Objective(num_samples=16, temperature=1.0)
    assert stored(of_otr | {"name": "dft"}) == Objective("dft")
    assert stored(of_otr | {"name": "power"}) is None and stored({"name": "gone"}) is None


def test_another_objective_in_place_of_one_takes_only_defaults_along() -> None:
    assert dataclasses.replace(Objective(), name="sft") == SFT
    with pytest.raises(ValueError, match="num_samples is 4, but it is a setting of otr, not of s"):
        dataclasses.replace(Objective(num_samples=4), name="sft")
    assert (SFT.num_samples, SFT.estimator) == (256, "sampled"), "the defaults of other objectives"
    with pytest.raises(
        ValueError, match="num_samples is 7, but it is a setting of otr, not of sft"
    ):
        Objective("sft", 7)
    for settings in ((7, -0.1, 1.0, 1.3, "half", 3), (7,)):
        with pytest.raises(ValueError, match=r"settings \(7.* without a name: use keywords"):
            Objective("otr", *settings, num_samples=7)
    assert Objective("otr", 7, -0.5) == Objective(num_samples=7, mismatch_reward=-0.5)
    with pytest.raises(AttributeError, match="objective 'sft' has no 'num_sample'"):
        _ = SFT.num_sample


@pytest.mark.parametrize("objective", Z_LOSSES, ids=str)
@pytest.mark.parametrize("by", [by_token_loss, by_rows])
def test_label_smoothing_and_z_loss_equal_torchs_own(by, objective: Objective) -> None:
    logits, target = rows(6, 11, spread=5)
    (loss, *_), dz = by(logits, target, objective)
    smoothing = objective.label_smoothing
    wanted = F.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)
    wanted = wanted + objective.z_loss * torch.logsumexp(logits, -1) ** 2
    torch.testing.assert_close(loss, wanted.detach(), **EXACT)
    torch.testing.assert_close(dz, torch.autograd.grad(wanted.sum(), logits)[0], **EXACT)


def test_label_smoothing_leaves_masked_tokens_out() -> None:
    logits, target = rows(6, 11)
    wide = F.pad(logits.detach(), (0, 5), value=-math.inf).requires_grad_()
    objective = Objective("sft", label_smoothing=0.2)
    for by in (by_token_loss, by_rows):
        (narrow, dz), (padded, dz_padded) = (
            by(logits, target, objective),
            by(wide, target, objective),
        )
        torch.testing.assert_close(padded, narrow, **EXACT)
        torch.testing.assert_close(dz_padded, F.pad(dz, (0, 5)), **EXACT)


@pytest.mark.parametrize("objective", Z_LOSSES, ids=str)
def test_gradcheck_with_a_penalty(objective: Objective) -> None:
    logits, target = rows(3, 7)

    def loss(logits: Tensor) -> Tensor:
        return _plain(logits, target, objective, 0, torch.arange(3))[0].sum()

    assert torch.autograd.gradcheck(loss, logits)


@every_weighted
def test_gradcheck_with_the_weight_held(name: str) -> None:
    """A weight is constant, so the loss of which this is the gradient has it fixed."""
    objective, (logits, target) = Objective(name), rows(3, 7)
    position = torch.arange(3)
    figures = _plain(logits, target, objective, 0, position)
    weight = (figures[0] / figures[1]).detach()

    def held(logits: Tensor) -> Tensor:
        return (weight * F.cross_entropy(logits, target, reduction="none")).sum()

    assert torch.autograd.gradcheck(held, logits)
    wanted = torch.autograd.grad(held(logits), logits)[0]
    got = torch.autograd.grad(figures[0].sum(), logits)[0]
    torch.testing.assert_close(got, wanted, **EXACT)


@every_weighted
def test_a_weight_costs_no_work_on_logits(name: str, chunks) -> None:
    """The operations whose result has a row of logits are those of SFT."""
    ran = []
    for each in (SFT, Objective(name)):
        x = Inputs(t=8, v=4100, dtype=torch.float32)
        chunks(x, 8, 8)
        with Operations() as operations:
            x.loss(each).loss_sum.backward()
        ran.append({s: n for s, n in operations.names.items() if s and s[-1] >= 4100})
    assert ran[0] == ran[1] != {}


# The objective that CONTRIBUTING shows.
(TILT,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)
USE = """
import json, os, sys
import tilt  # registers it
import torch
from otr import Objective, linear_token_loss, token_loss
from otr.loss.rows import loss_and_gradient_
from pathlib import Path
from pipelines import cli
from pipelines.report.tables import describe_objective
from dataclasses import asdict
from tests.assets.rows import logits_and_targets
from tests.assets.tiny import make_tiny_model
from tests.otr.runs import batches, config
from otr.loop.loop import train
from otr.models.load import load_model

objective = Objective("tilt", most=0.25)
assert describe_objective(asdict(objective)) == "tilt, most 0.25"
options = cli.parse("train --train.objective.name tilt --train.objective.most 0.25".split()).load()
assert options.trials and options.train.objective == objective, options
logits, target = logits_and_targets(6, 300)
arguments = (target, torch.arange(6), objective, 7)
mine, other = logits.clone(), logits.clone()
figures = loss_and_gradient_(mine, *arguments)
plain = token_loss(logits, target, objective).loss_sum
torch.testing.assert_close(figures[0].sum(), plain)
if os.environ.get("TRITON_INTERPRET"):
    from otr.loss.kernels.rows import loss_and_gradient_ as triton_loss_and_gradient_
    torch.testing.assert_close(triton_loss_and_gradient_(other, *arguments), figures)
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    hidden, weight = torch.randn(4, 8), torch.nn.Parameter(torch.randn(30, 8) / 3)
    optimizer, made = torch.optim.SGD([weight], 0.1), []
    for _ in range(3):
        out = linear_token_loss(hidden, weight, torch.arange(4), objective, backend="triton")
        out.loss_sum.backward()
        optimizer.step()
        optimizer.zero_grad()
        made.append(out.nll_sum.item())
else:
    model, made = make_tiny_model(Path(sys.argv[1])), []
    run = config(model, objective, 3)
    train(load_model(run.model), batches(3), run, lambda m, _: made.append(m["loss"]))
assert len(made) == 3 and made[0] != made[-1], made
print("trained")
"""


@pytest.mark.parametrize("interpreter", [False, True])
def test_a_new_objective_is_one_file(interpreter: bool, tmp_path: Path) -> None:
    """It trains on the CPU and in Triton's interpreter, and options and reports know it."""
    if interpreter and not find_spec("triton"):
        pytest.skip("triton is not installed")
    (tmp_path / "tilt.py").write_text(TILT)
    more = {"TRITON_INTERPRET": "1"} if interpreter else {}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", USE, tmp_path / "model"],
        env={**os.environ, **more, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "trained" in done.stdout, done.stderr[-3000:]


def test_a_file_that_could_not_work_is_refused_when_it_is_imported() -> None:
    taken = TILT.replace('name: str = "tilt"', 'name: str = "sft"')
    ambiguous = TILT.replace("most: float = 0.5", "temperature: float = 0.5")
    annotated = TILT.replace("entropy):", "entropy: float):")
    for source, words in (
        (TILT.replace('name: str = "tilt"', ""), "Tilt.name is None: give it a default"),
        (taken, "Tilt.name is 'sft', which is Sft's"),
        (ambiguous, "Tilt.temperature: Otr has a setting of this name with the default 1.3: use"),
        (annotated, "Tilt.weight: leave out the annotations, for Triton"),
    ):
        with pytest.raises(TypeError, match=words):
            exec(source, {"__name__": "tilt"})
    assert "tilt" not in names()


def test_the_plain_loss_of_an_objective_that_draws_nothing_leaves_the_generator_alone() -> None:
    numbers = torch.Generator().manual_seed(3)
    before = numbers.get_state()
    token_loss(torch.zeros(2, 5), torch.zeros(2).long(), Objective("eaft"), generator=numbers)
    assert torch.equal(numbers.get_state(), before)


WEIGHT = torch.tensor([1.0, 0.0, -0.5, 2.0, 0.25, 1.0])


@pytest.mark.parametrize("objective", [*OBJECTIVES.values(), Z_LOSSES[-1]], ids=str)
@both
def test_weights_of_positions_multiply_their_loss_and_gradient(function, objective) -> None:
    logits, target = rows(6, 11)
    target[3] = IGNORE_INDEX
    more = {"position_T": torch.arange(6)}
    out = function(logits, target, objective, weight_T=WEIGHT, generator=generator(), **more)
    got = torch.autograd.grad(out.loss_sum, logits)[0]
    plain = function(logits, target, objective, generator=generator(), **more)
    single = torch.autograd.grad(plain.loss_sum, logits)[0]
    torch.testing.assert_close(got, WEIGHT[:, None].double() * single, **EXACT)
    for name in ("num_tokens", "nll_sum", "hit_sum", "reward_sum", "entropy_sum"):
        assert getattr(out, name) == getattr(plain, name)
    losses = [
        by_logits(logits, torch.where(torch.arange(6) == t, target, IGNORE_INDEX), objective,
                   generator=generator(), **more).loss_sum
        for t in range(6)
    ]  # fmt: skip
    assert out.loss_sum.item() == pytest.approx((WEIGHT @ torch.stack(losses)).item(), rel=1e-5)


def test_weights_go_with_the_factor_over_chunks_and_tiles(chunks) -> None:
    x = Inputs(t=13)
    chunks(x, 4, 3)
    weight = torch.rand(13, generator=generator(3))
    wanted = token_loss(
        x.hidden @ x.weight.T, x.target, SFT, weight_T=weight, generator=generator()
    ).loss_sum
    ours = x.loss(SFT, weight_T=weight, factor=0.5).loss_sum
    assert ours.item() == pytest.approx(wanted.item() / 2, rel=1e-6)
    wanted = [grad / 2 for grad in x.gradients(wanted)]
    torch.testing.assert_close([*x.gradients(ours)], wanted, **EXACT)


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (torch.ones(5), r"weight is torch.float32 \(5,\): use floats, \[6\], one per row"),
        (torch.ones(6).long(), r"weight is torch.int64 \(6,\): use floats"),
        (torch.tensor([1.0, math.nan] * 3), "weight nan in row 1: use finite numbers"),
    ],
)
@both
def test_bad_weights_are_refused(function, weight: Tensor, words: str) -> None:
    logits, target = rows(6, 11)
    with pytest.raises(ValueError, match=words):
        function(logits, target, SFT, weight_T=weight)
