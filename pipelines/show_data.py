"""Show what training makes of its data; nothing is trained, and nothing is written.

Records are read, rendered and tokenized as a run would do it.

    otr data show --model MODEL --data train.jsonl
    otr data show --data train.jsonl --record 17
    python pipelines/show_data.py show --data train.jsonl --rejected over-long
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.config.defaults import first_read
from pipelines.config.options import UsageError
from pipelines.config.prepared import prepare_temporarily
from pipelines.report import terminal
from pipelines.report.data import LENGTHS, source_table, summarize
from pipelines.runtime import console

if TYPE_CHECKING:
    from otr.config import DataConfig, ModelConfig
    from otr.training.corpus import CorpusReport, Look
    from pipelines.config.commands import Data

FIRST = 3  # records that are shown if none is asked for
BAR = 40  # characters of the longest bar of the lengths
SHOWN = 10  # rejected records of a cause


def run(command: "Data") -> int:
    """Print the data that a command line asks for; return the exit code.

    Raises:
        UsageError: a number of --limit or --record is too small.
        ValueError: another option has a wrong value, or the data can't be read.
    """
    from otr.training.corpus import inspect_corpus

    if command.limit < 1:
        raise UsageError(f"--limit is {command.limit}: give at least 1")
    if command.record and min(command.record) < 0:
        raise UsageError(f"--record is {min(command.record)}: records are numbered from 0")
    config = command.load()
    data = replace(config.train.data, max_rejected=1.0, skip_bad=True)  # to see what is bad
    config = replace(config, train=replace(config.train, data=data))
    with prepare_temporarily(config) as prepared:
        try:
            train = prepared.decided.config.train
        except ValueError:  # no record can be used, say: show what is asked for, then the error
            _print_asked(first_read(prepared.config), prepared.config.train.model, command)
            raise
        if _print_asked(train.data, train.model, command):
            return 0
        report = inspect_corpus(train.data, train.model, limit=command.limit)
        print_sizes(report, train.data)
        terminal.print_remarks(report, console.say)
        _print_records(train.data, train.model, range(min(FIRST, report.rows)))
    return 0


def print_sizes(report: "CorpusReport", data: "DataConfig") -> None:
    """Print the sizes of each source, and how long the examples are."""
    summary = summarize(report)
    sizes = source_table(summary)
    read = "" if report.complete else f" of the first {report.rows:,} records"
    console.table(sizes.columns, sizes.text_rows(), title=f"the data{read}")
    most = max(each.examples for each in summary.lengths)
    console.table(
        [*LENGTHS, ""],
        [[*each.texts(), "█" * round(BAR * each.examples / most)] for each in summary.lengths],
        title=f"lengths; a packed row has {data.sequence_length:,} tokens",
    )


def _print_asked(data: "DataConfig", model: "ModelConfig", command: "Data") -> bool:
    """Print rejected records or those of some numbers; return whether a command asks for them."""
    if command.rejected:
        _print_rejected(data, model, command)
    elif command.record:
        _print_records(data, model, command.record)
    return bool(command.rejected or command.record)


def _print_records(data: "DataConfig", model: "ModelConfig", numbers: Sequence[int]) -> None:
    """Print records as the model sees them.

    Raises:
        ValueError: there is no record of such a number.
    """
    from otr.models.tokenizer import load_tokenizer
    from otr.training.corpus import look_at_records, rendered

    tokenizer, count = load_tokenizer(model), 0
    console.say(f"records as the model sees them; {console.marked()}:")
    for look in look_at_records(data, model, limit=max(numbers) + 1):
        count = look.number + 1
        if look.number not in numbers:
            continue
        console.say(f"\n{'=' * 8} record {look.number}, {look.text.place}")
        if look.rejected:
            _print_reason(look)
        for example in look.examples:
            trained = sum(example.mask)
            console.say(f"{'-' * 8} {len(example.ids):,} tokens, {trained:,} of them trained")
            console.say_marked(rendered(example, tokenizer))
    if missing := [number for number in sorted(numbers) if number >= count]:
        raise ValueError(
            f"no record {missing[0]}: the data has {count:,} records, and the first is number 0"
        )


def _print_rejected(data: "DataConfig", model: "ModelConfig", command: "Data") -> None:
    """Print records that are rejected for a cause."""
    from otr.training.corpus import look_at_records

    count = read = 0
    for look in look_at_records(data, model, limit=command.limit):
        read = look.number + 1
        if look.rejected and command.rejected in ("all", look.rejected.cause):
            count += 1
            if count <= SHOWN:
                console.say(f"\n{'=' * 8} record {look.number}, {look.text.place}")
                _print_reason(look)
    cause = "" if command.rejected == "all" else f" as {command.rejected}"
    shown = f"; shown are the first {SHOWN}" if count > SHOWN else ""
    first = "the first " if read == command.limit else ""
    console.say(f"\nrejected{cause}: {count:,} of {first}{read:,} records{shown}")


def _print_reason(look: "Look") -> None:
    assert look.rejected is not None
    console.say(f"rejected as {look.rejected.cause}: {look.rejected.detail}")
    record = look.rejected.record
    console.say(record if isinstance(record, str) else json.dumps(record, indent=1, default=str))


if __name__ == "__main__":
    from pipelines import cli

    sys.exit(cli.main(["data", *sys.argv[1:]]))
