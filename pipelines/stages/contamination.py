"""How much of the benchmarks is in the training corpus: overlap of n-grams of words.

The rule is that of Brown et al., "Language models are few-shot learners" (2020), appendix C: words
are lower-cased and stripped of punctuation; an item counts as seen if any N consecutive words of it
are in a record of the corpus. N is 13, or the whole item if that is shorter, but at least 8: an
item below that must be the whole text of a turn. The words that all items of a subject begin or end
with (the instruction) are left out, since they say nothing about an item.

The corpus streams through Ray Data tasks, which read the n-grams of the benchmarks from Ray's
object store. Ray must be running.
"""

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evals.benchmark import Benchmark, Item
from otr.config import DataConfig
from otr.files import write_json
from otr.training.sources import UnreadableSource, corpus_identity, list_chunks, read_records
from otr.training.store.write import MAX_PARTS, TASK_CPUS
from pipelines.runtime import console

LONGEST, SHORTEST = 13, 8
FILE = "contamination.json"
RULE = f"{LONGEST} words in a row, lower case without punctuation; shorter items from {SHORTEST} on"
_BATCH_RECORDS = 1000  # records of the corpus that are searched at once
_BATCH_BYTES = 8 << 20  # or fewer, if they are long
_HASH_BASE = np.uint64(0x9E3779B97F4A7C15)  # of the polynomial that hashes several words to one
_WORD = re.compile(r"[^\W_]+")

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Overlap:
    """The items of a benchmark that the corpus contains."""

    benchmark: str
    items: int
    """Number of items of the benchmark."""
    hits: dict[str, int] = field(default_factory=dict)
    """Id of each item that overlaps to the number of corpus records that it overlaps with."""

    @property
    def share(self) -> float:
        """Share of the items that overlap, in [0, 1]."""
        return len(self.hits) / self.items

    def __str__(self) -> str:
        first = ", ".join(list(self.hits)[:3]) + (", ..." if len(self.hits) > 3 else "")
        ids = f" ({first})" if self.hits else ""
        return f"{self.benchmark}: {len(self.hits)} of {self.items} items in the corpus{ids}"


@dataclass(frozen=True)
class Grams:
    """The n-grams of all items; those with n below SHORTEST are whole texts."""

    hashes: dict[int, Hashes]
    """By n: the hashes, sorted."""
    items: dict[int, NDArray[np.int32]]
    """By n: the item of each hash."""


def compare(
    data: DataConfig, benchmarks: Sequence[Benchmark], directory: Path
) -> dict[str, Overlap]:
    """Compare the corpus with the benchmarks, as a stage of a run; see `check`."""
    with console.stage("overlap", "comparing the corpus with the benchmarks") as stage:
        overlaps = check(data, benchmarks, directory)
        found = [f"{o.benchmark} {o.share:.0%}" for o in overlaps.values() if o.hits]
        stage.say(f"items in the corpus: {', '.join(found) or 'none'}")
        return overlaps


