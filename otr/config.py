"""The configuration of a training run: frozen dataclasses that validate themselves.

The docstrings of the fields are the help texts of the command-line options.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, get_type_hints

from otr._deprecated import renamed_arguments
from otr.hints import repeated
from otr.loss.objective import Objective, setting_types

MOST_SOURCES = 16
"""Most paths with weights: the largest of more could get less than rounding takes from it."""
_WEIGHT = re.compile(r"@(\d+(?:\.\d*)?|\.\d+)$")
RENAMED = {
    "data.row_length": "data.sequence_length",
    "step_rows": "global_batch_size",
    "micro_rows": "micro_batch_size",
    "log_every": "log_interval",
    "eval_every": "eval_interval",
    "save_every": "checkpoint_interval",
}
"""Old dotted keys of `TrainConfig` and their new names; the old ones are accepted until 0.3."""


def types_of(config: Any) -> dict[str, Any]:
    """Return the types of a configuration's fields; those of `Objective` are all objectives'."""
    if issubclass(config, Objective):
        return setting_types()
    hints = get_type_hints(config)
    return {each.name: hints[each.name] for each in fields(config)}


def keys_of(config: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a configuration's fields, and of those of its parts."""
    for name, kind in types_of(config).items():
        yield f"{prefix}{name}"
        if is_dataclass(kind):
            yield from keys_of(kind, f"{prefix}{name}.")


@dataclass(frozen=True)
class ModelConfig:
    """The model that training starts from."""

    path: str
    """Hugging Face checkpoint directory or hub name of a causal language model with a
    tokenizer."""
    chat_template: str = ""
    """Chat template in place of the model's own: a file, the name of one that otr has (`chatml`,
    `plain`), or Jinja text. Checkpoints keep it. Empty: the model's own."""
    chat_template_args: dict[str, str] = field(default_factory=dict, hash=False)
    """Arguments of the chat template, such as enable_thinking=false. Values are JSON, or else text.
    Checkpoints keep them as defaults of their template."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward and backward passes. Trained weights and optimizer state are always
    float32."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off by default: the code is not sandboxed."""
    attention: str = "auto"
    """Attention implementation. `auto`: packed attention without padding if the model supports it.
    `sdpa`, `flash_attention_2`, `flex_attention`, `eager`: transformers' own, on padded rows."""
    add_tokens: str = ""
    """File with tokens to add to the vocabulary, one per line. Their embeddings begin as the mean
    of all others and are trained. Can't be combined with LoRA."""

    def __post_init__(self) -> None:
        # A recipe or a call may give values as they are, such as False.
        texts = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in self.chat_template_args.items()
        }
        object.__setattr__(self, "chat_template_args", texts)

    @property
    def changes_template(self) -> bool:
        """Whether the chat template is not simply the model's own."""
        return bool(self.chat_template or self.chat_template_args)


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters, trained instead of all weights (arXiv:2106.09685)."""

    rank: int = 0
    """Rank of each adapter. 0 trains all weights without adapters."""
    alpha: float = 32.0
    """Scale of the adapters: an adapter's product is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Linear layers that get an adapter, by the ends of their names, such as `q_proj`. Empty: all
    linear layers except the head."""
    rs: bool = False
    """Scale by alpha / sqrt(rank) instead, so that high ranks learn as fast as low ones (rsLoRA,
    arXiv:2312.03732)."""
    dora: bool = False
    """Train the length of each row of a weight matrix, and adapt only its direction (DoRA,
    arXiv:2402.09353). Slower than LoRA."""
    modules_to_save: tuple[str, ...] = ()
    """Modules that are trained and saved as a whole beside the adapters, by the ends of their
    names, such as `embed_tokens` or `lm_head`. If the model's embeddings are tied to its head,
    either of the two names stands for both."""
    quantize: Literal["none", "nf4"] = "none"
    """Data type of the frozen linear layers except the head. `nf4`: 4 bits per weight (QLoRA,
    arXiv:2305.14314), an eighth of the memory; needs the package bitsandbytes. `none`: the same
    data type as the other weights."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"lora.rank is {self.rank}: use 0 (the whole model) or more")
        if not self.alpha > 0:
            raise ValueError(f"lora.alpha is {self.alpha}: use a number > 0")
        if self.quantize not in ("none", "nf4"):
            raise ValueError(f"lora.quantize is {self.quantize!r}: use 'none' or 'nf4'")
        given = {
            "targets": self.targets,
            "rs": self.rs,
            "dora": self.dora,
            "modules_to_save": self.modules_to_save,
            "quantize": self.quantize != "none",
        }
        unused = [name for name, value in given.items() if value]
        if unused and not self.rank:
            raise ValueError(
                f"lora.{unused[0]} is {getattr(self, unused[0])!r}, but there are no adapters: "
                "give a lora.rank above 0, such as 16"
            )
        both = [name for name in self.modules_to_save if name in self.targets]
        if both:
            raise ValueError(
                f"lora.modules_to_save: {both[0]!r} is trained as a whole and gets no adapter: "
                "remove it from lora.targets"
            )

    @property
    def method(self) -> str:
        """Name of the method: `LoRA`, `rsLoRA`, `DoRA`, `QLoRA` and so on, or `all weights`."""
        if not self.rank:
            return "all weights"
        scaled = f"{'rs' if self.rs else ''}{'DoRA' if self.dora else 'LoRA'}"
        return f"Q{scaled}" if self.quantize != "none" else scaled


