"""Runs whose processes are killed, whose disk fills up or whose node is lost, with real Ray.

Each run is `otr train` on the built-in corpus. The fault strikes once the run has saved something,
and the final weights are those of the undisturbed run, bit for bit.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from evals.settings import free_port
from tests.assets.newcomer import REPOSITORY, environment, run

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

STEPS = 24
SAVED = "run/trials/train-seed0/train/step-*"
LAST = f"run/trials/train-seed0/train/step-{STEPS:06d}/model.safetensors"


def command(output: Path, *options: str) -> list[str]:
    words = ["-m", "pipelines.train_one", "--preset", "debug", "--max-steps", str(STEPS)]
    words += ["--train.checkpoint-interval", "2", "--name", "run", "--output", str(output)]
    return [sys.executable, *words, "--no-serve-check", *options]


@contextmanager
def started(words: list[str], output: Path) -> Iterator[subprocess.Popen[str]]:
    """Give the started process; at the end, kill it and all that it started."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / "output.txt").open("w") as output_file:
        process = subprocess.Popen(
            words,
            stdout=output_file,
            stderr=output_file,
            text=True,
            cwd=REPOSITORY,
            env=environment(),
        )
    family: dict[int, psutil.Process] = {}
    try:
        process.family = family  # type: ignore[attr-defined]
        yield process
    finally:
        for each in [*family.values(), *children(process)]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        found = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    process.family.update({each.pid: each for each in found})  # type: ignore[attr-defined]
    return [*found, psutil.Process(process.pid)]


def kill(process: subprocess.Popen[str], title: str) -> None:
    """Send SIGKILL to the processes of Ray with such a title."""
    killed = 0
    for each in children(process):
        with suppress(psutil.NoSuchProcess):
            if title in " ".join(each.cmdline()):
                each.kill()
                killed += 1
    assert killed, f"no process is called {title}"


def wait_for_saves(process: subprocess.Popen[str], output: Path, count: int = 1) -> None:
    while process.poll() is None and len([*output.glob(SAVED)]) < count:
        time.sleep(0.05)
    assert process.poll() is None, f"it ended before it had saved:\n{terminal(output)}"
    children(process)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Weights of the undisturbed run."""
    output = tmp_path_factory.mktemp("undisturbed")
    done = run(command(output))
    assert done.returncode == 0, done.stderr
    return (output / LAST).read_bytes()


@pytest.mark.parametrize("title", ["ray::RayTrainWorker", "ray::TrainController"])
def test_a_run_survives_a_killed_process(tmp_path: Path, weights: bytes, title: str) -> None:
    with started(command(tmp_path), tmp_path) as process:
        wait_for_saves(process, tmp_path)
        kill(process, title)
        assert process.wait() == 0, terminal(tmp_path)
    assert "resumes from step" in terminal(tmp_path)
    assert (tmp_path / LAST).read_bytes() == weights


def test_a_worker_that_ray_ends_for_want_of_memory_gives_its_cores_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program fills the memory; the worker had all cores, which its successor needs."""
    memory = psutil.virtual_memory()
    most = memory.total - memory.available + 6 * 2**30
    monkeypatch.setenv("RAY_memory_usage_threshold", str(most / memory.total))
    cores = ["--train.workers.cpus", str(os.cpu_count()), "--max-steps", "60"]
    ballast = []
    with started(command(tmp_path, *cores), tmp_path) as process:
        wait_for_saves(process, tmp_path)
        [worker] = [p for p in children(process) if "ray::RayTrainWorker" in " ".join(p.cmdline())]
        while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
            assert len(ballast) < 20, "Ray ended nothing"
            ballast.append(b"x" * 2**29)
            time.sleep(0.5)
        ballast.clear()
        assert process.wait() == 0, terminal(tmp_path)
    assert "Ray ended it because its host had no memory left" in terminal(tmp_path)
    assert "resumes from step" in terminal(tmp_path)


