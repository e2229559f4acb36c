"""The commands and their options; tyro makes the help from the docstrings.

A field's docstring has one line, since tyro would keep its line breaks; a longer text is the `help`
of its `arg`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from pipelines.config.options import (
    check_benchmarks,
    load_config,
    objective_options_type,
    options_type,
)
from pipelines.config.presets import PresetName, SweepConfig
from pipelines.config.run_json import run_file

Flag = FlagCreatePairsOff[bool]


def _options(*names: str) -> Any:
    """Annotate a dict as the given options among the named fields of `SweepConfig` (none: all)."""
    return arg(name="", constructor_factory=partial(options_type, *names))


@dataclass(frozen=True, kw_only=True)
class _StartingPoint:
    preset: Annotated[
        PresetName | None, arg(metavar="{builtin,family,gsm8k,study,debug}", help_behavior_hint="")
    ] = None
    """Preset to start from, by default builtin, whose values are the defaults shown here."""
    config: Annotated[str, arg(metavar="PATH", help_behavior_hint="")] = ""
    """Start from an earlier run (its directory, or its run.json) or from a recipe (a TOML file)."""


@dataclass(frozen=True, kw_only=True)
class _SweepOptions(_StartingPoint):
    arms: Annotated[
        tuple[str, ...],
        arg(
            help="Run only these arms of the preset. An arm sets an objective and a learning rate; "
            "an option that is given here wins over what an arm sets. With --search: arms or "
            "objectives, by default sft, dft and otr; sft is always added.",
            help_behavior_hint="(default: all)",
        ),
    ] = ()
    seeds: Annotated[tuple[int, ...], arg(help_behavior_hint="(default: those of the preset)")] = ()
    """Seeds of each arm, one trial per seed."""
    options: Annotated[dict[str, Any], _options()]

    def load(self) -> SweepConfig:
        """Return the configuration that the options ask for."""
        return load_config(self.preset, self.config, self.options, arms=self.arms, seeds=self.seeds)


@dataclass(frozen=True, kw_only=True)
class Sweep(_SweepOptions):
    """Train the arms of a preset, score them and report which one is best.

    The same command resumes an interrupted run.
    """

    module: ClassVar[str] = "full_sweep"
    dry_run: Flag = False
    """Print configuration, trials and one example with its trained tokens marked; write nothing."""

    def load(self) -> SweepConfig:
        """Return the configuration; a model of the user's own needs benchmarks or a preset."""
        config = super().load()
        if not (self.preset or (self.config and run_file(self.config))):
            check_benchmarks(config)
        return config


@dataclass(frozen=True, kw_only=True)
class Train(_StartingPoint):
    """Fine-tune one model and check that vLLM serves it.

    The same command resumes an interrupted run.
    """

    module: ClassVar[str] = "train_one"
    dry_run: Flag = False
    """Print the configuration and one example with its trained tokens marked; write nothing."""
    serve_check: bool = True
    """At the end, check that vLLM and transformers predict the same from the checkpoint."""
    options: Annotated[
        dict[str, Any], _options("name", "output", "epochs", "train", "engine", "trackers")
    ]

    def load(self) -> SweepConfig:
        """Return the configuration that the options ask for, with a single trial."""
        return load_config(self.preset, self.config, self.options, single="train")


@dataclass(frozen=True, kw_only=True)
class Score(_StartingPoint):
    """Score a model on benchmarks.

    The same command resumes an interrupted run: stored answers are not generated again.
    """

    module: ClassVar[str] = "score_checkpoint"
    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """Hugging Face checkpoint directory, LoRA adapter, or the name of a model on the hub."""
    dry_run: Flag = False
    """Print the settings, the benchmarks and one prompt; start nothing and write nothing."""
    options: Annotated[
        dict[str, Any],
        _options("name", "benchmarks", "benchmark_dir", "max_items", "output", "engine"),
    ]

    def load(self) -> SweepConfig:
        """Return the configuration that the options ask for, with the model as its base model."""
        options = {**self.options, "train": {"model": {"path": self.model}}}
        return load_config(self.preset, self.config, options, single="score")


@dataclass(frozen=True, kw_only=True)
class Pack(_StartingPoint):
    """Pack training data: render, tokenize and pack it, so that runs find it done.

    Every run packs its data itself if it is not packed yet.
    """

    module: ClassVar[str] = "pack_data"
    options: Annotated[dict[str, Any], _options("output", "train")]

    def load(self) -> SweepConfig:
        """Return the configuration that the options ask for, with a single trial."""
        return load_config(self.preset, self.config, self.options, single="pack")


