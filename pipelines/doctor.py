"""Check what a sweep needs, or a cluster file, and print a table of the findings."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.checks import preflight
from pipelines.checks.preflight import Finding
from pipelines.config import options
from pipelines.config.resolve import resolved
from pipelines.runtime import console


@dataclass(frozen=True)
class BeforeRayUp:
    """Check a cluster file, and the hosts that it names, before `ray up`."""

    cluster: str = ""
    """The file."""


def main(argv: Sequence[str]) -> int:
    """Check what a sweep with these options needs; with --cluster FILE, what `ray up` needs.

    Raises:
        ValueError: an option is unknown or has a wrong value.
    """
    if any(word.partition("=")[0] == "--cluster" for word in argv):
        asked = options.simple(BeforeRayUp, argv, "otr doctor")
        return _report([*preflight.before_ray_up(asked.cluster)])
    request = options.parse(argv, "otr doctor")
    with TemporaryDirectory() as scratch:
        config = resolved(request.config, Path(scratch))
        findings = [*preflight.check(config, with_ray=True)]
        code = _report(findings)
        if any(f.check == "memory" for f in findings):
            from pipelines.checks import memory  # its imports take seconds

            memory.tell(config.train)
    return code


def _report(findings: Sequence[Finding]) -> int:
    """Print the table; return the exit code."""
    lines = [(f.check, "ok" if f.ok else "FAILED", f.text) for f in findings]
    console.table(("check", "", "found"), lines)
    return 0 if all(f.ok for f in findings) else 1


if __name__ == "__main__":
    from pipelines import cli

    sys.exit(cli.main(["doctor", *sys.argv[1:]]))
