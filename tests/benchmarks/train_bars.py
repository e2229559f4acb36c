"""Bars of the training benchmark, and the tables that compare its figures with them.

`measures` and `tables` take the benchmark's report, as in its JSON. Parts that were not run are
missing; a part that could not run is {"skipped": why}.
"""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from tests.benchmarks.train_data import SHAPES

Report = dict[str, Any]
Row = list[str]

AT_LEAST = {
    "tokens/s, otr / best TRL nll": 1.10,
    "tokens/s, otr / our sft": 0.97,
    "packing density": 0.98,
    "tokens/s of packing, Ray Data / best of datasets": 1.0,
    "tokens/s, 2 ranks / 1 rank": 1.7,
    "MFU": 0.45,
}
AT_MOST = {
    "peak memory, otr / TRL nll": 0.80,
    "share of a step waiting for rows": 0.01,
    "seconds to the first step, second / first trial": 0.5,
    "seconds per further trial of one step, all cores in use": 8.0,
    "standard errors of a source's share, any 50 steps": 3.0,
    "the same of a sorted file's halves": 3.0,
    "share of a save that training stands still": 0.05,
    "padding given to the model, share of tokens": 0.0,
    "peak memory of packing, largest / smallest corpus": 1.10,
}
TERAFLOPS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "A100": 312}
"""Dense bfloat16 peak per GPU, from NVIDIA's data sheets; the first matching name counts."""


def summary(figures: dict[str, list[dict[str, Any]]], warm_up: int) -> Report:
    """Return median, least and most tokens/s per contender after `warm_up` steps, and memory."""
    found: Report = {"tokens_per_second": {}, "spread": {}, "peak_mib": {}, "padding": {}}
    for name, steps in figures.items():
        speeds = [step["tokens"] / step["seconds"] for step in steps[warm_up:]]
        found["tokens_per_second"][name] = median(speeds)
        found["spread"][name] = [min(speeds), max(speeds)]
        found["peak_mib"][name] = max(step["peak"] for step in steps) / 2**20
        fed, real = (sum(step[key] for step in steps) for key in ("fed", "tokens"))
        found["padding"][name] = max(0.0, fed / real - 1)
    return found


def flops_per_token(shape: dict[str, int], sequence_length: int) -> float:
    """Return FLOPs of forward and backward, without recomputation, for one example per row."""
    D, L, wide = shape["hidden_size"], shape["num_hidden_layers"], shape["intermediate_size"]
    queries = shape["num_attention_heads"] * shape["head_dim"]
    keys = shape["num_key_value_heads"] * shape["head_dim"]
    weights = L * D * (2 * queries + 2 * keys + 3 * wide) + shape["vocab_size"] * D
    return 6.0 * weights + 6.0 * L * queries * sequence_length


def mfu(tokens_per_second: float, case: Report, gpu: str) -> float | None:
    """Return the model FLOPs utilization, or None if the GPU's peak is unknown."""
    peak = next((peak for name, peak in TERAFLOPS.items() if name in gpu), None)
    done = tokens_per_second * flops_per_token(SHAPES[case["model"]], case["sequence_length"])
    return None if peak is None else done / (peak * 1e12)


def measures(report: Report) -> list[Report]:
    """Return [{measure, case, value, bar, met}]; value and met are None without a figure."""
    found = []
    for part, values in PARTS.items():
        for result in report.get(part, ()):
            for name, value in ({} if "skipped" in result else values(result)).items():
                least = name in AT_LEAST
                bar = AT_LEAST.get(name, AT_MOST.get(name))
                met = None
                if value is not None and bar is not None:
                    met = value >= bar if least else value <= bar
                sign = "" if bar is None else f"{'>=' if least else '<='} {bar:g}"
                found.append(
                    {"measure": name, "case": result["name"], "value": value}
                    | {"bar": sign, "met": met}
                )
    return found


def _speed(result: Report) -> Report:
    speeds = result["tokens_per_second"]
    peers = [speed for name, speed in speeds.items() if name.startswith("trl")]
    found = {"padding given to the model, share of tokens": result["padding"]["otr"]}
    if peers:
        found["tokens/s, otr / best TRL nll"] = speeds["otr"] / max(peers)
    if "sft" in speeds:
        found["tokens/s, otr / our sft"] = speeds["otr"] / speeds["sft"]
    return found


def _memory(result: Report) -> Report:
    mib = result["peak_mib"]
    if "trl-nll" not in mib:
        return {}
    return {"peak memory, otr / TRL nll": mib["otr"] / mib["trl-nll"]}


def _ranks(result: Report) -> Report:
    speeds = result["tokens_per_second"]
    return {
        "tokens/s, 2 ranks / 1 rank": speeds["otr-2-ranks"] / speeds["otr-1-rank"],
        "tokens/s, 2 ranks / 2 that share nothing": speeds["otr-2-ranks"] / speeds["otr-2-alone"],
    }


