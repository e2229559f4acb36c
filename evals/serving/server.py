"""A replica of the engine: Ray's LLMServer, which also answers many questions in one call.

In: requests as token ids, many a call. Out: a stream of finished answers, in any order. Beside the
OpenAI-compatible endpoint, which spends more time on a short answer than the model does.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator
from typing import Any, cast

import ray
from ray.serve.llm.deployment import LLMServer
from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind

from evals.serving.client import ReplicaUnavailableError
from evals.serving.requests import Request, Response

Answers = list[tuple[int, Response]]


class ScoringServer(LLMServer):
    """Answers only as long as it serves the weights that the caller means.

    A restarted replica serves the weights that it was started on, whatever was loaded before: it
    has another name for its weights, the empty one.
    """

    _weights = ""
    _adapters: dict[str, LoRARequest] = {}  # noqa: RUF012  # replaced as a whole, never changed
    _fresh = True  # nothing loaded since the start

    async def load(self, weights: str, path: str, adapters: dict[str, str]) -> str:
        """Serve the weights under `path` and these LoRA adapters; return this actor's name.

        Args:
            weights: the name that requests have to give from now on.
            path: a Hugging Face directory of the shape that the engine was started on.
            adapters: name to peft directory; those that are loaded already stay as they are.

        Raises:
            ReplicaUnavailableError: the engine is dead.
        """
        self._weights = ""
        try:
            self._adapters = await self._load(path, adapters)
        except Exception as error:
            await self._explain(error)
        self._weights = weights
        return str(ray.get_runtime_context().get_actor_name())

    async def answer(
        self,
        requests: list[Request],
        options: dict[str, Any],
        *,
        weights: str,
        timeout_s: float,
        in_flight: int,
    ) -> AsyncGenerator[Answers, None]:
        """Yield (position, answer) for each request as it is finished, several at once.

        Raises:
            ReplicaUnavailableError: the engine is dead or serves other weights than `weights`.
        """
        self._check(weights)
        name = options.pop("adapter", "")
        if name and name not in self._adapters:
            raise ValueError(f"{name} is not served now: its model has been swapped")
        adapter = self._adapters.get(name)
        finished: asyncio.Queue[tuple[int, Response | BaseException]] = asyncio.Queue()
        slots = asyncio.Semaphore(in_flight)

        async def work(index: int, request: Request) -> None:
            async with slots:
                try:
                    parameters = _parameters(request, options)
                    answer = await self._complete(request, parameters, adapter, timeout_s)
                    finished.put_nowait((index, answer))
                except Exception as error:
                    finished.put_nowait((index, error))

        tasks = [asyncio.create_task(work(*numbered)) for numbered in enumerate(requests)]
        try:
            missing = len(requests)
            while missing:
                batch = [await finished.get()]
                while not finished.empty():
                    batch.append(finished.get_nowait())
                for _, answer in batch:
                    if isinstance(answer, BaseException):
                        await self._explain(answer)
                self._check(weights)
                missing -= len(batch)
                yield batch  # type: ignore[misc]  # no exceptions left in it
        finally:
            for task in tasks:
                task.cancel()

    @property
    def _client(self) -> Any:
        """Of vLLM: its AsyncLLM."""
        return cast("Any", self.engine)._engine_client

    async def _load(self, path: str, adapters: dict[str, str]) -> dict[str, LoRARequest]:
        client, loaded = self._client, {}
        await client.collective_rpc("end_with_server")
        first = cast("Any", self._llm_config.model_loading_config).model_source
        fresh, self._fresh = self._fresh, False
        if not (fresh and path == first):
            await client.collective_rpc("swap_weights", args=(path,))
        for number, (name, directory) in enumerate(adapters.items(), start=1):
            loaded[name] = LoRARequest(name, number, directory)
            await client.add_lora(loaded[name])
        if not await client.reset_prefix_cache():
            raise RuntimeError("requests are still running: swap when none are")
        return loaded

    def _check(self, weights: str) -> None:
        if weights != self._weights:
            raise ReplicaUnavailableError(
                f"it serves {self._weights or 'its first weights'!r} again"
            )

    async def _complete(
        self,
        request: Request,
        parameters: SamplingParams,
        adapter: LoRARequest | None,
        timeout_s: float,
    ) -> Response:
        async def last() -> Any:
            prompt, number = {"prompt_token_ids": list(request.prompt)}, uuid.uuid4().hex
            outputs = self._client.generate(prompt, parameters, number, lora_request=adapter)
            return [output async for output in outputs][-1]

        try:
            output = await asyncio.wait_for(last(), timeout_s)
        except TimeoutError:
            return Response("", "timeout")
        made = output.outputs[0]
        return Response(
            made.text,
            made.finish_reason,
            list(made.token_ids),
            _chosen(made.token_ids, made.logprobs),
            _chosen(request.prompt[1:], (output.prompt_logprobs or [])[1:]),
        )

    async def _explain(self, error: BaseException) -> None:
        """Raise `ReplicaUnavailableError` if the engine is dead, the error itself otherwise."""
        try:
            await self.check_health()
        except Exception as death:
            raise ReplicaUnavailableError(f"its engine is dead: {death}") from error
        raise error


def _parameters(request: Request, options: dict[str, Any]) -> SamplingParams:
    return SamplingParams(
        max_tokens=request.max_tokens,
        seed=request.seed,
        output_kind=RequestOutputKind.FINAL_ONLY,
        **options,
    )


def _chosen(token_ids: Any, tables: Any) -> list[float]:
    """Each token's own log-probability."""
    if not tables:
        return []
    return [table[token].logprob for token, table in zip(token_ids, tables, strict=True)]
