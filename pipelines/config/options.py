"""From a command line to a `SweepConfig`.

In: argv without the program's name. Out: a `Request`. A preset (or a run.json) gives every field a
value; what the command line says wins over the preset and over what its arms set. Nothing is read
but run.json, nothing written.
"""

import argparse
import contextlib
import io
import json
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, NoReturn

import tyro

from otr.config import DataConfig, OptimConfig
from pipelines.config.presets import PRESETS, SweepConfig
from pipelines.config.run_json import fingerprint, read_run
from tuning.space import Trial

SHORT = {
    "--model": "--train.model.path",
    "--data": "--train.data.paths",
    "--validation": "--train.data.validation",
    "--columns": "--train.data.columns",
    "--max-steps": "--train.max-steps",
    "--workers": "--train.workers.count",
}
_OWN = ("--preset", "--config", "--arms", "--seeds", "--dry-run", "--help")
_HELP = """\
Starts from a preset and changes what you name. In short:
  --preset {presets}; --config RUN.json: start from a former run
  --arms NAME..: only these arms; --seeds N..: these seeds
  --dry-run: print the resolved config and one rendered example; write nothing
  --no-prove (train): don't start vLLM at the end to see that it serves the checkpoint
  {short}
  --columns prompt=question completion=answer: our names to your columns
"""

T = typing.TypeVar("T")


class UsageError(ValueError):
    """The command line can't be understood; exit code 2."""


@dataclass(frozen=True)
class Request:
    """What a command line asks for."""

    config: SweepConfig
    dry_run: bool
    prove: bool
    """Whether vLLM is to serve a checkpoint before it counts."""


def parse(argv: Sequence[str], prog: str, *, single: str = "") -> Request:
    """Read a command line.

    Args:
        argv: without the program's name.
        prog: the program's name, for --help.
        single: name of the only trial where there are no arms; empty for a sweep.

    Raises:
        UsageError: an unknown option, preset, arm or value, in one line.
        ValueError: run.json can't be read.
        SystemExit: after --help.
    """
    own, rest = _own_options(single).parse_known_args(_split_pairs(argv))
    start = read_run(own.config) if own.config else _preset(own.preset)
    if own.help:
        rest = ["--help"]
    if single:
        start = replace(start, name=single, trials=(Trial(single),))
    base = start
    given = _known_keys(rest, SweepConfig)
    rest = [_long(word) for word in rest]
    if own.arms:
        start = replace(start, trials=_only_arms(start.trials, own.arms))
    if own.seeds:
        start = replace(start, trials=_with_seeds(start.trials, own.seeds))
    config = _tyro(SweepConfig, rest, start, prog, _description())
    if single:
        config = replace(config, trials=(Trial(single, seed=config.train.seed),))
    else:
        config = _given_wins(config, given)
    if "train.data.paths" in given:
        config = replace(config, train=replace(config.train, data=_own_data(config, given)))
    if "train.model.path" in given and "train.optim.lr" not in given:
        config = _own_rate(config)
    if not own.config:
        config = _on_gpu(config, given)
    if not ("name" in given or own.config) and fingerprint(config) != fingerprint(base):
        config = replace(config, name=f"{config.name}-{fingerprint(config)}")
    return Request(config, own.dry_run, not own.no_prove)


def simple(kind: type[T], argv: Sequence[str], prog: str) -> T:
    """Read a command line of a small command: a dataclass whose fields all have defaults.

    Raises:
        UsageError: an unknown option or value, in one line.
    """
    _known_keys(argv, kind)
    return _tyro(kind, argv, kind(), prog, kind.__doc__ or "")


