"""Fixtures of several tests of evals."""

import pytest

from tests.assets import sandbox_layers
from tests.assets.attacks import WORLDS


@pytest.fixture(params=WORLDS)
def layers(request, monkeypatch) -> str:
    """Run a test three times: with all layers that the machine offers, and with fewer."""
    sandbox_layers.enter(request.param, monkeypatch)
    return request.param
