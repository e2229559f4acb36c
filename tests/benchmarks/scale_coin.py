"""The biased coins of `scale_trial` behind Ray Serve, in place of vLLM.

A coin answers "yes" (right) or "no", the same each time for the same weights, prompt and seed. It
has the interface of `evals.serving.server.ScoringServer`. Everything else of scoring is real: the
engine, its replicas and client, journals, grading, intervals.
"""

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import ray
from ray import serve

from evals.serving import deployment, probe
from evals.serving.requests import Request, Response
from evals.settings import EngineSettings
from tests.benchmarks.scale_trial import read_coin

RIGHT, WRONG = "yes", "no"
_BATCH = 64


class Coin:
    """Serve replica that answers as a coin."""

    def __init__(self) -> None:
        self._weights, self._right = "", 0.0

    async def load(self, weights: str, path: str, adapters: dict[str, str]) -> tuple[str, str]:
        """Answer as the coin under `path` from now on."""
        self._right, self._weights = read_coin(Path(path)), weights
        context = ray.get_runtime_context()
        return str(context.get_actor_name()), context.get_node_id()

    async def answer(
        self, requests: list[Request], options: dict[str, Any], *, weights: str, **limits: Any
    ) -> AsyncGenerator[list[tuple[int, Response]], None]:
        """Yield (position, answer), several at once."""
        assert weights == self._weights, "asked for weights that were not loaded"
        numbered = iter(enumerate(requests))
        while batch := list(islice(numbered, _BATCH)):
            yield [(index, self._toss(request)) for index, request in batch]

    def _toss(self, request: Request) -> Response:
        draw = Random(f"{self._right}/{request.prompt}/{request.seed}").random()
        return Response(RIGHT if draw < self._right else WRONG, "stop", (1,))


def launch(model_dir: Path, settings: EngineSettings, more: Mapping[str, Any]) -> None:
    """Start Serve with a coin for each replica."""
    serve.start(http_options={"host": "127.0.0.1", "port": settings.port})
    for name in deployment.model_names(settings):
        coin = serve.deployment(Coin).options(
            name=f"ScoringServer:{name}", ray_actor_options={"num_cpus": 0}
        )
        serve.run(coin.bind(), name=deployment.APP_NAME, route_prefix=None)


@contextmanager
def in_place_of_vllm() -> Iterator[None]:
    """Let engines serve coins, and skip their verification against transformers."""
    with (
        patch.object(deployment, "launch", launch),
        patch.object(probe, "verify", lambda *_: None),
    ):
        yield
