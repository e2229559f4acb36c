"""The files that identify a run in its directory: run.json and logs/driver.log.

run.json holds {id, name, command, created, git_commit, versions, config}. `--config run.json`
repeats the run.
"""

import json
import shlex
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from otr.files import write_json
from pipelines.config.presets import SweepConfig
from pipelines.config.run_json import fingerprint, read_run
from pipelines.runtime import console, versions
from pipelines.runtime.cluster import REPOSITORY
from pipelines.runtime.next_steps import display_path, interpreter

RUN_FILE = "run.json"


def open_run(config: SweepConfig, directory: Path) -> dict[str, Any]:
    """Create run.json, or read it if the directory already holds this run; return its content.

    Raises:
        ValueError: the directory holds a run with other settings.
    """
    path = directory / RUN_FILE
    if path.is_file():
        if fingerprint(read_run(path)) != fingerprint(config):
            raise ValueError(
                f"{directory} holds a run with other settings: choose another --name, or repeat "
                f"the existing run with --config {path}"
            )
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


def mlflow_params(config: SweepConfig) -> dict[str, Any]:
    """Return the parameters of the sweep's MLflow run."""
    return {
        "model": config.train.model.path,
        "data": ", ".join(config.train.data.paths),
        "benchmarks": ", ".join(config.benchmarks),
        "max_steps": config.train.max_steps,
        "trials": len(config.trials),
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
