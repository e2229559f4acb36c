"""From the options of a command to a `SweepConfig`.

A preset, a run.json or a recipe gives every field a value. An option that was given wins over that
value, and over what the arms of a preset set.
"""

import json
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Annotated, Any, Literal, TypedDict

import docstring_parser
import tyro
from tyro.constructors import PrimitiveConstructorSpec

from evals import tasks
from evals.settings import EngineSettings
from otr.config import DataConfig, OptimConfig, TrainConfig, types_of
from otr.hints import did_you_mean, repeated
from otr.loss import objective
from otr.loss.objective import Objective
from pipelines.builtin.corpus import PREFIX
from pipelines.config import defaults
from pipelines.config.presets import (
    PRESETS,
    PresetName,
    SweepConfig,
    check_trials,
    search_trials,
    size_of_search,
    trials_of,
)
from pipelines.config.recipe import Recipe, flatten, read_recipe
from pipelines.config.run_json import fingerprint, read_run, run_file
from tuning.settings import check_metrics
from tuning.space import Trial, config_of, with_overrides

SHORT = {
    "train.model.path": "--model",
    "train.data.paths": "--data",
    "train.data.validation": "--validation",
    "train.data.columns": "--columns",
    "train.data.train_on": "--train-on",
    "train.data.over_long": "--over-long",
    "train.model.chat_template": "--chat-template",
    "train.model.chat_template_args": "--chat-template-args",
    "train.model.add_tokens": "--add-tokens",
    "train.max_steps": "--max-steps",
    "train.workers.count": "--workers",
    "search.space": "--search",
    "search.budget": "--budget",
}
"""Short spellings of options, by dotted key."""
LORA_LR = 1e-4
"""Default learning rate of adapters, which need a higher one than the whole model."""
_PATHS = {
    *("output", "benchmarks", "benchmark_dir", "search.benchmark", "train.model.path"),
    *("train.model.chat_template", "train.data.paths", "train.data.validation"),
}
"""Options whose value may be a path."""
_NOT_OPTIONS = {"trials", "chosen", "engine.log_dir"}  # set by the commands
_MODEL_LENGTH, _DATA_LENGTH = 40, 24  # of the parts of a run's name
_SUFFIXES = r"(\.(jsonl?|ndjson|csv|tsv|parquet|arrow|gz|zst))+$"
_DEFAULT_IN_WORDS = {
    "name": "model and data, or the preset or command, with a digest of the options",
    "epochs": "1 with --data",
    "benchmark_dir": "empty",
    "search.space": "none",
    "search.budget": "none",
    "train.data.columns": "no columns are renamed",
    "train.model.chat_template": "the model's own",
    "train.model.chat_template_args": "none",
    "train.model.add_tokens": "none",
    "train.lora.targets": "all but the head",
    "train.freeze": "none",
}
"""What the help shows instead of a default."""
_OTHER_DEFAULT = {
    "train.model.dtype": "with --model or --data: bfloat16 where the CPU or GPU has instructions "
    "for it",
    "train.workers.cpus": "with --model or --data: all cores, shared by the trials that run at "
    "once; on a cluster 1",
    "train.data.validation": "with --data: none",
    "train.data.sequence_length": "with --model or --data: what holds the longest example, from "
    f"{defaults.SHORTEST} to {defaults.LONGEST}",
    "train.optim.lr": f"with --model: by its size, or {LORA_LR:g} with LoRA",
    "train.optim.warmup_steps": "with --data: at most a tenth of the steps",
    "train.max_steps": "with --data: those of --epochs",
    "train.global_batch_size": f"with --data: about {defaults.STEP_TOKENS} tokens per step, and "
    f"{defaults.STEPS_PER_EPOCH} steps per epoch",
    "train.micro_batch_size": "with --model or --data: what fits into free memory",
    "train.log_interval": "with --data: at most a tenth of the steps",
    "train.eval_interval": "with --data: at most a fifth of the steps",
    "search.max_concurrent": "with --model or --data: as cores and memory allow",
    "train.workers.gpus": "where there is a GPU: 1",
    "engine.dtype": "with --model or --data: as in training; of `otr score`: auto",
    "engine.max_model_len": "with other benchmarks: 0",
    "engine.threads": "with another model or other benchmarks: 0",
    "engine.kv_cache_gib": "with another model or other benchmarks: 0",
    "engine.concurrency": "with another model or other benchmarks: 0",
    "engine.gpus": "where there is a GPU: 1",
}
"""What the help shows after a default: when another one is used."""


