"""One warm vLLM behind Ray Serve, for many checkpoints of one shape.

In: a Hugging Face directory, then prompts as token ids, then further directories of the same
shape. Out: completions and log-probabilities, from an OpenAI-compatible endpoint on 127.0.0.1.
Weights are swapped in place in a fraction of a second, and each swap is proven against
transformers before anything may be generated.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ray import serve

from evals import deployment, probe
from evals.benchmark import Decoding
from evals.client import post_all
from evals.deployment import EngineSettings

REQUEST_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Completion:
    """An answer: its text without special tokens, why it ended, how many tokens it has.

    `finish_reason` is "stop", "length", "timeout" (no answer in time) or "prompt_too_long" (the
    prompt leaves no room within max_model_len); the last two have an empty text.
    """

    text: str
    finish_reason: str
    num_tokens: int


class Engine:
    """A running engine; made by `Engine.start`, ended by `stop` or as a context manager."""

    def __init__(self, model_dir: Path, settings: EngineSettings) -> None:
        self.settings = settings
        self.model_dir = model_dir
        self._base_dir = model_dir
        self._models = deployment.model_names(settings)
        self._proven = False

    @classmethod
    def start(cls, model_dir: str | Path, *, settings: EngineSettings) -> Engine:
        """Start vLLM on `model_dir` in the running Ray cluster and prove what it serves.

        Ray must have been initialised, with one logical CPU free a replica, and this process must
        run on the head node, where the endpoint is (as a submitted job does).

        Raises:
            ValueError: no model directory, the port in use, another Serve application running, or
                too few CPUs or GPUs in the cluster; before anything is started.
            RuntimeError: Ray is not initialised, or the engine failed to start.
        """
        engine = cls(probe.check_directory(model_dir), settings)
        deployment.check_can_start(settings)
        deployment.quiet_driver()
        try:
            deployment.launch(engine.model_dir, settings)
            engine._prove()
        except BaseException:
            engine.stop()
            raise
        return engine

    @property
    def url(self) -> str:
        """Address of the endpoint."""
        return f"http://127.0.0.1:{self.settings.port}/v1"

    def swap(self, checkpoint_dir: str | Path) -> None:
        """Serve the weights of another directory of the same shape, and prove it.

        Raises:
            ValueError: no model directory, or config keys that differ in shape (named).
            RuntimeError: the probe found the engine to serve something else.
        """
        path = probe.check_directory(checkpoint_dir)
        probe.check_same_shape(self._base_dir, path)
        self._proven = False
        self.model_dir = path
        self._call_workers("swap_weights", str(path))
        for handle in self._handles():
            handle.reset_prefix_cache.remote().result()
        self._prove()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        *,
        stop_token_ids: Sequence[int] = (),
    ) -> list[list[Completion]]:
        """Draw `decoding.num_samples` completions of each prompt, concurrently.

        Each (prompt, sample) has a seed of its own, derived from `decoding.seed` and both
        positions. An answer ends at the model's end-of-sequence token, at `stop_token_ids`, at
        `decoding.stop`, or after `decoding.max_tokens`.

        Raises:
            RuntimeError: the engine failed or was restarted meanwhile (a restarted one serves the
                weights it was started on).
        """
        answers = [[Completion("", "prompt_too_long", 0)] * decoding.num_samples for _ in prompts]
        places = [
            (index, sample)
            for index, prompt in enumerate(prompts)
            for sample in range(decoding.num_samples)
            if len(prompt) < self.settings.max_model_len
        ]
        shared = {
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "stop": list(decoding.stop),
            "stop_token_ids": list(stop_token_ids),
            "return_token_ids": True,
        }
        bodies = [
            {
                "model": self._models[index % len(self._models)],
                "prompt": list(prompts[index]),
                "max_tokens": min(
                    decoding.max_tokens, self.settings.max_model_len - len(prompts[index])
                ),
                "seed": random.Random(f"{decoding.seed}/{index}/{sample}").getrandbits(31),
                **shared,
            }
            for index, sample in places
        ]
        for (index, sample), answer in zip(places, self._post(bodies), strict=True):
            answers[index][sample] = _completion(answer)
        self._check_not_restarted()
        return answers

    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Log p(token | tokens before it) in nats for all but the first of `token_ids`."""
        return self._prompt_logprobs(self._models[0], [token_ids])[0]

    def stop(self) -> None:
        """End the engine and Ray Serve; Ray goes on."""
        serve.shutdown()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _prove(self) -> None:
        """Compare each replica with transformers: given tokens, and a greedy continuation."""
        prompts = probe.sequences(self.model_dir, self.settings.max_model_len)
        for model in self._models:
            given = self._prompt_logprobs(model, prompts)
            continued = self._continue_greedily(model, prompts)
            truth = probe.reference_logprobs(
                self.model_dir,
                [prompt + ids for prompt, (ids, _) in zip(prompts, continued, strict=True)],
            )
            served = [a + b for a, (_, b) in zip(given, continued, strict=True)]
            probe.check_logprobs(
                served, truth, self.settings.dtype, f"{self.model_dir} (as {model})"
            )
        self._proven = True

    def _prompt_logprobs(self, model: str, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        bodies = [
            {"model": model, "prompt": list(row), "max_tokens": 1, "prompt_logprobs": 0}
            for row in rows
        ]
        answers = [_single_choice(answer) for answer in self._post(bodies, proven=False)]
        return [
            [choice["prompt_logprobs"][t][str(row[t])]["logprob"] for t in range(1, len(row))]
            for row, choice in zip(rows, answers, strict=True)
        ]

    def _continue_greedily(
        self, model: str, rows: Sequence[Sequence[int]]
    ) -> list[tuple[list[int], list[float]]]:
        options = {
            "max_tokens": probe.NUM_CONTINUED,
            "temperature": 0.0,
            "logprobs": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        bodies = [{"model": model, "prompt": list(row), **options} for row in rows]
        answers = [_single_choice(answer) for answer in self._post(bodies, proven=False)]
        return [(c["token_ids"], c["logprobs"]["token_logprobs"]) for c in answers]

    def _post(
        self, bodies: Sequence[dict[str, Any]], *, proven: bool = True
    ) -> list[dict[str, Any] | None]:
        if proven and not self._proven:
            raise RuntimeError(
                f"what the engine serves is unproven since the failed swap to {self.model_dir}; "
                "swap to a sound checkpoint or start the engine again"
            )
        return post_all(
            f"{self.url}/completions",
            bodies,
            concurrency=self.settings.concurrency,
            timeout_s=REQUEST_TIMEOUT_S,
        )

    def _handles(self) -> list[Any]:
        return [
            serve.get_deployment_handle(f"LLMServer:{model}", deployment.APP_NAME)
            for model in self._models
        ]

    def _call_workers(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of `SwapWeights` on each worker of each replica."""
        pending = [h.collective_rpc.remote(method, args=arguments) for h in self._handles()]
        return [result for response in pending for result in response.result()]

    def _check_not_restarted(self) -> None:
        expected: set[str | None] = {str(self.model_dir)}
        if self.model_dir == self._base_dir:
            expected.add(None)
        if not expected.issuperset(self._call_workers("swapped_to")):
            self._proven = False
            raise RuntimeError(
                f"a replica was restarted while it served {self.model_dir}, so some answers may "
                f"come from {self._base_dir}; the reason is in {self.settings.log_dir}"
            )


def _single_choice(answer: dict[str, Any] | None) -> dict[str, Any]:
    if answer is None:
        raise RuntimeError(f"the engine did not answer within {REQUEST_TIMEOUT_S:g} s")
    return answer["choices"][0]


def _completion(answer: dict[str, Any] | None) -> Completion:
    if answer is None:
        return Completion("", "timeout", 0)
    choice = answer["choices"][0]
    return Completion(choice["text"], choice["finish_reason"], len(choice["token_ids"]))
