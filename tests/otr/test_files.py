import json
from pathlib import Path

import pytest

from otr import files


def test_content_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    files.write_text(path, "é")
    assert path.read_bytes() == "é".encode()
    files.write_json(path, {"step": 1})
    assert json.loads(path.read_text()) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_content(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    path = tmp_path / "run.json"
    files.write_text(path, "old")
    monkeypatch.setattr(f"otr.files.os.{fails}", full)
    with pytest.raises(OSError, match="no space"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_publish_renames_a_finished_file(tmp_path: Path) -> None:
    (tmp_path / "rows.tmp").write_bytes(b"rows")
    files.publish(tmp_path / "rows.tmp", tmp_path / "rows.arrow")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("rows.arrow", b"rows")]
