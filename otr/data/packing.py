"""Packing: filling rows of equal length with whole examples.

Shapes: N packed rows, S sequence length (tokens per packed row).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from otr._deprecated import renamed_arguments
from otr.data.examples import Example


@renamed_arguments(row_length="sequence_length")
def pack(examples: Sequence[Example], sequence_length: int) -> dict[str, np.ndarray]:
    """Fill packed rows of `sequence_length` tokens with whole examples.

    Each packed row gets the longest example that is left, then those that fill it best (minimum bin
    slack; Gupta and Ho, 1999).

    Returns:
        The three columns of a packed batch, [N, S] each.

    Raises:
        ValueError: an example is longer than a packed row.
    """
    numbers = _rows([len(ids) for ids, _ in examples], sequence_length)
    return _columns([[examples[number] for number in row] for row in numbers], sequence_length)


def count_rows(lengths: Sequence[int], sequence_length: int) -> int:
    """Return the number of packed rows that `pack` fills with examples of these lengths."""
    return len(_rows(lengths, sequence_length))


def _rows(lengths: Sequence[int], sequence_length: int) -> list[list[int]]:
    """Return the numbers of the examples in each packed row.

    Raises:
        ValueError: an example is longer than a packed row.
    """
    left: dict[int, list[int]] = {}
    for number in reversed(range(len(lengths))):
        left.setdefault(lengths[number], []).append(number)
    if left and max(left) > sequence_length:
        raise ValueError(
            f"an example of {max(left)} tokens does not fit into packed rows of {sequence_length}"
        )
    rows: list[list[int]] = []
    while left:
        longest = max(left)
        rows.append([_take(left, longest)])
        rows[-1] += [_take(left, length) for length in _fullest(left, sequence_length - longest)]
    return rows


def _take(left: dict[int, list[int]], length: int) -> int:
    example = left[length].pop()
    if not left[length]:
        del left[length]
    return example


def _fullest(left: Mapping[int, Sequence[int]], capacity: int) -> list[int]:
    """Return lengths of examples with the largest sum that is at most `capacity`."""
    sums, within = 1, (1 << (capacity + 1)) - 1  # bit s: some examples have s tokens together
    added: list[tuple[int, int]] = []
    for length in sorted((n for n in left if n <= capacity), reverse=True):
        for _ in left[length]:
            more = (sums | sums << length) & within
            if more == sums or sums >> capacity:
                break
            added.append((length, sums))
            sums = more
    total, chosen = sums.bit_length() - 1, []
    for length, before in reversed(added):
        if not before >> total & 1:  # this total needs the example
            chosen.append(length)
            total -= length
    return chosen


def _columns(rows: Sequence[Sequence[Example]], sequence_length: int) -> dict[str, np.ndarray]:
    shape = (len(rows), sequence_length)
    packed = {
        "input_ids": np.zeros(shape, np.int32),
        "loss_mask": np.zeros(shape, bool),
        "segment_ids": np.zeros(shape, np.int32),
    }
    for n, row in enumerate(rows):
        start = 0
        for segment, (ids, mask) in enumerate(row, 1):
            span = slice(start, start := start + len(ids))
            packed["input_ids"][n, span] = ids
            packed["loss_mask"][n, span] = mask
            packed["loss_mask"][n, span.start] = False  # no token of the example precedes it
            packed["segment_ids"][n, span] = segment
    return packed
