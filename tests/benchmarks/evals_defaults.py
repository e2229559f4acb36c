"""Speed of `otr score` with its defaults: ``python -m tests.benchmarks.evals_defaults MODEL``.

Prints each measure with its bar; ``--json FILE`` is rewritten after every part:

throughput  generated tokens/s of scoring, grading included, and of the faster of vLLM's own offline
            engines: with the threads that vLLM chooses, and with one per core; in turns, on the
            same prompts
time        seconds of the command with its defaults, and in float32 on one thread, start included
"""

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import ray

from evals import hardware, prompts, tasks
from evals.score import score
from evals.serving.engine import Engine
from evals.settings import EngineSettings, free_port
from otr.files import write_json
from tests.assets.newcomer import REPOSITORY
from tests.benchmarks import loss
from tests.benchmarks.evals import measure

BARS = {
    "throughput": ("generated tokens/s, otr score / vLLM offline", "ratio", ">=", 0.9),
    "time": ("seconds of otr score, defaults / float32 on one thread", "ratio", "<=", 0.4),
}
BENCHMARKS = ("gsm8k", "bbh", "mmlu", "humaneval")
OLD_DEFAULTS = ["--engine.dtype", "float32", "--engine.threads", "1"]


def main() -> None:
    options = parse_options()
    options.names = [f"{name}:max_tokens={options.max_tokens}" for name in options.benchmarks]
    report: dict = {"machine": loss.describe_machine("cpu"), "command": sys.argv[1:]}
    for part in options.parts:
        report[part] = {"throughput": throughput, "time": compare_commands}[part](options)
        print("  ".join(map(str, measure(part, report[part], BARS).values())), flush=True)
        if options.json:
            write_json(options.json, report)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.evals_defaults")
    parser.add_argument("model", type=Path, help="directory of the model")
    parser.add_argument("--parts", nargs="+", choices=BARS, default=list(BARS))
    parser.add_argument("--benchmarks", nargs="+", default=list(BENCHMARKS))
    parser.add_argument("--max-items", type=int, default=16, help="items per benchmark")
    parser.add_argument("--max-tokens", type=int, default=512, help="tokens per answer")
    parser.add_argument("--rounds", type=int, default=1, help="timed rounds, after one to warm up")
    parser.add_argument(
        "--peer-threads",
        type=int,
        nargs="+",
        default=[0, os.cpu_count() or 1],
        help="threads of each of vLLM's offline engines; 0: vLLM's own choice",
    )
    parser.add_argument("--json", type=Path, help="file for the report")
    return parser.parse_args()


def throughput(options: argparse.Namespace) -> dict:
    """Measure generated tokens per second, ours and vLLM's in turns."""
    model, names = options.model.absolute(), options.names
    benchmarks = [tasks.load(name, max_items=options.max_items) for name in names]
    speeds: dict[str, list[float]] = {"engine": []}
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        open_ = EngineSettings(port=free_port(), log_dir=f"{folder}/logs")
        settings = hardware.fit(prompts.fit_context(model, benchmarks, open_, None), model)
        # By default Ray runs the engine at a lower priority than the other contenders have.
        ray.init(
            address="local",
            num_cpus=2,
            log_to_driver=False,
            logging_level="ERROR",
            _system_config={"worker_niceness": 0},
        )
        stack.callback(ray.shutdown)
        engine = stack.enter_context(Engine.start(model, settings=settings))
        peers = {}
        for threads in options.peer_threads:
            name = f"offline, {threads or 'its own choice of'} threads"
            peers[name] = stack.enter_context(_peer(engine, names, options.max_items, threads))
            stack.callback(peers[name].stdin.close)  # it then ends
            assert peers[name].stdout.readline(), "vLLM's offline engine did not start"
            speeds[name] = []
        for _ in range(options.rounds + 1):
            start = time.perf_counter()
            scores = score(lambda: engine, engine.settings, model, benchmarks)
            seconds = time.perf_counter() - start
            tokens = sum(one.settings["mean_tokens"] * one.num_examples for one in scores)
            speeds["engine"].append(tokens / seconds)
            for name, peer in peers.items():
                print("go", file=peer.stdin, flush=True)
                theirs = json.loads(peer.stdout.readline())
                speeds[name].append(theirs["tokens"] / theirs["seconds"])
    best = max(peers, key=lambda name: median(speeds[name][1:]))
    ratios = [ours / theirs for ours, theirs in zip(speeds["engine"], speeds[best], strict=True)]
    return {
        "settings": hardware.describe(settings),
        "tokens": tokens,
        "tokens_per_second": speeds,
        "ratio": median(ratios[1:]),
    }


def _peer(engine: Engine, names: list[str], max_items: int, threads: int) -> Any:
    environment = dict(os.environ)
    environment.pop("OMP_NUM_THREADS", None)
    if threads:
        own = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}
        environment |= own
    settings = json.dumps(asdict(engine.settings))
    words = ["own-choice", settings, str(engine.model_dir), str(max_items), *names]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.evals_peer", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=REPOSITORY,
        env=environment,
    )


def compare_commands(options: argparse.Namespace) -> dict:
    """Measure seconds of the whole command, with the defaults and as it was before them."""
    seconds: dict[str, list[float]] = {"defaults": [], "float32": []}
    for _ in range(options.rounds):
        for name, more in (("defaults", []), ("float32", OLD_DEFAULTS)):
            with TemporaryDirectory() as folder:
                command = [sys.executable, "-m", "pipelines.cli", "score"]
                command += [str(options.model.absolute()), "--benchmarks", *options.names]
                command += ["--max-items", str(options.max_items), "--output", folder]
                command += ["--engine.port", str(free_port()), *more]
                start = time.perf_counter()
                subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
                seconds[name].append(time.perf_counter() - start)
    return {"seconds": seconds, "ratio": sum(seconds["defaults"]) / sum(seconds["float32"])}


if __name__ == "__main__":
    main()
