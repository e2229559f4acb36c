"""The terminal output of a run: the dry run before it, the score table after it."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from evals.benchmark import Benchmark
from otr.hints import full_disk
from pipelines.config.presets import SweepConfig
from pipelines.report import differences, leaderboard, tables
from pipelines.report.leaderboard import Entry
from pipelines.report.tables import Overlaps
from pipelines.runtime import console
from tuning.space import config_of


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


def print_choices(config: SweepConfig, benchmarks: Sequence[Benchmark] = ()) -> None:
    """Print what is trained and how fast, and what it is scored on."""
    train = config.train
    rates = sorted({config_of(train, trial).optim.lr for trial in config.trials})
    how = f"LoRA of rank {train.lora.rank}" if train.lora.rank else "all weights"
    many = "learning rates" if len(rates) > 1 else "learning rate"
    console.say(
        f"trains {how} of {train.model.path}, {train.max_steps} steps, {many} "
        f"{', '.join(f'{rate:g}' for rate in rates)}"
    )
    if benchmarks:
        print_benchmarks(benchmarks)


def print_benchmarks(benchmarks: Sequence[Benchmark]) -> None:
    """Print the benchmarks, and for each how many of its items are used and how it is graded."""
    texts = [", ".join([b.name, *(b.notes or [f"{len(b.items)} items"])]) for b in benchmarks]
    console.say(f"scores on {'; '.join(texts)}")


def print_summary(entries: Sequence[Entry], benchmarks: Sequence[str], overlaps: Overlaps) -> None:
    """Print the score table with its legend, what failed or was cut off, and the verdict."""
    table = tables.score_table(entries, benchmarks, overlaps)
    console.table(table.columns, table.text_rows(), title=leaderboard.CAPTION)
    if legend := differences.legend(entries):
        console.say(legend)
    if unscored := sum(not arm.num_scored for arm in leaderboard.group_by_arm(entries)):
        console.say(f"{unscored} arms have no score: stopped early, or failed")
    for line in tables.incomplete_answers(entries, benchmarks):
        console.say(line)
    for entry in entries:
        if entry.status == "failed":
            hint = full_disk(entry.error or "", entry.checkpoint or "")
            console.error(f"{entry.trial} failed: {entry.error}{hint and f' ({hint})'}")
    console.say(differences.verdict(entries, benchmarks[0]))
