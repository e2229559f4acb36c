"""Generation from a served model: token ids in, completions out.

The seed of each completion depends only on the benchmark's seed, its item and its sample number,
so the completions are the same in whatever order and on whichever replica they are generated.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from evals.benchmark import Decoding

if TYPE_CHECKING:
    from evals.settings import EngineSettings


class Request(NamedTuple):
    """A prompt as token ids, with the sampling parameters that differ between requests."""

    prompt: Sequence[int]
    max_tokens: int
    seed: int | None = None


class Response(NamedTuple):
    """A replica's response to a request.

    Attributes:
        text: the generated text, without special tokens.
        finish_reason: "stop", "length" or "timeout".
        token_ids: the generated tokens.
        logprobs: their log-probabilities in nats, if requested.
        prompt_logprobs: log-probabilities in nats of the prompt's tokens except the first, if
            requested.
    """

    text: str
    finish_reason: str
    token_ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    prompt_logprobs: Sequence[float] = ()


class SampleKey(NamedTuple):
    """Key of a completion: the index of its prompt (or item) and the number of its sample."""

    item: int
    sample: int


class Backend(Protocol):
    """Whatever responds to requests; in production, `evals.serving.replicas.Replicas`."""

    def stream_responses(
        self, requests: Mapping[SampleKey, Request], options: Mapping[str, Any]
    ) -> Iterable[tuple[SampleKey, Response]]:
        """Yield responses as they arrive.

        `options` are shared by all requests: arguments of vLLM's SamplingParams, and "adapter", the
        name of a LoRA adapter ("" for the model itself).
        """


@dataclass(frozen=True)
class Completion:
    """A finished answer.

    Attributes:
        text: the generated text, without special tokens.
        finish_reason: "stop"; "length" (max_tokens reached); "timeout" (no response in time) or
            "prompt_too_long" (no token left within max_model_len). The last two have no text.
        num_tokens: number of generated tokens.
    """

    text: str
    finish_reason: str
    num_tokens: int


OnCompletion = Callable[[SampleKey, Completion], None]
"""Called with each completion as it arrives."""


class ServedModel:
    """A model that a running engine serves: its base model, or a LoRA adapter of that model."""

    def __init__(
        self, backend: Backend, settings: EngineSettings, model_dir: Path, adapter: str = ""
    ) -> None:
        self.settings = settings
        self.model_dir = model_dir
        self._backend = backend
        self._adapter = adapter

    def swap(self, checkpoint_dir: str | Path) -> None:
        """Serve another directory; only an engine can.

        Raises:
            ValueError: this is an adapter.
        """
        raise ValueError(f"{self.model_dir} is served as an adapter: swap the engine's own model")

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        *,
        stop_token_ids: Sequence[int] = (),
        seeds: Sequence[str] | None = None,
        on_completion: OnCompletion | None = None,
        skip: Collection[SampleKey] = (),
    ) -> list[list[Completion | None]]:
        """Generate `decoding.num_samples` completions of each prompt, concurrently.

        A completion ends at the model's end-of-sequence token, at one of `stop_token_ids`, at one
        of `decoding.stop`, or after `decoding.max_tokens`. A replica that dies or hangs is
        restarted, loads the same weights again, and generates only what is missing. Safe to call
        from several threads.

        Args:
            prompts: token ids.
            decoding: sampling parameters.
            stop_token_ids: tokens that end a completion.
            seeds: a key per prompt, by default its index. The key, `decoding.seed` and the sample's
                number determine the seed of a sample.
            on_completion: called in this thread.
            skip: samples not to generate; None takes their position in the result.

        Returns:
            One list per prompt, with one completion per sample.

        Raises:
            RuntimeError: the engine failed, and failed again after some restarts.
        """
        keys = [str(index) for index in range(len(prompts))] if seeds is None else seeds
        result: list[list[Completion | None]] = [[None] * decoding.num_samples for _ in prompts]
        requests: dict[SampleKey, Request] = {}

        def finish(key: SampleKey, completion: Completion) -> None:
            result[key.item][key.sample] = completion
            if on_completion is not None:
                on_completion(key, completion)

        for item, (seed_key, prompt) in enumerate(zip(keys, prompts, strict=True)):
            most = min(decoding.max_tokens, self.settings.max_model_len - len(prompt))
            for key in (SampleKey(item, sample) for sample in range(decoding.num_samples)):
                if key in skip:
                    continue
                if most < 1:
                    finish(key, Completion("", "prompt_too_long", 0))
                    continue
                seed = random.Random(f"{decoding.seed}/{seed_key}/{key.sample}").getrandbits(31)
                requests[key] = Request(prompt, most, seed)
        options = {
            "adapter": self._adapter,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "stop": list(decoding.stop),
            "stop_token_ids": list(stop_token_ids),
        }
        for key, response in self._backend.stream_responses(requests, options):
            completion = Completion(response.text, response.finish_reason, len(response.token_ids))
            finish(key, completion)
        return result
