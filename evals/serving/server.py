"""A replica of the engine: Ray's LLMServer with a method that answers many requests in one call.

Requests are token ids, and responses are streamed as they are finished, in any order. Ray's
OpenAI-compatible endpoint exists beside it, but spends more time on a short answer than the model.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator
from typing import Any

import ray
from ray.serve.llm.deployment import LLMServer
from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind

from evals._compat import vllm_client
from evals.serving.client import ReplicaUnavailableError
from evals.serving.requests import Request, Response

Batch = list[tuple[int, Response]]


class ScoringServer(LLMServer):
    """Responds only while it serves the weights that the caller expects.

    A replica that Serve restarted serves the weights that it was started on, whatever was loaded
    before. The id of its weights is then empty, so it rejects requests for loaded weights.
    """

    _weights = ""
    _adapters: dict[str, LoRARequest] = {}  # noqa: RUF012  # replaced as a whole, never changed
    _fresh = True  # nothing loaded since the start

    async def load(self, weights: str, path: str, adapters: dict[str, str]) -> tuple[str, str]:
        """Serve the weights under `path` and some LoRA adapters.

        Args:
            weights: id of these weights, which requests have to give from now on.
            path: a Hugging Face directory with the architecture that the engine was started on.
            adapters: name -> peft directory; those that are loaded already stay as they are.

        Returns:
            This actor's name, and the id of its node.

        Raises:
            ReplicaUnavailableError: the engine is dead.
        """
        self._weights = ""
        try:
            self._adapters = await self._load(path, adapters)
        except Exception as error:
            await self._raise_cause(error)
        self._weights = weights
        context = ray.get_runtime_context()
        return str(context.get_actor_name()), context.get_node_id()

    async def answer(
        self,
        requests: list[Request],
        options: dict[str, Any],
        *,
        weights: str,
        timeout_s: float,
        in_flight: int,
    ) -> AsyncGenerator[Batch, None]:
        """Yield batches of (index of the request, response) as they are finished.

        Args:
            requests: the requests.
            options: options shared by all requests, see `evals.serving.requests.Backend`.
            weights: id of the weights that must be served.
            timeout_s: seconds until a request is given up, once the engine has it.
            in_flight: number of requests that the engine gets at the same time.

        Raises:
            ReplicaUnavailableError: the engine is dead or serves other weights.
        """
        self._check(weights)
        name = options.pop("adapter", "")
        if name and name not in self._adapters:
            raise ValueError(f"{name} is not served now: its base model has been swapped")
        adapter = self._adapters.get(name)
        finished: asyncio.Queue[tuple[int, Response | BaseException]] = asyncio.Queue()
        slots = asyncio.Semaphore(in_flight)

        async def work(index: int, request: Request) -> None:
            async with slots:
                try:
                    parameters = _sampling_params(request, options)
                    response = await self._respond(request, parameters, adapter, timeout_s)
                    finished.put_nowait((index, response))
                except Exception as error:
                    finished.put_nowait((index, error))

        tasks = [asyncio.create_task(work(*numbered)) for numbered in enumerate(requests)]
        try:
            missing = len(requests)
            while missing:
                batch = [await finished.get()]
                while not finished.empty():
                    batch.append(finished.get_nowait())
                for _, response in batch:
                    if isinstance(response, BaseException):
                        await self._raise_cause(response)
                self._check(weights)
                missing -= len(batch)
                yield batch  # type: ignore[misc]  # no exceptions left in it
        finally:
            for task in tasks:
                task.cancel()

    async def _load(self, path: str, adapters: dict[str, str]) -> dict[str, LoRARequest]:
        client, loaded = vllm_client(self), {}
        await client.collective_rpc("end_with_server")
        config: Any = await self.llm_config()
        fresh, self._fresh = self._fresh, False
        if not (fresh and path == config.model_loading_config.model_source):
            await client.collective_rpc("swap_weights", args=(path,))
        for number, (name, directory) in enumerate(adapters.items(), start=1):
            loaded[name] = LoRARequest(name, number, directory)
            await client.add_lora(loaded[name])
        if not await client.reset_prefix_cache():
            raise RuntimeError("requests are still running: swap when none are")
        return loaded

    def _check(self, weights: str) -> None:
        if weights != self._weights:
            served = self._weights or "the weights that it was started on"
            raise ReplicaUnavailableError(f"it serves {served!r}")

    async def _respond(
        self,
        request: Request,
        parameters: SamplingParams,
        adapter: LoRARequest | None,
        timeout_s: float,
    ) -> Response:
        async def last_output() -> Any:
            prompt, number = {"prompt_token_ids": list(request.prompt)}, uuid.uuid4().hex
            client = vllm_client(self)
            outputs = client.generate(prompt, parameters, number, lora_request=adapter)
            return [output async for output in outputs][-1]

        try:
            output = await asyncio.wait_for(last_output(), timeout_s)
        except TimeoutError:
            return Response("", "timeout")
        completion = output.outputs[0]
        return Response(
            completion.text,
            completion.finish_reason,
            list(completion.token_ids),
            _token_logprobs(completion.token_ids, completion.logprobs),
            _token_logprobs(request.prompt[1:], (output.prompt_logprobs or [])[1:]),
        )

    async def _raise_cause(self, error: BaseException) -> None:
        """Raise `ReplicaUnavailableError` if the engine is dead, `error` itself otherwise."""
        try:
            await self.check_health()
        except Exception as death:
            raise ReplicaUnavailableError(f"its engine is dead: {death}") from error
        raise error


def _sampling_params(request: Request, options: dict[str, Any]) -> SamplingParams:
    return SamplingParams(
        max_tokens=request.max_tokens,
        seed=request.seed,
        output_kind=RequestOutputKind.FINAL_ONLY,
        **options,
    )


def _token_logprobs(token_ids: Any, tables: Any) -> list[float]:
    """Pick each token's own log-probability from vLLM's tables, token id -> Logprob."""
    if not tables:
        return []
    return [table[token].logprob for token, table in zip(token_ids, tables, strict=True)]