class UsageError(ValueError):
    """A command line that cannot be understood; exit code 2."""


def load_config(
    preset: PresetName | None,
    file: str,
    options: Mapping[str, Any],
    *,
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    single: str = "",
) -> SweepConfig:
    """Return the configuration that a command line asks for.

    Args:
        preset: name of a preset.
        file: a run's directory, its run.json or a recipe to start from; empty: the preset.
        options: the fields of `SweepConfig` that were given, nested.
        arms: arms of the preset to run; empty: all.
        seeds: seeds of each arm; empty: the preset's.
        single: name of the only trial of a command without arms; empty for a sweep.

    Raises:
        UsageError: an unknown arm or a value that its field refuses.
        ValueError: the run.json or recipe cannot be read.
    """
    file = os.path.expanduser(file)
    repeated = read_run(run) if file and (run := run_file(file)) else None
    if repeated and preset:
        raise UsageError("--preset and --config RUN exclude each other: give one of them")
    recipe = read_recipe(file) if file and not repeated else Recipe()
    start = repeated or PRESETS[preset or recipe.preset or "builtin"]()
    seeds = _without_repetition(seeds or recipe.seeds)
    own_arms = {} if single else recipe.own_arms
    if own_arms:
        start = replace(start, trials=trials_of(own_arms, _seeds(start)))
    repeats = repeated is not None
    if single and {trial.arm for trial in start.trials} != {single}:
        start, repeats = replace(start, name=single, trials=(Trial(single),)), False
    given = _given(recipe.overrides, dict(flatten(options)))
    named = bool(preset or recipe.preset or repeated)
    open_ = defaults.open_options(given, trials=len(start.trials), preset_named=named)
    chosen = {key: why for key, why in start.chosen.items() if key not in given}
    chosen |= {} if single == "score" else open_
    epochs = 1.0 if "train.max_steps" in open_ else start.epochs
    given_or_first = {"epochs": 0.0 if "train.max_steps" in given else epochs} | given
    given_or_first |= _fitting_batch(start.train, given, open_)
    try:
        space = given.get("search.space", start.search.space)
        searched = {key.removeprefix("train.") for key in space}
        if space and not start.search.space:
            names = arms or recipe.arms
            config = replace(start, trials=search_trials(names, seeds or _seeds(start), own_arms))
        else:
            config = _with_choices(start, arms or recipe.arms, seeds)
        _check_not_both(given, searched)
        of_arms = {} if single else _settings_of_arms(config, given)
        shared = {k: v for k, v in given_or_first.items() if k not in of_arms}
        config = with_overrides(config, {**shared, "chosen": chosen})
        if single:
            config = replace(config, trials=(Trial(single, seed=config.train.seed),))
        else:
            config = _options_win(config, dict(flatten(options)) if own_arms else given, of_arms)
        trains = single != "score"
        config = _without_preset_values(config, given, searched, own_arms, trains=trains)
        _check(config, given, searched, single)
    except ValueError as error:
        raise UsageError(str(error)) from error
    same = fingerprint(config) == fingerprint(start) and config.chosen == start.chosen
    is_preset = same and repeated is None
    if not ("name" in given or repeats or is_preset):
        config = replace(config, name=_name(config, given, single))
    return config if repeated else _on_gpu(config, given)


