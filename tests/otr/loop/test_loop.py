"""Packing, accumulation and several ranks change nothing; bad steps and short data are handled."""

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from otr import (
    LoraConfig,
    MemoryConfig,
    ModelConfig,
    Objective,
    OptimConfig,
    TrainConfig,
    Workers,
)
from otr.data import pack
from otr.loop.batch import PackedBatch
from otr.loop.checkpoint import (
    OPTIMIZER,
    TRAINER,
    UNVERIFIED,
    Snapshot,
    UnverifiedCheckpoint,
    check_checkpoint,
    load_checkpoint,
)
from otr.loop.evaluate import evaluate
from otr.loop.loop import BadStep, Hooks, train
from otr.loop.policy import Policy
from otr.models.layout import Layout
from otr.models.load import load_model
from otr.models.lora import add_adapters
from otr.models.parts import head, hidden_states
from otr.models.structure import decoder_layers
from otr.models.tokenizer import load_tokenizer
from tests.assets.tiny import make_tiny_model
from tests.otr.runs import LENGTH, ROWS, batches, config, examples, join_ranks

OBJECTIVES = [Objective("sft"), Objective("dft"), Objective(num_samples=8)]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    make_tiny_model(directory)
    return directory


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_packed_examples_do_not_see_each_other(model_dir: Path) -> None:
    model = load_model(ModelConfig(str(model_dir))).eval()
    made = examples(9)
    packed = {k: torch.from_numpy(v) for k, v in pack(made, LENGTH).items()}
    ids, segments = packed["input_ids"], packed["segment_ids"]
    assert segments.max() >= 3
    with torch.no_grad():
        logits_ND = head(model).logits(hidden_states(model, ids, Layout.of(segments)))
    packed_logits = logits_ND.new_zeros(*ids.shape, logits_ND.shape[1])
    packed_logits[segments > 0] = logits_ND
    compared = 0
    for row in range(len(ids)):
        for segment in range(1, int(segments[row].max()) + 1):
            inside = segments[row] == segment
            with torch.no_grad():
                alone = model(input_ids=ids[row, inside][None].long()).logits[0]
            torch.testing.assert_close(packed_logits[row, inside], alone, rtol=0, atol=1e-5)
            compared += 1
    assert compared == len(made)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.name)
def test_accumulation_equals_one_batch(model_dir: Path, objective: Objective) -> None:
    results = []
    for micro_batch_size in (ROWS, ROWS // 2):
        model, log = load_model(ModelConfig(str(model_dir))), []
        parts = [
            {k: v[i : i + micro_batch_size] for k, v in batch.items()}
            for batch in batches(2)
            for i in range(0, ROWS, micro_batch_size)
        ]
        run = config(model_dir, objective, 2, micro_batch_size=micro_batch_size)
        train(model, parts, run, lambda metrics, _: log.append(metrics))  # noqa: B023 - called here
        results.append((log, weights(model)))
    (one, w1), (two, w2) = results
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)
    # Adam divides by the gradient: where it is near 0, rounding moves a weight by a part of lr.
    torch.testing.assert_close(w1, w2, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "option",
    ["gradient_checkpointing", pytest.param("compile", marks=pytest.mark.integration)],  # a minute
)
def test_options_that_save_memory_or_time_learn_the_same(model_dir: Path, option: str) -> None:
    results = []
    for on in (False, True):
        model, log = load_model(ModelConfig(str(model_dir))), []
        run = config(model_dir, Objective(num_samples=8), 3, memory=MemoryConfig(**{option: on}))
        train(model, batches(3), run, lambda *report, log=log: log.append(report[0]["nll"]))
        if option == "compile":
            compiled = [layer._compiled_call_impl is not None for layer in decoder_layers(model)]
            assert compiled == [on] * len(compiled)
        assert model.is_gradient_checkpointing == (on and option == "gradient_checkpointing")
        results.append((log, weights(model)))
    (log, plain), (again, changed) = results
    assert again == pytest.approx(log, abs=1e-4)
    torch.testing.assert_close(changed, plain, rtol=0, atol=1e-3)  # steps are of 1e-2


