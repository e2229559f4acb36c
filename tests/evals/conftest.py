"""Fixtures of several tests of evals."""

import pytest

from tests.assets import sandbox_layers


@pytest.fixture(params=["all layers", "no namespaces", "guard alone"])
def layers(request, monkeypatch) -> str:
    """Run a test three times: with all layers that the machine offers, and with fewer."""
    missing = {
        "no namespaces": sandbox_layers.WITHOUT_NAMESPACES,
        "guard alone": sandbox_layers.WITHOUT_KERNEL_LAYERS,
    }
    if request.param in missing:
        sandbox_layers.patch(monkeypatch, missing[request.param])
    return request.param
