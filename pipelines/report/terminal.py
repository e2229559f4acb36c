"""The terminal output of a run: the dry run before it, the score table after it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from pipelines.config.presets import SweepConfig
from pipelines.report import differences, leaderboard, tables
from pipelines.report.leaderboard import Entry
from pipelines.report.tables import Overlaps
from pipelines.runtime import console

_MANY_TRUNCATED = 0.05  # share of the answers above which the summary mentions it


def print_dry_run(config: SweepConfig, local: SweepConfig) -> None:
    """Print the resolved config, the trials and one example with its trained tokens marked.

    Args:
        config: the config to print.
        local: the same config with paths that exist on this machine.
    """
    from otr.training.corpus import inspect_corpus  # imports Ray Data, which takes a second

    report = inspect_corpus(local.train.data, local.train.model)
    settings = asdict(config)
    trials = settings.pop("trials")
    console.say(json.dumps(settings, indent=2))
    for trial in trials:
        console.say(f"trial {trial['arm']}, seed {trial['seed']}: {json.dumps(trial['overrides'])}")
    console.say(f"{len(trials)} trials on {report.rows} examples, {report.tokens} tokens")
    console.say("one example; [trained tokens] are in brackets:")
    console.say("".join(f"[{text}]" if trained else text for text, trained in report.example))


def print_summary(entries: Sequence[Entry], benchmarks: Sequence[str], overlaps: Overlaps) -> None:
    """Print the score table with its legend, what failed or was cut off, and the verdict."""
    table = tables.score_table(entries, benchmarks, overlaps)
    console.table(table.columns, table.text_rows(), title=leaderboard.CAPTION)
    if legend := differences.legend(entries):
        console.say(legend)
    if unscored := sum(not arm.num_scored for arm in leaderboard.group_by_arm(entries)):
        console.say(f"{unscored} arms have no score: stopped early, or failed")
    for line in _incomplete_answers(entries):
        console.say(line)
    for entry in entries:
        if entry.status == "failed":
            console.error(f"{entry.trial} failed: {entry.error}")
    console.say(differences.verdict(entries, benchmarks[0]))


def _incomplete_answers(entries: Sequence[Entry]) -> Iterator[str]:
    """Yield a line per benchmark on which answers timed out or many were truncated."""
    for name in dict.fromkeys(name for entry in entries for name in entry.scores):
        scores = [entry.scores[name] for entry in entries if name in entry.scores]
        truncated, late = (
            sum(score["settings"].get(key, 0) for score in scores)
            for key in ("num_truncated", "num_timeouts")
        )
        total = sum(s["num_examples"] * s["settings"].get("num_samples", 1) for s in scores)
        if late or truncated > _MANY_TRUNCATED * total:
            yield (
                f"{name}: {truncated} of {total} answers were cut off at the length limit, "
                f"{late} timed out"
            )