def has_default_benchmarks(config: SweepConfig) -> bool:
    """Return whether another model than the built-in one has the built-in model's benchmarks.

    They ask about the built-in world, which other models have not seen.
    """
    usual = PRESETS["builtin"]()
    other = config.train.model.path != usual.train.model.path
    return other and config.benchmarks == usual.benchmarks


def check_benchmarks(config: SweepConfig) -> None:
    """Check that another model than the built-in one is scored on benchmarks of its own.

    Raises:
        UsageError: it has the default benchmarks.
    """
    if has_default_benchmarks(config):
        raise UsageError(
            f"no benchmark was named to score {config.train.model.path} on: give --benchmarks, "
            "such as gsm8k or file:questions.jsonl, or train without scoring with otr train"
        )


def _given(recipe: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was given; options win over a recipe.

    Raises:
        UsageError: both epochs and steps were given, or no usable number of epochs.
    """
    size = {"epochs", "train.max_steps"}
    if any(size <= given.keys() for given in (recipe, options)):
        raise UsageError("--epochs and --max-steps exclude each other: give one of them")
    kept = {k: v for k, v in recipe.items() if k not in size or not size & options.keys()}
    given = {key: _without_tilde(key, value) for key, value in (kept | dict(options)).items()}
    if not given.get("epochs", 1.0) > 0:
        raise UsageError(f"epochs is {given['epochs']}: use a number > 0, or give --max-steps")
    return given


def _without_tilde(key: str, value: Any) -> Any:
    """Return the value of an option with ~ as the home directory: no shell replaces it in a recipe.

    Other values than paths that begin with ~ stay as they are.
    """
    if isinstance(value, tuple):
        return tuple(_without_tilde(key, each) for each in value)
    if key not in _PATHS or not isinstance(value, str):
        return value
    kind = "file:" if value.startswith("file:") else ""
    return kind + os.path.expanduser(value.removeprefix(kind))


def _name(config: SweepConfig, given: Mapping[str, Any], single: str) -> str:
    """Return a name that the same command gets again: model and data, and a digest of the options.

    Values that are chosen on this machine are not yet in the config, so they do not matter.
    """
    name, train = config.name, config.train
    own = any(defaults.is_own(given, key) for key in ("train.model.path", "train.data.paths"))
    if own and single != "score":
        model, data = _in_name(train.model.path), _in_name(train.data.paths[0])
        name = f"{model[:_MODEL_LENGTH] or 'model'}-{data[:_DATA_LENGTH] or 'data'}"
    open_ = [*sorted(config.chosen), f"{config.epochs:g} epochs"] if config.chosen else []
    return f"{name}-{fingerprint(config, *open_)}"


def _in_name(path: str) -> str:
    """Return the last part of a path or hub name in safe characters, without its suffixes."""
    name, _, _ = path.removeprefix("hf:").removeprefix("builtin:").partition(":")
    last = re.sub(_SUFFIXES, "", name.rstrip("/").rpartition("/")[2].lower())
    return re.sub(r"[^a-z0-9._]+", "-", last).strip("-._")


def options_type(*names: str) -> type:
    """Return a type for tyro whose values are the options that were given, as a nested dict.

    Help texts are the docstrings of the configuration's fields; defaults are those of the preset
    builtin.

    Args:
        names: the fields of `SweepConfig` to offer; none: all.
    """
    return _options_type(SweepConfig, PRESETS["builtin"](), "", names)


def objective_options_type() -> type:
    """Return the TypedDict of the settings of objectives: ``--train.objective.NAME``."""
    _, *settings = objective.setting_types()
    of_objective = _options_type(Objective, Objective(), "train.objective.", settings)
    train: dict[str, Any] = {"objective": of_objective}
    of_train = TypedDict("TrainOptions", train, total=False)  # type: ignore[misc]
    options: dict[str, Any] = {"train": of_train}
    return TypedDict("Options", options, total=False)  # type: ignore[operator]


def _options_type(kind: type, defaults: Any, prefix: str, names: Sequence[str] = ()) -> type:
    help_texts, hints = _help_texts(kind), types_of(kind)
    if kind is Objective:
        hints["name"] = Literal[tuple(objective.names())]
    options: dict[str, Any] = {}
    for name in names or hints:
        key, default = prefix + name, getattr(defaults, name)
        if is_dataclass(hints[name]):
            options[name] = _options_type(hints[name], default, f"{key}.")
        elif key not in _NOT_OPTIONS:
            argument = tyro.conf.arg(
                help=" ".join(help_texts.get(name, "").split()),
                help_behavior_hint=f"(default: {_shown(key, default)})",
                aliases=[SHORT[key]] if key in SHORT else None,
            )
            annotation = _PAIRS if hints[name] == dict[str, str] else hints[name]
            annotation = _OWN_TYPES.get(key, annotation)
            options[name] = Annotated[annotation, argument]
    # total=False leaves out what was not given.
    return TypedDict(f"{kind.__name__}Options", options, total=False)  # type: ignore[operator]


def _help_texts(kind: type) -> dict[str, str]:
    """Return the docstrings of a configuration's fields."""
    if kind is Objective:
        return _objectives_help_texts()
    documented = docstring_parser.parse_from_object(kind).params
    return {field.arg_name: field.description or "" for field in documented}


def _objectives_help_texts() -> dict[str, str]:
    """Return the docstrings of all objectives' settings, each after the objective's name."""
    texts: dict[str, list[str]] = {}
    for name in objective.names():
        for setting, text in setting_docs(name).items():
            texts.setdefault(setting, []).append(f"{name}: {text}")
    meanings = ((name, objective.kind_of(name).meaning) for name in objective.names())
    listed = " ".join(f"`{name}`: {meaning}" for name, meaning in meanings)
    joined = {setting: " ".join(parts) for setting, parts in texts.items()}
    return joined | {"name": f"The objective. {listed} A setting below names those that have it."}


def setting_docs(name: str) -> dict[str, str]:
    """Return the docstrings of an objective's settings."""
    documented = docstring_parser.parse_from_object(objective.kind_of(name)).params
    own = {field.name for field in fields(objective.kind_of(name))[1:]}
    return {
        field.arg_name: " ".join(field.description.split())
        for field in documented
        if field.arg_name in own and field.description
    }


def _shown(key: str, default: Any) -> str:
    words = default if isinstance(default, tuple | dict) else [default]
    shown = _DEFAULT_IN_WORDS.get(key) or " ".join(map(str, words)) or "none"
    return f"{shown}; {_OTHER_DEFAULT[key]}" if key in _OTHER_DEFAULT else shown


def _pairs(form: str, example: str) -> Any:
    """Return the type of a dict that is given as words of a form such as OURS=THEIRS."""

    def parsed(words: Sequence[str]) -> dict[str, str]:
        if bad := [word for word in words if "=" not in word]:
            raise ValueError(f"{bad[0]!r} is not of the form {form}, as in {example}")
        pairs = [word.split("=", 1) for word in words]
        if twice := repeated(name for name, _ in pairs):
            raise ValueError(f"{twice[0]} is given twice: give it once")
        return dict(pairs)

    return Annotated[
        dict[str, str],
        PrimitiveConstructorSpec(
            nargs="*",
            metavar=f"{form} ...",
            instance_from_str=parsed,
            is_instance=lambda value: isinstance(value, dict),
            str_from_instance=lambda value: [f"{key}={text}" for key, text in value.items()],
        ),
    ]


_PAIRS = _pairs("OURS=THEIRS", "prompt=question")
_WORDS = Annotated[
    str,
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="TEXT",
        instance_from_str=" ".join,
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    ),
]
"""A text that need not be quoted: --budget 40 trials."""
_OWN_TYPES = {
    "train.model.chat_template_args": _pairs("NAME=VALUE", "enable_thinking=false"),
    "search.space": _pairs("SETTING=VALUES", '"optim.lr=loguniform(1e-6,1e-4)"'),
    "search.budget": _WORDS,
}
"""Types of options that are given in another form than that of their field."""


