"""What a training run is: frozen dataclasses, checked when they are made."""

import math
from dataclasses import dataclass, field
from typing import Literal

from otr._deprecated import renamed_arguments
from otr.loss.objective import Objective

RENAMED = {
    "data.row_length": "data.sequence_length",
    "step_rows": "global_batch_size",
    "micro_rows": "micro_batch_size",
    "log_every": "log_interval",
    "eval_every": "eval_interval",
    "save_every": "checkpoint_interval",
}
"""Dotted keys of `TrainConfig` by their old names, which are read for one more release."""


@dataclass(frozen=True)
class ModelConfig:
    """Which model to start from."""

    path: str
    """Hugging Face directory or hub name, with a tokenizer and a chat template."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the forward and backward pass; the weights that are trained stay float32."""
    trust_remote_code: bool = False
    attention: str = "auto"
    """``auto``: ours, without padding, where the model can take it; or one of transformers'
    (``sdpa``, ``flash_attention_2``, ``flex_attention``, ``eager``), on padded rows."""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (arXiv:2106.09685) instead of all weights."""

    rank: int = 0
    """Of each adapter; 0 trains the whole model."""
    alpha: float = 32.0
    """An adapter's product is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Ends of the names of the linear layers that get one; empty: all but the head."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"lora.rank is {self.rank}: use 0 (the whole model) or more")
        if not self.alpha > 0:
            raise ValueError(f"lora.alpha is {self.alpha}: use a number > 0")


@dataclass(frozen=True)
class MemoryConfig:
    """How a run fits on its devices; none of it changes what is learned."""

    strategy: Literal["auto", "single", "ddp", "fsdp", "fsdp_offload"] = "auto"
    """``ddp``: the whole model on every worker; ``fsdp``: a share of it, fetched layer by layer
    (FSDP2); ``fsdp_offload``: that share in host memory. ``auto``: the first that fits."""
    gradient_checkpointing: bool = False
    """Compute each layer's activations a second time instead of keeping them."""
    compile: bool = False
    """Each decoder layer by torch.compile; pays on a GPU, on long runs."""


@renamed_arguments(row_length="sequence_length")
@dataclass(frozen=True)
class DataConfig:
    """Which examples to train on, and how they become rows."""

    paths: tuple[str, ...]
    """JSONL or Parquet files, globs or directories (plain, gz, zst), or ``hf:NAME``."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our name to the corpus's: messages | prompt, completion | instruction, input, output."""
    validation: tuple[str, ...] = ()
    """The same for examples that are only measured on."""
    split: str = "train"
    """Of a Hugging Face data set."""
    sequence_length: int = 1024
    """S, tokens per packed row; no example may be longer."""
    max_rejected: float = 0.05
    """Share of examples that may be unusable."""
    skip_bad: bool = False
    """Leave out and count what would end the run: files that can't be read, and steps whose loss
    or gradient is not finite."""

    def __post_init__(self) -> None:
        if not self.paths:
            raise ValueError("data.paths is empty: name a file, a directory or hf:NAME")
        if self.sequence_length < 8:
            raise ValueError(f"data.sequence_length is {self.sequence_length}: use at least 8")
        if not 0 <= self.max_rejected <= 1:
            raise ValueError(f"data.max_rejected is {self.max_rejected}: use 0 to 1")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay."""

    lr: float = 1e-5
    warmup_steps: int = 10
    final_lr: float = 0.1
    """As a share of `lr`."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"optim.lr is {self.lr}: use a number > 0")
        if self.warmup_steps < 0:
            raise ValueError(f"optim.warmup_steps is {self.warmup_steps}: use 0 or more")
        if not 0 <= self.final_lr <= 1:
            raise ValueError(f"optim.final_lr is {self.final_lr}: use 0 to 1, a share of optim.lr")
        if not self.weight_decay >= 0:
            raise ValueError(f"optim.weight_decay is {self.weight_decay}: use 0 or more")
        if not self.max_grad_norm > 0:
            raise ValueError(f"optim.max_grad_norm is {self.max_grad_norm}: use a number > 0")


@dataclass(frozen=True)
class Workers:
    """The processes that train together."""

    count: int = 1
    cpus: float = 1
    gpus: float = 0
    """Each; 0 trains on the CPU."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"workers.count is {self.count}: use at least 1")
        if not self.cpus > 0:
            raise ValueError(f"workers.cpus is {self.cpus}: use a number > 0")
        if not self.gpus >= 0:
            raise ValueError(f"workers.gpus is {self.gpus}: use 0 (the CPU) or more")


@renamed_arguments(**{old: new for old, new in RENAMED.items() if "." not in old})
@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    model: ModelConfig
    data: DataConfig
    objective: Objective = field(default_factory=Objective)
    optim: OptimConfig = field(default_factory=OptimConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    workers: Workers = field(default_factory=Workers)
    max_steps: int = 100
    global_batch_size: int = 32
    """Packed rows per optimiser step, over all workers and accumulated micro-batches."""
    micro_batch_size: int = 32
    """Packed rows per forward pass of one worker."""
    log_interval: int = 10
    """Steps between reports of metrics."""
    eval_interval: int = 50
    """Steps between evaluations on `data.validation`."""
    checkpoint_interval: int = 0
    """Steps between checkpoints; 0: only the last one."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}: use at least 1")
        if self.log_interval < 1:
            raise ValueError(f"log_interval is {self.log_interval}: use at least 1")
        if self.eval_interval < 1:
            raise ValueError(
                f"eval_interval is {self.eval_interval}: use at least 1; the last step always "
                "measures, and an empty data.validation never"
            )
        if self.checkpoint_interval < 0:
            raise ValueError(
                f"checkpoint_interval is {self.checkpoint_interval}: use 0 (only the last step) or "
                "more"
            )
        rows = self.micro_batch_size * self.workers.count
        if self.micro_batch_size < 1 or self.global_batch_size < 1 or self.global_batch_size % rows:
            each = self.global_batch_size // self.workers.count
            even = each > 0 and each * self.workers.count == self.global_batch_size
            raise ValueError(
                f"global_batch_size is {self.global_batch_size}: use a multiple of "
                f"micro_batch_size x workers.count = {self.micro_batch_size} x {self.workers.count}"
                + (f", or micro_batch_size {math.gcd(self.micro_batch_size, each)}" if even else "")
            )
        if self.memory.strategy == "single" and self.workers.count > 1:
            raise ValueError(
                f"memory.strategy is 'single' with {self.workers.count} workers: use 'ddp' or "
                "'fsdp', or workers.count 1"
            )

    @property
    def accumulation(self) -> int:
        """Forward passes of one worker in an optimiser step."""
        return self.global_batch_size // (self.micro_batch_size * self.workers.count)
