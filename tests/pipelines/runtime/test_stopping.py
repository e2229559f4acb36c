"""Signals at each stage of a command: what is raised and printed, and what a second one does."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pipelines.runtime import stopping
from pipelines.runtime.stopping import Stopped, exit_afterwards, exit_at_signal, save_at_signal
from tests.assets.newcomer import REPOSITORY

SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


@pytest.fixture(autouse=True)
def default_handlers() -> Iterator[None]:
    """Python's own handlers, also where this process ignores SIGINT."""
    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, signal.SIG_DFL),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    }
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize(("signum", "code"), SIGNALS)
def test_a_signal_ends_the_command_and_a_repeated_one_does_not_interrupt_the_shutdown(
    capfd: pytest.CaptureFixture[str], signum: int, code: int
) -> None:
    shut_down = False
    with pytest.raises(Stopped) as stopped, exit_at_signal():
        try:
            send(signum)
            pytest.fail("still running")
        finally:
            send(signum)
            shut_down = True
    assert shut_down and stopped.value.code == code
    assert capfd.readouterr().err == f"{signal.Signals(signum).name} received: shutting down\n"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_later_ctrl_c_interrupts_the_shutdown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "REPEAT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt), exit_at_signal():
        try:
            send(signal.SIGTERM)
        finally:
            send(signal.SIGINT)
            pytest.fail("still shutting down")


@pytest.mark.parametrize(("signum", "code"), SIGNALS)
def test_a_signal_while_ray_starts_waits_until_it_has_started(signum: int, code: int) -> None:
    started = False
    with pytest.raises(Stopped) as stopped, exit_at_signal(), exit_afterwards():
        send(signum)
        send(signum)
        started = True
    assert started and stopped.value.code == code


def test_a_failed_start_is_not_reported_after_a_signal() -> None:
    with pytest.raises(Stopped), exit_afterwards():
        send(signal.SIGTERM)
        raise RuntimeError("Ray did not start")


@pytest.mark.parametrize(("signum", "code"), SIGNALS)
def test_a_signal_in_training_saves_and_a_repetition_at_once_counts_as_the_same(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], signum: int, code: int
) -> None:
    """`timeout` sends its signal to the command, and then to the command's process group."""
    stop_file, saved = tmp_path / "stop", False
    with pytest.raises(Stopped) as stopped, exit_at_signal(), save_at_signal(stop_file):
        send(signum)
        send(signum)
        saved = stop_file.exists()
    assert saved and stopped.value.code == code
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "received: saving all trials" in said


@pytest.mark.parametrize(("signum", "code"), SIGNALS)
def test_a_second_signal_in_training_stops_at_once_and_lets_the_command_shut_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: int, code: int
) -> None:
    monkeypatch.setattr(stopping, "REPEAT_SECONDS", 0.0)
    shut_down = False
    with pytest.raises(Stopped) as stopped, exit_at_signal():
        try:
            with save_at_signal(tmp_path / "stop"):
                send(signum)
                send(signum)
                pytest.fail("still training")
        finally:
            with suppress(KeyboardInterrupt):  # a third Ctrl-C may interrupt
                send(signal.SIGTERM)
            shut_down = True
    assert shut_down and stopped.value.code == code


def test_an_undisturbed_stage_restores_the_handlers(tmp_path: Path) -> None:
    with exit_at_signal():
        outer = signal.getsignal(signal.SIGTERM)
        with save_at_signal(tmp_path / "stop"), exit_afterwards():
            assert signal.getsignal(signal.SIGTERM) != outer
        assert signal.getsignal(signal.SIGTERM) == outer


def test_a_signal_that_the_process_ignores_stays_ignored() -> None:
    """As SIGINT is for a background process of a script."""
    program = """
import os, signal
from pipelines.runtime.stopping import exit_at_signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
with exit_at_signal():
    os.kill(os.getpid(), signal.SIGINT)
    print("still running")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "still running\n", "")
