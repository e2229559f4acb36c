"""The replicas of a running engine: load and verify weights, send requests, restart what died.

Responses come from verified weights of the requested model and from no others.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from evals.serving import client, deployment, probe
from evals.serving.client import Key, Limits, Replica, ReplicasLostError, ReplicaUnavailableError
from evals.serving.plan import plan
from evals.serving.requests import Request, Response
from evals.settings import EngineSettings

MAX_RESTARTS = 3  # of replicas, during one load or one call of `stream_responses`
START_TIMEOUT_S = 600.0
TIMEOUT_TOKENS = 1024  # answers that may be longer get proportionally more time


class Replicas:
    """All replicas of an engine. Several threads may send requests at the same time."""

    def __init__(
        self,
        settings: EngineSettings,
        base_dir: Path,
        adapters: Mapping[str, Path],
        timeout_s: float,
    ) -> None:
        """Represent the replicas that `deployment.launch` starts.

        Args:
            settings: settings of vLLM.
            base_dir: the directory that a restarted replica serves.
            adapters: name -> peft directory, loaded with that model.
            timeout_s: seconds until a request is given up, for up to TIMEOUT_TOKENS new tokens.
        """
        self._settings = settings
        self._base_dir = base_dir
        self._adapters = dict(adapters)
        self._timeout_s = timeout_s
        self._model_dir = base_dir
        # Id of each replica's weights, "" until they are verified.
        self._weights = dict.fromkeys(deployment.model_names(settings), "")
        self._actors: dict[str, str] = {}  # replica -> name of the actor that last loaded weights
        self._nodes: dict[str, str] = {}  # replica -> id of that actor's node
        self._loads = itertools.count()
        self._lock = threading.RLock()

    def load(self, model_dir: Path) -> None:
        """Load a directory into every replica, and the adapters if they belong to that model.

        Raises:
            RuntimeError: it can't be loaded, or the replicas serve something else afterwards.
        """
        with self._lock:
            self._model_dir = model_dir
            self._weights = dict.fromkeys(self._weights, "")
            for name in self._weights:
                self._load_verified(name, restart=False)

    def stream_responses(
        self, requests: Mapping[Key, Request], options: Mapping[str, Any]
    ) -> Iterator[tuple[Key, Response]]:
        """Yield responses as they arrive.

        Replicas that die or hang are restarted when the others are done, and receive the requests
        that have no response yet.

        Raises:
            RuntimeError: a request was rejected, the weights are not verified, or replicas still
                failed after MAX_RESTARTS.
        """
        missing, model_dir = dict(requests), self._model_dir
        in_flight = self._settings.requests_per_replica
        longest = max((request.max_tokens for request in requests.values()), default=0)
        for attempt in itertools.count():
            limits = Limits(
                self._timeout_s * max(1, longest / TIMEOUT_TOKENS),
                in_flight,
                count_timeouts=attempt > 0 and len(missing) <= in_flight * len(self._weights),
            )
            replicas = self._verified()
            if self._model_dir != model_dir:
                raise RuntimeError(
                    f"{self._model_dir} was loaded while {model_dir} was still generating: swap "
                    "only while nothing is generated"
                )
            try:
                stream = client.stream_responses(replicas, missing.copy(), options, limits)
                for key, response in stream:
                    del missing[key]
                    yield key, response
                return
            except ReplicasLostError as lost:
                if attempt == MAX_RESTARTS:
                    raise RuntimeError(
                        f"the engine failed {attempt + 1} times while it generated ({lost}); "
                        f"the reason is in {self._settings.log_dir}"
                    ) from lost
                self._restart_lost([one for one in replicas if one.name in lost.replicas])

    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Return log p(token | preceding tokens) in nats for all but the first of `token_ids`."""
        [(_, response)] = self.stream_responses({0: Request(token_ids, 1)}, {"prompt_logprobs": 0})
        return list(response.prompt_logprobs)

    def _verified(self) -> list[Replica]:
        """Return all replicas; RuntimeError unless the weights of each are verified."""
        with self._lock:
            if not all(self._weights.values()):
                raise RuntimeError(
                    f"the engine's weights are not verified since it failed to serve "
                    f"{self._model_dir}; swap to a valid checkpoint or start the engine again"
                )
            return [Replica(name, handle(name), w) for name, w in self._weights.items()]

    def _restart_lost(self, lost: Sequence[Replica]) -> None:
        """Restart replicas, except those that another thread has restarted already."""
        with self._lock:
            for replica in lost:
                if self._weights[replica.name] == replica.weights:
                    self._weights[replica.name] = ""
                    self._load_verified(replica.name, restart=True)

    def _load_verified(self, name: str, *, restart: bool) -> None:
        """Load the current directory into a replica and verify it, restarting it if need be."""
        for attempt in itertools.count():
            try:
                if restart:
                    _restart(name, self._actors.get(name))
                replica = self._load(name)
                self._verify(replica)
                self._weights[name] = replica.weights
                return
            except (ReplicaUnavailableError, ReplicasLostError) as error:
                if attempt == MAX_RESTARTS:
                    raise RuntimeError(
                        f"{name} failed {attempt + 1} times to serve {self._model_dir} ({error}); "
                        f"the reason is in {self._settings.log_dir}"
                    ) from error
                restart = True

    def _load(self, name: str) -> Replica:
        replica = Replica(name, handle(name), f"{self._model_dir}#{next(self._loads)}")
        adapters = {key: str(path) for key, path in self._current_adapters().items()}
        loading = replica.handle.load.remote(replica.weights, str(self._model_dir), adapters)
        try:
            self._actors[name], self._nodes[name] = loading.result(timeout_s=START_TIMEOUT_S)
        except ReplicaUnavailableError:
            raise
        except RayTaskError as error:
            raise RuntimeError(f"vLLM can't load {self._model_dir}: {error!r}") from error
        except (RayError, RayServeException, TimeoutError) as error:
            raise ReplicaUnavailableError(f"no response from {name}: {error!r}") from error
        return replica

    def _current_adapters(self) -> dict[str, Path]:
        return self._adapters if self._model_dir == self._base_dir else {}

    def _verify(self, replica: Replica) -> None:
        """Compare a replica with transformers: its model and each adapter."""
        limits = Limits(self._timeout_s, self._settings.requests_per_replica)

        def respond(requests: Sequence[Request], options: Mapping[str, Any]) -> list[Response]:
            numbered = dict(enumerate(requests))
            found = dict(client.stream_responses([replica], numbered, options, limits))
            return [found[number] for number in numbered]

        node = self._nodes[replica.name]
        refer = partial(_reference, node)
        probe.verify(respond, self._model_dir, self._current_adapters(), self._settings, refer)


