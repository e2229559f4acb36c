"""Records of a corpus and what becomes of them: read, tokenized, packed and counted, without Ray.

`otr.training.store` packs whole corpora with it.
"""

import functools
import os
import shlex
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from otr._deprecated import renamed_names
from otr.config import DataConfig, ModelConfig
from otr.hints import did_you_mean, nearly, some_of
from otr.training.audit import Audit, batch_audit, check_source
from otr.training.sources import (
    SourceChunk,
    UnreadableSource,
    file_remarks,
    left_out,
    list_chunks,
    place_of,
    read_numbered,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from otr.data import Example, RejectedRecord, Tokenized

BATCH = 1000  # examples that are packed together
VALIDATION_EXAMPLES = 2000
"""Most examples of the validation data that a run evaluates."""
LOOKED_AT_ONCE = 64  # records that are tokenized together where only some are shown


@dataclass(frozen=True)
class Text:
    """A record as it was read, and where."""

    content: bytes | UnreadableSource
    """JSON text, or the error that stands for the rest of its file."""
    chunk: SourceChunk
    number: int = 0
    """See `otr.training.sources.place_of`."""

    @property
    def place(self) -> str:
        """File and line or row; finding out may take long."""
        return place_of(self.chunk, self.number)


@dataclass
class SourceReport:
    """Counts of the records, examples and tokens that one configured path gave."""

    records: int = 0
    rejected: int = 0
    examples: int = 0
    tokens: int = 0
    trained_tokens: int = 0


@dataclass(frozen=True)
class CorpusReport:
    """Contents of a corpus, or of its first records."""

    rows: int
    """Records that were read."""
    complete: bool
    """Whether that was the whole corpus."""
    records: int | None
    """Records of the whole corpus; None if it is not on this host's disks, and larger."""
    lengths: list[list[int]]
    """Tokens of each usable example, by the batches that are packed together."""
    rejected: dict[str, int]
    """Number of rejected records per cause."""
    samples: list[dict[str, str]]
    """Some of the rejected records: {cause, detail, row, place}."""
    unused: dict[str, int]
    """Records per field that neither otr nor the chat template uses."""
    remarks: dict[str, int]
    """Records per remark, such as the number that were truncated."""
    sources: dict[str, SourceReport]
    """What each configured path gave."""
    unended: int
    """Examples whose last trained token is part of the text, such as a line break: a model that
    learns them does not learn to stop."""
    left_out: dict[str, int]
    """Files that are not read, per split that they belong to."""
    files: dict[str, int]
    """Files per remark, such as the number that are named twice."""
    tokens: int
    trained_tokens: int
    seconds: float
    """Spent on rendering and tokenizing, in one process."""
    example: list[tuple[str, bool]]
    """The first usable record as the model sees it: stretches of text, each trained or not."""

    @property
    def longest(self) -> int:
        """Tokens of the longest usable example."""
        return max(max(batch, default=0) for batch in self.lengths)

    def packed_rows(self, sequence_length: int) -> int | None:
        """Return the number of packed rows of the whole corpus; None if its size is unknown.

        The number is exact if all records were read; else it is estimated from those that were.
        """
        from otr.data import count_rows  # imports transformers, which takes seconds

        if self.records is None:
            return None
        rows = sum(count_rows(batch, sequence_length) for batch in self.lengths)
        return rows if self.complete else round(rows * self.records / self.rows)


def pack_locally(config: DataConfig, model: ModelConfig, *, limit: int) -> dict[str, np.ndarray]:
    """Return the first `limit` records as columns of N packed rows, [N, S] each."""
    from otr.data import pack  # imports transformers, which takes seconds

    return pack(tokenize_locally(config, model, limit=limit), config.sequence_length)


def tokenize_locally(config: DataConfig, model: ModelConfig, *, limit: int) -> "list[Example]":
    """Return the usable examples among the first `limit` records, in order."""
    texts = islice(_texts(list_chunks(config.paths, config.split), config.skip_bad), limit)
    return _tokenized(texts, config, model).examples


def inspect_corpus(config: DataConfig, model: ModelConfig, *, limit: int = 20_000) -> CorpusReport:
    """Read and tokenize up to `limit` records in this process, before anything expensive starts.

    Args:
        config: the corpus.
        model: the model whose tokenizer is used.
        limit: records to read and tokenize. If all files are local, the others are read too and
            counted, which takes about a second per gigabyte.

    Raises:
        ValueError: a file is missing or broken, no record has the columns (the message names the
            nearest), no record can be used, none of one path, or more are rejected than
            `config.max_rejected` allows.
    """
    from otr.models.tokenizer import check_chat_template

    by_path = {path: list_chunks([path], config.split) for path in config.paths}
    chunks = [chunk for path in config.paths for chunk in by_path[path]]
    batches = _text_batches(chunks, config.skip_bad)
    read: list[list[Text]] = []
    left = limit
    for batch in batches:
        read.append(batch[:left])
        left -= len(batch)
        if left <= 0:
            break
    rest = max(0, -left) + len(next(batches, ()))
    contents = (text.content for text in chain.from_iterable(read))
    form = _check_columns(config, map(_parsed, contents))
    if form not in (None, "text"):
        check_chat_template(_tokenizer(model), model.path)
    audit = Audit(config.max_rejected, config.skip_bad)
    first: Example | None = None
    lengths: list[list[int]] = []
    sources, unended = _Sources(by_path), 0
    _tokenizer(model)  # loading it is not tokenizing
    seconds = 0.0
    for texts in read:
        began = time.monotonic()
        done = _tokenized(texts, config, model)
        seconds += time.monotonic() - began
        audit.add([batch_audit(texts, done)])
        first = first or next(iter(done.examples), None)
        lengths.append([len(ids) for ids, _ in done.examples])
        unended += _count_unended(done.examples, _tokenizer(model))
        sources.add(texts, done)
    audit.check()
    if not audit.records:
        raise ValueError(f"the corpus is empty: there is no record in {', '.join(config.paths)}")
    for path, source in sources.found.items() if not rest else ():
        check_source(config, path, source.records, source.examples)
    assert first is not None  # else `audit.check` raises
    counted = not rest or not any("://" in p or p[:3] == "hf:" for p in config.paths)
    return CorpusReport(
        rows=audit.records,
        complete=not rest,
        records=audit.records + rest + sum(map(len, batches)) if counted else None,
        lengths=lengths,
        rejected=dict(audit.rejected),
        samples=audit.samples,
        unused=dict(audit.unused),
        remarks=dict(audit.remarks),
        sources=sources.found,
        unended=unended,
        left_out=left_out(config.paths, config.split),
        files=file_remarks(config),
        tokens=sum(source.tokens for source in sources.found.values()),
        trained_tokens=sum(source.trained_tokens for source in sources.found.values()),
        seconds=seconds,
        example=rendered(first, _tokenizer(model)),
    )


def _count_unended(examples: "Sequence[Example]", tokenizer: "PreTrainedTokenizerBase") -> int:
    from otr.models.stops import ending_tokens

    ends = ending_tokens(tokenizer)
    last = (ids[max(n for n, target in enumerate(mask) if target)] for ids, mask in examples)
    return sum(token not in ends for token in last)


@dataclass(frozen=True)
class Look:
    """One record with its examples, or with the reason why it is rejected."""

    number: int
    """Its place in the corpus, from 0."""
    text: Text
    examples: "list[Example]"
    rejected: "RejectedRecord | None"


def look_at_records(config: DataConfig, model: ModelConfig, *, limit: int) -> Iterator[Look]:
    """Yield what becomes of each of the first `limit` records.

    Raises:
        ValueError: a file is missing, or can't be read and `config.skip_bad` is off.
    """
    texts = islice(_texts(list_chunks(config.paths, config.split), config.skip_bad), limit)
    start = 0
    while some := list(islice(texts, LOOKED_AT_ONCE)):
        done = _tokenized(some, config, model)
        examples: dict[int, list[Example]] = {}
        for number, example in zip(done.numbers, done.examples, strict=True):
            examples.setdefault(number, []).append(example)
        rejected = {one.number: one for one in done.rejected}
        for n, text in enumerate(some):
            yield Look(start + n, text, examples.get(n, []), rejected.get(n))
        start += len(some)


class _Sources:
    """Counts per configured path."""

    def __init__(self, chunks: Mapping[str, Sequence[SourceChunk]]) -> None:
        self.found = {path: SourceReport() for path in chunks}
        self._path_of = {
            (chunk.kind, chunk.path): path for path, some in chunks.items() for chunk in some
        }

    def add(self, texts: Sequence[Text], done: "Tokenized") -> None:
        """Count what became of some texts."""
        of = [self.found[self._path_of[text.chunk.kind, text.chunk.path]] for text in texts]
        for source in of:
            source.records += 1
        for rejected in done.rejected:
            of[rejected.number].rejected += 1
        for number, example in zip(done.numbers, done.examples, strict=True):
            of[number].examples += 1
            of[number].tokens += len(example.ids)
            of[number].trained_tokens += sum(example.mask)


def pack_batches(
    chunks: Sequence[SourceChunk], config: DataConfig, model: ModelConfig
) -> Iterator[tuple[dict[str, np.ndarray], str]]:
    """Yield the packed rows of BATCH records at a time, and what became of the records.

    A file that can't be read is noted among these; `Audit.add` raises its error.

    Yields:
        The columns of a packed batch, [N, S] each, and its audit as JSON.
    """
    from otr.data import pack

    read = _text_batches(chunks, skip_bad=True)
    for texts, done in _tokenized_batches(read, config, model):
        yield pack(done.examples, config.sequence_length), batch_audit(texts, done)


def _text_batches(chunks: Sequence[SourceChunk], skip_bad: bool) -> Iterator[list[Text]]:
    """Yield BATCH records at a time, which are packed together."""
    texts = _texts(chunks, skip_bad)
    while batch := list(islice(texts, BATCH)):
        yield batch


def _tokenized(texts: Iterable[Text], config: DataConfig, model: ModelConfig) -> "Tokenized":
    [(_, done)] = _tokenized_batches([list(texts)], config, model)
    return done


def _tokenized_batches(
    batches: Iterable[list[Text]], config: DataConfig, model: ModelConfig
) -> "Iterator[tuple[list[Text], Tokenized]]":
    """Yield each batch of texts with what it gives; see `otr.data.tokenize_batches`."""
    from otr.data import tokenize_batches

    begun: deque[list[Text]] = deque()

    def contents() -> Iterator[Iterator[Any]]:
        for texts in batches:
            begun.append(texts)
            yield (_parsed(text.content) for text in texts)

    done = tokenize_batches(
        contents(),
        _tokenizer(model),
        columns=config.columns,
        sequence_length=config.sequence_length,
        train_on=config.train_on,
        over_long=config.over_long,
    )
    for one in done:
        yield begun.popleft(), one


def _texts(chunks: Iterable[SourceChunk], skip_bad: bool) -> Iterator[Text]:
    """Yield the records of the chunks; with `skip_bad`, the error in place of unreadable ones."""
    for chunk in chunks:
        try:
            for content, number in read_numbered(chunk):
                yield Text(content, chunk, number)
        except UnreadableSource as error:
            if not skip_bad:
                raise
            yield Text(error, chunk)


def _parsed(content: bytes | UnreadableSource) -> Any:
    """Return the record, or its text if that is no JSON; `otr.data` counts the latter as broken."""
    from otr.data.conversations import load_json  # imports transformers, which takes seconds

    if isinstance(content, UnreadableSource):
        return content
    try:
        return load_json(content)
    except (ValueError, RecursionError):  # no JSON, no UTF-8, or nested too deeply
        return content.decode(errors="replace")


@functools.lru_cache(maxsize=1)
def _tokenizer(model: ModelConfig) -> "PreTrainedTokenizerBase":
    """Return the model's tokenizer, loaded once per process."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a task has one core
    from otr.models.tokenizer import load_tokenizer

    return load_tokenizer(model)


def _check_columns(config: DataConfig, records: Iterable[Any]) -> str | None:
    """Check that the records have the columns of one of the accepted forms.

    Returns:
        The first column of that form; None if there is no record.

    Raises:
        ValueError: `data.columns` names unknown columns, or no form fits.
    """
    from otr.data import conversations

    objects = (record for record in records if isinstance(record, dict))
    existing = dict.fromkeys(key for record in objects for key in record)
    for ours, theirs in config.columns.items() if existing else ():
        for name, names, what in (
            (ours, conversations.FIELDS, "name"),
            (theirs, [*existing], "column of the corpus"),
        ):
            if name not in names:
                raise ValueError(
                    f"--columns {ours}={theirs}: {name!r} is not a {what} "
                    f"({some_of(names)}): {did_you_mean(name, names)}"
                )
    present = dict.fromkeys(existing, True)
    form = conversations.form_of(present, config.columns)
    if existing and form is None:
        missing = ", ".join(map(repr, conversations.missing_fields(present, config.columns)))
        raise ValueError(
            f"the corpus has the columns {some_of(existing)}"
            f"{f', but none for {missing}' if missing else ''}: map them with --columns to "
            "messages, to prompt and completion, to instruction and output, or to text"
            f"{_mapping_hint(existing)}"
        )
    return form


def _mapping_hint(existing: Iterable[str]) -> str:
    """Return a mapping of columns whose names are nearly ours, as the end of an error message."""
    from otr.data.conversations import FIELDS

    near = {name: nearly(name.strip().lower(), FIELDS) for name in existing if name not in FIELDS}
    pairs = [shlex.quote(f"{ours}={name}") for name, ours in near.items() if ours]
    return f"; perhaps --columns {' '.join(pairs)}" if pairs else ""


def rendered(example: "Example", tokenizer: "PreTrainedTokenizerBase") -> list[tuple[str, bool]]:
    """Return an example as the model sees it: stretches of text, each trained or not."""
    stretches = groupby(zip(*example, strict=True), key=lambda pair: pair[1])
    return [
        (str(tokenizer.decode([token for token, _ in pairs])), trained)
        for trained, pairs in stretches
    ]


__getattr__ = renamed_names(__name__, inspect="inspect_corpus")
