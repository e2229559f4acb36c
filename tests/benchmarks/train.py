"""Training compared with TRL's: ``python -m tests.benchmarks.train``.

Sizes are MODEL:SxRxB: sequence length, packed rows per step, packed rows per forward pass. It
prints each measure with its bar, and writes FILE (``--json``) after every part: {"machine",
"versions", "measures", and a list of results per part}.

speed   all contenders at once, one step each in turns; medians after the warm-up
memory  one contender after the other, each in a fresh process
ranks   one process, two ranks, and two independent processes, one thread each, in turns
fit     sweeps on Ray: seconds to the first step of two trials, share of time waiting for rows;
        seconds that a trial of one step takes with all cores in use
order   shares of sources in all stretches of 50 steps
save    snapshots: seconds that training is blocked, and seconds to write
corpus  tokenize and pack a corpus: Ray Data, TRL's way, TRL's packing after one batched map
mfu     a model of 1.7 B parameters, on a GPU only
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from otr.files import write_json
from tests.benchmarks import loss, train_bars
from tests.benchmarks.train_data import Case, write_corpus
from tests.benchmarks.train_flow import measured
from tests.benchmarks.train_turns import RANKS, alone, in_turns

WARM_UP = 2  # steps that are not timed: the first ones allocate
PACKAGES = ("torch", "transformers", "trl", "datasets", "ray")
CONTENDERS = ("otr", "sft", "trl-nll", "trl-nll-row")
EQUAL_ROWS = ("otr", "sft", "trl-nll")  # of packed rows per forward pass
WAYS = ("ray_data", "trl_batched", "trl")
NO_GPU = "no CUDA GPU on this machine"
QUICK = {
    "speed": ["tiny:64x4x2"],
    "memory": ["tiny:64x4x2"],
    "ranks": "tiny:64x4x2",
    "fit": "base:128x4x4",
    "save": "tiny",
    "mfu": "tiny:64x4x2",
    "rounds": 1,
    "fit_steps": 3,
    "fit_megabytes": 0.5,
    "order_rows": 2000,
    "megabytes": [0.1],
}


def main() -> None:
    options = parse_options()
    report: dict[str, Any] = {
        "machine": loss.describe_machine(options.device) | {"threads": options.threads},
        "versions": {name: version(name) for name in PACKAGES},
    }
    for part in options.parts:
        report[part] = RUN[part](options)
        report["measures"] = train_bars.measures(report)
        if options.json:
            write_json(options.json, report)
    print(train_bars.tables(report, markdown=options.markdown))


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a GPU machine that has torch and transformers alone
        return "not installed"


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.train")
    add = parser.add_argument
    add("--parts", nargs="+", choices=RUN, default=list(RUN))
    add("--speed", nargs="+", default=["base:256x32x32", "wide:1024x4x4"], metavar="MODEL:SxRxB")
    add("--contenders", nargs="+", choices=(*CONTENDERS, "compiled"), default=CONTENDERS)
    add("--memory", nargs="+", default=["wide:1024x4x1", "wide:1024x4x4"], metavar="MODEL:SxRxB")
    add("--ranks", default="base:256x32x16", metavar="MODEL:SxRxB")
    add("--fit", default="base:256x32x32", metavar="MODEL:SxRxB")
    add("--order-rows", type=int, default=20_000, help="packed rows of the corpus")
    add("--save", default="wide", metavar="MODEL")
    add("--mfu", default="large:4096x8x2", metavar="MODEL:SxRxB")
    add("--rounds", type=int, default=7, help="timed steps per contender")
    add("--fit-steps", type=int, default=150, help="steps of each trial")
    add("--fit-megabytes", type=float, default=4, help="size of its corpus")
    add("--megabytes", nargs="+", type=float, default=[10, 100], help="sizes of the corpus")
    add("--ways", nargs="+", choices=WAYS, default=WAYS, help="ways to tokenize and pack it")
    add("--full", action="store_true", help="also a corpus of 1000 MB")
    add("--corpus-sequence-length", type=int, default=1024)
    add("--processes", type=int, default=2, help="processes that tokenize and pack")
    add("--threads", type=int, default=loss.describe_machine("cpu")["threads"])
    add("--device", choices=("cpu", "cuda"))
    add("--quick", action="store_true", help="tiny sizes, to see that it runs")
    add("--json", type=Path, help="where the report goes")
    add("--markdown", action="store_true", help="print the tables as Markdown")
    options = parser.parse_args()
    options.device = options.device or ("cuda" if loss.torch.cuda.is_available() else "cpu")
    if options.quick:
        vars(options).update(QUICK)
    if options.full:
        options.megabytes = [*options.megabytes, 1000]
    return options


def case(text: str, options: argparse.Namespace, *, steps: int | None = None) -> Case:
    """Return the case of a text such as "base:256x32x16"; bfloat16 on a GPU."""
    model, _, sizes = text.partition(":")
    sequence_length, global_batch_size, micro_batch_size = map(int, sizes.split("x"))
    dtype = "bfloat16" if options.device == "cuda" else "float32"
    steps = steps or WARM_UP + options.rounds
    return Case(
        model, sequence_length, global_batch_size, micro_batch_size, steps, options.device, dtype
    )


def result(name: str, one: Case, figures: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, **dataclasses.asdict(one), **train_bars.summary(figures, WARM_UP)}


def speed(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for text in options.speed:
        one = case(text, options)
        found.append(result(text, one, in_turns(options.contenders, one, options.threads)))
    return found


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for text in options.memory:
        one = case(text, options, steps=WARM_UP + 1)  # the first step makes the optimizer's state
        named = [name for name in EQUAL_ROWS if name in options.contenders]
        found.append(result(text, one, alone(named, one, options.threads)))
    return found


def ranks(options: argparse.Namespace) -> list[dict[str, Any]]:
    if options.device != "cpu":
        return [{"name": options.ranks, "skipped": "it compares processes on a CPU"}]
    one = case(options.ranks, options)
    return [result(options.ranks, one, in_turns(RANKS, one, 1))]


def mfu(options: argparse.Namespace) -> list[dict[str, Any]]:
    if options.device != "cuda":
        return [{"name": options.mfu, "skipped": NO_GPU}]
    one = case(options.mfu, options)
    found = result(options.mfu, one, alone(options.contenders, one, options.threads))
    speed = found["tokens_per_second"]["otr"]
    return [found | {"mfu": train_bars.mfu(speed, found, loss.torch.cuda.get_device_name())}]


def fit(options: argparse.Namespace) -> list[dict[str, Any]]:
    one = case(options.fit, options)
    with tempfile.TemporaryDirectory() as directory:
        write_corpus(Path(directory), options.fit_megabytes, files=1)
        ways = measured(
            "fit",
            directory=directory,
            sequence_length=one.sequence_length,
            global_batch_size=one.global_batch_size,
            steps=options.fit_steps,
            processes=options.processes,
        )
    return [{"name": options.fit} | ways]


def order(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = measured("order", global_batch_size=16, rows=options.order_rows)
    return [{"name": f"{options.order_rows:,} rows, 16 per step"} | found]


def save(options: argparse.Namespace) -> list[dict[str, Any]]:
    return [{"name": options.save} | measured("save", model=options.save)]


def corpus(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every way at one size, then at the next size.

    Raises:
        RuntimeError: the ways do not find the same tokens.
    """
    sizes = []
    for megabytes in sorted(options.megabytes):
        with tempfile.TemporaryDirectory() as directory:
            examples = write_corpus(Path(directory), megabytes)
            job = {"directory": directory, "processes": options.processes}
            job["sequence_length"] = options.corpus_sequence_length
            ways = {way: measured(way, **job) for way in options.ways}
        tokens = {name: way["tokens"] for name, way in ways.items()}
        if len(set(tokens.values())) > 1:
            raise RuntimeError(f"unequal work: {megabytes} MB are {tokens} tokens")
        sizes.append({"megabytes": megabytes, "examples": examples, "ways": ways})
    texts = [f"{size['megabytes']:g}" for size in sizes]
    return [{"name": f"{', '.join(texts)} MB, S {options.corpus_sequence_length}", "sizes": sizes}]


RUN: dict[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    part.__name__: part for part in (speed, memory, ranks, fit, order, save, corpus, mfu)
}


if __name__ == "__main__":
    main()
