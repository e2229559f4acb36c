"""TRL as a contender of the training benchmark, and the ways to prepare a corpus for it.

SFTTrainer gets the same packed rows as we do, in the same order, and its fastest settings for the
machine: no gradient checkpointing, no evaluation, no saving, no logging, the fused AdamW. Packing
"bfd" makes it padding-free. Without flash attention, transformers then isolates the examples by a
mask over the square of all tokens of a forward pass. So one row per forward pass may be faster, and
is a contender of its own.
"""

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import otr
from otr import ModelConfig
from tests.benchmarks.train_data import BASE, Case, make_model, make_rows
from tests.benchmarks.train_turns import Turns


def train(turns: Turns, micro_batch_size: int) -> None:
    from trl import SFTTrainer

    case = turns.case
    rows = make_rows(case)
    model = make_model(case, attention(case.device))
    turns.count(model, rows)
    with tempfile.TemporaryDirectory() as directory:
        SFTTrainer(
            model=model,
            args=settings(case, micro_batch_size, directory),
            train_dataset=as_dataset(rows),
            processing_class=otr.load_tokenizer(ModelConfig(BASE)),
            callbacks=[_callback(turns)],
        ).train()


def attention(device: str) -> str:
    """Return the fastest attention that isolates packed examples."""
    from transformers.utils import is_flash_attn_2_available

    return "flash_attention_2" if device == "cuda" and is_flash_attn_2_available() else "sdpa"


def settings(case: Case, micro_batch_size: int, directory: str) -> Any:
    from trl import SFTConfig

    return SFTConfig(
        output_dir=directory,
        loss_type="nll",  # in chunks of the vocabulary, without full logits
        packing=True,
        packing_strategy="bfd",
        max_length=case.sequence_length,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="sequential",
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=case.global_batch_size // micro_batch_size,
        max_steps=case.steps,
        gradient_checkpointing=False,
        use_cpu=case.device == "cpu",
        bf16=case.dtype == "bfloat16",
        dataloader_pin_memory=case.device != "cpu",
        optim="adamw_torch_fused",
        learning_rate=1e-5,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        logging_first_step=True,
        logging_steps=10**6,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def as_dataset(rows: dict[str, np.ndarray]) -> Any:
    """Return our rows as `trl.pack_dataset` would have made them."""
    from datasets import Dataset

    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "seq_lengths": []}
    for ids, mask, segments in zip(*(rows[name] for name in rows), strict=True):
        real = segments > 0
        columns["input_ids"].append(ids[real].tolist())
        columns["labels"].append(np.where(mask, ids, otr.IGNORE_INDEX)[real].tolist())
        columns["seq_lengths"].append(np.unique(segments[real], return_counts=True)[1].tolist())
    return Dataset.from_dict(columns)


def _callback(turns: Turns) -> Any:
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_train_begin(self, *args: Any, **more: Any) -> None:
            turns.begin()

        def on_step_end(self, *args: Any, **more: Any) -> None:
            turns.end()

        def on_log(self, *args: Any, logs: dict[str, float], **more: Any) -> None:
            if turns.loss is None:
                turns.loss = logs["loss"]

    return Steps()


def prepare(directory: Path, sequence_length: int, processes: int, cache: str) -> Any:
    """Prepare a data set of conversations as SFTTrainer does, example by example."""
    from trl import SFTConfig, SFTTrainer

    tokenizer = otr.load_tokenizer(ModelConfig(BASE))
    trainer = SimpleNamespace(_tokenizer=tokenizer, completion_only_loss=True, chat_template=None)
    args = SFTConfig(
        output_dir=cache,
        max_length=sequence_length,
        dataset_num_proc=processes,
        use_cpu=True,
        bf16=False,
    )
    corpus = _loaded(directory / "chat", processes, cache)
    return SFTTrainer._prepare_dataset(trainer, corpus, tokenizer, args, True, None, "train")


def prepare_batched(directory: Path, sequence_length: int, processes: int, cache: str) -> Any:
    """Prepare the same in one pass over batches, the fast way to write it by hand."""
    from trl import pack_dataset

    tokenizer = otr.load_tokenizer(ModelConfig(BASE))

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        asked = batch["prompt"]
        whole = [a + b for a, b in zip(asked, batch["completion"], strict=True)]
        asked = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(whole, tokenize=False)
        begun = tokenizer(asked, add_special_tokens=False)["input_ids"]
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        pairs = zip(ids, map(len, begun), strict=True)
        return {"input_ids": ids, "labels": [[-100] * n + some[n:] for some, n in pairs]}

    corpus = _loaded(directory / "chat", processes, cache)
    together = {"num_proc": processes}
    done = corpus.map(encode, batched=True, remove_columns=corpus.column_names, **together)
    return pack_dataset(done, sequence_length, "bfd", together)


def _loaded(directory: Path, processes: int, cache: str) -> Any:
    from datasets import load_dataset

    files = sorted(map(str, directory.glob("*.jsonl")))
    return load_dataset(
        "json", data_files=files, split="train", cache_dir=cache, num_proc=processes
    )
