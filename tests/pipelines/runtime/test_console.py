"""What becomes of a run when nobody can read what it prints."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.assets.newcomer import REPOSITORY

RUN = """
import pathlib, sys
from pipelines.runtime import console
with console.going_on_without_reader():
    with console.stage("train") as stage:
        sys.stdin.readline()
        for step in range(1000):
            console.say(f"a line of the result {step}")
            console.note(f"a note {step}")
            stage.say(f"step {step}")
        print("a line of a library")
pathlib.Path(sys.argv[1]).write_text("finished")
"""


def start(path: Path, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", RUN, str(path)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, cwd=REPOSITORY
    )


def test_a_run_goes_on_when_the_reader_of_a_pipe_has_ended(tmp_path: Path) -> None:
    """As in `otr train | head -1`."""
    process = start(tmp_path / "end", subprocess.PIPE, subprocess.PIPE)
    assert process.stdin and process.stdout and process.stderr
    process.stdout.close()
    process.stderr.close()
    process.communicate(b"go\n")
    assert process.returncode == 0
    assert (tmp_path / "end").read_text() == "finished"


def test_a_run_goes_on_when_its_terminal_is_closed(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = start(tmp_path / "end", theirs, theirs)
    os.close(theirs)
    os.close(ours)
    process.communicate(b"go\n")
    assert process.returncode == 0
    assert (tmp_path / "end").read_text() == "finished"


def test_a_run_goes_on_when_the_disk_of_its_log_is_full(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        process = start(tmp_path / "end", full.fileno(), full.fileno())
        process.communicate(b"go\n")
    assert process.returncode == 0
    assert (tmp_path / "end").read_text() == "finished"


@pytest.mark.parametrize(
    ("encoding", "shown"), [("utf-8", "\\ud83d é █"), ("ascii", r"\ud83d \xe9 \u2588")]
)
def test_characters_that_an_encoding_lacks_are_escaped(encoding: str, shown: str) -> None:
    script = (
        "from pipelines.runtime import console\n"
        "with console.going_on_without_reader():\n"
        r"    console.say('\ud83d \xe9 \u2588'); console.note('\ud83d \xe9 \u2588')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        check=True,
    )
    assert done.stdout.decode(encoding) == done.stderr.decode(encoding) == f"{shown}\n"


def test_the_help_ends_quietly_with_its_reader() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "pipelines.cli", "train", "--help"]
    done = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, cwd=REPOSITORY, check=False
    )
    os.close(writer)
    assert done.stderr == b""


def test_a_long_heading_breaks_before_the_options_of_a_benchmark() -> None:
    names = [f"benchmark-{n}-heldout:max_tokens=128" for n in range(5)]
    script = (
        f"from pipelines.runtime import console; console.table(['arm', *{names}], [['sft'] * 6])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    first, second, _ = done.stdout.splitlines()
    assert first.split() == [name.partition(":")[0] for name in names]
    assert second.split() == ["arm", *[":max_tokens=128"] * 5]