@dataclass(frozen=True)
class MemoryConfig:
    """How a run fits into memory; nothing here changes what is learned."""

    strategy: Literal["auto", "single", "ddp", "fsdp", "fsdp_offload"] = "auto"
    """How workers share the model. `single`: one worker. `ddp`: the whole model on each worker.
    `fsdp`: a shard of it on each worker, gathered layer by layer (FSDP2). `fsdp_offload`: the same,
    with the shards in host memory. `auto`: the first of these that should fit."""
    gradient_checkpointing: bool = False
    """Recompute each layer's activations in the backward pass instead of storing them: less memory,
    more time."""
    compile: bool = False
    """Compile each decoder layer with torch.compile. Pays off on a GPU, in long runs."""


@renamed_arguments(row_length="sequence_length")
@dataclass(frozen=True)
class DataConfig:
    """The training and validation examples, and how they are packed."""

    paths: tuple[str, ...]
    """Training data: JSON, CSV, TSV (plain, gz, zst), Parquet or Arrow files, glob patterns,
    directories, object-store URLs, or `hf:NAME[:CONFIG[:SPLIT]]` for a Hugging Face data set. With
    `@WEIGHT` at the end of each, as in a.jsonl@0.3 b.jsonl@0.7, they are mixed in these shares."""
    columns: dict[str, str] = field(default_factory=dict)
    """Columns of the data whose names differ from those that otr reads: otr's name, then the name
    in the data. otr reads messages, or prompt and completion, or instruction, input and output, or
    text."""
    train_on: Literal["assistant", "last", "all"] = "assistant"
    """Tokens of a conversation that are trained. `assistant`: those of each answer, and the token
    that ends it. `last`: those of the last answer. `all`: all tokens. Data in the form `text` is
    always trained as a whole."""
    validation: tuple[str, ...] = ()
    """Validation data, in the same forms as the training data; of directories and data sets, the
    split `validation` is read. It is never trained on. Empty: no evaluation."""
    split: str = "train"
    """Split to read from each Hugging Face data set, and from each directory whose file names tell
    splits."""
    sequence_length: int = 1024
    """Tokens per packed row. `over_long` says what becomes of a longer example."""
    over_long: Literal["reject", "truncate_end", "truncate_start", "split"] = "reject"
    """What becomes of an example that is longer than a packed row. `reject`: it is counted and not
    used. `truncate_end`, `truncate_start`: tokens are cut off there; an example that would have no
    trained token left is rejected. `split`: a conversation is cut before questions, and each part
    gets the system message; a text is cut anywhere."""
    max_rejected: float = 0.05
    """Largest share of records that may be rejected as unusable, 0 to 1; above it the run fails. It
    also fails if all records of one path are rejected, unless this is 1."""
    skip_bad: bool = False
    """Skip and count what would otherwise end the run: unreadable files, and steps whose loss or
    gradient is not finite."""
    weights: tuple[float, ...] = ()
    """Share of each of the paths among the trained rows, which `@WEIGHT` sets too; they need not
    add up to 1. Empty: every row once per epoch."""

    def __post_init__(self) -> None:
        if not self.paths:
            raise ValueError("data.paths is empty: name a file, a directory or hf:NAME")
        if not all(map(str.strip, (*self.paths, *self.validation))):  # else the working directory
            raise ValueError("data has a path without a name: name a file, a directory or hf:NAME")
        self._take_weights()
        if self.sequence_length < 8:
            raise ValueError(f"data.sequence_length is {self.sequence_length}: use at least 8")
        if self.train_on not in ("assistant", "last", "all"):
            raise ValueError(
                f"data.train_on is {self.train_on!r}: use 'assistant', 'last' or 'all'"
            )
        if self.over_long not in ("reject", "truncate_end", "truncate_start", "split"):
            raise ValueError(
                f"data.over_long is {self.over_long!r}: use 'reject', 'truncate_end', "
                "'truncate_start' or 'split'"
            )
        if not 0 <= self.max_rejected <= 1:
            raise ValueError(f"data.max_rejected is {self.max_rejected}: use 0 to 1")

    @property
    def of_validation(self) -> "DataConfig":
        """The configuration that reads the validation data as training data is read."""
        return replace(self, paths=self.validation, weights=(), validation=(), split="validation")

    def _take_weights(self) -> None:
        """Move the weights from the ends of the paths to their field, and check them."""
        found = [_WEIGHT.search(path) for path in self.paths]
        if any(found):
            if not all(found):
                plain = next(p for p, each in zip(self.paths, found, strict=True) if not each)
                raise ValueError(
                    f"data.paths: {plain!r} has no weight: give each path one, or none"
                )
            weights = tuple(float(each[1]) for each in found if each)
            paths = tuple(path[: path.rindex("@")] for path in self.paths)
            object.__setattr__(self, "paths", paths)
            object.__setattr__(self, "weights", weights)
        if len(self.weights) > MOST_SOURCES:
            raise ValueError(
                f"data.weights has {len(self.weights)} values: use at most {MOST_SOURCES}, and "
                "join other paths in a directory or glob pattern"
            )
        if self.weights and len(self.weights) != len(self.paths):
            raise ValueError(
                f"data.weights has {len(self.weights)} values for {len(self.paths)} paths: give "
                "one for each"
            )
        twice = repeated(self.paths)
        if self.weights and twice:
            raise ValueError(f"data.paths: {twice[0]!r} has two weights: give it one")
        if not all(0 < weight < math.inf for weight in self.weights):
            raise ValueError(f"data.weights is {self.weights}: use numbers > 0")


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer, and the course of its learning rate: linear warm-up, then a schedule."""

    lr: float = 1e-5
    """Peak learning rate, reached at the end of the warm-up. `adafactor`: the largest change of a
    matrix per step, as a share of its size."""
    warmup_steps: int = 10
    """Optimizer steps of the linear warm-up. 0: none."""
    final_lr: float = 0.1
    """Learning rate at the end of the decay, as a share of the peak, 0 to 1. All schedules except
    `constant` use it."""
    weight_decay: float = 0.0
    """Decoupled weight decay. Applies to matrices, not to norms and biases."""
    max_grad_norm: float = 1.0
    """Largest norm of the gradient over all weights; larger gradients are scaled down to it."""
    optimizer: Literal["adamw", "adamw_8bit", "muon", "adafactor"] = "adamw"
    """`adamw`: 8 bytes of state per trained weight. `adamw_8bit`: the same in 2 bytes; needs the
    package bitsandbytes. `muon`: orthogonalized momentum for matrices, AdamW for embeddings, head
    and vectors. `adafactor`: one value of state per row and per column of a matrix. `adamw_8bit`
    and `adafactor` can't be sharded by fsdp."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's two moments, from 0 to below 1. `adamw`, `adamw_8bit` and the AdamW
    within `muon` use them."""
    eps: float = 1e-8
    """Term that AdamW adds to the denominator. The same optimizers use it as use the betas."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Learning rate after the warm-up. `cosine`, `linear`: it decays to `final_lr`. `constant`: it
    stays. `wsd`: it stays, and decays to `final_lr` in the last `decay_share` of the steps."""
    decay_share: float = 0.2
    """Share of the steps after the warm-up that the decay of `wsd` takes, above 0 to 1."""

    def __post_init__(self) -> None:
        self._check_optimizer()
        self._check_schedule()
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"optim.weight_decay is {self.weight_decay}: use 0 or more")
        if not self.max_grad_norm > 0:
            raise ValueError(f"optim.max_grad_norm is {self.max_grad_norm}: use a number > 0")

    def _check_schedule(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ValueError(f"optim.lr is {self.lr}: use a number > 0")
        if self.warmup_steps < 0:
            raise ValueError(f"optim.warmup_steps is {self.warmup_steps}: use 0 or more")
        if not 0 <= self.final_lr <= 1:
            raise ValueError(f"optim.final_lr is {self.final_lr}: use 0 to 1, a share of optim.lr")
        if self.schedule not in ("cosine", "linear", "constant", "wsd"):
            raise ValueError(
                f"optim.schedule is {self.schedule!r}: use 'cosine', 'linear', 'constant' or 'wsd'"
            )
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"optim.decay_share is {self.decay_share}: use more than 0, up to 1")

    def _check_optimizer(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))  # a recipe has a list
        if self.optimizer not in ("adamw", "adamw_8bit", "muon", "adafactor"):
            raise ValueError(
                f"optim.optimizer is {self.optimizer!r}: use 'adamw', 'adamw_8bit', 'muon' or "
                "'adafactor'"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas is {self.betas}: use two numbers from 0 to below 1")
        if not 0 < self.eps < math.inf:
            raise ValueError(f"optim.eps is {self.eps}: use a number > 0")

    @property
    def can_shard(self) -> bool:
        """Whether FSDP2 can shard the optimizer's state."""
        # bitsandbytes quantizes plain tensors; torch's Adafactor fails on FSDP2's (torch 2.13).
        return self.optimizer in ("adamw", "muon")


