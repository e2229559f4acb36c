"""Fixtures shared by the tests of the loss."""

from collections.abc import Callable

import pytest

from tests.otr.loss.losses import Inputs


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that sets how many rows of logits a chunk and a tile have."""

    def set_rows(inputs: Inputs, chunk: int, tile: int) -> None:
        size, vocabulary = inputs.weight.element_size(), len(inputs.weight)
        monkeypatch.setattr("otr.loss.fused.CHUNK_BYTES", {"cpu": chunk * vocabulary * size})
        monkeypatch.setattr("otr.loss.rows.TILE_BYTES", tile * vocabulary * max(4, size))

    return set_rows
