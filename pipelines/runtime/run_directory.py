"""The files that identify a run in its directory: run.json and logs/driver.log.

run.json holds {id, name, command, created, git_commit, versions, config}. `--config run.json`
repeats the run.
"""

import fcntl
import json
import os
import shlex
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from otr.files import write_json
from otr.hints import full_disk
from otr.loop.identity import flatten
from pipelines.config.presets import SweepConfig
from pipelines.config.run_json import NOT_RESULTS, RUN_FILE, fingerprint, read_run
from pipelines.runtime import console, versions
from pipelines.runtime.cluster import REPOSITORY
from pipelines.runtime.next_steps import display_path, interpreter

LOCK_FILE = "lock"


def open_run(config: SweepConfig, directory: Path) -> dict[str, Any]:
    """Create run.json, or read it if the directory already holds this run; return its content.

    A run with more steps than before is the same run, and continues.

    Raises:
        ValueError: the directory holds a run with other settings, or one that can't become longer.
    """
    path = directory / RUN_FILE
    if path.is_file():
        if check_settings(config, directory):
            write_json(path, json.loads(path.read_text()) | {"config": asdict(config)})
        console.say(f"continues {display_path(directory)}")
    else:
        run = {
            "id": uuid4().hex,
            "name": config.name,
            "command": shlex.join([interpreter(), *sys.argv]),
            "created": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            "git_commit": _git_commit(),
            "versions": versions.installed_versions(),
            "config": asdict(config),
        }
        directory.mkdir(parents=True, exist_ok=True)
        write_json(path, run)
        console.say(f"writes to {display_path(directory)}")
    return json.loads(path.read_text())


def check_settings(config: SweepConfig, directory: Path) -> bool:
    """Check that a directory holds this run, a shorter one that can become this one, or none.

    Returns:
        Whether it holds a shorter one.

    Raises:
        ValueError: see `open_run`.
    """
    path = directory / RUN_FILE
    if not path.is_file():
        return False
    before = read_run(path)
    if _is_longer(before, config):
        _check_can_become_longer(config, directory)
        return True
    if fingerprint(before) != fingerprint(config):
        raise ValueError(
            f"{directory} holds a run with other settings ({_changes(before, config)}): choose "
            f"another --name, or repeat the existing run with --config {directory}"
        )
    return False


def _is_longer(before: SweepConfig, now: SweepConfig) -> bool:
    """Return whether a run differs from the one before by a larger `max_steps` alone."""
    steps = now.train.max_steps
    same_length = replace(before, train=replace(before.train, max_steps=steps))
    return steps > before.train.max_steps and fingerprint(same_length) == fingerprint(now)


def _check_can_become_longer(config: SweepConfig, directory: Path) -> None:
    if config.search.scheduler != "none":
        raise ValueError(
            f"{directory} holds a sweep with fewer steps, in which {config.search.scheduler} has "
            "stopped trials early: choose another --name"
        )
    if config.search.space:
        raise ValueError(
            f"{directory} holds a search with fewer steps, which chose settings for that length: "
            "choose another --name"
        )
    from otr.training.checkpoint_store import check_can_go_on  # importing Ray takes seconds

    for trial in config.trials:
        check_can_go_on(f"{directory}/trials/{trial.name}/train")


def _changes(before: SweepConfig, now: SweepConfig) -> str:
    """Return the settings that differ, each with both values."""
    old, new = ({k: repr(v) for k, v in flatten(each).items()} for each in (before, now))
    changed = [
        f"{key} was {old.get(key, 'unset'):.80}, is {new.get(key, 'unset'):.80}"
        for key in {**old, **new}
        if old.get(key) != new.get(key) and key.partition(".")[0] not in NOT_RESULTS
    ]
    return "; ".join(changed)


@contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Keep other processes out of the run's directory while the body runs.

    The kernel releases the lock when the process ends, however it ends. Between hosts, flock works
    on NFS version 4; where a file system has no locks, nothing is kept out.

    Raises:
        ValueError: another process holds the directory.
    """
    with (directory / LOCK_FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"{display_path(directory)} is in use by {file.read() or 'another process'}: wait "
                "for its end, or choose another --name"
            ) from None
        except OSError:
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def check_free(directory: Path) -> None:
    """Check that no other process holds the run's directory.

    Raises:
        ValueError: one does; see `hold`.
    """
    if (directory / LOCK_FILE).exists():
        with hold(directory):
            pass


def mlflow_params(config: SweepConfig) -> dict[str, Any]:
    """Return the parameters of the sweep's MLflow run."""
    return {
        "model": config.train.model.path,
        "data": ", ".join(config.train.data.paths),
        "benchmarks": ", ".join(config.benchmarks),
        "max_steps": config.train.max_steps,
        "trials": len(config.trials),
    }


def score_params(config: SweepConfig) -> dict[str, Any]:
    """Return the parameters of the MLflow run of a model that is only scored."""
    return {
        "model": config.train.model.path,
        "benchmarks": ", ".join(config.benchmarks),
        "max_items": config.max_items,
        "dtype": config.engine.dtype,
    }


def mlflow_tags(run: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of the sweep's MLflow run, from the content of run.json."""
    return {key: run[key] for key in ("command", "git_commit")}


@contextmanager
def log_errors(directory: Path) -> Iterator[None]:
    """Append the traceback of an error to logs/driver.log and note the path on the error."""
    log = directory / "logs" / "driver.log"
    try:
        yield
    except BaseException as error:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            traceback.print_exception(error, file=file)
        if hint := full_disk(str(error), str(directory)):
            error.add_note(hint)
        error.add_note(f"traceback in {display_path(log)}")
        raise


def _git_commit() -> str:
    """Return the commit of the source tree, with "-changed" if tracked files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-changed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
