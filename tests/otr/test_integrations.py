"""`use_objective` in a plain loop, in the trainers of transformers and TRL, and with PEFT."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
)
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from otr import IGNORE_INDEX, Objective, token_loss
from otr.integrations import use_objective
from otr.loss.objective import names
from tests.assets.tiny import make_tiny_model
from tests.otr.trainers import LENGTHS, SETTINGS, Batch, examples, load, make_trainer, padded

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "own-trainer.md"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(model_dir: Path) -> nn.Module:
    return load(model_dir)


def gradients(model: nn.Module) -> Batch:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(found: Batch, wanted: Batch) -> None:
    assert found.keys() == wanted.keys() != set()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def refuse_logits(model: nn.Module) -> None:
    """Let a training pass fail that computes the logits of all tokens."""

    def hook(*_: Any) -> None:
        assert not torch.is_grad_enabled(), "full logits"

    model.get_output_embeddings().register_forward_pre_hook(hook)


# The model


@pytest.mark.parametrize("count", [None, 50, torch.tensor(50)])
def test_sft_is_the_loss_of_the_model_itself(model: nn.Module, count: Any) -> None:
    more = {} if count is None else {"num_items_in_batch": count}
    wanted = model(**padded(), **more).loss
    wanted.backward()
    grads = gradients(model)
    model.zero_grad()
    use_objective(model, "sft")
    refuse_logits(model)
    outputs = model(**padded(), **more)
    outputs.loss.backward()
    torch.testing.assert_close(outputs.loss, wanted)
    assert_same(gradients(model), grads)
    assert "logits" not in outputs and outputs.num_tokens == sum(LENGTHS) - 4 * 6
    torch.testing.assert_close(outputs.nll_sum / (count or outputs.num_tokens), wanted.detach())


@pytest.mark.parametrize("name", [name for name in names() if not Objective(name).needs_start])
def test_an_objective_is_that_of_the_full_logits(model: nn.Module, name: str) -> None:
    batch, objective = padded(), Objective(name)
    torch.manual_seed(3)
    target_BS = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
    logits_TV = model(**{k: v for k, v in batch.items() if k != "labels"}).logits.flatten(0, 1)
    wanted = token_loss(logits_TV, target_BS.flatten(), objective)
    (wanted.loss_sum / wanted.num_tokens).backward()
    grads = gradients(model)
    model.zero_grad()
    use_objective(model, objective)
    torch.manual_seed(3)
    outputs = model(**batch)
    outputs.loss.backward()
    torch.testing.assert_close(outputs.loss, wanted.loss_sum / wanted.num_tokens)
    torch.testing.assert_close(outputs.hit_sum, wanted.hit_sum)
    assert_same(gradients(model), grads)


def test_draws_depend_on_seed_step_and_rank(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_objective(model, "otr", num_samples=4)

    def steps(seed: int) -> list[float]:
        torch.manual_seed(seed)
        return [model(**padded()).loss.item() for _ in range(2)]

    first = steps(0)
    assert steps(0) == first and first[0] != first[1] and steps(1) != first
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(steps(0), first)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert all(a != b for a, b in zip(steps(0), first, strict=True))
    with torch.no_grad():
        a, b = (model(**padded(), skip_logits=skip).loss for skip in (True, False))
    torch.testing.assert_close(a, b)  # without gradients always the same draws


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_pass_has_the_same_draws(model: nn.Module, reentrant: bool) -> None:
    """Even if the whole model is computed again, as nobody does with an output head."""
    use_objective(model, "otr", num_samples=4)
    batch = padded()
    embeddings = model.get_input_embeddings()(batch.pop("input_ids")).detach().requires_grad_()

    def loss(inputs: Tensor) -> Tensor:
        return model(inputs_embeds=inputs, **batch).loss

    torch.manual_seed(0)
    loss(embeddings).backward()
    grads = gradients(model)
    model.zero_grad()
    torch.manual_seed(0)
    torch.utils.checkpoint.checkpoint(loss, embeddings, use_reentrant=reentrant).backward()
    assert_same(gradients(model), grads)


def test_without_labels_or_gradients_the_model_is_as_before(
    model: nn.Module, model_dir: Path
) -> None:
    before, batch = load(model_dir), padded()
    use_objective(model, "dft")
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    torch.testing.assert_close(model(**inputs).logits, before(**inputs).logits)
    prompt = batch["input_ids"][:1]
    arguments: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(prompt, **arguments), before.generate(prompt, **arguments))
    with torch.no_grad():
        outputs, short = model(**batch), model(**batch, skip_logits=True)
    torch.testing.assert_close(outputs.logits, before(**inputs).logits)
    torch.testing.assert_close(outputs.loss, short.loss)
    shifted = batch["labels"][:, 1:].clone()
    shifted = nn.functional.pad(shifted, (0, 1), value=IGNORE_INDEX)
    torch.testing.assert_close(model(**inputs, shift_labels=shifted).loss, short.loss)
    ids, labels = batch["input_ids"], batch["labels"]
    by_position = model(ids, batch["attention_mask"], None, None, None, labels)
    torch.testing.assert_close(by_position.loss, short.loss)
    loss, count, *_ = model(**batch, return_dict=False)
    assert count == short.num_tokens and torch.equal(loss, model(**batch).loss)


def test_a_batch_without_targets_has_no_loss_and_no_gradient(model: nn.Module) -> None:
    use_objective(model, "otr")
    batch = padded() | {"labels": torch.full_like(padded()["labels"], IGNORE_INDEX)}
    model(**batch).loss.backward()
    assert all((grad == 0).all() for grad in gradients(model).values())


def test_mixed_precision_of_accelerate(model: nn.Module) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # a trainer of another test set it
    exact = copy.deepcopy(use_objective(model, "otr", estimator="expected"))(**padded())
    outputs = Accelerator(cpu=True, mixed_precision="bf16").prepare_model(model)(**padded())
    assert outputs.keys() == exact.keys() and outputs.loss.dtype == torch.float32
    torch.testing.assert_close(outputs.loss, exact.loss, rtol=2e-2, atol=0)
    assert not torch.equal(outputs.loss, exact.loss)
    outputs.loss.backward()


def test_a_compiled_model(model: nn.Module) -> None:
    wanted = use_objective(model, "dft")(**padded()).loss
    compiled = torch.compile(model, backend="eager")  # traced only
    torch.testing.assert_close(compiled(**padded()).loss, wanted)


def test_a_copied_model_keeps_its_objective(model: nn.Module) -> None:
    other = copy.deepcopy(use_objective(model, "dft"))
    torch.testing.assert_close(other(**padded()).loss, model(**padded()).loss)
    other(**padded()).loss.backward()
    assert not gradients(model) and gradients(other)
    with torch.no_grad():
        other.get_output_embeddings().weight.mul_(2)
    ids = padded()["input_ids"]
    assert not torch.equal(other(ids).logits, model(ids).logits)


def test_the_last_objective_counts(model: nn.Module) -> None:
    ids = padded()["input_ids"]
    logits = model(ids).logits
    wanted = use_objective(copy.deepcopy(model), "sft")(**padded()).loss
    use_objective(use_objective(model, "dft"), "sft")
    torch.testing.assert_close(model(**padded()).loss, wanted)
    torch.testing.assert_close(model(ids).logits, logits)


def test_lora(model: nn.Module) -> None:
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(model, config)
    wanted = model(**padded()).loss
    wanted.backward()
    grads = gradients(model)
    assert all("lora" in name for name in grads)
    model.zero_grad()
    use_objective(model, "sft")
    refuse_logits(model)
    loss = model(**padded()).loss
    loss.backward()
    torch.testing.assert_close(loss, wanted)
    assert_same(gradients(model), grads)


@pytest.mark.parametrize("objective", ["sft", "dft", Objective("otr", estimator="expected")])
def test_rows_without_padding_have_the_loss_of_padded_rows(
    model: nn.Module, objective: Any
) -> None:
    use_objective(model, objective)
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    packed = collate(examples())
    assert "attention_mask" not in packed and len(packed["input_ids"]) == 1
    losses, grads = [], []
    for batch in (padded(), packed):
        model.zero_grad()
        losses.append(model(**batch).loss)
        losses[-1].backward()
        grads.append(gradients(model))
    torch.testing.assert_close(losses[1], losses[0])
    assert_same(grads[1], grads[0])


# Trainers


def changes(trainer: Trainer) -> Batch:
    start = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    return {name: w - start[name] for name, w in trainer.model.state_dict().items()}


@pytest.mark.parametrize("kind", ["transformers", "trl"])
def test_a_trainer_with_sft_trains_as_without(kind: str, model_dir: Path, tmp_path: Path) -> None:
    wanted = changes(make_trainer(kind, load(model_dir), tmp_path))
    trainer = use_objective(make_trainer(kind, load(model_dir), tmp_path), "sft")
    refuse_logits(trainer.model)
    assert_same(changes(trainer), wanted)
    log = trainer.state.log_history[0]
    assert log["nll"] == pytest.approx(log["loss"], rel=1e-4)
    assert 0 < log["hit_rate"] < 1 and log["entropy"] > 0 and "reward" not in log


@pytest.mark.parametrize("kind", ["transformers", "trl"])
def test_a_trainer_with_dft_trains_as_trl_does(kind: str, model_dir: Path, tmp_path: Path) -> None:
    wanted = changes(make_trainer("trl", load(model_dir), tmp_path, loss_type="dft"))
    trainer = use_objective(make_trainer(kind, load(model_dir), tmp_path), "dft")
    assert_same(changes(trainer), wanted)


def test_a_model_can_be_given_to_transformers_trainer(model_dir: Path, tmp_path: Path) -> None:
    model = use_objective(load(model_dir), "dft")
    wanted = changes(use_objective(make_trainer("transformers", load(model_dir), tmp_path), "dft"))
    assert_same(changes(make_trainer("transformers", model, tmp_path)), wanted)


def test_trl_with_lora_packing_and_gradient_checkpointing(model_dir: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"packing": True, "max_length": 32, "gradient_checkpointing": True}
    settings["dataset_kwargs"] = None
    found = []
    for objective in (None, "sft"):
        torch.manual_seed(0)
        trainer = make_trainer("trl", load(model_dir), tmp_path, lora=True, **settings)
        if objective:
            use_objective(trainer, objective)
            refuse_logits(trainer.model)
        found.append(changes(trainer))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("kind", ["transformers", "trl"])
def test_evaluation(kind: str, model_dir: Path, tmp_path: Path) -> None:
    trainer = use_objective(make_trainer(kind, load(model_dir), tmp_path), "otr", num_samples=4)
    rows = Dataset.from_list(examples())
    metrics = trainer.evaluate(rows)
    assert metrics["eval_nll"] > metrics["eval_entropy"] > 0
    assert {"eval_reward", "eval_hit_rate"} < metrics.keys()
    assert trainer.evaluate(rows)["eval_loss"] == metrics["eval_loss"]
    found: list[tuple[int, ...]] = []
    trainer.compute_metrics = lambda given: found.append(given.predictions.shape) or {}
    trainer.evaluate(rows)
    assert found == [(4, 24, 259)]


def test_a_resumed_trainer_has_the_same_draws(model_dir: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    finals = []
    for resumed in (None, str(tmp_path / "checkpoint-2")):
        trainer = make_trainer("transformers", load(model_dir), tmp_path, **settings)
        use_objective(trainer, "otr", num_samples=4).train(resume_from_checkpoint=resumed)
        finals.append(dict(trainer.model.state_dict()))
    assert_same(finals[1], finals[0])


# The documentation


@pytest.mark.parametrize("kind", ["SFTTrainer", "Trainer"])
def test_the_documented_lines(
    kind: str, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    [source] = [block for block in blocks if f"= {kind}(" in block]
    made = make_trainer(
        "trl" if kind == "SFTTrainer" else "transformers", load(model_dir), tmp_path
    )
    rows = Dataset.from_list(examples())
    names = {"model": load(model_dir), "args": made.args, "collate": padded}
    exec(source, names := names | {"rows": rows, "chats": rows})
    assert {"nll", "reward"} < names["trainer"].state.log_history[0].keys()


# What is refused


class OwnLoss(Trainer):
    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return model(**inputs).loss * 2


def own_loss(model: nn.Module, directory: Path) -> Trainer:
    return OwnLoss(model, TrainingArguments(str(directory), **SETTINGS))


def with_function(model: nn.Module, directory: Path) -> Trainer:
    arguments = TrainingArguments(str(directory), **SETTINGS)
    return Trainer(model, arguments, compute_loss_func=lambda *_, **__: torch.zeros(()))


def smoothed(kind: str) -> Callable[[nn.Module, Path], Trainer]:
    return lambda model, path: make_trainer(kind, model, path, label_smoothing_factor=0.1)


REFUSED: dict[str, Callable[[nn.Module, Path], Trainer]] = {
    "OwnLoss.compute_loss": own_loss,
    "compute_loss_func": with_function,
    "label_smoothing=": smoothed("transformers"),
    "label_smoothing_factor": smoothed("trl"),
    "loss_type is 'dft'": lambda model, path: make_trainer("trl", model, path, loss_type="dft"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_trainer_with_another_loss_is_refused(
    message: str, model: nn.Module, tmp_path: Path
) -> None:
    trainer = REFUSED[message](model, tmp_path)
    with pytest.raises(ValueError, match=message):
        use_objective(trainer, "otr")


def test_what_is_no_causal_model_is_refused(model: nn.Module, model_dir: Path) -> None:
    classifier = AutoModelForSequenceClassification.from_pretrained(model_dir)
    with pytest.raises(ValueError, match=r"Qwen3ForSequenceClassification .* causal"):
        use_objective(classifier, "otr")
    with pytest.raises(ValueError, match=r"Linear is neither .* before the model is wrapped"):
        use_objective(nn.Linear(2, 2), "otr")
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "lm_head"]))
    with pytest.raises(ValueError, match="modules_to_save"):
        use_objective(adapted, "otr")


def test_a_wrong_objective_is_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="did you mean 'dft'"):
        use_objective(model, "dtf")
    with pytest.raises(ValueError, match="did you mean 'num_samples'"):
        use_objective(model, "otr", num_sample=16)
    with pytest.raises(ValueError, match="give them to"):
        use_objective(model, Objective("otr"), num_samples=16)
    with pytest.raises(ValueError, match="use a name or"):
        use_objective(model, 16)
    with pytest.raises(ValueError, match=r"psft compares .* before training.* use `otr train`"):
        use_objective(model, "psft")


def test_a_model_whose_objective_trl_would_ignore_is_refused(
    model: nn.Module, tmp_path: Path
) -> None:
    trainer = make_trainer("trl", use_objective(model, "dft"), tmp_path)
    with pytest.raises(ValueError, match=r"use_objective\(trainer"):
        trainer.train()
    use_objective(trainer, "dft").train()


def test_an_auxiliary_loss_is_refused(model: nn.Module) -> None:
    use_objective(model, "otr")
    with pytest.raises(ValueError, match="router_aux_loss_coef"):
        model(**padded(), output_router_logits=True)
