"""The commands on a real pretrained model, SmolLM2-135M-Instruct in bfloat16: few steps and items.

Skipped where the packages that the model is made from can't be downloaded, and on a CPU without
instructions for bfloat16.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evals.hardware import this_machine
from evals.settings import free_port
from pipelines.builtin import smollm2
from tests.assets.mlflow_server import stored_runs
from tests.assets.newcomer import REPOSITORY, environment, run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

TRAIN = ["--model", "builtin:smollm2", "--train.model.dtype", "bfloat16"]
TRAIN += ["--train.data.sequence-length", "256", "--train.global-batch-size", "2"]
TRAIN += ["--train.micro-batch-size", "2", "--train.workers.cpus", "2"]
TRAIN += ["--max-steps", "10", "--train.checkpoint-interval", "5", "--train.log-interval", "1"]
LAST = "step-000010"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Directory with training data and a benchmark of eight items; the model is in the cache."""
    if not this_machine().is_fast("bfloat16", on_gpu=False):
        pytest.skip("this CPU has no instructions for bfloat16: it would take too long")
    try:
        smollm2.model_dir()
    except ValueError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("real")
    sums = [(f"What is {i} plus {j}?", i + j) for i in range(10) for j in range(10)]
    rows = [{"prompt": asked, "completion": f"The sum is \\boxed{{{n}}}."} for asked, n in sums]
    items = [{"prompt": asked, "answer": str(n), "grader": "math"} for asked, n in sums[5::13]]
    for name, lines in (("train", rows), ("sums", items)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    yield folder
    shutil.rmtree(folder)  # ten gigabytes of checkpoints


def otr(command: str, *words: str | Path) -> list[str]:
    return [sys.executable, "-m", "pipelines.cli", command, *map(str, words)]


def train(folder: Path, name: str, *options: str) -> list[str]:
    data = ["--data", folder / "train.jsonl", "--output", folder, "--name", name]
    return otr("train", *TRAIN, *data, "--no-serve-check", *options)


def scoring(folder: Path) -> list[str]:
    words = ["--benchmarks", f"file:{folder}/sums.jsonl", "--engine.max-model-len", "192"]
    return [*words, "--output", str(folder), "--engine.port", str(free_port())]


def said(words: list[str]) -> str:
    done = run(words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def sweep(folder: Path) -> Path:
    """Directory of a sweep of two arms, one trial at a time."""
    words = [*TRAIN, "--data", folder / "train.jsonl", "--name", "sweep", *scoring(folder)]
    arms = ["--arms", "sft", "otr-k256", "--seeds", "0", "--search.max-concurrent", "1"]
    said(otr("sweep", *words, *arms))
    return folder / "sweep"


def test_base_and_two_arms_are_trained_saved_and_scored(sweep: Path) -> None:
    entries = json.loads((sweep / "leaderboard.json").read_text())
    status = {entry["trial"]: entry["status"] for entry in entries}
    assert status == {"base": "base", "sft-seed0": "finished", "otr-k256-seed0": "finished"}
    assert all(entry["scores"]["sums"]["num_examples"] == 8 for entry in entries)
    assert {entry["scores"]["sums"]["settings"]["dtype"] for entry in entries} == {"bfloat16"}
    weights = [
        load_file(Path(directory) / "model.safetensors")["model.norm.weight"].float()
        for directory in (smollm2.model_dir(), *(e["checkpoint"] for e in entries[1:]))
    ]
    assert not any(
        torch.equal(a, b) for a, b in zip(weights, weights[1:] + weights[:1], strict=True)
    )


def test_an_adapter_is_scored_and_merged(folder: Path) -> None:
    lora = ["--train.lora.rank", "4", "--train.optim.lr", "1e-3", "--train.optim.warmup-steps", "0"]
    said(train(folder, "adapter", *lora))
    adapter = folder / "adapter" / "trials" / "train-seed0" / "train" / LAST
    said(otr("score", adapter, *scoring(folder), "--name", "scored"))
    (score,) = json.loads((folder / "scored" / "scores.json").read_text())
    assert (score["task"], score["num_examples"]) == ("sums", 8)
    said(otr("merge", adapter, folder / "merged", "--dtype", "float32"))
    base = AutoModelForCausalLM.from_pretrained(smollm2.model_dir(), dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(adapter)("What is 3 plus 4? The sum is 7.")["input_ids"]
    with torch.no_grad():
        before, after = base(torch.tensor([tokens])).logits, merged(torch.tensor([tokens])).logits
        adapted = PeftModel.from_pretrained(base, adapter)(torch.tensor([tokens])).logits
    learned = (adapted - before).abs().max()
    assert learned > 0.01 and (after - adapted).abs().max() < learned / 20


@pytest.mark.faults
def test_a_stopped_and_killed_run_ends_with_the_weights_of_an_undisturbed_one(
    folder: Path, sweep: Path
) -> None:
    """SIGTERM to the process group after the first report; then SIGKILL to the driver."""
    words = train(folder, "stopped", "--train.objective.name", "sft")
    trial = folder / "stopped" / "trials" / "train-seed0"
    saved = lambda: sorted(step.name for step in trial.glob("train/step-*"))  # noqa: E731

    with started(words, folder / "terminated.txt") as process:
        wait_for(lambda: (trial / "result.json").is_file(), process)
        os.killpg(process.pid, signal.SIGTERM)
        code, text = process.wait(), (folder / "terminated.txt").read_text()
    assert code == 128 + signal.SIGTERM, text
    assert "run the same command again to resume" in text
    assert not re.search(r"Traceback|raylet|core_worker|\(pid=", text), text
    assert saved() and LAST not in saved()
    found = stored_runs(f"sqlite:///{folder / 'mlflow.db'}", "attributes.run_name = 'stopped'")
    assert found["stopped"].status == "KILLED"

    first = saved()[-1]
    with started(words, folder / "killed.txt") as process:
        wait_for(lambda: saved()[-1] > first, process)
    assert LAST not in saved()
    assert f"resumes from step {int(saved()[-1][-6:])}" in said(words)
    undisturbed = sweep / "trials" / "sft-seed0"
    ended = [run / "train" / LAST / "model.safetensors" for run in (trial, undisturbed)]
    assert ended[0].read_bytes() == ended[1].read_bytes()


@contextmanager
def started(words: list[str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Give a command in a process group of its own; at the end, kill it and all that it started."""
    with output.open("w") as file:
        process = subprocess.Popen(
            words,
            stdout=file,
            stderr=file,
            cwd=REPOSITORY,
            env=environment(),
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            family = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            for each in family:
                with suppress(psutil.NoSuchProcess):
                    each.kill()


def wait_for(event: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None and not event():
        time.sleep(0.05)
    assert process.poll() is None, "it ended too early"
