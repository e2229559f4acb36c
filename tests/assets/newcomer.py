"""Commands as a newcomer runs them: at the repository's root, without what only we have set.

In: the words of a command line. Out: the process that has ended, or what is needed to start one.
"""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """Ours, without the variables that a newcomer would not have set."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RAY_ADDRESS")}


def run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The command at its end, with what it said."""
    return subprocess.run(
        words, capture_output=True, text=True, cwd=REPOSITORY, env=environment(), check=False
    )
