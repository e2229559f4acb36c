"""A script in the place of `nvidia-smi`, which answers queries about GPUs as it does."""

import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """#!{python}
import json, pathlib, sys
cards = json.loads(pathlib.Path({state!r}).read_text())
if isinstance(cards, str):
    sys.exit(cards)
options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if "=" in word)
fields = options["query-gpu"].split(",")
assert options["format"] == "csv,noheader,nounits"
chosen = options.get("id", "").split(",") if options.get("id") else map(str, range(len(cards)))
for number in chosen:
    print(", ".join(str(cards[int(number)][field]) for field in fields))
"""


def card(
    free: float | str = 80_000, total: float | str = 81_559, driver: str = "580.95.05"
) -> dict[str, Any]:
    """Return a GPU, its memory in MiB."""
    names = ("name", "driver_version", "memory.free", "memory.total")
    return dict(zip(names, ("NVIDIA H100 80GB HBM3", driver, free, total), strict=True))


def install(directory: Path, patch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put the script first in PATH; return a function that sets its GPUs, or its `error`."""
    program, state = directory / "bin" / "nvidia-smi", directory / "cards.json"
    program.parent.mkdir()
    program.write_text(SCRIPT.format(python=sys.executable, state=str(state)))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    patch.setenv("PATH", str(program.parent), prepend=":")

    def write(*cards: dict[str, Any], error: str = "") -> None:
        new = state.with_suffix(".new")
        new.write_text(json.dumps(error or cards))
        new.rename(state)

    return write