@dataclass(frozen=True, kw_only=True)
class Data(_StartingPoint):
    """Show what training makes of its data.

    Prints its sizes and lengths, what is not used or rejected, and examples with their trained
    tokens marked.
    """

    module: ClassVar[str] = "show_data"
    action: Annotated[Positional[Literal["show"]], arg(metavar="show")]
    """What to do with the data."""
    record: Annotated[
        tuple[int, ...], arg(metavar="N", help_behavior_hint="(default: the first three)")
    ] = ()
    """Show only these records, by their numbers in the data, which begin with 0."""
    rejected: Annotated[
        Literal["", "all", "broken", "empty", "template", "over-long", "untrained", "unreadable"],
        arg(help_behavior_hint="(default: none)"),
    ] = ""
    """Show records that are rejected for this cause instead of examples."""
    limit: int = 20_000
    """Most records to read."""
    options: Annotated[dict[str, Any], _options("train")]

    def load(self) -> SweepConfig:
        """Return the configuration that the options ask for, with a single trial."""
        return load_config(self.preset, self.config, self.options, single="data")


@dataclass(frozen=True, kw_only=True)
class Show:
    """Show the answers behind the scores of a run; without --task, a table of what was scored."""

    module: ClassVar[str] = "show_scores"
    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Name of a run in --output, or the directory of a run."""
    task: Annotated[str, arg(metavar="NAME", help_behavior_hint="")] = ""
    """Benchmark whose answers to show."""
    trial: Annotated[str, arg(metavar="NAME", help_behavior_hint="(default: all)")] = ""
    """Trial whose answers to show; `base` is the base model."""
    item: Annotated[str, arg(metavar="ID", help_behavior_hint="(default: all)")] = ""
    """Item of the benchmark whose answers to show."""
    wrong: Flag = False
    """Show only wrong answers."""
    right: Flag = False
    """Show only right answers."""
    truncated: Flag = False
    """Show only answers that were cut off at the token limit."""
    output: str = "runs"
    """Directory of the runs."""


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Merge a LoRA adapter into its base model and write the full model."""

    module: ClassVar[str] = "merge_adapter"
    checkpoint: Annotated[Positional[str], arg(metavar="CHECKPOINT")]
    """LoRA checkpoint: a directory with adapter_model.safetensors and adapter_config.json."""
    out: Annotated[Positional[str], arg(metavar="OUT")]
    """Directory to write the full model to; it must not exist."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the written weights. `auto`: that of the base model."""
    trust_remote_code: Flag = False
    """Run Python code that comes with the model."""


@dataclass(frozen=True, kw_only=True)
class Push:
    """Push a model or a LoRA adapter to the Hugging Face hub, with a model card.

    The environment variable HF_TOKEN holds the token for the hub.
    """

    module: ClassVar[str] = "push_checkpoint"
    checkpoint: Annotated[Positional[str], arg(metavar="CHECKPOINT")]
    """Checkpoint of a run, or any Hugging Face directory."""
    repo: Annotated[Positional[str], arg(metavar="REPO")]
    """Repository on the hub: USER/NAME. It is created if there is none."""
    private: Flag = False
    """Create the repository as a private one."""
    everything: Flag = False
    """Also upload run.json and the state that training resumes from."""


@dataclass(frozen=True, kw_only=True)
class Doctor(_SweepOptions):
    """Check what a sweep with these options needs, and whether a training step fits in memory.

    With --cluster FILE, check what `ray up FILE` needs.
    """

    module: ClassVar[str] = "doctor"
    cluster: Annotated[str, arg(metavar="FILE", help_behavior_hint="")] = ""
    """Check this cluster file and the hosts that it names, instead of a sweep."""


@dataclass(frozen=True, kw_only=True)
class Ui:
    """Start the MLflow UI, which shows the metrics of all runs."""

    module: ClassVar[str] = "ui"
    output: str = "runs"
    """Directory of the runs."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 5000
    """Port to listen on."""


@dataclass(frozen=True, kw_only=True)
class Explain:
    """Explain the training objectives: what each learns from, formulas, settings and source.

    Without a name, all of them are compared.
    """

    module: ClassVar[str] = "explain_objective"
    objective: Annotated[
        Positional[tuple[str, ...]],
        arg(metavar="[OBJECTIVE ...]", help_behavior_hint="(default: all)"),
    ] = ()
    """Names of objectives. One is explained in full, several are compared."""
    figure: Annotated[str, arg(metavar="FILE.svg", help_behavior_hint="")] = ""
    """Also draw the weights of the objectives on SFT's gradient into this file."""
    options: Annotated[dict[str, Any], arg(name="", constructor_factory=objective_options_type)]


Command = Sweep | Train | Pack | Data | Score | Show | Merge | Push | Doctor | Explain | Ui
