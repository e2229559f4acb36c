"""A run shuts its own Ray down while its threads still release object references."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
REPOSITORY = Path(__file__).parents[2]

# In cyclic garbage, references are released by whichever thread runs the collector.
SCRIPT = """
import gc, sys, threading
from pathlib import Path
import ray
from pipelines.runtime import cluster

def release(references):
    while references:
        cycle = [references.pop()]
        cycle.append(cycle)
        sum(range(1000))

with cluster.ray_session(Path(sys.argv[1]), 1):
    value = ray.put(0)
    references = [ray.ObjectRef(value.binary()) for _ in range(300_000)]
    gc.set_threshold(5)
    threading.Thread(target=release, args=(references,), daemon=True).start()
assert references and gc.isenabled()
print("ended")
"""


def test_references_released_by_a_thread_do_not_end_the_process(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert ended.stdout.splitlines()[-1:] == ["ended"], ended.stderr[-2000:]
