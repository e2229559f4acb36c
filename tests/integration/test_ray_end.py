"""A run's own Ray ends while threads of the run still give references of Ray's back."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
REPOSITORY = Path(__file__).parents[2]

# As cyclic garbage they are given back by the thread that happens to collect.
SCRIPT = """
import gc, sys, threading
from pathlib import Path
import ray
from pipelines.runtime import cluster

def give_back(references):
    while references:
        cycle = [references.pop()]
        cycle.append(cycle)
        sum(range(1000))

with cluster.ray_session(Path(sys.argv[1]), 1):
    value = ray.put(0)
    references = [ray.ObjectRef(value.binary()) for _ in range(300_000)]
    gc.set_threshold(5)
    threading.Thread(target=give_back, args=(references,), daemon=True).start()
assert references and gc.isenabled()
print("ended")
"""


def test_garbage_of_a_thread_does_not_end_the_process(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert ended.stdout.splitlines()[-1:] == ["ended"], ended.stderr[-2000:]
