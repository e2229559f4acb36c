"""Speed of scoring: ``python -m tests.benchmarks.evals``.

Prints each measure with its bar. ``--json FILE`` is rewritten after every part, with "machine",
"versions", "measures", and the figures of each part:

swap         load another checkpoint into the warm engine and verify it
throughput   generated tokens/s of the engine and of vLLM's own offline engine, in turns
checkpoints  score checkpoints 2..n on the warm engine, and each with its own vLLM
grading      grade while generating, compared with generating alone
harness      run lm-evaluation-harness on the same engine; count items with another text or verdict
"""

import argparse
from importlib import metadata
from pathlib import Path

from otr.files import write_json
from tests.benchmarks import evals_speed, loss

BARS = {
    "swap": ("swap + probe, seconds", "median_s", "<=", 3.0),
    "throughput": ("generated tokens/s, engine / vLLM offline", "ratio", ">=", 0.85),
    "checkpoints": ("seconds per checkpoint, warm / fresh vLLM", "ratio", "<=", 0.2),
    "grading": ("share of its time that grading adds to generating", "added", "<=", 0.1),
    "harness": ("items that lm-eval's gsm8k rules judge otherwise", "most", "<=", 0),
}
QUICK_BENCHMARKS = ("target-heldout", "retained-code")


def main() -> None:
    options = parse_options()
    report: dict = {
        "machine": loss.describe_machine("cpu"),
        "versions": {name: metadata.version(name) for name in ("ray", "torch", "transformers")},
        "measures": [],
    }
    names = QUICK_BENCHMARKS if options.quick else evals_speed.corpus.BENCHMARKS
    with evals_speed.scene(options.max_items, names) as on:
        for part in options.parts:
            report[part] = getattr(evals_speed, part)(on, options.rounds)
            line = measure(part, report[part])
            report["measures"].append(line)
            print("  ".join(map(str, line.values())), flush=True)
            if options.json:
                write_json(options.json, report)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.evals")
    parser.add_argument("--parts", nargs="+", choices=BARS, default=list(BARS))
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds or checkpoints")
    parser.add_argument("--max-items", type=int, default=100, help="items per benchmark; 0: all")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--json", type=Path, help="file for the report")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.max_items = 1, 8
    return options


def measure(part: str, figures: dict, bars: dict = BARS) -> dict:
    name, key, sign, bar = bars[part]
    if "skipped" in figures:
        return {"measure": name, "value": figures["skipped"], "bar": f"{sign} {bar:g}", "met": "-"}
    value = figures[key]
    met = value <= bar if sign == "<=" else value >= bar
    return {
        "measure": name,
        "value": round(value, 3),
        "bar": f"{sign} {bar:g}",
        "met": "yes" if met else "NO",
    }


if __name__ == "__main__":
    main()