def handle(name: str) -> Any:
    """Return the Serve handle of a replica; after a restart it reaches the new process."""
    return serve.get_deployment_handle(f"ScoringServer:{name}", deployment.APP_NAME)


def _reference(node: str, *arguments: Any) -> probe.Reference:
    """Call `probe.reference` on the node of a replica, whose host is made for the model.

    The head, where this process runs, may be a small machine.
    """
    if node == ray.get_runtime_context().get_node_id():
        return probe.reference(*arguments)
    (found,) = (one for one in ray.nodes() if one["NodeID"] == node)
    threads = max(1, int(found["Resources"].get("CPU", 1)) // 2)
    variables = plan(EngineSettings(threads=threads)).environment
    task = ray.remote(num_cpus=0, max_retries=0)(_call_reference).options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        runtime_env={"env_vars": variables},
    )
    return ray.get(task.remote(*arguments))


def _call_reference(*arguments: Any) -> probe.Reference:
    return probe.reference(*arguments)


def _restart(name: str, old_actor: str | None) -> None:
    """Kill the actor of a replica if it still exists; return when Serve has started another one."""
    for actor in list_named_actors(all_namespaces=True):
        if actor["name"] == old_actor:
            with suppress(ValueError):  # Serve has ended it meanwhile
                ray.kill(ray.get_actor(actor["name"], actor["namespace"]))
    restarted = handle(name)  # not in the loop: if Serve is gone, waiting is in vain
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            restarted.check_health.remote().result(timeout_s=START_TIMEOUT_S)
            return
        except (RayError, RayServeException, TimeoutError) as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name} died and did not restart: {error!r}") from error
            time.sleep(0.2)
