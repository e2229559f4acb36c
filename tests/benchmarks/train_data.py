"""Models, packed rows and corpora of the training benchmark, all made from fixed seeds.

Every contender takes the packed rows (see `otr.data`) in the same order.

Shapes: N packed rows, S sequence length.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch

import otr
from otr import DataConfig, ModelConfig, Objective, TrainConfig, Workers

BASE = str(Path(__file__).resolve().parents[2] / "pipelines" / "builtin" / "base")
OTR = Objective("otr", num_samples=256, mismatch_reward=-0.1, temperature=1.3)
SFT = Objective("sft")
ROLES = ("user", "assistant")
MEGABYTE = 10**6

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2}
    | {
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 128,
    },
    # Narrow and shallow, with a large vocabulary: the head does nearly all the work.
    "wide": {"vocab_size": 151936, "hidden_size": 512, "num_hidden_layers": 4}
    | {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "intermediate_size": 1536,
    },
    # As Qwen3-0.6B.
    "medium": {"vocab_size": 151936, "hidden_size": 1024, "num_hidden_layers": 28}
    | {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    | {"intermediate_size": 3072},
    # As Qwen3-1.7B.
    "large": {"vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 28}
    | {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    | {"intermediate_size": 6144},
}
"""Qwen3 with random weights and tied embeddings. `base` is the built-in pretrained model."""


@dataclass(frozen=True)
class Case:
    """Training that all contenders of a comparison do."""

    model: str
    """base, or one of SHAPES."""
    sequence_length: int
    global_batch_size: int
    """Packed rows per optimizer step."""
    micro_batch_size: int
    """Packed rows per forward pass; a contender may take fewer."""
    steps: int
    device: str = "cpu"
    dtype: str = "float32"

    def config(self, objective: Objective, ranks: int = 1) -> TrainConfig:
        """Return a config with one step too many, so that no step includes the end of a run."""
        return TrainConfig(
            model=ModelConfig(BASE, dtype=self.dtype),
            data=DataConfig(("-",), sequence_length=self.sequence_length),
            objective=objective,
            workers=Workers(ranks),
            max_steps=self.steps + 1,
            global_batch_size=self.global_batch_size,
            micro_batch_size=min(self.micro_batch_size, self.global_batch_size // ranks),
            log_interval=1,
        )


def make_model(case: Case, attention: str) -> torch.nn.Module:
    """Return the model in float32 on the case's device, with the same weights each time."""
    from otr.models.attention import PACKED, register

    register()
    if case.model == "base":
        return otr.load_model(ModelConfig(BASE, attention=attention)).to(case.device)
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(**SHAPES[case.model], tie_word_embeddings=True)
    torch.manual_seed(0)
    with torch.device(case.device):
        return AutoModelForCausalLM.from_config(
            config,
            dtype=torch.float32,
            attn_implementation=PACKED if attention == "auto" else attention,
        )


def make_rows(case: Case) -> dict[str, np.ndarray]:
    """Return the packed rows of all steps; a small corpus is repeated."""
    from otr.data import pack

    wanted = case.global_batch_size * case.steps
    columns = pack(list(_examples(case, wanted * case.sequence_length)), case.sequence_length)
    count = len(columns["input_ids"])
    # Shuffle: packing starts with the longest examples and ends with the emptiest rows.
    order = np.resize(np.random.default_rng(0).permutation(count), wanted)
    return {name: column[order] for name, column in columns.items()}


def _examples(case: Case, tokens: int) -> Iterator[tuple[list[int], list[bool]]]:
    """Yield examples with about `tokens` tokens in all."""
    source = _texts() if case.model == "base" else _random(case)
    for ids, mask in source:
        yield ids, mask
        tokens -= len(ids)
        if tokens <= 0:
            return


def _texts() -> Iterator[tuple[list[int], list[bool]]]:
    """Yield the examples of the built-in corpus."""
    from otr.data import encode, messages_of

    tokenizer = otr.load_tokenizer(ModelConfig(BASE))
    for row in corpus_rows():
        yield encode(messages_of(row, {}), tokenizer, 10**6)


def _random(case: Case) -> Iterator[tuple[list[int], list[bool]]]:
    """Yield examples of log-normal length, 60 % of it trained; for `large`, whole trained rows."""
    order = np.random.default_rng(0)
    while True:
        length, prompt = case.sequence_length, 0
        if case.model != "large":
            length = int(np.clip(order.lognormal(5.0, 0.8), 16, case.sequence_length))
            prompt = int(0.4 * length)
        ids = order.integers(SHAPES[case.model]["vocab_size"], size=length).tolist()
        yield ids, [False] * prompt + [True] * (length - prompt)


def corpus_rows() -> list[dict[str, str]]:
    """Return the records of the built-in training corpus."""
    from pipelines.builtin.corpus import TARGET
    from pipelines.builtin.world import items

    drawn = items(TARGET, "train", 6000)
    return [{"prompt": item.prompt, "completion": item.completion} for item in drawn]


def write_corpus(directory: Path, megabytes: float, files: int = 8) -> int:
    """Write the built-in corpus repeatedly, up to a size; return the number of examples.

    `plain/` has the records as they are, `chat/` the same ones as TRL's conversations. There are
    several files so that as many processes can read a small corpus as a large one.
    """
    rows = corpus_rows()
    random.Random(0).shuffle(rows)
    source, count = cycle(rows), 0
    for form in ("plain", "chat"):
        (directory / form).mkdir(parents=True, exist_ok=True)
    for number in range(files):
        left = megabytes * MEGABYTE / files
        name = f"{number}.jsonl"
        with (
            (directory / "plain" / name).open("w") as plain,
            (directory / "chat" / name).open("w") as chat,
        ):
            while left > 0:
                row = next(source)
                count += 1
                left -= plain.write(json.dumps(row) + "\n")
                turns = zip(ROLES, row.items(), strict=True)
                both = {key: [{"role": role, "content": text}] for role, (key, text) in turns}
                chat.write(json.dumps(both) + "\n")
    return count