class _OwnOptions(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _own_options(single: str) -> argparse.ArgumentParser:
    parser = _OwnOptions(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default="builtin")
    parser.add_argument("--config", default="")
    parser.add_argument("--arms", nargs="+", default=[])
    parser.add_argument("--seeds", nargs="+", type=int, default=[])
    parser.add_argument("--dry-run", action="store_true")
    parser.set_defaults(no_prove=False)
    if single == "train":  # what is scored is always proven
        parser.add_argument("--no-prove", action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    return parser


def _preset(name: str) -> SweepConfig:
    if name not in PRESETS:
        raise UsageError(f"no preset {name!r}: did you mean {_nearest(name, PRESETS)!r}?")
    return PRESETS[name]()


def _split_pairs(argv: Sequence[str]) -> list[str]:
    """``--columns a=b c=d`` as tyro reads a dict: ``--columns a b c d``."""
    words: list[str] = []
    inside = False
    for word in argv:
        if word.startswith("--"):
            inside = word.replace("_", "-") in ("--columns", "--train.data.columns")
            words.append(word)
        elif inside:
            ours, equals, theirs = word.partition("=")
            words += [ours, theirs] if equals else [word]
        else:
            words.append(word)
    return words


def _long(word: str) -> str:
    flag, equals, value = word.partition("=")
    return SHORT.get(flag.replace("_", "-"), flag) + equals + value if word[:2] == "--" else word


def _known_keys(words: Sequence[str], kind: type) -> set[str]:
    """The dotted keys that are given.

    Raises:
        UsageError: one of them does not exist.
    """
    keys = set(_keys(kind))
    given = set()
    for word in words:
        if not word.startswith("--") or word == "--help":
            continue
        flag = word.partition("=")[0]
        key = _long(flag)[2:].replace("-", "_")
        key = key.replace(".no_", ".") if key not in keys else key
        if key not in keys:
            known = [f"--{k.replace('_', '-')}" for k in keys] + [*SHORT, *_OWN]
            raise UsageError(f"unknown option {flag}: did you mean {_nearest_option(flag, known)}?")
        given.add(key)
    return given


def _nearest_option(flag: str, known: Sequence[str]) -> str:
    by_last_name = {f"--{option[2:].rpartition('.')[2]}": option for option in known}
    names = [*by_last_name, *(k for k in known if "." in k)] if "." not in flag else known
    near = _nearest(flag, names)
    return by_last_name.get(near, near)


def _nearest(word: str, known: typing.Iterable[str]) -> str:
    return get_close_matches(word, list(known), 1, 0)[0]


def _keys(kind: type, prefix: str = "") -> Iterator[str]:
    hints = typing.get_type_hints(kind)
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            yield from _keys(hints[field.name], f"{prefix}{field.name}.")
        elif field.name != "trials":
            yield prefix + field.name


def _description() -> str:
    short = "\n  ".join(f"{s} = {long}" for s, long in SHORT.items())
    return _HELP.format(presets=" | ".join(PRESETS), short=short)


def _tyro(kind: type[T], words: Sequence[str], default: T, prog: str, description: str) -> T:
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            return tyro.cli(kind, args=words, default=default, prog=prog, description=description)
    except SystemExit as error:
        if not error.code:
            raise
        raise UsageError(_first_paragraph(output.getvalue())) from None


def _first_paragraph(box: str) -> str:
    """What tyro says in the first part of its box, as one line."""
    said = []
    for line in box.splitlines()[1:]:
        text = line.strip("│╭╮╰╯ ")
        if text.startswith("─"):
            break
        said.append(text)
    return " ".join(said)


def _only_arms(trials: Sequence[Trial], arms: Sequence[str]) -> tuple[Trial, ...]:
    known = dict.fromkeys(trial.arm for trial in trials)
    for arm in arms:
        if arm not in known:
            raise UsageError(f"no arm {arm!r}: did you mean {_nearest(arm, known)!r}?")
    return tuple(trial for trial in trials if trial.arm in arms)


def _with_seeds(trials: Sequence[Trial], seeds: Sequence[int]) -> tuple[Trial, ...]:
    arms = {trial.arm: trial for trial in trials}
    return tuple(replace(trial, seed=seed) for trial in arms.values() for seed in seeds)


def _given_wins(config: SweepConfig, given: set[str]) -> SweepConfig:
    """Take what the command line fixes out of the arms; trials that become equal are one."""
    fixed = {key.removeprefix("train.") for key in given if key.startswith("train.")}
    if "seed" in fixed:
        raise UsageError("--train.seed: the seeds of the trials are --seeds")
    kept: dict[str, Trial] = {}
    for trial in config.trials:
        overrides = {k: v for k, v in trial.overrides.items() if k not in fixed}
        trial = replace(trial, overrides=overrides)
        twin = kept.setdefault(json.dumps([overrides, trial.seed], sort_keys=True), trial)
        if twin.arm != trial.arm:
            raise UsageError(
                f"with your options the arms {twin.arm} and {trial.arm} are the same: "
                f"choose with --arms"
            )
    return replace(config, trials=tuple(kept.values()))


def _own_data(config: SweepConfig, given: set[str]) -> DataConfig:
    """Without what the preset chose for its own corpus: validation set and row length."""
    changes: dict[str, Any] = {}
    if "train.data.validation" not in given:
        changes["validation"] = ()
    if "train.data.sequence_length" not in given:
        changes["sequence_length"] = DataConfig.sequence_length
    return replace(config.train.data, **changes)


def _own_rate(config: SweepConfig) -> SweepConfig:
    """Without the learning rates that the preset has for its own model, unless it searches them."""
    trials = [
        replace(t, overrides={k: v for k, v in t.overrides.items() if k != "optim.lr"})
        for t in config.trials
    ]
    if len({json.dumps([t.overrides, t.seed], sort_keys=True) for t in trials}) < len(trials):
        return config
    optim = replace(config.train.optim, lr=OptimConfig.lr)
    return replace(config, trials=tuple(trials), train=replace(config.train, optim=optim))


def _on_gpu(config: SweepConfig, given: set[str]) -> SweepConfig:
    """A GPU for each worker and for the engine, where this machine has one."""
    import torch  # half a second and more, which --help and a wrong word need not wait for

    if not torch.cuda.is_available():
        return config
    if "train.workers.gpus" not in given:
        workers = replace(config.train.workers, gpus=1)
        config = replace(config, train=replace(config.train, workers=workers))
    if "engine.gpus" not in given:
        config = replace(config, engine=replace(config.engine, gpus=1))
    return config
