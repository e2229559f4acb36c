"""The commands that a run suggests when it ends, as the user would type them."""

import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

from pipelines.config.commands import Command
from pipelines.config.options import has_default_benchmarks
from pipelines.config.presets import SweepConfig, builtin
from pipelines.runtime import console
from pipelines.runtime.cluster import REPOSITORY

_COMMANDS = {command.module: command.__name__.lower() for command in get_args(Command)}


def print_next_steps(*steps: tuple[str, str]) -> None:
    """Print what the user may do next.

    Args:
        steps: pairs of (purpose, command).
    """
    console.say("\nnext:")
    for purpose, command in steps:
        console.say(f"  {command:<60}  # {purpose}")


def pipeline_command(name: str, *arguments: str | Path) -> str:
    """Return the command line that runs `pipelines/NAME.py` from the current directory.

    It is `otr COMMAND` if the shell finds the `otr` of this environment.
    """
    words = [display_path(a) if isinstance(a, Path) else a for a in arguments]
    found = shutil.which("otr")
    if found and Path(found).parent == Path(sys.executable).parent:
        return shlex.join(["otr", _COMMANDS[name], *words])
    script = display_path(REPOSITORY / "pipelines" / f"{name}.py")
    return shlex.join([interpreter(), script, *words])


def score_command(model: str | Path, config: SweepConfig) -> str:
    """Return the command line that scores a model as a run does: output and benchmarks are kept.

    In place of the built-in model's benchmarks, which say nothing of another model, it has gsm8k.
    """
    words, usual = [], builtin()
    if has_default_benchmarks(config):
        config = replace(config, benchmarks=("gsm8k",))
    for name in ("output", "benchmark_dir", "max_items", "benchmarks"):
        value = getattr(config, name)
        if value != getattr(usual, name):
            values = value if isinstance(value, tuple) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return pipeline_command("score_checkpoint", model, *words)


def browser_command(page: Path) -> str:
    """Return the command line that opens a page in the browser, on any operating system."""
    return shlex.join([interpreter(), "-m", "webbrowser", display_path(page)])


def interpreter() -> str:
    """Return the path of the running Python; its environment need not be the active one."""
    return display_path(Path(sys.executable))


def display_path(path: Path) -> str:
    """Return a path relative to the current directory if it lies below it, else absolute."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
