"""A tiny model, its examples and trainers of transformers and TRL, for the tests with them."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from otr import IGNORE_INDEX, ModelConfig, load_tokenizer

LENGTHS = (24, 17, 20, 9)
LR = 0.1
SETTINGS: dict[str, Any] = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": LR,
    "lr_scheduler_type": "constant",
    "optim": "sgd",
    "max_grad_norm": 0.0,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "logging_steps": 1,
    "disable_tqdm": True,
    "gradient_checkpointing": False,
}
Batch = dict[str, Tensor]


def load(model_dir: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).train()


def examples() -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(1)
    tokens = [torch.randint(5, 250, (n,), generator=generator).tolist() for n in LENGTHS]
    return [{"input_ids": ids, "labels": [-100] * 6 + ids[6:]} for ids in tokens]


def padded(rows: list[dict[str, list[int]]] | None = None) -> Batch:
    rows = examples() if rows is None else rows
    length = max(len(row["input_ids"]) for row in rows)

    def column(name: str, fill: int) -> Tensor:
        return torch.tensor([row[name] + [fill] * (length - len(row[name])) for row in rows])

    mask = [[1] * len(row["input_ids"]) + [0] * (length - len(row["input_ids"])) for row in rows]
    return {
        "input_ids": column("input_ids", 0),
        "labels": column("labels", IGNORE_INDEX),
        "attention_mask": torch.tensor(mask),
    }


def make_trainer(
    kind: str, model: nn.Module, directory: Path, *, lora: bool = False, **settings: Any
) -> Trainer:
    """Return a trainer whose steps have all examples in an order of their own."""
    rows = Dataset.from_list(examples())
    callbacks = settings.pop("callbacks", None)
    common: dict[str, Any] = {"model": model, "train_dataset": rows, "callbacks": callbacks}
    if kind == "trl":
        from trl import SFTConfig, SFTTrainer  # slow to import, in each rank too

        config = SFTConfig(
            str(directory),
            **SETTINGS | {"dataset_kwargs": {"skip_prepare_dataset": True}} | settings,
        )
        tokenizer = load_tokenizer(ModelConfig(model.config._name_or_path))
        peft = LoraConfig(target_modules=["q_proj"], init_lora_weights=False) if lora else None
        return SFTTrainer(args=config, processing_class=tokenizer, peft_config=peft, **common)
    return Trainer(
        args=TrainingArguments(str(directory), **SETTINGS | settings),
        data_collator=padded,
        **common,
    )
