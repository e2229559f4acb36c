"""Old module paths still import, with a warning that names the new path."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from evals._deprecated import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_is_the_module_at_its_new_path(old, monkeypatch):
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=f"{old} has moved to {MOVED[old]}"):
        module = import_module(old)
    assert module is import_module(MOVED[old])
    assert module.__name__ == module.__spec__.name == MOVED[old]


def test_a_script_may_import_a_moved_module_from_the_package():
    script = "from evals import probe; from evals.engine import Engine; print(probe.verify, Engine)"
    done = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", script],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "verify" in done.stdout and "Engine" in done.stdout
