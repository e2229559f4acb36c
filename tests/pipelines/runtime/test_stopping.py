"""SIGTERM where nothing trains: what was begun is ended, however often it comes."""

import subprocess
import sys

from tests.assets.newcomer import REPOSITORY

PROGRAM = """
import os, signal
from pipelines.stopping import end_at_sigterm
end_at_sigterm()
try:
    os.kill(os.getpid(), signal.SIGTERM)
    print("went on")
finally:
    os.kill(os.getpid(), signal.SIGTERM)
    print("ended what was begun")
"""


def test_a_second_signal_does_not_cut_the_end_short() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert done.returncode == 143 and done.stdout == "ended what was begun\n"
    assert done.stderr == "told to stop: what was started is ended\n"
