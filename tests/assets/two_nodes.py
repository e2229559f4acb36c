"""A run with two workers on two nodes, which are two raylets of this machine.

    python -m tests.assets.two_nodes DIRECTORY nothing|node|notice|half

The second argument says what the run loses once it has saved; of half of its nodes there is no
replacement. It prints JSON {"weights": SHA-256 of the final weights, "nll": of the last step,
"note": note of the run's last start, "lost": number of lost nodes}.
"""

import hashlib
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from otr import DataConfig, ModelConfig, TrainConfig, Workers
from otr.training.driver import fit
from pipelines import _compat
from tests.assets.tiny import make_tiny_model

STEPS = 600  # take longer than a notice needs to take effect, about half a second
CHECKPOINT_STEPS = 20


class Notes(ray.train.UserCallback):
    """Writes the note of a run's start to a file, and makes the run wait until it loses a node.

    The controller then takes no more reports: from the first checkpoint on or, in a run without
    checkpoints, from the first report on.
    """

    def __init__(self, path: Path, lost: Path | None, checkpoints: bool) -> None:
        self.path, self.lost, self.checkpoints = path, lost, checkpoints

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        if "note" in metrics[0]:
            self.path.write_text(metrics[0]["note"])
        if self.lost is not None and (checkpoint is not None or not self.checkpoints):
            while not self.lost.exists():
                time.sleep(0.02)


def drain(cluster: Cluster, node: str) -> None:
    """Announce, as a cloud does, that a node will be taken away in ten minutes."""
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline = int((time.time() + 600) * 1000)
    accepted, why = GcsClient(address=cluster.address).drain_node(node, reason, "test", deadline)
    assert accepted, why


def main(directory: Path, loses: str) -> None:
    """Run, lose a node, and print how the run ended."""
    os.environ["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "0.2"
    cluster = _compat.once_more_if_slow(
        lambda: Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
    )
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")  # on the first node
    second = cluster.add_node(num_cpus=4)
    rows = [{"prompt": f"{i} + 1?", "completion": str(i + 1)} for i in range(60)]
    data = directory / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    run = TrainConfig(
        ModelConfig(str(make_tiny_model(directory / "model"))),
        DataConfig((str(data),), sequence_length=64),
        workers=Workers(2, cpus=2.5, min_count=int(loses == "half")),  # a node has no room for two
        max_steps=STEPS,
        global_batch_size=4,
        micro_batch_size=2,
        checkpoint_interval=0 if loses == "notice" else CHECKPOINT_STEPS,  # only the notice saves
    )

    lost = directory / f"{loses}.lost"
    waits_for = None if loses == "nothing" else lost
    notes = Notes(directory / f"{loses}.txt", waits_for, checkpoints=loses != "notice")
    with ThreadPoolExecutor(1) as pool:  # only the main thread starts and ends nodes
        fitted = pool.submit(fit, run, storage=str(directory), name=loses, callbacks=[notes])
        sign = notes.path.name if loses == "notice" else f"{loses}/step-*"
        while loses != "nothing" and not [*directory.glob(sign)]:
            time.sleep(0.02)
        if loses in ("node", "half"):
            second.kill_raylet()
        if loses == "notice":
            drain(cluster, second.node_id)
        lost.touch()
        if loses in ("node", "notice"):
            cluster.add_node(num_cpus=4)  # its replacement
        result = fitted.result()
    weights = (directory / loses / f"step-{STEPS:06d}" / "model.safetensors").read_bytes()
    outcome = {
        "weights": hashlib.sha256(weights).hexdigest(),
        "nll": result.metrics["nll"],
        "note": notes.path.read_text(),
        "lost": len([node for node in ray.nodes() if not node["Alive"]]),
    }
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps(outcome))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
