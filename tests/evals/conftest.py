"""What several unit tests share."""

import pytest

from tests.assets import walls


@pytest.fixture(params=["all walls", "no namespaces", "guard alone"])
def wall(request, monkeypatch) -> str:
    """Runs a test three times: as the machine allows, and as on less able machines."""
    missing = {"no namespaces": walls.WITHOUT_NAMESPACES, "guard alone": walls.WITHOUT_ANY}
    if request.param in missing:
        walls.patch(monkeypatch, missing[request.param])
    return request.param
