"""From a corpus to a stream of packed rows, with Ray Data.

In: a `DataConfig` and the model's tokenizer. Out: contract-1 rows {input_ids int32[S], loss_mask
bool[S], segment_ids int32[S]} as they are made; the corpus is never held as a whole.

Each packed row has two more columns. `place` int32[3] is (part, batch, row): the corpus is read in
parts, a task each, whose examples are packed BATCH together; a stream can start at any batch.
`audit` (see audit.py) says on a batch's first row what was rejected; it travels with the rows, so
that is known where it matters, without another process.
"""

import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import groupby, islice, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from otr.config import DataConfig, ModelConfig
from otr.training import packed_cache
from otr.training.audit import Audit, audit_of
from otr.training.sources import SourceChunk, UnreadableSource, list_chunks, read_records

if TYPE_CHECKING:
    import ray.data
    from transformers import PreTrainedTokenizerBase

    from otr.data import Tokenized

BATCH = 1000  # examples that are packed together
MAX_TASKS = 256  # at most, that read the pieces of a corpus
BLOCK_BYTES = 4 * 2**20  # of packed rows; Ray's 128 MiB would keep a run waiting for its first ones
TASK_CPUS = 0.9  # less than one: next to a worker and a trial's driver, two cores hold one task
READERS = 8  # tasks of a run at once, at most

Text = bytes | UnreadableSource
"""A row as it was read, or why the rest of a file can't be."""


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


def packed(
    config: DataConfig, model: ModelConfig, *, part: int = 0, batch: int = 0
) -> "ray.data.Dataset":
    """The training corpus as packed rows with their audit and place, the same ones each time.

    A file that can't be read stands in the audit: `Audit.add` raises, so give it every row's. An
    error of Ray Data itself would bury the reason in two hundred lines.

    Args:
        config: the corpus.
        model: whose tokenizer it is for.
        part: where the stream starts; what comes before it is not read,
        batch: and what comes before it in its part is read but not tokenized.

    Raises:
        ValueError: a path that is not there or holds nothing that can be read, or fewer parts.
    """
    import ray.data

    parts = _parts(list_chunks(config.paths, config.split))
    if part >= len(parts):
        raise ValueError(f"the corpus ends before part {part}, it has {len(parts)}: did it change?")
    numbers = [{"part": number} for number in range(part, len(parts))]
    stream = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
        _read_and_pack,  # type: ignore[arg-type]
        batch_size=None,
        fn_args=(parts, (part, batch), config, model),
        # No logical CPU: where nodes were lost, workers may hold them all, and wait for these rows.
        num_cpus=0,
        compute=ray.data.TaskPoolStrategy(min(READERS, os.cpu_count() or 1)),
        label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
    )
    options = stream.context
    options.enable_progress_bars = False
    options.execution_options.preserve_order = True  # a resumed run goes on where it was
    options.target_max_block_size = BLOCK_BYTES
    return stream


def stream(
    config: DataConfig, model: ModelConfig, part: int, batch: int, rows: int
) -> Iterator[dict[str, np.ndarray]]:
    """The rows of `packed`, as many as `rows` at a time; what this host keeps comes without Ray.

    Raises:
        ValueError: as `packed`.
    """
    parts = _parts(list_chunks(config.paths, config.split))
    first = part
    while part < len(parts):
        batches = packed_cache.read(packed_cache.place_of(parts[part], config, model), batch)
        if batches is None:
            break
        yield from _numbered(batches, part, batch)
        part, batch = part + 1, 0
    if part < len(parts) or part == first:
        rest = packed(config, model, part=part, batch=batch)
        yield from rest.iterator().iter_batches(batch_size=rows)


def packed_locally(
    config: DataConfig, model: ModelConfig, paths: Sequence[str], *, limit: int
) -> dict[str, np.ndarray]:
    """The first `limit` rows of `paths` as the columns of contract 1, [N, S] each."""
    from otr.data import pack

    texts = islice(_texts(list_chunks(paths, config.split), config.skip_bad), limit)
    return pack(_tokenized(texts, config, model).examples, config.sequence_length)


def inspect_corpus(config: DataConfig, model: ModelConfig, *, limit: int = 20_000) -> CorpusReport:
    """Read up to `limit` rows in this process and judge them, before anything expensive.

    Raises:
        ValueError: a missing or broken file, columns that are not there (with the nearest), no
            usable row, or a larger share of rejected rows than `config.max_rejected`.
    """
    texts = _texts(list_chunks(config.paths, config.split), config.skip_bad)
    read = list(islice(texts, limit))
    complete = next(texts, None) is None
    _check_columns(config, map(_parsed, read))
    done = _tokenized(read, config, model)
    audit = Audit(config.max_rejected, config.skip_bad)
    audit.add([audit_of(len(read), done.rejected)])
    audit.check()
    if not audit.rows:
        raise ValueError(f"the corpus is empty: {', '.join(config.paths)} hold no row")
    return CorpusReport(
        rows=audit.rows,
        complete=complete,
        rejected=dict(audit.rejected),
        samples=audit.samples,
        tokens=sum(len(ids) for ids, _ in done.examples),
        trained_tokens=sum(sum(mask) for _, mask in done.examples),
        example=_rendered(done.examples[0], _tokenizer(model)),
    )


