"""The terminal output of a run: the dry run before it, the score table after it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from evals.benchmark import Benchmark
from otr.config import LoraConfig
from otr.hints import counted, full_disk
from pipelines.config import defaults
from pipelines.config.prepared import PreparedRun
from pipelines.config.presets import SweepConfig
from pipelines.report import data, differences, leaderboard, measures, tables
from pipelines.report.leaderboard import Entry
from pipelines.report.tables import Overlaps
from pipelines.runtime import console
from pipelines.stages import search_plan
from tuning.arms import RATE
from tuning.space import config_of

if TYPE_CHECKING:
    from otr.training.corpus import CorpusReport


MANY_EPOCHS = 10
"""More passes over the data than this are warned of: the examples are learned by heart."""


def print_dry_run(config: SweepConfig, run: PreparedRun) -> None:
    """Print the resolved config, the trials and one example with its trained tokens marked.

    Args:
        config: the config to print, with paths as they were given.
        run: the same config, prepared.

    Raises:
        ValueError: the directory holds another run than the search to be planned.
    """
    run = run.decided
    config, report = defaults.with_choices(config, run.config), run.corpus
    settings = asdict(config)
    trials = settings.pop("trials")
    console.say(json.dumps(settings, indent=2))
    for trial in trials:
        console.say(f"trial {trial['arm']}, seed {trial['seed']}: {json.dumps(trial['overrides'])}")
    print_choices(config, corpus=report)
    if config.search.space:
        search_plan.show(search_plan.plan(run, config), config)
    records = counted(report.rows, "record")
    console.say(f"{counted(len(trials), 'trial')} on {records}, {report.tokens} tokens")
    console.say(f"one example; {console.marked()}:")
    console.say_marked(report.example)


def print_choices(
    config: SweepConfig,
    benchmarks: Sequence[Benchmark] = (),
    corpus: "CorpusReport | None" = None,
) -> None:
    """Print what is trained, how fast and how often, what was chosen, and what it is scored on."""
    train = config.train
    configs = [config_of(train, trial) for trial in config.trials]
    rates = sorted({each.optim.lr for each in configs})
    how = " or ".join(dict.fromkeys(_trained(each.lora) for each in configs))
    how += f" but {' '.join(train.freeze)}" if train.freeze else ""
    many = "learning rates" if len(rates) > 1 else "learning rate"
    shown = ", ".join(f"{rate:g}" for rate in rates)
    if RATE in config.search.domains:
        shown = "searched"
    rows = corpus.packed_rows(train.data.sequence_length) if corpus else None
    epochs = train.max_steps * train.global_batch_size / rows if rows else 0.0
    passes = f"{epochs:.3g}"
    often = f" ({passes} epoch{'' if passes == '1' else 's'} of the data)" if epochs else ""
    console.say(
        f"trains {how} of {train.model.path}, {train.max_steps} steps{often}, {many} {shown}"
    )
    if epochs > MANY_EPOCHS:
        console.note(
            f"warning: {train.max_steps} steps are {epochs:,.0f} epochs: the model will learn the "
            "examples by heart; give --epochs 3 or fewer --max-steps"
        )
    if corpus:
        print_remarks(corpus)
    print_chosen(config)
    if benchmarks:
        print_benchmarks(benchmarks)


def _trained(lora: LoraConfig) -> str:
    method = f"{lora.method} of rank {lora.rank}" if lora.rank else lora.method
    return " and ".join([method, *lora.modules_to_save])


def print_remarks(corpus: "CorpusReport", say: Callable[[str], None] = console.note) -> None:
    """Print which fields of the data are not used, and what else its owner should know."""
    read = "" if corpus.complete else f" of the first {corpus.rows:,}"
    if corpus.unused:
        fields = ", ".join(f"{name} ({count:,})" for name, count in data.most_first(corpus.unused))
        say(f"fields that neither otr nor the chat template uses (records{read}): {fields}")
    examples = sum(map(len, corpus.lengths))
    if corpus.unended > examples / 2:
        say(
            f"warning: {corpus.unended:,} of {examples:,} examples do not end with a token of its "
            "own, so the model does not learn to stop: use a --chat-template that writes one after "
            "each answer"
        )
    for split, count in corpus.left_out.items():
        files = "1 file" if count == 1 else f"{count:,} files"
        say(f"not read: {files} of the split {split!r} (--train.data.split)")
    for remark, count in corpus.files.items():
        say(f"{count:,} {remark}")
    for remark, count in corpus.remarks.items():
        say(f"{count:,}{read} {remark}")


def print_chosen(config: SweepConfig) -> None:
    """Print each option that was not given, with the value that was chosen and the reason."""
    if config.chosen:
        columns = ("chosen, since not given", "", "")
        console.table(columns, defaults.described(config))


def print_benchmarks(benchmarks: Sequence[Benchmark]) -> None:
    """Print the benchmarks, and for each how many of its items are used and what was chosen."""
    texts = []
    for benchmark in benchmarks:
        counted = any(note.endswith(" items") for note in benchmark.notes)
        count = [] if counted else [f"{len(benchmark.items)} items"]
        texts.append(", ".join([benchmark.name, *count, *benchmark.notes]))
    console.say(f"scores on {'; '.join(texts)}")


def print_summary(entries: Sequence[Entry], benchmarks: Sequence[str], overlaps: Overlaps) -> None:
    """Print the tables with their legends, what failed or was cut off, and the verdict."""
    table = tables.score_table(entries, benchmarks, overlaps)
    console.table(table.columns, table.text_rows(), title=leaderboard.CAPTION)
    if legend := differences.legend(entries):
        console.say(legend)
    if unscored := sum(not arm.num_scored for arm in leaderboard.group_by_arm(entries)):
        arms = "1 arm has" if unscored == 1 else f"{unscored} arms have"
        console.say(f"{arms} no score: stopped early, or failed")
    for line in tables.incomplete_answers(entries, benchmarks):
        console.say(line)
    beside = measures.measure_table(entries, benchmarks[0])
    if beside.rows:
        console.table(beside.columns, beside.text_rows(), title=measures.CAPTION)
        for line in filter(None, [measures.legend(entries), *measures.EXPLANATION]):
            console.say(line)
    for entry in entries:
        if entry.status == "failed":
            hint = full_disk(entry.error or "", entry.checkpoint or "")
            console.error(f"{entry.trial} failed: {entry.error}{hint and f' ({hint})'}")
    console.say(differences.verdict(entries, benchmarks[0]))
