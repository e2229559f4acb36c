"""Checks by name, and what each of them found."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One check."""

    name: str
    run: Callable[[], str]
    """Returns a line that reports what it found, or raises a ValueError or OSError whose message
    names the remedy."""
    needs: frozenset[str] = frozenset()
    """Names of earlier checks; if one of them fails, this check is skipped."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    ok: bool
    text: str
    """What was found, in one line; if not ok, with the remedy."""


def run_checks(checks: Iterable[Check]) -> Iterator[Finding]:
    """Run checks in order; yield a finding for each that is not skipped."""
    failed: set[str] = set()
    for check in checks:
        if check.needs & failed:
            failed.add(check.name)
            continue
        finding = _run_check(check)
        if not finding.ok:
            failed.add(check.name)
        yield finding


def _run_check(check: Check) -> Finding:
    try:
        return Finding(check.name, True, check.run())
    except (ValueError, OSError) as error:
        return Finding(check.name, False, " ".join(str(error).split()))
