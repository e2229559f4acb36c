"""SIGTERM while nothing trains: open contexts shut down, and further SIGTERMs change nothing."""

import subprocess
import sys

from tests.assets.newcomer import REPOSITORY

PROGRAM = """
import os, signal
from pipelines.runtime.stopping import exit_at_sigterm
exit_at_sigterm()
try:
    os.kill(os.getpid(), signal.SIGTERM)
    print("still running")
finally:
    os.kill(os.getpid(), signal.SIGTERM)
    print("shut down")
"""


def test_a_second_sigterm_does_not_interrupt_the_shutdown() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert done.returncode == 143 and done.stdout == "shut down\n"
    assert done.stderr == "SIGTERM received: shutting down\n"