def check(data: DataConfig, benchmarks: Sequence[Benchmark], directory: Path) -> dict[str, Overlap]:
    """Return the overlap of the corpus with each benchmark, by the benchmark's name.

    The result is stored in contamination.json, and reused for the same corpus and benchmarks.
    Records that cannot be read are skipped: training reports them.

    Raises:
        ValueError: a path of the corpus does not exist.
    """
    path, identity = directory / FILE, _identity(data, benchmarks)
    if path.is_file():
        stored = json.loads(path.read_text())
        if stored["identity"] == identity:
            return {each["benchmark"]: Overlap(**each) for each in stored["benchmarks"]}
    start = time.monotonic()
    items = [(b.name, item) for b in benchmarks for item in b.items]
    counts, records = _count_hits(data, grams([b.items for b in benchmarks]))
    overlaps = {b.name: Overlap(b.name, len(b.items)) for b in benchmarks}
    for index in sorted(counts):
        name, item = items[index]
        overlaps[name].hits[item.id] = counts[index]
    result = {
        "identity": identity,
        "rule": RULE,
        "rows": records,
        "seconds": round(time.monotonic() - start, 2),
        "benchmarks": [asdict(overlap) for overlap in overlaps.values()],
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    return overlaps


def grams(benchmarks: Iterable[Sequence[Item]]) -> Grams:
    """Return the n-grams of several benchmarks' items, numbered across the benchmarks."""
    hashes: dict[int, list[Hashes]] = {}
    items: dict[int, list[NDArray[np.int32]]] = {}
    for index, words in enumerate(chain.from_iterable(map(_distinctive_words, benchmarks))):
        n = min(LONGEST, len(words))
        own = np.unique(dict(_ngrams(_hash_words(words), n))[n]) if n else np.zeros(0, np.uint64)
        hashes.setdefault(n, []).append(own)
        items.setdefault(n, []).append(np.full(len(own), index, np.int32))
    joined = {n: np.concatenate(each) for n, each in hashes.items()}
    order = {n: np.argsort(each, kind="stable") for n, each in joined.items()}
    return Grams(
        {n: joined[n][order[n]] for n in joined},
        {n: np.concatenate(items[n])[order[n]] for n in joined},
    )


def hits(corpus: Sequence[Sequence[str]], known: Grams) -> Counter[int]:
    """Count, per item, the records of a corpus that contain one of its n-grams.

    Args:
        corpus: the texts of each record.
        known: the n-grams of the items.
    """
    texts = [(record, words) for record, turns in enumerate(corpus) for words in map(_words, turns)]
    lengths = np.array([len(words) for _, words in texts], np.int64)
    words = _hash_words(list(chain.from_iterable(words for _, words in texts)))
    # The record, the start and the end of the text that each word is in.
    record_of = np.repeat([record for record, _ in texts], lengths)
    start_of = np.repeat(np.cumsum(lengths) - lengths, lengths)
    end_of = start_of + np.repeat(lengths, lengths)
    found: set[tuple[int, int]] = set()
    for n, hashes in _ngrams(words, min(LONGEST, len(words))):
        if n not in known.hashes:
            continue
        first_word = np.arange(len(hashes))
        inside = first_word + n <= end_of[: len(hashes)]
        if n < SHORTEST:  # must be a whole text
            inside &= first_word == start_of[: len(hashes)]
            inside &= first_word + n == end_of[: len(hashes)]
        left, right = (np.searchsorted(known.hashes[n], hashes, s) for s in ("left", "right"))
        for position in np.flatnonzero((left < right) & inside):
            items = known.items[n][left[position] : right[position]]
            found.update((item, int(record_of[position])) for item in items.tolist())
    return Counter(item for item, _ in found)


def _count_hits(data: DataConfig, known: Grams) -> tuple[Counter[int], int]:
    """Return the number of records that overlap with each item, and of all records."""
    import ray
    import ray.data

    chunks = list_chunks(data.paths, data.split)
    shared = ray.put(known)
    stream = ray.data.from_items(
        [{"chunk": number} for number in range(len(chunks))],
        override_num_blocks=min(len(chunks), MAX_PARTS),
    ).map_batches(
        _search_chunks,  # type: ignore[arg-type]
        batch_size=None,
        fn_args=(chunks, data, shared),
        num_cpus=TASK_CPUS,
    )
    stream.context.enable_progress_bars = False
    counts: Counter[int] = Counter()
    records = 0
    for batch in stream.iter_batches(batch_size=None):
        for item, number in zip(batch["item"].tolist(), batch["records"].tolist(), strict=True):
            counts[item] += number
        records += counts.pop(-1, 0)
    return counts, records


def _search_chunks(
    task: Mapping[str, np.ndarray], chunks: Sequence[Any], data: DataConfig, shared: Any
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the counts per item for each batch of records; item -1 counts all records."""
    import ray

    known = ray.get(shared)
    for number in task["chunk"]:
        records = _readable(read_records(chunks[number]))
        while batch := _next_batch(records):
            counts = hits([_turns(record, data) for record in batch], known)
            counts[-1] = len(batch)
            yield {"item": np.array([*counts]), "records": np.array([*counts.values()])}


def _next_batch(records: Iterator[bytes]) -> list[bytes]:
    """Return the next _BATCH_RECORDS records, or fewer that together have _BATCH_BYTES."""
    batch: list[bytes] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record)
        if len(batch) == _BATCH_RECORDS or size >= _BATCH_BYTES:
            break
    return batch


def _readable(records: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from records
    except UnreadableSource:
        return


def _turns(record: bytes, data: DataConfig) -> list[str]:
    """Return the texts of a record as training sees them; none if the record is unusable."""
    from otr.data import Rejected, messages_of

    try:
        return [turn["content"] for turn in messages_of(json.loads(record), data.columns)]
    except (ValueError, Rejected):
        return []


def _distinctive_words(items: Sequence[Item]) -> list[list[str]]:
    """Return each item's words without those that all items of its subject begin or end with."""
    every = [_words(item.prompt) for item in items]
    words = list(every)
    by_subject: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        by_subject.setdefault(str(item.meta.get("subject", "")), []).append(index)
    for indices in by_subject.values():
        # An item that is alone in its subject is compared with all other items.
        group = [every[index] for index in indices] if len(indices) > 1 else every
        head = _common(group)
        tail = _common([each[head:][::-1] for each in group])
        for index in indices:
            words[index] = every[index][head : len(every[index]) - tail]
    return words


def _common(group: Sequence[Sequence[str]]) -> int:
    """Return how many leading words all texts share, up to the first that differs.

    It is 0 for a single text, and if one text is the beginning of all others: it would have no
    words left.
    """
    positions = enumerate(zip(*group, strict=False)) if len(group) > 1 else ()
    return next((position for position, words in positions if len(set(words)) > 1), 0)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _ngrams(words: Hashes, longest: int) -> Iterator[tuple[int, Hashes]]:
    """Yield each n, with the hash of each n consecutive words.

    The hash is the sum of word * base^position, modulo 2^64.
    """
    hashes = np.zeros(len(words) + 1, np.uint64)
    for n in range(1, longest + 1):
        hashes = hashes[:-1] * _HASH_BASE + words[n - 1 :]
        yield n, hashes


def _hash_words(words: Sequence[str]) -> Hashes:
    return np.array([_hash_word(word) for word in words], np.uint64)


@lru_cache(maxsize=2**20)
def _hash_word(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def _identity(data: DataConfig, benchmarks: Sequence[Benchmark]) -> str:
    """Return a digest of the corpus, of how it is read, of the items and of the rule."""
    parts = [
        [RULE, sorted(data.columns.items()), [list(each) for each in corpus_identity(data)]],
        [(b.name, [(i.id, i.prompt, i.meta.get("subject")) for i in b.items]) for b in benchmarks],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
