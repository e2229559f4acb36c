"""Whole examples fill packed rows."""

import numpy as np
import pytest

from otr.data import pack


def test_pack_stores_every_example_once_and_unsplit() -> None:
    rng = np.random.default_rng(0)
    examples = [
        ([i] * int(n), [True] * int(n)) for i, n in enumerate(rng.integers(2, 40, 300), start=1)
    ]
    packed = pack(examples, 64)
    for column, dtype in (("input_ids", "int32"), ("segment_ids", "int32"), ("loss_mask", "bool")):
        assert packed[column].dtype == dtype and packed[column].shape[1] == 64
    for ids, _ in examples:
        rows, columns = np.nonzero(packed["input_ids"] == ids[0])
        assert len(set(rows)) == 1 and len(columns) == len(ids)
        assert (np.diff(columns) == 1).all()
        assert len(set(packed["segment_ids"][rows, columns])) == 1
        # No token of the example precedes its first, so that is not a target.
        assert packed["loss_mask"][rows, columns].sum() == len(ids) - 1
    assert (packed["segment_ids"] > 0).mean() > 0.995
    assert not packed["loss_mask"][packed["segment_ids"] == 0].any()


def test_packed_rows_are_filled_optimally() -> None:
    """Best fit in decreasing length would combine 6 + 3 and need a third packed row."""
    examples = [([1] * n, [True] * n) for n in (6, 3, 3, 2, 2, 2, 2)]
    assert (pack(examples, 10)["segment_ids"] > 0).all()


def test_two_ranks_get_nearly_the_same_number_of_tokens() -> None:
    """Each step has 32 packed rows, 16 per rank; lengths of examples are log-normal."""
    order = np.random.default_rng(0)
    lengths = np.clip(order.lognormal(5, 0.8, 1000), 16, 1024).astype(int)
    packed = pack([([1] * n, [False] + [True] * (n - 1)) for n in lengths], 1024)
    tokens = order.permutation((packed["segment_ids"] > 0).sum(1))
    steps = tokens[: len(tokens) // 32 * 32].reshape(-1, 2, 16).sum(2)
    assert (abs(steps[:, 0] - steps[:, 1]) / steps.mean(1)).mean() < 0.01


def test_pack_refuses_an_example_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="9 tokens does not fit into packed rows of 8"):
        pack([([1] * 9, [True] * 9)], 8)
