"""One warm vLLM behind Ray Serve, for many checkpoints of one shape.

In: a Hugging Face directory, then prompts as token ids, then further directories of the same
shape, or LoRA adapters beside it. Out: completions and log-probabilities; also an
OpenAI-compatible endpoint on 127.0.0.1. Weights are swapped in place in a fraction of a second,
and each swap and each adapter is proven against transformers before anything may be generated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from evals.serving import adapters, deployment, probe
from evals.serving.replicas import Replicas
from evals.serving.requests import Completion, ServedModel
from evals.settings import EngineSettings

REQUEST_TIMEOUT_S = 600.0

__all__ = ["Completion", "Engine", "EngineSettings"]


class Engine(ServedModel):
    """A running engine; made by `Engine.start`, ended by `stop` or as a context manager."""

    def __init__(
        self,
        replicas: Replicas,
        settings: EngineSettings,
        model_dir: Path,
        beside: Mapping[str, Path],
    ) -> None:
        """Take what is running; `beside` are the adapters, name to directory."""
        super().__init__(replicas, settings, model_dir)
        self._replicas = replicas
        self._base_dir = model_dir
        self._adapters = dict(beside)

    @classmethod
    def start(
        cls,
        model_dir: str | Path,
        *,
        settings: EngineSettings,
        adapter_dirs: Sequence[str | Path] = (),
        request_timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Engine:
        """Start vLLM on `model_dir` in the running Ray cluster and prove what it serves.

        Ray must have been initialised, with one logical CPU free a replica, and this process must
        run on the head node, where the endpoint is (as a submitted job does).

        Args:
            model_dir: a Hugging Face directory.
            settings: of vLLM.
            adapter_dirs: peft directories of LoRA adapters of that model, served beside it; ask
                them through `adapter`.
            request_timeout_s: seconds until an answer is given up and counted as "timeout".

        Raises:
            ValueError: no model directory, an adapter that can't be served, the port in use,
                another Serve application running, or too few CPUs or GPUs in the cluster; before
                anything is started.
            RuntimeError: Ray is not initialised, or the engine failed to start.
        """
        path = probe.check_directory(model_dir)
        beside = adapters.check_all(adapter_dirs, path)
        settings = deployment.with_num_replicas(settings)
        deployment.check_can_start(settings)
        deployment.quiet_driver()
        engine = cls(Replicas(settings, path, beside, request_timeout_s), settings, path, beside)
        try:
            deployment.launch(path, settings, adapters.engine_arguments(beside.values()))
            engine._replicas.serve(path)
        except BaseException:
            engine.stop()
            raise
        return engine

    @property
    def url(self) -> str:
        """Address of the OpenAI-compatible endpoint; its models are called replica-0, ..."""
        return f"http://127.0.0.1:{self.settings.port}/v1"

    def swap(self, checkpoint_dir: str | Path) -> None:
        """Serve the weights of another directory of the same shape, and prove it.

        Only while nothing is generated; adapters can be asked again after a swap back.

        Raises:
            ValueError: no model directory, or config keys that differ in shape (named).
            RuntimeError: the probe found the engine to serve something else.
        """
        path = probe.check_directory(checkpoint_dir)
        probe.check_same_architecture(self._base_dir, path)
        self.model_dir = Path()  # none until it is proven: a second try swaps again
        self._replicas.serve(path)
        self.model_dir = path

    def adapter(self, adapter_dir: str | Path) -> ServedModel:
        """One of the adapters that the engine was started with, to be asked like a model.

        Raises:
            ValueError: it was started without that one, or serves another model now.
        """
        path = Path(adapter_dir).absolute()
        names = [name for name, known in self._adapters.items() if known == path]
        if not names:
            raise ValueError(f"the engine was started without {path}: give it in adapter_dirs")
        if self.model_dir != self._base_dir:
            raise ValueError(f"{path} belongs to {self._base_dir}: swap to that one first")
        return ServedModel(self._replicas, self.settings, path, names[0])

    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Log p(token | tokens before it) in nats for all but the first of `token_ids`."""
        return self._replicas.logprobs(token_ids)

    def stop(self) -> None:
        """End the engine and Ray Serve; Ray goes on."""
        deployment.shut_down()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
