"""From a corpus to a stream of packed rows, with Ray Data.

In: a `DataConfig` and the model's tokenizer. Out: contract-1 rows {input_ids int32[S], loss_mask
bool[S], segment_ids int32[S]} as they are made; the corpus is never held as a whole.

Each packed row has a fourth column, `audit`: on the first row of a batch JSON {"rows": read,
"rejected": {cause: count}, "samples": [...]}, empty on the others. It travels with the rows, so
what was rejected is known where it matters, without another process.
"""

import functools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain, groupby, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from otr.config import DataConfig, ModelConfig
from otr.training.sources import Piece, pieces, rows

if TYPE_CHECKING:
    import ray.data
    from transformers import PreTrainedTokenizerBase

BATCH = 1000  # examples that are packed together
TASK_CPUS = 0.9  # less than one: next to a worker and a trial's driver, two cores hold one task
SAMPLES = 5  # rejected rows of a cause that are kept of each batch
FORMS = (("messages",), ("prompt", "completion"), ("instruction", "output"))


@dataclass(frozen=True)
class CorpusReport:
    """What is in a corpus, or in its first rows."""

    rows: int
    """Read and judged."""
    complete: bool
    """Whether that was the whole corpus."""
    rejected: dict[str, int]
    """Rows by cause."""
    samples: list[dict[str, str]]
    """Some of the rejected rows: {cause, detail, row}."""
    tokens: int
    trained_tokens: int
    example: list[tuple[str, bool]]
    """The first usable row as the model sees it: stretches of text, and whether each is trained."""


def read(config: DataConfig, paths: Sequence[str]) -> "ray.data.Dataset":
    """The rows as JSON text: one column `row`, bytes; a broken line is a row like any other.

    Raises:
        ValueError: a path that is not there, or holds nothing that can be read.
    """
    import ray.data

    found = pieces(paths, config.split)
    listed = ray.data.from_items(
        [{"piece": number} for number in range(len(found))], override_num_blocks=len(found)
    )
    listed.context.enable_progress_bars = False
    return listed.map_batches(_read, batch_size=1, fn_args=(found,), num_cpus=TASK_CPUS)  # type: ignore[arg-type]


def packed(config: DataConfig, model: ModelConfig) -> "ray.data.Dataset":
    """The training corpus as packed rows with their audit.

    Raises:
        ValueError: a path that is not there, or holds nothing that can be read.
    """
    return read(config, config.paths).map_batches(
        _pack,  # type: ignore[arg-type]
        batch_size=BATCH,
        batch_format="pyarrow",
        fn_args=(config, model),
        num_cpus=TASK_CPUS,  # as above, so that Ray reads and packs in one task
    )


def packed_locally(
    config: DataConfig, model: ModelConfig, paths: Sequence[str], *, limit: int
) -> dict[str, np.ndarray]:
    """The first `limit` rows of `paths` as the columns of contract 1, [N, S] each."""
    from otr.data import pack, tokenize

    texts = islice(chain.from_iterable(map(rows, pieces(paths, config.split))), limit)
    done = tokenize(
        map(_parsed, texts),
        _tokenizer(model),
        columns=config.columns,
        row_length=config.row_length,
    )
    return pack(done.examples, config.row_length)


def inspect(config: DataConfig, model: ModelConfig, *, limit: int = 20_000) -> CorpusReport:
    """Read up to `limit` rows in this process and judge them, before anything expensive.

    Raises:
        ValueError: a missing file, columns that are not there (with the nearest), no usable
            row, or a larger share of rejected rows than `config.max_rejected`.
    """
    from otr.data import tokenize

    texts = chain.from_iterable(map(rows, pieces(config.paths, config.split)))
    read_rows = [_parsed(text) for text in islice(texts, limit)]
    complete = next(texts, None) is None
    _check_columns(config, read_rows)
    tokenizer = _tokenizer(model)
    done = tokenize(read_rows, tokenizer, columns=config.columns, row_length=config.row_length)
    audit = Audit(config.max_rejected)
    audit.add([_audit(len(read_rows), done.rejected)])
    audit.check()
    if not read_rows:
        raise ValueError(f"the corpus is empty: {', '.join(config.paths)} hold no row")
    return CorpusReport(
        rows=len(read_rows),
        complete=complete,
        rejected=dict(audit.rejected),
        samples=audit.samples,
        tokens=sum(len(ids) for ids, _ in done.examples),
        trained_tokens=sum(sum(mask) for _, mask in done.examples),
        example=_rendered(done.examples[0], tokenizer),
    )


