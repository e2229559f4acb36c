"""The replicas of a running engine: load weights, prove them, ask, and bring back what died.

In: the directory that all replicas should serve, then requests. Out: answers that come from those
weights and no others.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.util import list_named_actors

from evals.serving import client, deployment, probe
from evals.serving.client import Key, Limits, Replica, ReplicasLostError, ReplicaUnavailableError
from evals.serving.requests import Request, Response
from evals.settings import EngineSettings

MAX_RESTARTS = 3  # of replicas, during one load or one call of `ask`
START_TIMEOUT_S = 600.0


class Replicas:
    """All replicas of an engine; safe to `ask` from several threads."""

    def __init__(
        self,
        settings: EngineSettings,
        base_dir: Path,
        adapters: Mapping[str, Path],
        timeout_s: float,
    ) -> None:
        """Take what `deployment.launch` was given.

        Args:
            settings: of vLLM.
            base_dir: the directory that a restarted replica serves.
            adapters: name to peft directory, loaded beside it.
            timeout_s: seconds until an answer is given up.
        """
        self._settings = settings
        self._base_dir = base_dir
        self._adapters = dict(adapters)
        self._timeout_s = timeout_s
        self._wanted = base_dir
        self._weights = dict.fromkeys(deployment.model_names(settings), "")  # "": not proven
        self._actors: dict[str, str] = {}  # that last loaded something, by replica
        self._loads = itertools.count()
        self._lock = threading.RLock()

    def serve(self, model_dir: Path) -> None:
        """Load a directory into every replica, with the adapters where it is their model.

        Raises:
            RuntimeError: it can't be loaded, or the probe found something else to be served.
        """
        with self._lock:
            self._wanted = model_dir
            self._weights = dict.fromkeys(self._weights, "")
            for name in self._weights:
                self._bring(name, restart=False)

    def ask(
        self, requests: Mapping[Key, Request], options: Mapping[str, Any]
    ) -> Iterator[tuple[Key, Response]]:
        """Give the answers as they come.

        Replicas that die or hang are brought back when the others are done, and asked for what is
        missing.

        Raises:
            RuntimeError: a request was refused, nothing proven is served, or replicas went on
                failing after MAX_RESTARTS.
        """
        missing, wanted = dict(requests), self._wanted
        for attempt in itertools.count():
            limits = Limits(
                self._timeout_s,
                max(1, self._settings.concurrency // self._settings.num_replicas),
                count_timeouts=attempt > 0 and len(missing) <= self._settings.concurrency,
            )
            asked = self._proven()
            if self._wanted != wanted:
                raise RuntimeError(
                    f"{self._wanted} was loaded while {wanted} still answered: swap only while "
                    "nothing is generated"
                )
            try:
                for key, answer in client.ask(asked, missing.copy(), options, limits):
                    del missing[key]
                    yield key, answer
                return
            except ReplicasLostError as lost:
                if attempt == MAX_RESTARTS:
                    raise RuntimeError(
                        f"the engine failed {attempt + 1} times while it generated ({lost}); "
                        f"the reason is in {self._settings.log_dir}"
                    ) from lost
                self._revive([one for one in asked if one.name in lost.replicas])

    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Log p(token | tokens before it) in nats for all but the first of `token_ids`."""
        [(_, answer)] = self.ask({0: Request(token_ids, 1)}, {"prompt_logprobs": 0})
        return list(answer.prompt_logprobs)

    def _proven(self) -> list[Replica]:
        with self._lock:
            if not all(self._weights.values()):
                raise RuntimeError(
                    f"what the engine serves is unproven since it failed to serve {self._wanted}; "
                    "swap to a sound checkpoint or start the engine again"
                )
            return [Replica(name, handle(name), w) for name, w in self._weights.items()]

    def _revive(self, lost: Sequence[Replica]) -> None:
        """Bring replicas back, unless another thread has done so already."""
        with self._lock:
            for replica in lost:
                if self._weights[replica.name] == replica.weights:
                    self._weights[replica.name] = ""
                    self._bring(replica.name, restart=True)

    def _bring(self, name: str, *, restart: bool) -> None:
        for attempt in itertools.count():
            try:
                if restart:
                    _restart(name, self._actors.get(name))
                replica = self._load(name)
                self._prove(replica)
                self._weights[name] = replica.weights
                return
            except (ReplicaUnavailableError, ReplicasLostError) as error:
                if attempt == MAX_RESTARTS:
                    raise RuntimeError(
                        f"{name} failed {attempt + 1} times to serve {self._wanted} ({error}); "
                        f"the reason is in {self._settings.log_dir}"
                    ) from error
                restart = True

    def _load(self, name: str) -> Replica:
        replica = Replica(name, handle(name), f"{self._wanted}#{next(self._loads)}")
        loading = replica.handle.load.remote(
            replica.weights, str(self._wanted), {k: str(v) for k, v in self._beside().items()}
        )
        try:
            self._actors[name] = loading.result(timeout_s=START_TIMEOUT_S)
        except ReplicaUnavailableError:
            raise
        except RayTaskError as error:
            raise RuntimeError(f"vLLM can't load {self._wanted}: {error!r}") from error
        except (RayError, RayServeException, TimeoutError) as error:
            raise ReplicaUnavailableError(f"no answer from {name}: {error!r}") from error
        return replica

    def _beside(self) -> dict[str, Path]:
        return self._adapters if self._wanted == self._base_dir else {}

    def _prove(self, replica: Replica) -> None:
        """Compare what the replica serves with transformers, its own model and each adapter."""
        limits = Limits(self._timeout_s, self._settings.concurrency)

        def answers(requests: Sequence[Request], options: Mapping[str, Any]) -> list[Response]:
            found = dict(client.ask([replica], dict(enumerate(requests)), options, limits))
            return [found[number] for number in range(len(requests))]

        probe.verify(answers, self._wanted, self._beside(), self._settings)


def handle(name: str) -> Any:
    """The Serve handle of a replica; calls go to its successor when it was restarted."""
    return serve.get_deployment_handle(f"ScoringServer:{name}", deployment.APP_NAME)


def _restart(name: str, old: str | None) -> None:
    """End the actor `old` if it is still there, and return when Serve has started another one."""
    for actor in list_named_actors(all_namespaces=True):
        if actor["name"] == old:
            with suppress(ValueError):  # Serve has ended it meanwhile
                ray.kill(ray.get_actor(actor["name"], actor["namespace"]))
    successor = handle(name)  # outside of the loop: without Serve there is nothing to wait for
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            successor.check_health.remote().result(timeout_s=START_TIMEOUT_S)
            return
        except (RayError, RayServeException, TimeoutError) as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name} died and did not come back: {error!r}") from error
            time.sleep(0.2)
