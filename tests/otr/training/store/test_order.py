"""The order of rows is a function of seed and step, and holds the weights of the sources."""

import numpy as np
import pytest

from otr.config import MOST_SOURCES
from otr.training.store.order import BLOCK, Order, places_of


def sequence(order: Order, count: int, start: int = 0) -> list[int]:
    return order.rows_at(np.arange(start, start + count)).tolist()


def test_every_epoch_has_each_row_once_in_an_order_of_its_own() -> None:
    seen = sequence(Order([700, 300], seed=0), 3000)
    epochs = [seen[start : start + 1000] for start in (0, 1000, 2000)]
    assert all(sorted(epoch) == list(range(1000)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert sequence(Order([700, 300], seed=0), 3000) == seen
    assert sequence(Order([700, 300], seed=1), 3000) != seen


@pytest.mark.parametrize("rows", [1, 2, 255, 256, 257, 3001])
def test_few_rows_are_all_there_too(rows: int) -> None:
    seen = sequence(Order([rows], seed=3), 2 * rows)
    assert sorted(seen[:rows]) == sorted(seen[rows:]) == list(range(rows))
    assert rows < 10 or seen[:rows] != seen[rows:] != list(range(rows))


@pytest.mark.parametrize("batch", [4, 16, 100])
def test_any_50_steps_see_each_part_of_a_sorted_file_evenly(batch: int) -> None:
    """Also of two files: their rows follow each other in the store."""
    parts, steps = 8, 50
    seen = np.array(sequence(Order([5000, 3000], seed=0), 24_000))
    for start in range(0, len(seen) - steps * batch, 37):
        counts = np.bincount(seen[start : start + steps * batch] // 1000, minlength=parts)
        error = np.abs(counts / (steps * batch) - 1 / parts)
        assert (error < 3 * np.sqrt(1 / parts * (1 - 1 / parts) / (steps * batch))).all()


@pytest.mark.parametrize("start", [1, 255, 256, 1234])
def test_any_place_is_found_alone(start: int) -> None:
    for weights in (None, (0.3, 0.7)):
        order = Order([700, 300], seed=0, weights=weights)
        assert sequence(order, 50, start) == sequence(order, 2000)[start : start + 50]


@pytest.mark.parametrize(
    ("rows", "weights"),
    [([1000, 50], (0.3, 0.7)), ([10, 5000, 300], (1, 1, 2)), ([100] * 16, range(1, 17))],
)
def test_weights_hold_in_every_stretch(rows: list[int], weights: tuple) -> None:
    order = Order(rows, seed=0, weights=list(weights))
    shares = np.array(list(weights)) / sum(weights)
    seen, ends = np.array(sequence(order, 8000)), np.cumsum(rows)
    sources = np.searchsorted(ends, seen, side="right")
    for start in range(0, 7200, 37):  # any 50 steps of 16 rows
        for source, share in enumerate(shares):
            found = (sources[start : start + 800] == source).mean()
            assert abs(found - share) <= 3 * np.sqrt(share * (1 - share) / 800)
    for source, count in enumerate(rows):  # no row is used twice before each was used once
        mine = seen[sources == source]
        for first in range(0, len(mine) - count + 1, count):
            assert len(set(mine[first : first + count].tolist())) == count


def test_a_block_never_takes_back_what_earlier_ones_gave() -> None:
    order = Order([9] * MOST_SOURCES, seed=0, weights=[0.001] * (MOST_SOURCES - 1) + [1])
    taken = np.array([order._taken(block) for block in range(500)])
    steps = np.diff(taken, axis=0)
    assert (steps >= 0).all() and (steps.sum(axis=1) == BLOCK).all()


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_any_number_of_workers_takes_the_same_rows_in_each_step(world: int, micro: int) -> None:
    batch = 16
    for step in (0, 7):
        places = [
            places_of(step, number, rank, world=world, batch=batch, micro=micro)
            for number in range(batch // micro // world)
            for rank in range(world)
        ]
        expected = list(range(step * batch, (step + 1) * batch))
        assert np.concatenate(places).tolist() == expected
