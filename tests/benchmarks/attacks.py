"""The attacks of `tests.assets.attacks` in all three worlds, as the Markdown table of the docs.

"passed" means that the attack succeeded. The exit code is 1 if an outcome is not the expected one.
`python -m tests.benchmarks.attacks`
"""

import sys

import pytest

from evals.sandbox import runner
from tests.assets import sandbox_layers
from tests.assets.attacks import ATTACKS, WORLDS


def outcomes(world: str) -> list[str]:
    """Return the verdict on each attack in a world."""
    with pytest.MonkeyPatch.context() as patch:
        sandbox_layers.enter(world, patch)
        return [
            runner.run(attack.program, tests=attack.tests, cpu_seconds=2).reason
            for attack in ATTACKS.values()
        ]


def main() -> None:
    print(f"isolation layers: {', '.join(runner.isolation_layers())}\n")
    columns = [outcomes(world) for world in WORLDS]
    print(f"| attack | {' | '.join(WORLDS)} | what stops it |\n|---|{'---|' * len(WORLDS)}---|")
    unknown = 0
    for (name, attack), *row in zip(ATTACKS.items(), *columns, strict=True):
        print(f"| {name} | {' | '.join(row)} | {attack.why} |")
        unknown += row != [attack.expected(world) for world in WORLDS]
    sys.exit(unknown > 0)


if __name__ == "__main__":
    main()