def test_bfloat16_learns_nearly_the_same_with_float32_weights(model_dir: Path) -> None:
    logs = []
    for dtype in ("float32", "bfloat16"):
        run = config(model_dir, Objective("sft"), 6)
        run = replace(run, model=replace(run.model, dtype=dtype))
        model, log = load_model(run.model), []
        train(model, batches(6), run, lambda *report, log=log: log.append(report[0]["nll"]))
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        logs.append(log)
    assert logs[1] == pytest.approx(logs[0], rel=2e-2) and logs[1] != logs[0]


def test_a_deterministic_run_asks_torch_for_it_and_learns_the_same(model_dir: Path) -> None:
    """What it changes on a GPU is tested there (tests/gpu)."""
    found = []
    for deterministic in (False, True):
        run, asked = config(model_dir, Objective(), 2, deterministic=deterministic), []
        model = load_model(run.model)

        def report(*_: object, asked: list[bool] = asked) -> None:
            asked.append(torch.are_deterministic_algorithms_enabled())

        train(model, batches(2), run, report)
        assert asked == [deterministic] * 2
        found.append(model.state_dict())
    assert not torch.are_deterministic_algorithms_enabled()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_each_seed_and_step_has_other_draws(model_dir: Path) -> None:
    made = []
    for seed in (0, 1, 2**20):
        model = load_model(ModelConfig(str(model_dir)))
        run = config(model_dir, Objective(num_samples=256, reward_scale=0.0), 2, seed=seed)
        train(model, batches(1) * 2, run, lambda metrics, _: made.append(metrics["hit_rate"]))
    assert len(set(made)) == len(made)  # with one batch and a model that no reward changes


def with_validation(run: TrainConfig) -> TrainConfig:
    """Return the run with validation; its rows are passed to the loop."""
    return replace(run, data=replace(run.data, validation=("held out",)))


def held_out() -> list[dict[str, torch.Tensor]]:
    return [{name: column[-1:] for name, column in batches(2)[1].items()}]


