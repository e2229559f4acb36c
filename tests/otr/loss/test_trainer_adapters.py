"""The documented `compute_loss_func` works in the trainers of transformers and TRL."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import set_seed
from trl import SFTConfig, SFTTrainer

from otr import ModelConfig, Objective, linear_token_loss, load_model, load_tokenizer
from otr.models.layout import Layout
from otr.models.parts import head, hidden_states
from tests.assets.tiny import make_tiny_model
from tests.otr import trainers
from tests.otr.trainers import LR

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "own-trainer.md"
STEPS, ROWS, LENGTH = 2, 3, 24
SETTINGS = trainers.SETTINGS | {
    "max_steps": STEPS,
    "per_device_train_batch_size": ROWS,
    "gradient_accumulation_steps": 1,
    "remove_unused_columns": False,
    "data_seed": 0,
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapter() -> Callable[..., Any]:
    [source] = [
        block
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
        if "compute_loss_func" in block
    ]
    names: dict[str, Any] = {}
    exec(source, names)
    return names["one_token_rollout"]


def rows() -> list[dict[str, list[int]]]:
    """Return examples; every step has all of them, so that their order does not matter."""
    tokens = torch.randint(5, 250, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": r.tolist(), "labels": [-100] * 6 + r.tolist()[6:]} for r in tokens]


def collate(examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Collate in a fixed order, which gives each example the same draws."""
    ordered = sorted(examples, key=lambda example: example["input_ids"])
    batch = {key: torch.tensor([e[key] for e in ordered]) for key in ("input_ids", "labels")}
    return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}


def weights_by_our_loss(
    model_dir: Path, objective: Objective, seed: int
) -> dict[str, torch.Tensor]:
    """Return the weights after the same steps of gradient descent on our own loss."""
    batch = collate(rows())
    model = load_model(ModelConfig(str(model_dir)))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        ids_BS = batch["input_ids"]
        hidden_BSD = hidden_states(model, ids_BS, Layout.of(torch.ones_like(ids_BS))).unflatten(
            0, ids_BS.shape
        )
        out = linear_token_loss(
            hidden_BSD[:, :-1].flatten(0, 1),
            head(model).weight,
            batch["labels"][:, 1:].flatten(),
            objective,
            generator=generator,
        )
        model.zero_grad()
        (out.loss_sum / out.num_tokens).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= LR * parameter.grad
    return dict(model.state_dict())


OBJECTIVES = [Objective("sft"), Objective("dft"), Objective(num_samples=16)]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.name)
@pytest.mark.parametrize("kind", ["transformers", "trl"])
def test_two_steps_of_another_trainer_equal_ours(
    kind: str, objective: Objective, model_dir: Path, adapter: Callable[..., Any], tmp_path: Path
) -> None:
    set_seed(0)
    config = ModelConfig(str(model_dir))
    common: dict[str, Any] = {
        "model": load_model(config),
        "train_dataset": Dataset.from_list(rows()),
        "data_collator": collate,
        "compute_loss_func": adapter(objective, seed=5),
    }
    if kind == "trl":
        arguments = SFTConfig(
            str(tmp_path),
            **SETTINGS,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        trainer: Trainer = SFTTrainer(
            args=arguments, processing_class=load_tokenizer(config), **common
        )
    else:
        trainer = Trainer(args=TrainingArguments(str(tmp_path), **SETTINGS), **common)
    trainer.train()
    theirs = trainer.model.state_dict()
    start = load_model(config).state_dict()
    for name, weight in weights_by_our_loss(model_dir, objective, seed=5).items():
        torch.testing.assert_close(theirs[name] - start[name], weight - start[name])
