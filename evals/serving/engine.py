"""One warm vLLM behind Ray Serve, for many checkpoints of one architecture.

Weights are swapped in place in a fraction of a second. Each swap and each LoRA adapter is verified
against transformers before anything may be generated with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from evals import hardware
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
        adapter_dirs: Mapping[str, Path],
    ) -> None:
        """Represent running replicas; `adapter_dirs` maps names of adapters to directories."""
        super().__init__(replicas, settings, model_dir)
        self._replicas = replicas
        self._base_dir = model_dir
        self._adapters = dict(adapter_dirs)

    @classmethod
    def start(
        cls,
        model_dir: str | Path,
        *,
        settings: EngineSettings,
        adapter_dirs: Sequence[str | Path] = (),
        request_timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Engine:
        """Start vLLM on `model_dir` in the running Ray cluster and verify what it serves.

        Ray must be initialized, with one free logical CPU per replica. This process must run on the
        head node, where the endpoint is; a submitted job does.

        Args:
            model_dir: a Hugging Face directory.
            settings: settings of vLLM; those left open are chosen by `evals.hardware.fit`.
            adapter_dirs: peft directories of LoRA adapters of that model, served with it; see
                `adapter`.
            request_timeout_s: seconds until a request is given up and counted as "timeout"; in
                proportion more if answers may have more than 1,024 tokens.

        Raises:
            ValueError: before anything is started: `model_dir` is not a model directory, an adapter
                can't be served, or as `evals.serving.deployment.check_can_start` or
                `evals.hardware.fit`.
            RuntimeError: Ray is not initialized, or the engine failed to start.
        """
        path = probe.check_directory(model_dir)
        named = adapters.check_all(adapter_dirs, path)
        settings = deployment.with_num_replicas(settings)
        deployment.check_can_start(settings)
        settings = hardware.fit(settings, path)
        deployment.quiet_driver()
        engine = cls(Replicas(settings, path, named, request_timeout_s), settings, path, named)
        try:
            deployment.launch(path, settings, adapters.engine_arguments(named.values()))
            engine._replicas.load(path)
        except BaseException:
            engine.stop()
            raise
        return engine

    @property
    def url(self) -> str:
        """Address of the OpenAI-compatible endpoint; its models are called replica-0, ..."""
        return f"http://127.0.0.1:{self.settings.port}/v1"

    def swap(self, checkpoint_dir: str | Path) -> None:
        """Serve the weights of another directory of the same architecture, and verify them.

        Nothing may be generated meanwhile. Adapters are available again after a swap back to the
        model that the engine was started on.

        Raises:
            ValueError: it is not a model directory, or its architecture differs (the message has
                the config keys).
            RuntimeError: the engine serves something else after the swap.
        """
        path = probe.check_directory(checkpoint_dir)
        probe.check_same_architecture(self._base_dir, path)
        self.model_dir = Path()  # none until it is verified, so that a second attempt swaps again
        self._replicas.load(path)
        self.model_dir = path

    def adapter(self, adapter_dir: str | Path) -> ServedModel:
        """Return one of the adapters that the engine was started with, as a model.

        Raises:
            ValueError: the engine was started without it, or serves another base model now.
        """
        path = Path(adapter_dir).absolute()
        names = [name for name, known in self._adapters.items() if known == path]
        if not names:
            raise ValueError(f"the engine was started without {path}: give it in adapter_dirs")
        if self.model_dir != self._base_dir:
            raise ValueError(f"{path} belongs to {self._base_dir}: swap to that one first")
        return ServedModel(self._replicas, self.settings, path, names[0])

    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Return log p(token | preceding tokens) in nats for all but the first of `token_ids`."""
        return self._replicas.logprobs(token_ids)

    def stop(self) -> None:
        """End the engine and Ray Serve; Ray keeps running."""
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