def test_a_run_resumes_after_its_driver_was_killed(tmp_path: Path, weights: bytes) -> None:
    with started(command(tmp_path), tmp_path) as process:
        wait_for_saves(process, tmp_path)
        process.kill()
        process.wait()
    done = run(command(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "resumes from step" in done.stderr
    assert (tmp_path / LAST).read_bytes() == weights


def test_sigterm_saves_and_the_run_resumes(tmp_path: Path, weights: bytes) -> None:
    words = command(tmp_path, "--train.checkpoint-interval", "0")  # only the signal saves
    with started(words, tmp_path) as process:
        wait_for(
            lambda: "step" in terminal(tmp_path) or [*tmp_path.glob("run/trials/*/train")], process
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM, terminal(tmp_path)
    assert "run the same command again to resume" in terminal(tmp_path)
    assert not (tmp_path / LAST).exists()
    done = run(words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / LAST).read_bytes() == weights


def terminal(output: Path) -> str:
    return (output / "output.txt").read_text()


def wait_for(event: Callable[[], object], process: subprocess.Popen[str]) -> None:
    while process.poll() is None and not event():
        time.sleep(0.05)
    assert process.poll() is None, "it ended too early"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Directory on a file system of its own, of 1 GiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1g", "otr-test", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"a file system can't be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_leaves_the_last_checkpoint(small_disk: Path, weights: bytes) -> None:
    ballast = small_disk / "ballast"
    with started(command(small_disk), small_disk) as process:
        wait_for_saves(process, small_disk)
        free = os.statvfs(small_disk)
        with suppress(OSError), ballast.open("wb") as file:
            for _ in range(free.f_bavail * free.f_frsize // 2**20 + 1):
                file.write(bytes(2**20))
                file.flush()
        assert process.wait() == 1, terminal(small_disk)
    assert "No space left" in terminal(small_disk)
    saved = sorted(small_disk.glob(SAVED))
    assert saved and not [*small_disk.glob(SAVED.replace("step-*", ".step-*"))]
    ballast.unlink()
    done = run(command(small_disk))
    assert done.returncode == 0, done.stderr
    assert "resumes from step" in done.stderr
    assert (small_disk / LAST).read_bytes() == weights


def test_a_run_survives_a_lost_and_a_preempted_node(tmp_path: Path) -> None:
    """Two raylets are two nodes with a worker each; the second is killed, or will be taken away."""
    script = [sys.executable, "-m", "tests.assets.two_nodes", str(tmp_path)]
    outcomes = {}
    for loses in ("nothing", "node", "notice", "half"):
        done = run([*script, loses])
        assert done.returncode == 0, done.stderr[-3000:]
        outcomes[loses] = json.loads(done.stdout.splitlines()[-1])
    # A node that will be taken away may end on its own as soon as no process needs it.
    assert [outcomes[loses]["lost"] for loses in ("nothing", "node", "half")] == [0, 1, 1]
    assert "had 2 workers, has 1: the same rows in each step" in outcomes["half"]["note"]
    assert outcomes["half"]["nll"] == pytest.approx(outcomes["nothing"]["nll"], rel=1e-4)
    for loses in ("node", "notice"):
        assert "resumes from step" in outcomes[loses]["note"]
        assert outcomes[loses]["weights"] == outcomes["nothing"]["weights"]


def test_killed_up_to_five_times_the_leaderboard_is_the_same(tmp_path: Path) -> None:
    """A whole sweep, scoring included; the moments are random, with a fixed seed."""
    moments = random.Random(5)

    def words(output: Path) -> list[str]:
        sweep = ["-m", "pipelines.full_sweep", "--preset", "debug", "--name", "debug"]
        port = ["--engine.port", str(free_port())]
        return [sys.executable, *sweep, "--output", str(output), *port]

    def board(output: Path) -> list[Any]:
        done = run(words(output))
        assert done.returncode == 0, done.stderr
        rows = json.loads((output / "debug" / "leaderboard.json").read_text())
        for score in (score for row in rows for score in row["scores"].values()):
            score["settings"].pop("source")  # a path below the run's directory
        return [(row["trial"], row["status"], row["scores"]) for row in rows]

    began = time.monotonic()
    undisturbed = board(tmp_path / "undisturbed")
    seconds = time.monotonic() - began
    kills = 0
    for _ in range(5):
        with started(words(tmp_path / "killed"), tmp_path / "killed") as process:
            end = time.monotonic() + moments.uniform(0.1, 0.6) * seconds
            while process.poll() is None and time.monotonic() < end:
                children(process)
                time.sleep(0.1)
            kills += process.poll() is None
            process.kill()
    assert kills >= 2  # each goes on where the last one was killed, so the later ones may end
    assert board(tmp_path / "killed") == undisturbed
