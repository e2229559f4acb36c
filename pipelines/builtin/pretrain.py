"""Train the built-in base model: a tokenizer, then two stages of supervised training on the world.

The output is a Hugging Face directory (Qwen3 architecture, 1.4 M parameters) with its training
metrics in `pretrain.jsonl`. The first stage teaches every skill except the target. The second mixes
in some of the target, so that the model sometimes solves it: one-token rollout needs a base model
that does.

    python -m pipelines.builtin.pretrain DIRECTORY
"""

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from otr.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from otr.data import pack, tokenize
from otr.loop.batch import Batch
from otr.loop.checkpoint import Snapshot
from otr.loop.loop import train
from otr.loss.objective import Objective
from pipelines.builtin.corpus import TARGET
from pipelines.builtin.world import SKILLS, items

_SEQUENCE_LENGTH = 256
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Pretrain:
    """Settings of the base model's training."""

    output: tyro.conf.Positional[Path]
    """Directory to create."""
    steps: int = 6000
    """Optimizer steps of the first stage."""
    taste_steps: int = 80
    """Optimizer steps of the second stage."""
    taste_share: float = 0.3
    """Share of the second stage's examples that are of the target skill."""
    global_batch_size: int = 8
    """Packed rows per optimizer step."""
    lr: float = 2e-3
    """Learning rate of the first stage."""
    taste_lr: float = 3e-4
    """Learning rate of the second stage."""
    seed: int = 0
    """Seed of the weights and of the data."""


@dataclass(frozen=True)
class _Stage:
    target_share: float
    steps: int
    optim: OptimConfig


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of 1,024 tokens that splits digits; add a ChatML template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special[1:2],
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """Return the untrained model."""
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=1024,
            hidden_size=160,
            intermediate_size=432,
            num_hidden_layers=4,
            num_attention_heads=5,
            num_key_value_heads=5,
            head_dim=32,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def batches(
    tokenizer: PreTrainedTokenizerFast, rows: int, target_share: float, seed: int
) -> Iterator[Batch]:
    """Yield batches of `rows` packed rows without end; `target_share` of the examples is target."""
    rng = random.Random(seed)
    others = [s for s in SKILLS if s != TARGET]
    weights = {s: (1 - target_share) / len(others) for s in others} | {TARGET: target_share}
    for block in range(2**31):
        chosen = rng.choices(list(weights), list(weights.values()), k=1000)
        examples = [
            {"prompt": item.prompt, "completion": item.completion}
            for skill in dict.fromkeys(chosen)
            for item in items(skill, "train", chosen.count(skill), seed=seed * 2**31 + block)
        ]
        tokenized = tokenize(examples, tokenizer, columns={}, sequence_length=_SEQUENCE_LENGTH)
        assert not tokenized.rejected, tokenized.rejected[0]
        columns = pack(tokenized.examples, _SEQUENCE_LENGTH)
        packed = {k: torch.from_numpy(v) for k, v in columns.items()}
        shuffle = torch.Generator().manual_seed(block)
        order = torch.randperm(len(packed["input_ids"]), generator=shuffle)
        for part in order.split(rows):
            if len(part) == rows:
                yield {k: v[part] for k, v in packed.items()}


def pretrain(config: Pretrain) -> None:
    """Train the model and write its directory.

    Raises:
        ValueError: the directory exists.
    """
    if config.output.exists():
        raise ValueError(f"{config.output} exists: name another directory or remove it")
    log = config.output.with_name(config.output.name + ".log")
    log.mkdir(parents=True)
    sample = [i for s in SKILLS for i in items(s, "train", 500, seed=config.seed)]
    tokenizer = make_tokenizer([text for i in sample for text in (i.prompt, i.completion)])
    model = make_model(tokenizer, config.seed)
    stages = (
        _Stage(0.0, config.steps, OptimConfig(config.lr, warmup_steps=100, final_lr=0.02)),
        _Stage(config.taste_share, config.taste_steps, OptimConfig(config.taste_lr, final_lr=0.02)),
    )
    with (log / "pretrain.jsonl").open("w") as metrics_file:
        for number, stage in enumerate(stages):

            def report(metrics: dict[str, float], _: Snapshot | None, number: int = number) -> None:
                print(json.dumps({"stage": number} | metrics), file=metrics_file, flush=True)

            train(
                model,
                batches(
                    tokenizer,
                    config.global_batch_size,
                    stage.target_share,
                    seed=config.seed + number,
                ),
                TrainConfig(
                    model=ModelConfig(str(config.output)),
                    data=DataConfig(("built-in world",), sequence_length=_SEQUENCE_LENGTH),
                    objective=Objective("sft"),
                    optim=stage.optim,
                    max_steps=stage.steps,
                    global_batch_size=config.global_batch_size,
                    micro_batch_size=config.global_batch_size,
                    log_interval=50,
                    seed=config.seed,
                ),
                report,
            )
            model.save_pretrained(log / f"stage-{number}")
            tokenizer.save_pretrained(log / f"stage-{number}")
    model.bfloat16().save_pretrained(log / "base")
    tokenizer.save_pretrained(log / "base")
    shutil.copy(log / "pretrain.jsonl", log / "base")
    (log / "base").rename(config.output)


if __name__ == "__main__":
    pretrain(tyro.cli(Pretrain))
