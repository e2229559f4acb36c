"""Checks run in order; one that needs a failed check is skipped; the failing check is named."""

import pytest

from pipelines.checks import preflight
from pipelines.checks.findings import Check, Finding, run_checks
from pipelines.config.prepared import PreparedRun
from pipelines.config.presets import SweepConfig


def fail() -> str:
    raise ValueError("two\nlines")


def test_checks_that_need_a_failed_check_are_skipped() -> None:
    checks = [
        Check("a", lambda: "found"),
        Check("b", fail),
        Check("c", lambda: "found", frozenset({"b"})),
        Check("d", lambda: "found", frozenset({"c"})),
        Check("e", lambda: "found", frozenset({"a"})),
    ]
    assert [*run_checks(checks)] == [
        Finding("a", True, "found"),
        Finding("b", False, "two lines"),
        Finding("e", True, "found"),
    ]


def test_the_failing_check_is_named(
    config: SweepConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(preflight.machine, "check_disk", lambda config: fail())
    with pytest.raises(ValueError, match="two lines"):
        preflight.require(PreparedRun(config))
    assert capsys.readouterr().err.split()[:3] == ["x", "check", "disk"]
