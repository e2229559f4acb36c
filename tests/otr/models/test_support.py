"""The table of models in the documentation is what trying them gives."""

from pathlib import Path

import pytest

from tests.otr.models.support import lines

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "models.md"


@pytest.mark.integration
def test_the_documented_table_is_what_was_tried() -> None:
    documented = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    assert documented == [*lines()]
    assert all(" no: " not in line for line in documented)
