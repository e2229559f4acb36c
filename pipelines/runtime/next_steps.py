"""The commands that a run suggests when it ends, as the user would type them."""

import shlex
import sys
from pathlib import Path

from pipelines.runtime import console
from pipelines.runtime.cluster import REPOSITORY


def print_next_steps(*steps: tuple[str, str]) -> None:
    """Print what the user may do next.

    Args:
        steps: pairs of (purpose, command).
    """
    console.say("\nnext:")
    for purpose, command in steps:
        console.say(f"  {command:<60}  # {purpose}")


def pipeline_command(name: str, *arguments: str | Path) -> str:
    """Return the command line that runs `pipelines/NAME.py` from the current directory."""
    words = [display_path(a) if isinstance(a, Path) else a for a in arguments]
    script = display_path(REPOSITORY / "pipelines" / f"{name}.py")
    return shlex.join([interpreter(), script, *words])


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