def _fit(result: Report) -> Report:
    first, second = result["first_step_seconds"], result["second_trial_seconds"]
    return {
        "seconds to the first step, second / first trial": second / first,
        "seconds per further trial of one step, all cores in use": result["further_trial_seconds"],
        "share of a step waiting for rows": result["data_wait"],
        "seconds from the command to the end of the first step": result["first_step_seconds"],
    }


def _order(result: Report) -> Report:
    return {
        "standard errors of a source's share, any 50 steps": result["mixed"],
        "the same of a sorted file's halves": result["sorted"],
    }


def _save(result: Report) -> Report:
    """Leave out the first save, which allocates its memory."""
    ratios = [
        stall / (stall + write)
        for stall, write in zip(result["stall_seconds"], result["write_seconds"], strict=True)
    ]
    return {
        "share of a save that training stands still": median(ratios[1:]),
        "the same of the first save": ratios[0],
    }


def _corpus(result: Report) -> Report:
    """Take the worst of all sizes; for memory the largest and the smallest that Ray Data packs."""
    sizes = [size["ways"] for size in result["sizes"]]
    ours = [size["ray_data"] for size in sizes]
    found = {"packing density": min(each["density"] for each in ours)}
    if len(sizes[0]) > 1:
        for name, seconds in (
            ("tokens/s of packing, Ray Data / best of datasets", "seconds"),
            ("the same with every start-up", "whole_seconds"),
        ):
            found[name] = min(_advantage(size, seconds) for size in sizes)
    from otr.training.store.write import SMALL_BYTES  # not where only the core is installed

    peaks = [
        size["ways"]["ray_data"]["peak_mib"]
        for size in result["sizes"]
        if size["megabytes"] * 1e6 > SMALL_BYTES
    ]
    if len(peaks) > 1:
        found["peak memory of packing, largest / smallest corpus"] = peaks[-1] / peaks[0]
    return found


def _advantage(ways: dict[str, Report], seconds: str) -> float:
    speeds = {way: figures["tokens"] / figures[seconds] for way, figures in ways.items()}
    return speeds.pop("ray_data") / max(speeds.values())


def _mfu(result: Report) -> Report:
    return {"MFU": result["mfu"]} | _speed(result)


PARTS: dict[str, Callable[[Report], Report]] = {
    "speed": _speed,
    "memory": _memory,
    "ranks": _ranks,
    "fit": _fit,
    "order": _order,
    "save": _save,
    "corpus": _corpus,
    "mfu": _mfu,
}


def tables(report: Report, *, markdown: bool = False) -> str:
    """Return the measures with their bars, then the figures of each contender."""
    bars = [["measure", "case", "value", "bar", "met"]]
    for one in measures(report):
        met = {True: "yes", False: "NO", None: "-"}[one["met"]]
        bars.append([one["measure"], one["case"], _number(one["value"]), one["bar"] or "-", met])
    for part in PARTS:
        for result in report.get(part, ()):
            if "skipped" in result:
                bars.append([part, result["name"], "-", "-", f"skipped: {result['skipped']}"])
    parts = [bars, _contenders(report), _ways(report)]
    return "\n\n".join(_table(rows, markdown) for rows in parts if len(rows) > 1) + "\n"


def _contenders(report: Report) -> list[Row]:
    """Show peak memory only for `memory` and `mfu`, where each contender has a fresh process."""
    rows = [["case", "contender", "tokens/s", "least", "most", "peak MiB"]]
    for part in ("speed", "ranks", "mfu", "memory"):
        for result in report.get(part, ()):
            for name, speed in result.get("tokens_per_second", {}).items():
                low, high = result["spread"][name]
                figures = ["-"] * 3
                if part != "memory":
                    figures = [f"{value:,.0f}" for value in (speed, low, high)]
                alone = part in ("memory", "mfu")
                peak = f"{result['peak_mib'][name]:,.0f}" if alone else "-"
                rows.append([f"{part}, {result['name']}", name, *figures, peak])
    return rows


def _ways(report: Report) -> list[Row]:
    rows = [["corpus", "way", "tokens/s", "s", "s with start-up", "peak MiB", "density"]]
    for result in report.get("corpus", ()):
        for size in result["sizes"]:
            for name, way in size["ways"].items():
                speed, peak = way["tokens"] / way["seconds"], way["peak_mib"]
                times = [f"{way[key]:.1f}" for key in ("seconds", "whole_seconds")]
                figures = [f"{speed:,.0f}", *times, f"{peak:,.0f}", f"{way['density']:.3f}"]
                rows.append([f"{size['megabytes']:g} MB", name, *figures])
    return rows


def _number(value: float | None) -> str:
    return "not reported" if value is None else f"{value:.3f}"


def _table(rows: Sequence[Row], markdown: bool) -> str:
    if markdown:
        lines = [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
