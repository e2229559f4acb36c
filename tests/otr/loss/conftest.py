"""Fixtures that more than one test of the loss uses."""

from collections.abc import Callable

import pytest

from tests.otr.loss.losses import Inputs


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets how many rows of logits are in a chunk and in a tile of it."""

    def set_rows(inputs: Inputs, chunk: int, tile: int) -> None:
        size, vocabulary = inputs.weight.element_size(), len(inputs.weight)
        monkeypatch.setattr("otr.loss.fused.CHUNK_BYTES", {"cpu": chunk * vocabulary * size})
        monkeypatch.setattr("otr.loss.rows.TILE_BYTES", tile * vocabulary * max(4, size))

    return set_rows