def _rank(rank: int, model_dir: Path, objective: Objective, directory: Path) -> None:
    join_ranks(rank, directory)
    model, log = load_model(ModelConfig(str(model_dir))), []
    half = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    parts = [{k: v[half] for k, v in batch.items()} for batch in batches(2)]
    run = with_validation(
        config(model_dir, objective, 2, micro_batch_size=ROWS // 2, workers=Workers(count=2))
    )
    mine = held_out() if rank == 0 else []
    train(model, parts, run, lambda metrics, _: log.append(metrics), validation=mine)
    torch.save({"log": log, "weights": weights(model)}, directory / f"rank-{rank}.pt")


@pytest.mark.parametrize("objective", [OBJECTIVES[2]], ids=lambda o: o.name)
def test_two_ranks_equal_one(model_dir: Path, objective: Objective, tmp_path: Path) -> None:
    mp.spawn(_rank, (model_dir, objective, tmp_path), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank-{r}.pt", weights_only=True) for r in (0, 1)]
    model, log = load_model(ModelConfig(str(model_dir))), []
    run = with_validation(config(model_dir, objective, 2))
    train(model, batches(2), run, lambda metrics, _: log.append(metrics), validation=held_out())
    for rank in ranks:
        assert rank["log"][-1]["val_nll"] == pytest.approx(log[-1]["val_nll"], rel=1e-4)
        for ours, alone in zip(rank["log"], log, strict=True):
            shares = [name for name in alone if "_share/" in name]
            assert sum(alone[name] for name in shares) == pytest.approx(2) and len(shares) == 10
            for name in ("loss", "nll", "reward", "hit_rate", "entropy", *shares):
                assert ours[name] == pytest.approx(alone[name], rel=1e-6)
            assert ours["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-5)
    torch.testing.assert_close(ranks[0]["weights"], ranks[1]["weights"], rtol=0, atol=0)
    torch.testing.assert_close(ranks[0]["weights"], weights(model), rtol=1e-4, atol=1e-5)


def test_training_improves_the_evaluation(model_dir: Path) -> None:
    model = load_model(ModelConfig(str(model_dir)))
    same = batches(1) * 60
    before = evaluate(Policy(model, Objective("sft")), same[:1])
    train(model, same, config(model_dir, Objective("sft"), 60), lambda *_: None)
    after = evaluate(Policy(model, Objective("sft")), same[:1])
    assert before["val_exact"] == 0 < after["val_exact"]
    assert after["val_nll"] < before["val_nll"] / 3
    assert after["val_token_accuracy"] > 0.7


def test_the_weights_follow_the_clipped_gradient(model_dir: Path) -> None:
    """Adam's first step is lr g / (|g| + 1e-8); g is clipped so far that the 1e-8 matters."""
    optim = OptimConfig(lr=1e-2, warmup_steps=0, max_grad_norm=1e-6)
    run = replace(config(model_dir, Objective("sft"), 1), optim=optim)
    model, log = load_model(run.model), []
    before = weights(model)
    (batch,) = batches(1)
    Policy(model, run.objective)(PackedBatch.of(batch), 0).loss_sum.backward()
    summed = torch.cat([p.grad.flatten() for p in model.parameters()])
    gradient = summed / batch["loss_mask"][:, 1:].sum()
    clipped = gradient * (1e-6 / gradient.norm())
    model.zero_grad()
    train(model, [batch], run, lambda metrics, _: log.append(metrics))
    assert log[0]["grad_norm"] == pytest.approx(gradient.norm().item(), rel=1e-5)
    moved = before - weights(model)
    torch.testing.assert_close(moved, 1e-2 * clipped / (clipped.abs() + 1e-8), rtol=0, atol=1e-6)
    assert 1e-4 < moved.abs().mean() < 9e-3, "more than nothing, less than the learning rate"


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in which a NaN embedding reaches only the rows that hold its token."""
    return make_tiny_model(tmp_path_factory.mktemp("untied") / "tiny", tied=False)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(untied: Path) -> None:
    model = load_model(ModelConfig(str(untied)))
    with torch.no_grad():
        model.get_input_embeddings().weight[254] = float("nan")
    batch = copy.deepcopy(batches(1)[0])
    batch["input_ids"][0, :4] = 254
    before = weights(model)
    kept: list[BadStep] = []
    hooks = Hooks(on_bad_step=lambda bad: kept.append(bad) or "rows.jsonl")
    run = config(untied, Objective("sft"), 1)
    with pytest.raises(FloatingPointError, match=r"step 1: loss nan.* rows 0 .*see rows.jsonl"):
        train(model, [batch], run, lambda *_: None, hooks=hooks)
    assert (kept[0].step, kept[0].rows) == (1, [0])
    torch.testing.assert_close(kept[0].batches[0]["input_ids"], batch["input_ids"])
    torch.testing.assert_close(weights(model), before, rtol=0, atol=0, equal_nan=True)


def test_bad_steps_can_be_skipped_and_are_counted(untied: Path) -> None:
    good, log = batches(2), []
    bad = copy.deepcopy(good[0])
    bad["input_ids"][1, :4] = 254
    run = config(untied, Objective("sft"), 3)
    run = replace(run, data=replace(run.data, skip_bad=True))
    model = load_model(run.model)
    with torch.no_grad():
        model.get_input_embeddings().weight[254] = float("nan")
    before = weights(model)
    train(model, [bad, *good], run, lambda metrics, _: log.append(metrics))
    assert [m.get("skipped_steps") for m in log] == [1, 1, 1]
    assert "loss" not in log[0] and log[1]["loss"] > 0
    assert not torch.equal(weights(model), before)


def last_snapshots(run: TrainConfig) -> tuple[Snapshot, dict[str, torch.Tensor]]:
    """Return the last step's snapshot of a run, and the weights two steps before."""
    before: dict[str, torch.Tensor] = {}
    taken: list[Snapshot] = []

    def report(metrics: dict[str, float], snapshot: Snapshot | None) -> None:
        if snapshot is not None and not before:
            before.update({name: tensor.clone() for name, tensor in snapshot.weights.items()})
        if snapshot is not None:
            taken.append(snapshot)

    train(load_model(run.model), batches(run.max_steps), run, report)
    return taken[-1], before


def with_dtype(run: TrainConfig, dtype: str) -> TrainConfig:
    return replace(run, model=replace(run.model, dtype=dtype))


DOWN = "model.layers.1.mlp.down_proj.weight"


def scaled(weights: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> None:
    weights[DOWN].mul_(1.02)


def swapped(weights: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> None:
    other = weights[DOWN.replace("1", "0")]
    first = other.clone()
    other.copy_(weights[DOWN])
    weights[DOWN].copy_(first)


def outdated(weights: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> None:
    weights.update(before)


@pytest.mark.parametrize(
    ("minutes", "steps"), [(15, [4, 6]), (0, [6])], ids=["every 15 minutes", "not by time"]
)
def test_a_checkpoint_is_written_after_some_minutes(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, minutes: float, steps: list[int]
) -> None:
    """Each step takes 400 s, and so does the time before the first checkpoint begin anew."""
    now, saved = 0.0, []

    def report(metrics: dict[str, float], snapshot: Snapshot | None) -> None:
        nonlocal now
        now += 400
        saved.extend([metrics["step"]] if snapshot else [])

    monkeypatch.setattr("otr.loop.loop.time.monotonic", lambda: now)
    run = config(model_dir, Objective("sft"), 6, checkpoint_minutes=minutes)
    train(load_model(run.model), batches(6), run, report)
    assert saved == steps


@pytest.mark.parametrize("rank", [0, 2], ids=["all weights", "lora"])
@pytest.mark.parametrize("save_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_last_checkpoint_has_the_data_type_asked_for_and_names_that_of_training(
    model_dir: Path, tmp_path: Path, dtype: str, save_dtype: str, rank: int
) -> None:
    """transformers and vLLM take the precision in config.json unless they are told otherwise."""
    run = config(model_dir, Objective("sft"), 2, checkpoint_interval=1, save_dtype=save_dtype)
    run = replace(with_dtype(run, dtype), lora=LoraConfig(rank=rank))
    model, tokenizer = load_model(run.model), load_tokenizer(run.model)
    model = add_adapters(model, run.lora) if rank else model

    def report(metrics: dict[str, float], snapshot: Snapshot | None) -> None:
        assert snapshot is not None
        snapshot.write(tmp_path / str(metrics["step"]), tokenizer)  # the last one is checked

    train(model, batches(2), run, report)
    for step, expected in (("1", "float32"), ("2", save_dtype)):
        saved = load_file(next((tmp_path / step).glob("*.safetensors")))
        assert {str(tensor.dtype) for tensor in saved.values()} == {f"torch.{expected}"}
        assert load_checkpoint(tmp_path / step).get("dtype", "float32") == expected
        moments = tmp_path / step / TRAINER / OPTIMIZER
        assert moments.exists() == (expected == "float32"), "only to train on from"
        if rank:
            continue
        assert json.loads((tmp_path / step / "config.json").read_text())["dtype"] == dtype
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / step)
        assert str(loaded.dtype) == f"torch.{dtype}"
    rounded = load_file(tmp_path / "2" / "model.safetensors") if not rank else {}
    for name, tensor in rounded.items():
        exact = model.get_parameter(name).detach()
        torch.testing.assert_close(tensor, exact.to(tensor.dtype), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("dtype", "save_dtype"),
    [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")],
)
def test_only_a_checkpoint_of_the_trained_model_is_accepted(
    model_dir: Path, tmp_path: Path, dtype: str, save_dtype: str
) -> None:
    run = config(model_dir, Objective("sft"), 4, checkpoint_interval=2, save_dtype=save_dtype)
    run = replace(with_dtype(run, dtype), optim=OptimConfig(lr=1e-4, warmup_steps=0))
    snapshot, before = last_snapshots(run)
    assert snapshot.probe.dtype == "float32"
    tokenizer, right = load_tokenizer(run.model), dict(snapshot.weights)
    for fault in (scaled, swapped, outdated):
        snapshot.weights = {name: tensor.clone() for name, tensor in right.items()}
        fault(snapshot.weights, before)
        with pytest.raises(UnverifiedCheckpoint, match=r"NLL differs .* per token in float32"):
            snapshot.write(tmp_path / fault.__name__, tokenizer)
    snapshot.weights = right
    snapshot.probe.nll_T.add_(torch.randn(len(snapshot.probe.nll_T)), alpha=1e-5)  # another order
    snapshot.write(tmp_path / "right", tokenizer)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"right", *(f"unverified-{name}" for name in ("scaled", "swapped", "outdated"))}


def test_a_checkpoint_that_fails_its_check_is_kept_beside_with_the_reason(
    model_dir: Path, tmp_path: Path
) -> None:
    run = config(model_dir, Objective("sft"), 1)
    snapshot, _ = last_snapshots(run)
    scaled(snapshot.weights, {})
    with pytest.raises(UnverifiedCheckpoint) as raised:
        snapshot.write(tmp_path / "step-000001", load_tokenizer(run.model))
    [kept] = tmp_path.iterdir()
    error = pickle.loads(pickle.dumps(raised.value))  # as Ray sends it
    assert str(error).startswith(f"the last checkpoint is kept as {kept}, but not trusted: its NLL")
    assert "\n" not in str(error) and kept.name == "unverified-step-000001"
    assert json.loads((kept / UNVERIFIED).read_text()) == {"step": 1, "reason": error.reason}
    check_checkpoint(kept)
    torch.testing.assert_close(
        load_model(ModelConfig(str(kept))).get_parameter(DOWN), snapshot.weights[DOWN]
    )


def test_weights_stay_if_they_cannot_be_loaded_again(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no memory\nat all")

    snapshot, _ = last_snapshots(config(model_dir, Objective("sft"), 1))
    monkeypatch.setattr("otr.loop.policy.load_model", fail)
    with pytest.raises(UnverifiedCheckpoint, match="can't be loaded again: no memory at all"):
        snapshot.write(tmp_path / "step", load_tokenizer(ModelConfig(str(model_dir))))
    check_checkpoint(tmp_path / "unverified-step")


def test_data_that_ends_early_is_an_error(model_dir: Path) -> None:
    model = load_model(ModelConfig(str(model_dir)))
    with pytest.raises(ValueError, match="ended after step 1 of 3"):
        train(model, batches(1), config(model_dir, Objective("sft"), 3), lambda *_: None)


@pytest.mark.parametrize("save_dtype", ["float32", "bfloat16"])
def test_a_model_above_the_limit_of_a_file_is_saved_in_shards(
    model_dir: Path, tmp_path: Path, save_dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otr.loop.export.FILE_BYTES", 100_000)
    run = config(model_dir, Objective("sft"), 1, save_dtype=save_dtype)
    model, tokenizer = load_model(run.model), load_tokenizer(run.model)

    def report(metrics: dict[str, float], snapshot: Snapshot | None) -> None:
        assert snapshot is not None and snapshot.probe is not None
        snapshot.write(tmp_path / "out", tokenizer)

    train(model, batches(1), run, report)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    shards = {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == shards and len(shards) > 1
    check_checkpoint(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    for name, tensor in loaded.named_parameters():
        exact = model.get_parameter(name).detach().to(getattr(torch, save_dtype))
        torch.testing.assert_close(tensor.detach(), exact.float(), rtol=0, atol=0)
    again = load_model(ModelConfig(str(tmp_path / "out")))
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in model.parameters())
