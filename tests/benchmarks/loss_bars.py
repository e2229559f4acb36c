"""The bars of the loss benchmark, and the table that compares a case's result with them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.loss_peers import PEERS, SFT, WEIGHTED

Result = dict[str, Any]
MIB = 2**20
AT_LEAST = {"naive-otr / otr-k256"}  # every other ratio must be at most its bar


@dataclass(frozen=True)
class Bar:
    ratio: str
    cpu: float | None
    cuda: float | None
    where: Callable[[Result], bool] = lambda result: True


BARS = (
    Bar("otr-k256 / sft", 1.10, 1.05, lambda r: r["V"] == 151936 and r["D"] >= 2048),
    Bar("otr-k256 / sft", 1.25, 1.15, lambda r: r["V"] == 151936 and r["D"] == 512),
    Bar("otr-expected / sft", 1.05, 1.02, lambda r: r["D"] >= 2048),
    *(Bar(f"{name} / sft", 1.02, 1.02) for name in ("dft", *WEIGHTED)),
    Bar("sft / best peer", 1.05, 1.00),
    Bar("dft / trl-dft", 0.80, 0.80),
    Bar("memory otr-k256 / sft", 1.05, 1.05),
    Bar("memory otr-k256 / naive-otr", 0.10, 0.10, lambda r: r["memory_T"] == 4096),
    Bar("naive-otr / otr-k256", 1.0, 1.5),
    Bar(
        "otr-k256 / roofline",
        None,
        1.15,
        lambda r: (r["T"], r["D"], r["V"]) == (16384, 4096, 128256),
    ),
)


def best_peer(seconds: dict[str, float]) -> str | None:
    """Return the fastest plain cross-entropy of the other libraries."""
    peers = [name for name in seconds if name in PEERS and PEERS[name].objective == SFT]
    return min(peers, key=seconds.__getitem__, default=None)


def ratios(result: Result) -> dict[str, float]:
    """Return the ratios that have a bar on this device and of which both sides were measured.

    Memory excludes the weight's gradient, which every variant has to hold.
    """
    seconds = dict(result["seconds"], roofline=result["roofline"])
    if result["best peer"] is not None:
        seconds["best peer"] = seconds[result["best peer"]]
    weight_mib = result["gradient_mib"]["weight"]
    memory = {f"memory {name}": mib - weight_mib for name, mib in result["extra_mib"].items()}

    found = {}
    for ratio in dict.fromkeys(bar.ratio for bar in BARS if _limit(bar, result) is not None):
        over, under = ratio.split(" / ")
        values, under = (memory, f"memory {under}") if over in memory else (seconds, under)
        if over in values and under in values:
            found[ratio] = values[over] / values[under]
    return found


def table(result: Result) -> str:
    """Format times and memory of every variant, and every ratio with its bar and outcome."""
    gradients_mib = sum(result["gradient_mib"].values())
    lines = [
        f"T {result['T']}, D {result['D']}, V {result['V']}, {result['dtype']}, "
        f"{result['device']}; memory at T {result['memory_T']}",
        f"{'variant':<16}{'median s':>10}{'min':>10}{'max':>10}{'extra MiB':>11}{'no grads':>10}",
    ]
    for name in dict.fromkeys([*result["seconds"], *result["extra_mib"]]):
        low, high = result["spread"].get(name, (None, None))
        mib = result["extra_mib"].get(name)
        seconds = [_cell(x, ".4f", 10) for x in (result["seconds"].get(name), low, high)]
        rest = None if mib is None else mib - gradients_mib
        lines.append(f"{name:<16}{''.join(seconds)}{_cell(mib, '.1f', 11)}{_cell(rest, '.1f', 10)}")
    lines.append(f"{'roofline':<16}{result['roofline']:>10.4f}")
    lines += [f"best peer: {result['best peer']}", f"{'ratio':<30}{'value':>8}  {'bar':<8}outcome"]
    for ratio, value in result["ratios"].items():
        lines.append(f"{ratio:<30}{value:>8.3f}  {_verdict(ratio, value, result)}")
    return "\n".join(lines) + "\n"


def bar_of(ratio: str, result: Result) -> tuple[str, float] | None:
    """Return the sign and the limit of a ratio's bar for this shape and device, if it has one."""
    bar = next((bar for bar in BARS if bar.ratio == ratio and bar.where(result)), None)
    limit = None if bar is None else _limit(bar, result)
    return None if limit is None else (">=" if ratio in AT_LEAST else "<=", limit)


def _verdict(ratio: str, value: float, result: Result) -> str:
    bar = bar_of(ratio, result)
    if bar is None:
        return f"{'-':<8}no bar for this shape"
    sign, limit = bar
    met = value >= limit if sign == ">=" else value <= limit
    return f"{sign} {limit:<5.2f}{'met' if met else 'NOT met'}"


def _limit(bar: Bar, result: Result) -> float | None:
    return bar.cuda if result["device"] == "cuda" else bar.cpu


def _cell(value: float | None, form: str, width: int) -> str:
    return f"{'-' if value is None else format(value, form):>{width}}"