def _parts(found: Sequence[SourceChunk]) -> list[Sequence[SourceChunk]]:
    """The pieces that each task reads, one after another."""
    parts = min(len(found), MAX_TASKS)
    bounds = [len(found) * part // parts for part in range(parts + 1)]
    return [found[start:end] for start, end in pairwise(bounds)]


def _read_and_pack(
    task: Mapping[str, np.ndarray],
    parts: Sequence[Sequence[SourceChunk]],
    start: tuple[int, int],
    config: DataConfig,
    model: ModelConfig,
) -> Iterator[dict[str, np.ndarray]]:
    """Packed rows of the parts of a task, from the batch `start` = (part, batch)."""
    for part in task["part"]:
        first = start[1] if part == start[0] else 0
        find = functools.partial(packed_cache.place_of, parts[part], config, model)
        batches = packed_cache.read(find(), first)
        if batches is None:
            made = _batches(parts[part], first, config, model)
            # What is made from the middle on is not the part.
            batches = packed_cache.keeping(find, made) if first == 0 else (rows for rows, _ in made)
        yield from _numbered(batches, part, first)


def _numbered(
    batches: Iterable[dict[str, np.ndarray]], part: int, first: int
) -> Iterator[dict[str, np.ndarray]]:
    """With the place of every row."""
    for batch, columns in enumerate(batches, first):
        rows = [(part, batch, row) for row in range(len(columns["audit"]))]
        yield {**columns, "place": np.array(rows, np.int32)}


def _batches(
    part: Sequence[SourceChunk], first: int, config: DataConfig, model: ModelConfig
) -> Iterator[tuple[dict[str, np.ndarray], bool]]:
    """Packed rows of BATCH examples at a time, and whether all of these could be read."""
    texts = islice(_texts(part, True), first * BATCH, None)
    while some := list(islice(texts, BATCH)):
        readable = not any(isinstance(text, UnreadableSource) for text in some)
        yield _pack(some, config, model), readable


def _pack(texts: Sequence[Text], config: DataConfig, model: ModelConfig) -> dict[str, np.ndarray]:
    """Packed rows of a batch; one empty row where nothing of it can be used."""
    from otr.data import pack

    done = _tokenized(texts, config, model)
    columns = pack(done.examples, config.sequence_length)
    if not done.examples:
        columns = {
            name: np.zeros((1, config.sequence_length), column.dtype)
            for name, column in columns.items()
        }
    audit = [audit_of(len(texts), done.rejected)]
    audit += [""] * (len(columns["input_ids"]) - 1)
    return {**columns, "audit": np.array(audit, dtype=object)}


def _tokenized(texts: Iterable[Text], config: DataConfig, model: ModelConfig) -> "Tokenized":
    from otr.data import tokenize

    return tokenize(
        map(_parsed, texts),
        _tokenizer(model),
        columns=config.columns,
        sequence_length=config.sequence_length,
    )


def _texts(found: Iterable[SourceChunk], skip_bad: bool) -> Iterator[Text]:
    """The rows of pieces; with `skip_bad` the error stands for what can't be read of a piece."""
    for piece in found:
        try:
            yield from read_records(piece)
        except UnreadableSource as error:
            if not skip_bad:
                raise
            yield error


def _parsed(text: Text) -> Any:
    """The row, or its text where it is no JSON; `otr.data` counts that as broken."""
    if isinstance(text, UnreadableSource):
        return text
    try:
        return json.loads(text)
    except ValueError:  # also what is no UTF-8
        return text.decode(errors="replace")


@functools.lru_cache(maxsize=1)
def _tokenizer(model: ModelConfig) -> "PreTrainedTokenizerBase":
    """Loaded once in a process, however many batches it tokenizes."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a task has one core
    from otr.models.tokenizer import load_tokenizer

    return load_tokenizer(model)


def _check_columns(config: DataConfig, read_rows: Iterable[Any]) -> None:
    """Raise ValueError where no row can have what is wanted, whatever it holds."""
    from otr.data import FORMS

    there = dict.fromkeys(key for row in read_rows if isinstance(row, dict) for key in row)
    known = [name for form in FORMS for name in form]
    for ours, theirs in config.columns.items() if there else ():
        for name, names, what in (
            (ours, known, "name"),
            (theirs, [*there], "column of the corpus"),
        ):
            if name not in names:
                near = get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
                raise ValueError(f"data.columns {ours}={theirs}: {name!r} is no {what}; {hint}")
    had = set(config.columns) | set(there)
    if there and not any(had.issuperset({*form} - {"input"}) for form in FORMS):
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
