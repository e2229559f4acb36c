"""Pack training data: render, tokenize and pack it, so that runs find it done.

The packed store lies in `<output>/packed`, and all runs of that output share it.

    otr pack --model MODEL --data train.jsonl
    python pipelines/pack_data.py --model MODEL --data a.jsonl@0.3 b.jsonl@0.7
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.config.prepared import prepare
from pipelines.report import terminal
from pipelines.runtime import cluster, console, next_steps
from pipelines.stages.pack import pack, packed_dir
from tuning.resources import trial_resources

if TYPE_CHECKING:
    from pipelines.config.commands import Pack


def run(command: "Pack") -> int:
    """Pack the data; return the exit code.

    Raises:
        ValueError: an option has a wrong value, or the data can't be packed.
    """
    prepared = prepare(command.load()).decided
    terminal.print_remarks(prepared.corpus)
    needs = trial_resources(prepared.config.train.workers)
    logs = Path(packed_dir(prepared)) / "logs"
    with cluster.ray_session(logs, cluster.logical_cpus(prepared.config), needs):
        paths = pack(prepared)
    for path in paths:
        console.say(f"packed store: {next_steps.display_path(Path(path))}")
    return 0


if __name__ == "__main__":
    from pipelines import cli

    sys.exit(cli.main(["pack", *sys.argv[1:]]))
