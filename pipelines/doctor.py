"""Check what a sweep, or `ray up`, needs; print a table of the findings.

python pipelines/doctor.py --model DIRECTORY --data train.jsonl
python pipelines/doctor.py --cluster cluster.yaml
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.checks import preflight
from pipelines.checks.findings import Finding
from pipelines.config.prepared import prepare_temporarily
from pipelines.report import terminal
from pipelines.runtime import console

if TYPE_CHECKING:
    from pipelines.config.commands import Doctor


def run(command: "Doctor") -> int:
    """Print the findings; return 1 if a check failed.

    Raises:
        ValueError: an option has a wrong value.
    """
    if command.cluster:
        return _report([*preflight.check_cluster(command.cluster)])
    with prepare_temporarily(command.load()) as prepared:
        findings = [*preflight.check(prepared, with_ray=True)]
        exit_code = _report(findings)
        if all(finding.ok for finding in findings if finding.check in ("model", "data")):
            terminal.print_chosen(prepared.decided.config)
        if any(finding.check == "memory" for finding in findings):
            from pipelines.checks import memory  # its imports take seconds

            memory.print_memory(prepared.decided.config.train)
    return exit_code


def _report(findings: Sequence[Finding]) -> int:
    """Print the table of findings; return the exit code."""
    lines = [(f.check, "ok" if f.ok else "FAILED", f.text) for f in findings]
    console.table(("check", "", "found"), lines)
    return 0 if all(f.ok for f in findings) else 1


if __name__ == "__main__":
    from pipelines import cli

    sys.exit(cli.main(["doctor", *sys.argv[1:]]))
