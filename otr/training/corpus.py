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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain, groupby, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from otr.config import DataConfig, ModelConfig
from otr.training.sources import Piece, pieces, rows

if TYPE_CHECKING:
    import ray.data
    from transformers import PreTrainedTokenizerBase

BATCH = 1000  # examples that are packed together
TASKS = 256  # at most, that read the pieces of a corpus
BLOCK_BYTES = 4 * 2**20  # of packed rows; Ray's 128 MiB would keep a run waiting for its first ones
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


def packed(config: DataConfig, model: ModelConfig) -> "ray.data.Dataset":
    """The training corpus as packed rows with their audit, in the same order each time.

    Raises:
        ValueError: a path that is not there, or holds nothing that can be read.
    """
    import ray.data

    found = pieces(config.paths, config.split)
    numbers = [{"piece": number} for number in range(len(found))]
    stream = ray.data.from_items(numbers, override_num_blocks=min(len(found), TASKS)).map_batches(
        _read_and_pack,  # type: ignore[arg-type]
        batch_size=None,  # a task's pieces, all of them
        fn_args=(found, config, model),
        num_cpus=TASK_CPUS,
    )
    options = stream.context
    options.enable_progress_bars = False
    options.execution_options.preserve_order = True  # a resumed run skips what it has seen
    options.target_max_block_size = BLOCK_BYTES
    return stream


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
    """What was read and what was rejected, summed over the batches of the first pass."""

    def __init__(self, max_rejected: float) -> None:
        self.max_rejected = max_rejected
        self.rows = 0
        self.complete = False
        """The pass is over."""
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
            first = [f"{s['cause']}, {s['detail']}: {s['row'][:120]}" for s in self.samples[:1]]
            raise ValueError(
                f"{bad} of {self.rows} rows can't be used ({causes}), allowed are "
                f"{self.max_rejected:.0%} (data.max_rejected); the first: "
                f"{''.join(first) or 'another worker has it'}"
            )


def _read_and_pack(
    batch: Mapping[str, np.ndarray], found: Sequence[Piece], config: DataConfig, model: ModelConfig
) -> Iterator[dict[str, np.ndarray]]:
    texts = chain.from_iterable(rows(found[number]) for number in batch["piece"])
    while some := list(islice(texts, BATCH)):
        yield _pack(some, config, model)


def _pack(texts: Sequence[bytes], config: DataConfig, model: ModelConfig) -> dict[str, np.ndarray]:
    """Packed rows of a batch; one empty row where nothing of it can be used."""
    from otr.data import pack, tokenize

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