def _with_choices(config: SweepConfig, arms: Sequence[str], seeds: Sequence[int]) -> SweepConfig:
    """Reduce the trials to the arms that were chosen, and give each arm the seeds."""
    trials = config.trials
    known = list(dict.fromkeys(trial.arm for trial in trials))
    for arm in arms:
        if arm not in known:
            raise UsageError(f"no arm {arm!r}: {did_you_mean(arm, known)}")
    if arms:
        trials = tuple(trial for trial in trials if trial.arm in arms)
    if seeds:
        first = {trial.arm: trial for trial in trials}
        trials = tuple(replace(trial, seed=seed) for trial in first.values() for seed in seeds)
    return replace(config, trials=trials)


def _seeds(config: SweepConfig) -> list[int]:
    return list(dict.fromkeys(trial.seed for trial in config.trials))


def _without_repetition(seeds: Sequence[int]) -> Sequence[int]:
    """Return the seeds; a UsageError if one is given twice."""
    if twice := repeated(seeds):
        raise UsageError(f"seed {twice[0]} is given twice: give each of --seeds once")
    return seeds


def _check(
    config: SweepConfig, given: Mapping[str, Any], searched: Collection[str], single: str
) -> None:
    """Check what the parts of a configuration can't check alone.

    Raises:
        ValueError: the name of a benchmark, an arm, a setting of adapters, or the search's metric,
            space or budget is wrong.
    """
    for name in (*config.benchmarks, config.search.benchmark):
        if name and not name.startswith(PREFIX):  # a built-in file's name is checked with it
            tasks.check_name(name)
    check_trials(config)
    _check_adapters(config, given, searched)
    if not single:
        check_metrics(config.train, config.search)
    size_of_search(config)


