"""Atomic writes, digests, and nearest names."""

import json

import pytest

from evals import files
from evals.hints import nearest_name


def test_json_is_written_as_text(tmp_path):
    files.write_json(path := tmp_path / "a.json", {"name": "é"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "é"}


def test_failed_write_leaves_the_old_file_alone(tmp_path):
    (path := tmp_path / "a").write_bytes(b"old")
    with pytest.raises(RuntimeError), files.replacing(path) as partial:
        partial.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [path]


def test_digest_depends_on_names_and_contents_but_not_on_order(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"1")
    b.write_bytes(b"2")
    known = files.digest([a, b])
    assert files.digest([b, a]) == known
    b.write_bytes(b"3")
    assert files.digest([a, b]) != known != files.digest([a])


def test_nearest_name_is_always_one_of_the_known():
    assert nearest_name("gsm8", ["mmlu", "gsm8k"]) == "gsm8k"
    assert nearest_name("", ["mmlu"]) == "mmlu"
