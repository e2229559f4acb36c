"""How the engine runs, and what can be seen of that before it does; no Ray, no vLLM here."""

import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class EngineSettings:
    """How vLLM runs.

    Attributes:
        dtype: type of weights and activations: "float32", "bfloat16" or "float16".
        max_model_len: tokens of prompt and answer together.
        num_replicas: engines side by side; prompts are dealt out among them. 0: as many as there
            are GPUs free for when the engine starts, and one on the CPU.
        gpus: GPUs of a replica; below 1 shares one, 0 runs on the CPU.
        threads: CPU threads of a replica, without a GPU.
        kv_cache_gib: memory for keys and values of a replica, in GiB.
        concurrency: requests in flight.
        port: of the endpoint, on 127.0.0.1 of the head node.
        log_dir: folder for the logs of vLLM and Serve.
    """

    dtype: str = "float32"
    max_model_len: int = 1024
    num_replicas: int = 0
    gpus: float = 0
    threads: int = 1
    kv_cache_gib: float = 1.0
    concurrency: int = 64
    port: int = 8000
    log_dir: str = "runs/engine"

    def __post_init__(self) -> None:
        dtypes = ("float32", "bfloat16", "float16")
        if self.dtype not in dtypes:
            raise ValueError(f"dtype is {self.dtype!r}; it must be one of {', '.join(dtypes)}")
        lowest = {"max_model_len": 32, "num_replicas": 0, "threads": 1, "concurrency": 1, "port": 1}
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be at least {low}")
        if self.kv_cache_gib <= 0 or self.gpus < 0:
            raise ValueError(
                f"kv_cache_gib is {self.kv_cache_gib!r} and gpus {self.gpus!r}; "
                "the first must be positive, the second not negative"
            )

    @property
    def least_replicas(self) -> int:
        """Without which the engine does not start."""
        return max(1, self.num_replicas)


def check_port(port: int) -> None:
    """Check that a server can listen on `port` of 127.0.0.1.

    Raises:
        ValueError: it can't.
    """
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError as error:
            raise ValueError(
                f"port {port} of 127.0.0.1 can't be used ({error.strerror}); give another one"
            ) from error


def free_port() -> int:
    """Of 127.0.0.1, free a moment ago."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])