class Audit:
    """What was read and what was rejected, summed over the batches of one pass."""

    def __init__(self, max_rejected: float) -> None:
        self.max_rejected = max_rejected
        self.rows = 0
        self.rejected: Counter[str] = Counter()
        self.samples: list[dict[str, str]] = []

    def add(self, audits: Iterable[str]) -> None:
        """Count an `audit` column; empty ones say nothing."""
        for batch in map(json.loads, filter(None, audits)):
            self.rows += batch["rows"]
            self.rejected.update(batch["rejected"])
            kept = Counter(sample["cause"] for sample in self.samples)
            for sample in batch["samples"]:
                kept[sample["cause"]] += 1
                if kept[sample["cause"]] <= 10 * SAMPLES:
                    self.samples.append(sample)

    def check(self) -> None:
        """Raise ValueError where too many rows were rejected, or all of them."""
        bad = self.rejected.total()
        if bad and (bad == self.rows or bad > self.max_rejected * self.rows):
            causes = ", ".join(f"{count} {cause}" for cause, count in self.rejected.most_common())
            first = self.samples[0]
            raise ValueError(
                f"{bad} of {self.rows} rows can't be used ({causes}), allowed are "
                f"{self.max_rejected:.0%} (data.max_rejected); the first: {first['cause']}, "
                f"{first['detail']}: {first['row'][:120]}"
            )


def _read(batch: Any, found: Sequence[Piece]) -> Iterator[pa.Table]:
    for number in batch["piece"]:
        texts = rows(found[number])
        while some := list(islice(texts, BATCH)):
            yield pa.table({"row": pa.array(some, pa.binary())})


def _pack(batch: pa.Table, config: DataConfig, model: ModelConfig) -> dict[str, np.ndarray]:
    """Packed rows of a batch; one empty row where nothing of it can be used."""
    from otr.data import pack, tokenize

    texts = batch["row"].to_pylist()
    done = tokenize(
        map(_parsed, texts),
        _tokenizer(model),
        columns=config.columns,
        row_length=config.row_length,
    )
    columns = pack(done.examples, config.row_length)
    if not done.examples:
        columns = {
            name: np.zeros((1, config.row_length), column.dtype) for name, column in columns.items()
        }
    audit = [_audit(len(texts), done.rejected)]
    audit += [""] * (len(columns["input_ids"]) - 1)
    return {**columns, "audit": np.array(audit, dtype=object)}


def _audit(count: int, rejected: Sequence[tuple[Any, str, str]]) -> str:
    kept: Counter[str] = Counter()
    samples = []
    for row, cause, detail in rejected:
        kept[cause] += 1
        if kept[cause] <= SAMPLES:
            shown = row if isinstance(row, str) else json.dumps(row, default=str)
            samples.append({"cause": cause, "detail": detail, "row": shown[:2000]})
    return json.dumps({"rows": count, "rejected": kept, "samples": samples})


def _parsed(text: bytes) -> Any:
    """The row, or its text where it is no JSON; `otr.data` counts that as broken."""
    try:
        return json.loads(text)
    except ValueError:  # also what is no UTF-8
        return text.decode(errors="replace")


@functools.lru_cache(maxsize=1)
def _tokenizer(model: ModelConfig) -> "PreTrainedTokenizerBase":
    """Loaded once in a process, however many batches it tokenizes."""
    from otr.model import load_tokenizer

    return load_tokenizer(model)


def _check_columns(config: DataConfig, read_rows: Iterable[Any]) -> None:
    """Raise ValueError where no row can have what is wanted, whatever it holds."""
    there = dict.fromkeys(key for row in read_rows if isinstance(row, dict) for key in row)
    known = [name for form in FORMS for name in form] + ["input"]
    for ours, theirs in config.columns.items():
        for name, names, what in (
            (ours, known, "name"),
            (theirs, [*there], "column of the corpus"),
        ):
            if name not in names:
                near = get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
                raise ValueError(f"data.columns {ours}={theirs}: {name!r} is no {what}; {hint}")
    had = set(config.columns) | set(there)
    if there and not any(had.issuperset(form) for form in FORMS):
        raise ValueError(
            f"the corpus has the columns {', '.join(there)}: map them with data.columns to "
            "messages, to prompt and completion, or to instruction and output"
        )


def _rendered(
    example: tuple[list[int], list[bool]], tokenizer: "PreTrainedTokenizerBase"
) -> list[tuple[str, bool]]:
    stretches = groupby(zip(*example, strict=True), key=lambda pair: pair[1])
    return [
        (str(tokenizer.decode([token for token, _ in pairs])), trained)
        for trained, pairs in stretches
    ]
