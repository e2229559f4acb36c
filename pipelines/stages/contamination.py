"""How much of the benchmarks is in the training corpus: overlap of n-grams of words.

In: a resolved `SweepConfig` and its benchmarks; Ray must be running. Out: an `Overlap` a benchmark,
and contamination.json with the items that the corpus overlaps with.

The rule is that of Brown et al., "Language models are few-shot learners" (2020), appendix C: words
are lower-cased and stripped of punctuation; an item counts as seen where any N of its words in a
row are in a row of the corpus. N is 13, or the whole item where that is shorter, at least 8: an
item below that has to be the whole text of a turn. What all items of a subject begin and end with
(the instruction) is left out, since it says nothing of an item. The corpus streams through Ray Data
tasks, each of which has the n-grams of the benchmarks from the object store.
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
from otr.training.corpus import MAX_TASKS, TASK_CPUS
from otr.training.sources import UnreadableSource, corpus_identity, list_chunks, read_records

LONGEST, SHORTEST = 13, 8
FILE = "contamination.json"
RULE = f"{LONGEST} words in a row, lower case without punctuation; shorter items from {SHORTEST} on"
_BATCH = 1000  # rows of the corpus that are looked through at once
_BATCH_BYTES = 8 << 20  # or fewer of them, if they are long
_BASE = np.uint64(0x9E3779B97F4A7C15)  # of the polynomial that makes one number of several
_WORD = re.compile(r"[^\W_]+")

Numbers = NDArray[np.uint64]


@dataclass(frozen=True)
class Overlap:
    """What of a benchmark the corpus has."""

    benchmark: str
    items: int
    hits: dict[str, int] = field(default_factory=dict)
    """By item: the number of rows of the corpus that it shares words with."""

    @property
    def share(self) -> float:
        """Of the items, in [0, 1]."""
        return len(self.hits) / self.items

    def __str__(self) -> str:
        some = ", ".join(list(self.hits)[:3]) + (", ..." if len(self.hits) > 3 else "")
        where = f" ({some})" if self.hits else ""
        return f"{self.benchmark}: {len(self.hits)} of {self.items} items in the corpus{where}"


@dataclass(frozen=True)
class Grams:
    """The n-grams of all items: by n their numbers, sorted, and the item of each.

    Of n below SHORTEST they are whole texts.
    """

    numbers: dict[int, Numbers]
    owners: dict[int, NDArray[np.int32]]


def check(data: DataConfig, benchmarks: Sequence[Benchmark], directory: Path) -> dict[str, Overlap]:
    """Compare the corpus with the benchmarks, or take what contamination.json says of the same two.

    Rows that can't be read are passed over: training says what is to be done about them.

    Raises:
        ValueError: a path that is not there.
    """
    path, identity = directory / FILE, _identity(data, benchmarks)
    if path.is_file():
        stored = json.loads(path.read_text())
        if stored["identity"] == identity:
            return {each["benchmark"]: Overlap(**each) for each in stored["benchmarks"]}
    began = time.monotonic()
    items = [(b.name, item) for b in benchmarks for item in b.items]
    counts, read = _counted(data, grams([b.items for b in benchmarks]))
    found = {b.name: Overlap(b.name, len(b.items)) for b in benchmarks}
    for index in sorted(counts):
        name, item = items[index]
        found[name].hits[item.id] = counts[index]
    told = {
        "identity": identity,
        "rule": RULE,
        "rows": read,
        "seconds": round(time.monotonic() - began, 2),
        "benchmarks": [asdict(overlap) for overlap in found.values()],
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_json(path, told)
    return found


def grams(benchmarks: Iterable[Sequence[Item]]) -> Grams:
    """The n-grams of the items of several benchmarks, which are numbered through."""
    numbers: dict[int, list[Numbers]] = {}
    owners: dict[int, list[NDArray[np.int32]]] = {}
    for index, words in enumerate(chain.from_iterable(map(_own_words, benchmarks))):
        n = min(LONGEST, len(words))
        made = np.unique(dict(_windows(_numbers(words), n))[n]) if n else np.zeros(0, np.uint64)
        numbers.setdefault(n, []).append(made)
        owners.setdefault(n, []).append(np.full(len(made), index, np.int32))
    joined = {n: np.concatenate(each) for n, each in numbers.items()}
    order = {n: np.argsort(each, kind="stable") for n, each in joined.items()}
    return Grams(
        {n: joined[n][order[n]] for n in joined},
        {n: np.concatenate(owners[n])[order[n]] for n in joined},
    )


def hits(corpus: Sequence[Sequence[str]], known: Grams) -> Counter[int]:
    """By item the number of rows of a corpus that have one of its n-grams in one of their texts."""
    texts = [(row, words) for row, turns in enumerate(corpus) for words in map(_words, turns)]
    lengths = np.array([len(words) for _, words in texts], np.int64)
    numbers = _numbers(list(chain.from_iterable(words for _, words in texts)))
    row_of = np.repeat([row for row, _ in texts], lengths)
    start_of = np.repeat(np.cumsum(lengths) - lengths, lengths)
    end_of = start_of + np.repeat(lengths, lengths)
    found: set[tuple[int, int]] = set()
    for n, made in _windows(numbers, min(LONGEST, len(numbers))):
        if n not in known.numbers:
            continue
        place = np.arange(len(made))
        inside = place + n <= end_of[: len(made)]
        if n < SHORTEST:  # a whole text
            inside &= (place == start_of[: len(made)]) & (place + n == end_of[: len(made)])
        first, last = (np.searchsorted(known.numbers[n], made, side) for side in ("left", "right"))
        for at in np.flatnonzero((first < last) & inside):
            owners = known.owners[n][first[at] : last[at]]
            found.update((item, int(row_of[at])) for item in owners.tolist())
    return Counter(item for item, _ in found)


def _counted(data: DataConfig, known: Grams) -> tuple[Counter[int], int]:
    """By item the rows of the corpus that it is in, and how many rows there are."""
    import ray
    import ray.data

    found = list_chunks(data.paths, data.split)
    shared = ray.put(known)
    tasks = min(len(found), MAX_TASKS)
    stream = ray.data.from_items(
        [{"piece": number} for number in range(len(found))], override_num_blocks=tasks
    ).map_batches(
        _look_through,  # type: ignore[arg-type]
        batch_size=None,
        fn_args=(found, data, shared),
        num_cpus=TASK_CPUS,
    )
    stream.context.enable_progress_bars = False
    counts: Counter[int] = Counter()
    read = 0
    for batch in stream.iter_batches(batch_size=None):
        for item, number in zip(batch["item"].tolist(), batch["rows"].tolist(), strict=True):
            counts[item] += number
        read += counts.pop(-1, 0)
    return counts, read


def _look_through(
    task: Mapping[str, np.ndarray], found: Sequence[Any], data: DataConfig, shared: Any
) -> Iterator[dict[str, np.ndarray]]:
    """Counts by item of the pieces of a task, a batch of rows at a time; item -1 is any row."""
    import ray

    known = ray.get(shared)
    for number in task["piece"]:
        read = _readable(read_records(found[number]))
        while batch := _some(read):
            counts = hits([_turns(row, data) for row in batch], known)
            counts[-1] = len(batch)
            yield {"item": np.array([*counts]), "rows": np.array([*counts.values()])}


def _some(read: Iterator[bytes]) -> list[bytes]:
    """The next rows: _BATCH of them, or fewer that together have _BATCH_BYTES."""
    batch: list[bytes] = []
    size = 0
    for row in read:
        batch.append(row)
        size += len(row)
        if len(batch) == _BATCH or size >= _BATCH_BYTES:
            break
    return batch


def _readable(lines: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from lines
    except UnreadableSource:
        return


def _turns(row: bytes, data: DataConfig) -> list[str]:
    """The texts of a row, as it is trained on; none of one that is broken."""
    from otr.data import Rejected, messages_of

    try:
        return [turn["content"] for turn in messages_of(json.loads(row), data.columns)]
    except (ValueError, Rejected):
        return []


def _own_words(items: Sequence[Item]) -> list[list[str]]:
    """The words of each item without those that all of its subject begin and end with.

    None are left of an item that is nothing but those.
    """
    every = [_words(item.prompt) for item in items]
    words = list(every)
    by_subject: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        by_subject.setdefault(str(item.meta.get("subject", "")), []).append(index)
    for indices in by_subject.values():
        # One alone has nothing to be compared with but the other subjects.
        group = [every[index] for index in indices] if len(indices) > 1 else every
        head = _common(group)
        tail = _common([each[head:][::-1] for each in group])
        for index in indices:
            words[index] = every[index][head : len(every[index]) - tail]
    return words


def _common(group: Sequence[Sequence[str]]) -> int:
    """How many words all begin with; 0 of a single text, or where they are all the same."""
    places = enumerate(zip(*group, strict=False)) if len(group) > 1 else ()
    return next((place for place, words in places if len(set(words)) > 1), 0)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _windows(numbers: Numbers, longest: int) -> Iterator[tuple[int, Numbers]]:
    """N and, for each n words in a row, a number: sum of word * base^place, modulo 2^64."""
    made = np.zeros(len(numbers) + 1, np.uint64)
    for n in range(1, longest + 1):
        made = made[:-1] * _BASE + numbers[n - 1 :]
        yield n, made


def _numbers(words: Sequence[str]) -> Numbers:
    return np.array([_number(word) for word in words], np.uint64)


@lru_cache(maxsize=2**20)
def _number(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def _identity(data: DataConfig, benchmarks: Sequence[Benchmark]) -> str:
    """Differs where the corpus, how it is read, the items or the rule do."""
    told = [
        [RULE, sorted(data.columns.items()), [list(each) for each in corpus_identity(data)]],
        [(b.name, [(i.id, i.prompt, i.meta.get("subject")) for i in b.items]) for b in benchmarks],
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
