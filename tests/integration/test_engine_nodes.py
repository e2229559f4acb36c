"""A replica on another node than the head: what it serves is verified there."""

import os
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import ray
from ray.cluster_utils import Cluster

from evals.serving import client, probe, replicas
from evals.serving.requests import Response
from evals.settings import EngineSettings
from pipelines import _compat
from tests.assets.tiny import make_tiny_model

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def other_node() -> Iterator[str]:
    """Start two nodes; return the id of the one that this process is not on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster = _compat.once_more_if_slow(
            lambda: Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        )
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster.add_node(num_cpus=4).node_id
        ray.shutdown()
        cluster.shutdown()


def test_the_head_needs_no_memory_for_the_model(other_node, tmp_path, monkeypatch) -> None:
    model = make_tiny_model(tmp_path / "model")
    fleet = replicas.Replicas(EngineSettings("float32", 512, num_replicas=1), model, {}, 60)
    fleet._nodes = {"replica-0": other_node}
    compute = probe._logprobs

    def respond(targets, requests, options, limits):
        """Answer as an engine does that serves `model`."""
        from transformers import AutoModelForCausalLM

        served = AutoModelForCausalLM.from_pretrained(model)
        for key, request in requests.items():
            rows = [*request.prompt, *range(request.max_tokens)]
            found = compute(served, rows)
            new = len(rows) - len(request.prompt)
            yield key, Response("", "length", rows[-new:], found[-new:], found[:-new])

    def not_here(*arguments):
        pytest.fail(f"process {os.getpid()} of the head has loaded the model")

    monkeypatch.setattr(client, "stream_responses", respond)
    monkeypatch.setattr(probe, "reference", not_here)
    fleet._verify(SimpleNamespace(name="replica-0"))
    other = make_tiny_model(tmp_path / "other", seed=1)
    fleet._model_dir = other
    with pytest.raises(probe.NotServedError, match=f"does not serve {other}"):
        fleet._verify(SimpleNamespace(name="replica-0"))
