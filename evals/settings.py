"""Settings of the engine, and checks that need neither Ray nor vLLM."""

import socket
from dataclasses import dataclass

DTYPES = ("auto", "float32", "bfloat16", "float16")
MAX_PORT = 65535


@dataclass(frozen=True)
class EngineSettings:
    """How vLLM runs.

    Attributes:
        dtype: Data type of weights and activations: float32, bfloat16, float16, or auto: the data
            type in the model's config.json if the hardware computes fast in it, else float32 (on
            the CPU also for a model in float16).
        max_model_len: Maximum number of tokens of a prompt and its answer together; longer answers
            are cut off, counted, and usually wrong. 0: the longest prompt of the benchmarks and the
            longest answer that they allow.
        num_replicas: Number of engines (replicas); prompts are distributed among them. 0: as many
            as fit on the free GPUs when the engine starts, or one on the CPU.
        gpus: GPUs per replica. A fraction lets replicas and trials share a GPU; with a whole number
            above 1 a replica divides the model among so many GPUs of one node (tensor parallelism);
            0 runs on the CPU.
        threads: CPU threads per replica; used only without a GPU. 0: all cores of this machine,
            divided among the replicas.
        kv_cache_gib: Memory per replica for the KV cache, in GiB. 0: on a GPU, what vLLM finds
            free; on the CPU, enough for all requests at full length, if memory allows.
        concurrency: Maximum number of requests in flight, over all replicas. 0: per replica, 256 on
            a GPU and 64 on the CPU.
        port: Port of the OpenAI-compatible endpoint, on 127.0.0.1 of the head node.
        log_dir: Directory for the logs of vLLM and Ray Serve.
    """

    dtype: str = "auto"
    max_model_len: int = 0
    num_replicas: int = 0
    gpus: float = 0
    threads: int = 0
    kv_cache_gib: float = 0.0
    concurrency: int = 0
    port: int = 8000
    log_dir: str = "runs/engine"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(
                f"engine.dtype is {self.dtype!r}; it must be one of {', '.join(DTYPES)}"
            )
        if self.max_model_len and self.max_model_len < 32:
            raise ValueError(
                f"engine.max_model_len is {self.max_model_len!r}; it must be 0 (taken from the "
                "benchmarks) or at least 32"
            )
        for name in ("num_replicas", "gpus", "threads", "kv_cache_gib", "concurrency"):
            if getattr(self, name) < 0:
                raise ValueError(f"engine.{name} is {getattr(self, name)!r}; it must be at least 0")
        if self.gpus > 1 and self.gpus % 1:
            raise ValueError(
                f"engine.gpus is {self.gpus!r}: a replica gets part of one GPU, or a whole number "
                "of them"
            )
        if not 1 <= self.port <= MAX_PORT:
            raise ValueError(f"engine.port is {self.port!r}; it must lie in 1 to {MAX_PORT}")

    @property
    def least_replicas(self) -> int:
        """Number of replicas that must fit for the engine to start."""
        return max(1, self.num_replicas)

    @property
    def shards(self) -> int:
        """Number of devices that a replica divides the model among."""
        return max(1, int(self.gpus))

    @property
    def requests_per_replica(self) -> int:
        """Number of requests that a replica works on at the same time."""
        if not self.concurrency:
            return 256 if self.gpus else 64
        return max(1, self.concurrency // self.least_replicas)


def check_port(port: int, option: str = "--engine.port") -> None:
    """Check that a server can listen on `port` of 127.0.0.1.

    Args:
        port: number of the port.
        option: the command-line option that sets it.

    Raises:
        ValueError: `port` is no port, or is taken.
    """
    if not 1 <= port <= MAX_PORT:
        raise ValueError(f"{option} is {port}: give a port from 1 to {MAX_PORT}")
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError as error:
            raise ValueError(
                f"port {port} of 127.0.0.1 can't be used ({error.strerror}): give another {option}"
            ) from error


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])