@dataclass(frozen=True)
class Workers:
    """The processes that train one model together."""

    count: int = 1
    """Number of worker processes that train one model together."""
    cpus: float = 1
    """CPU cores per worker; also its number of threads."""
    gpus: float = 0
    """GPUs per worker. 0 trains on the CPU."""
    min_count: int = 0
    """Fewest workers to go on with when hosts are lost: each start takes as many workers as fit on
    the cluster, up to `count`. The rows of a step stay the same. 0: always `count` workers; a start
    waits for them."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"workers.count is {self.count}: use at least 1")
        if not 0 <= self.min_count <= self.count:
            raise ValueError(
                f"workers.min_count is {self.min_count}: use 0 (always workers.count) to "
                f"{self.count}, which is workers.count"
            )
        if not self.cpus > 0:
            raise ValueError(f"workers.cpus is {self.cpus}: use a number > 0")
        if not self.gpus >= 0:
            raise ValueError(f"workers.gpus is {self.gpus}: use 0 (the CPU) or more")
        if self.gpus > 1 and self.gpus % 1:
            raise ValueError(
                f"workers.gpus is {self.gpus}: a worker gets part of one GPU, or a whole number of "
                "them"
            )


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
    """Optimizer steps of the whole run."""
    global_batch_size: int = 32
    """Packed rows per optimizer step, over all workers and accumulated micro-batches."""
    micro_batch_size: int = 32
    """Packed rows per forward pass of one worker. Fewer rows need less memory and leave the
    optimizer step unchanged."""
    log_interval: int = 10
    """Optimizer steps between reports of metrics."""
    eval_interval: int = 50
    """Optimizer steps between evaluations on the validation data. The last step always
    evaluates."""
    checkpoint_interval: int = 0
    """Optimizer steps between checkpoints. 0: checkpoints depend on `checkpoint_minutes` alone. The
    last step always writes one."""
    checkpoint_minutes: float = 15
    """Minutes between checkpoints, in addition to those that `checkpoint_interval` asks for. 0:
    none in addition."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the weights (with LoRA: of the adapter) in the last checkpoint. `bfloat16`
    halves their size and leaves out the optimizer's state: 2 bytes per weight instead of 12, but
    training can't go on from such a checkpoint. Earlier checkpoints are float32."""
    seed: int = 0
    """Seed of the data order, of the tokens that the objective samples, and of dropout."""
    kl_weight: float = 0.0
    """Factor of KL(base || model) in the loss of each trained token, which keeps the model near the
    one it started from; with the objective `dft` this is ASFT (arXiv:2509.23753), whose authors'
    code uses 0.1. It takes a second forward pass per micro-batch, and without LoRA the memory of a
    second, frozen model. 0: no such term."""
    freeze: tuple[str, ...] = ()
    """Glob patterns of the names of parameters that are not trained, such as model.embed_tokens.*
    or model.layers.[0-7].*; tied weights are one parameter. Empty: all are trained."""
    patience: int = 0
    """Evaluations without a lower val_nll after which training ends. 0: it never ends before
    `max_steps`."""
    deterministic: bool = False
    """On a GPU, compute the same bits whenever the run is repeated or resumed; this makes attention
    slower. Without it a repeated run has the same rows and draws, but may add numbers in another
    order, which rounds them differently. On a CPU all runs are deterministic."""

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}: use at least 1")
        if self.log_interval < 1:
            raise ValueError(f"log_interval is {self.log_interval}: use at least 1")
        if self.eval_interval < 1:
            raise ValueError(
                f"eval_interval is {self.eval_interval}: use at least 1; to turn evaluation "
                "off, leave data.validation empty"
            )
        if self.checkpoint_interval < 0:
            raise ValueError(
                f"checkpoint_interval is {self.checkpoint_interval}: use 0 (only the last step) or "
                "more"
            )
        if not 0 <= self.seed < 2**32:  # NumPy takes no negative one; torch multiplies it
            raise ValueError(f"seed is {self.seed}: use an integer from 0 to 2**32 - 1")
        if not self.checkpoint_minutes >= 0:
            raise ValueError(
                f"checkpoint_minutes is {self.checkpoint_minutes}: use 0 (none by time) or more"
            )
        if self.save_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"save_dtype is {self.save_dtype!r}: use 'float32' or 'bfloat16'")
        self._check_batch()
        self._check_sharing()
        self._check_learning()

    def _check_batch(self) -> None:
        rows = self.micro_batch_size * self.workers.count
        if self.micro_batch_size < 1 or self.global_batch_size < 1 or self.global_batch_size % rows:
            each = self.global_batch_size // self.workers.count
            even = each > 0 and each * self.workers.count == self.global_batch_size
            raise ValueError(
                f"global_batch_size is {self.global_batch_size}: use a multiple of "
                f"micro_batch_size x workers.count = {self.micro_batch_size} x {self.workers.count}"
                + (f", or micro_batch_size {math.gcd(self.micro_batch_size, each)}" if even else "")
            )
        fewest, most = self.workers.min_count or self.workers.count, self.workers.count
        rows = self.micro_batch_size * math.lcm(*range(fewest, most + 1))
        if self.global_batch_size % rows:
            raise ValueError(
                f"global_batch_size is {self.global_batch_size}: any number of workers from "
                f"workers.min_count {fewest} to workers.count {most} must divide it into passes of "
                f"micro_batch_size {self.micro_batch_size}: use a multiple of {rows}, or change "
                "one of these three"
            )

    def _check_sharing(self) -> None:
        if self.memory.strategy == "single" and self.workers.count > 1:
            raise ValueError(
                f"memory.strategy is 'single' with {self.workers.count} workers: use 'ddp' or "
                "'fsdp', or workers.count 1"
            )
        if self.lora.quantize != "none" and self.memory.strategy.startswith("fsdp"):
            raise ValueError(
                f"memory.strategy is {self.memory.strategy!r}, but a model in 4 bits can't be "
                "sharded: use 'ddp', or 'single' with one worker"
            )
        if self.memory.strategy.startswith("fsdp") and not self.optim.can_shard:
            raise ValueError(
                f"optim.optimizer is {self.optim.optimizer!r}, whose state can't be sharded, with "
                f"memory.strategy {self.memory.strategy!r}: use 'adamw' or 'muon', or the strategy "
                "'ddp' or 'single'"
            )

    def _check_learning(self) -> None:
        if not 0 <= self.kl_weight < math.inf:
            raise ValueError(f"kl_weight is {self.kl_weight}: use a number >= 0")
        if self.model.add_tokens and self.lora.rank:
            raise ValueError(
                "model.add_tokens with LoRA: the embeddings of new tokens would not be trained: "
                "leave one of them out"
            )
        object.__setattr__(self, "freeze", tuple(self.freeze))  # a recipe has a list
        if self.freeze and self.lora.rank:
            raise ValueError(
                f"freeze is {' '.join(self.freeze)} with lora.rank {self.lora.rank}: with adapters "
                "no weight of the model is trained; leave out freeze, or choose lora.targets"
            )
        if self.patience < 0:
            raise ValueError(f"patience is {self.patience}: use 0 (never end early) or more")
        if self.patience and not self.data.validation:
            raise ValueError(
                f"patience is {self.patience}, but there is nothing to evaluate on: set "
                "data.validation, or patience 0"
            )

    @property
    def needs_base(self) -> bool:
        """Whether training compares with a second model: adapters have theirs within."""
        return self.kl_weight > 0 and not self.lora.rank

    @property
    def accumulation(self) -> int:
        """Forward passes of one worker per optimizer step."""
        return self.global_batch_size // (self.micro_batch_size * self.workers.count)
