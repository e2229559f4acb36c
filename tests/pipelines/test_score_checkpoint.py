"""Tests of `otr score` that need no engine."""

from pathlib import Path

import pytest
import ray

from pipelines import cli
from pipelines.builtin import corpus

BASE = str(Path(corpus.__file__).parent / "base")


def test_a_dry_run_starts_nothing_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["score", BASE, "--benchmarks", "builtin:retained-code", "--max-items", "3"]
    assert cli.main([*line, "--dry-run"]) == 0
    said, noted = capsys.readouterr()
    assert "no --benchmarks" not in noted
    assert '"max_model_len"' in said and "retained-code, 3" in said
    prompt = said.partition("one prompt:\n")[2]
    assert prompt.count("<|im_start|>") >= 2 or "assistant" in prompt
    assert not ray.is_initialized() and list(tmp_path.iterdir()) == []
    assert cli.main(["score", BASE, "--dry-run"]) == 0
    assert "no --benchmarks was given" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["score", "--dry-run"])
