"""Run commands as a newcomer does: at the repository's root, without a developer's settings."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """Return our environment without variables that a newcomer would not have set."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RAY_ADDRESS")}


def run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; return it with its output."""
    return subprocess.run(
        words, capture_output=True, text=True, cwd=REPOSITORY, env=environment(), check=False
    )
