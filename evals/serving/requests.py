"""A model that is served, as scoring asks it: token ids in, completions out.

In: prompts as token ids, how to decode them, and whatever answers requests. Out: completions, each
drawn with a seed that depends on nothing but its item and its number.
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
    """A prompt as token ids, and what is of its own; what requests share goes beside them."""

    prompt: Sequence[int]
    max_tokens: int
    seed: int | None = None


class Response(NamedTuple):
    """What a replica made of a request; log-probabilities in nats, where they were asked for."""

    text: str
    finish_reason: str  # "stop", "length" or "timeout"
    token_ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()  # of the answer's tokens
    prompt_logprobs: Sequence[float] = ()  # of the prompt's tokens but the first


SampleKey = tuple[int, int]  # index of a prompt, number of its sample


class Backend(Protocol):
    """The engine behind a model: `evals.serving.replicas.Replicas`."""

    def ask(
        self, requests: Mapping[SampleKey, Request], options: Mapping[str, Any]
    ) -> Iterable[tuple[SampleKey, Response]]:
        """Give the answers as they come; `options` are vLLM's SamplingParams, and "adapter"."""


@dataclass(frozen=True)
class Completion:
    """An answer: its text without special tokens, why it ended, how many tokens it has.

    `finish_reason` is "stop", "length", "timeout" (no answer in time) or "prompt_too_long" (the
    prompt leaves no room within max_model_len); the last two have an empty text.
    """

    text: str
    finish_reason: str
    num_tokens: int


Done = Callable[[int, int, Completion], None]


class ServedModel:
    """A model that a running engine serves: its own weights, or an adapter beside them."""

    def __init__(
        self, engine: Backend, settings: EngineSettings, model_dir: Path, adapter: str = ""
    ) -> None:
        self.settings = settings
        self.model_dir = model_dir
        self._engine = engine
        self._adapter = adapter

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        *,
        stop_token_ids: Sequence[int] = (),
        seeds: Sequence[str] | None = None,
        done: Done | None = None,
        skip: Collection[SampleKey] = (),
    ) -> list[list[Completion | None]]:
        """Draw `decoding.num_samples` completions of each prompt, concurrently.

        An answer ends at the model's end-of-sequence token, at `stop_token_ids`, at
        `decoding.stop`, or after `decoding.max_tokens`. A replica that dies or hangs is started
        again, with the weights that it should have, and asked only for what is missing. May be
        called from several threads.

        Args:
            prompts: token ids.
            decoding: how to draw.
            stop_token_ids: tokens that end an answer.
            seeds: a key for each prompt, by default its position; with `decoding.seed` and the
                sample's number it gives that sample's seed, in whatever order they are asked.
            done: called in this thread as done(index, sample, completion) as each comes in.
            skip: (index, sample) pairs that are not asked; their places in the result hold None.

        Raises:
            RuntimeError: the engine failed, and went on failing after some restarts.
        """
        keys = [str(index) for index in range(len(prompts))] if seeds is None else seeds
        longest = self.settings.max_model_len
        result: list[list[Completion | None]] = [[None] * decoding.num_samples for _ in prompts]
        requests: dict[SampleKey, Request] = {}

        def keep(index: int, sample: int, completion: Completion) -> None:
            result[index][sample] = completion
            if done is not None:
                done(index, sample, completion)

        for index, (key, prompt) in enumerate(zip(keys, prompts, strict=True)):
            room = longest - len(prompt)
            for sample in range(decoding.num_samples):
                if (index, sample) in skip:
                    continue
                if room < 1:
                    keep(index, sample, Completion("", "prompt_too_long", 0))
                    continue
                seed = random.Random(f"{decoding.seed}/{key}/{sample}").getrandbits(31)
                requests[index, sample] = Request(prompt, min(decoding.max_tokens, room), seed)
        for (index, sample), answer in self._engine.ask(
            requests, self._options(decoding, stop_token_ids)
        ):
            keep(index, sample, _completion(answer))
        return result

    def _options(self, decoding: Decoding, stop_token_ids: Sequence[int]) -> dict[str, Any]:
        return {
            "adapter": self._adapter,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "stop": list(decoding.stop),
            "stop_token_ids": list(stop_token_ids),
        }


def _completion(answer: Response) -> Completion:
    return Completion(answer.text, answer.finish_reason, len(answer.token_ids))