def _check_adapters(
    config: SweepConfig, given: Mapping[str, Any], searched: Collection[str]
) -> None:
    """Check that settings of adapters have an effect.

    Raises:
        UsageError: one was given, and no trial has adapters.
    """
    keys = [key for key in given if key.startswith("train.lora.") and key != "train.lora.rank"]
    ranks = [config_of(config.train, trial).lora.rank for trial in config.trials]
    if keys and not any(ranks) and "lora.rank" not in searched:
        raise UsageError(
            f"{keys[0]} is given, but train.lora.rank is 0, which trains the whole model: "
            "give --train.lora.rank too, such as 16"
        )


def _check_not_both(given: Mapping[str, Any], searched: Collection[str]) -> None:
    if both := sorted(key for key in searched if f"train.{key}" in given):
        raise UsageError(
            f"{both[0]} is given (--train.{both[0]}) and searched (--search): leave one of them out"
        )


def _settings_of_arms(config: SweepConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in `given` that some arms' objectives have, but not the shared one."""
    prefix = "train.objective."
    shared = given.get(f"{prefix}name", config.train.objective.name)
    used = {str(trial.overrides.get("objective.name", shared)) for trial in config.trials}
    found = {}
    for key in given:
        owners = objective.owners(key.removeprefix(prefix)) if key.startswith(prefix) else []
        if shared not in owners and used & set(owners):
            found[key] = given[key]
    return found


def _options_win(
    config: SweepConfig, given: Mapping[str, Any], of_arms: Mapping[str, Any]
) -> SweepConfig:
    """Remove the overrides of trials that options replace; add those that only some arms have."""
    if "train.seed" in given:
        raise UsageError(
            "--train.seed has no effect in a sweep: give the seeds of the trials with --seeds"
        )
    replaced = {key.removeprefix("train.") for key in given if key.startswith("train.")}
    trials: dict[str, Trial] = {}
    for trial in config.trials:
        overrides = {k: v for k, v in trial.overrides.items() if k not in replaced}
        name = str(overrides.get("objective.name", config.train.objective.name))
        for key, value in of_arms.items():
            own = key.removeprefix("train.")
            if name in objective.owners(own.removeprefix("objective.")):
                overrides.setdefault(own, value)
        trial = replace(trial, overrides=overrides)
        first = trials.setdefault(_settings(trial), trial)
        if first.arm != trial.arm:
            raise UsageError(
                f"with these options the arms {first.arm} and {trial.arm} are the same: change "
                "one, or leave it out with --arms"
            )
    return replace(config, trials=tuple(trials.values()))


def _settings(trial: Trial) -> str:
    """Return what distinguishes a trial from others, apart from its arm's name."""
    return json.dumps([trial.overrides, trial.seed], sort_keys=True)


def _without_preset_values(
    config: SweepConfig,
    given: Mapping[str, Any],
    searched: Collection[str] = (),
    own_arms: Collection[str] = (),
    *,
    trains: bool,
) -> SweepConfig:
    """Drop what a preset sets for its own corpus, model or benchmarks if others were given."""
    changes: dict[str, Any] = {}
    if "train.data.paths" in given:
        changes |= {"data.validation": (), "data.sequence_length": DataConfig.sequence_length}
    trials = config.trials
    if "train.model.path" in given:
        trials = tuple(
            replace(t, overrides={k: v for k, v in t.overrides.items() if k != "optim.lr"})
            if t.arm not in own_arms
            else t
            for t in trials
        )
        if len(set(map(_settings, trials))) == len(trials):
            rank = config.train.lora.rank
            changes["optim.lr"] = LORA_LR if rank else OptimConfig.lr
            if trains and "train.optim.lr" not in given and "optim.lr" not in searched:
                why = "adapters are trained" if rank else ""  # `config.defaults` looks at the model
                config = replace(config, chosen=config.chosen | {"train.optim.lr": why})
        else:  # the preset searches learning rates
            trials = config.trials
    changes = {key: value for key, value in changes.items() if f"train.{key}" not in given}
    dropped = ["max_model_len"] if "benchmarks" in given else []
    if given.keys() & {"benchmarks", "train.model.path"}:
        dropped += ["dtype", "threads", "kv_cache_gib", "concurrency"]
    open_ = {
        name: getattr(EngineSettings, name) for name in dropped if f"engine.{name}" not in given
    }
    engine = replace(config.engine, **open_)
    train = with_overrides(config.train, changes)
    return replace(config, trials=trials, train=train, engine=engine)


def _fitting_batch(
    train: TrainConfig, given: Mapping[str, Any], open_: Mapping[str, str]
) -> dict[str, int]:
    """Return batch sizes that fit other workers or batches, where none were given."""
    keys = {
        "train.workers.count": train.workers.count,
        "train.micro_batch_size": train.micro_batch_size,
        "train.global_batch_size": train.global_batch_size,
    }
    workers, micro, rows = (given.get(key, value) for key, value in keys.items())
    if "train.global_batch_size" in open_:  # until it is chosen
        micro = micro if "train.micro_batch_size" in given else 1
        return {"train.micro_batch_size": micro, "train.global_batch_size": micro * workers}
    if "train.micro_batch_size" in given or not given.keys() & keys:
        return {}
    if workers < 1 or rows < workers or rows % workers:
        return {}  # `TrainConfig` says what is wrong
    return {"train.micro_batch_size": math.gcd(micro, rows // workers)}


def _on_gpu(config: SweepConfig, given: Mapping[str, Any]) -> SweepConfig:
    """Use a GPU per worker and per engine replica if this machine has one."""
    import torch  # takes half a second, which --help and a wrong option need not wait for

    if not torch.cuda.is_available():
        return config
    defaults = {"train.workers.gpus": 1, "engine.gpus": 1}
    return with_overrides(config, {k: v for k, v in defaults.items() if k not in given})
