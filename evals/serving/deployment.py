"""The Ray Serve application of the engine: `ray.serve.llm`, configured for scoring.

Each replica is a deployment of its own with its own model name, so that weights can be loaded into
each of them and each can be verified. An OpenAI-compatible endpoint stands before all of them.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import serve

from evals import hardware
from evals._compat import stop_serve_updates
from evals.files import write_json
from evals.serving.plan import plan
from evals.settings import EngineSettings, check_port

APP_NAME = "evals"
HEALTH_CHECK_PERIOD_S = 2.0
VLLM_LOG = "vllm.log"
GPU_RELEASE_S = 5.0  # Ray reports a GPU as free some time after the trial that used it has ended
_ROUNDING = 1e-6  # in floating point, 1 // 0.1 is 9


def with_num_replicas(settings: EngineSettings) -> EngineSettings:
    """Replace `num_replicas` 0 by the number of replicas that fit on the free GPUs."""
    if settings.num_replicas or not settings.gpus:
        return replace(settings, num_replicas=settings.least_replicas)
    deadline = time.monotonic() + GPU_RELEASE_S
    while True:
        free, total = ray.available_resources(), ray.cluster_resources()
        if free.get("GPU", 0) >= total.get("GPU", 0) or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    on_gpus = free.get("GPU", 0) / settings.gpus + _ROUNDING
    fitting = min(on_gpus, free.get("CPU", 0), _places(settings.gpus))
    return replace(settings, num_replicas=max(1, int(fitting)))


def _places(gpus: float) -> int:
    """Return how many replicas fit on the cluster's GPUs if nothing else runs there.

    Several GPUs of a replica are on one node, and a part of one is not divided further.
    """
    nodes = [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]
    if gpus < 1:
        return sum(nodes) * int(1 / gpus + _ROUNDING)
    return sum(amount // int(gpus) for amount in nodes)


def model_names(settings: EngineSettings) -> list[str]:
    """Return the names of the replicas: the `model` of a request to the endpoint."""
    return [f"replica-{index}" for index in range(settings.num_replicas)]


def launch(model_dir: Path, settings: EngineSettings, more: Mapping[str, Any]) -> None:
    """Start Serve and the application; return when every replica is ready.

    Args:
        model_dir: the Hugging Face directory to serve.
        settings: settings of the engine.
        more: further arguments of vLLM's engine.

    Raises:
        RuntimeError: a replica failed to start.
    """
    logs = Path(settings.log_dir).absolute()
    written = log_file.stat().st_size if (log_file := logs / VLLM_LOG).exists() else 0
    serve.start(http_options={"host": "127.0.0.1", "port": settings.port})
    try:
        serve.run(
            _build(model_dir, settings, more),
            name=APP_NAME,
            logging_config={"logs_dir": str(logs / "serve"), "enable_access_log": False},
        )
    except RuntimeError as error:
        log = log_file.read_bytes()[written:] if log_file.exists() else b""
        hint = start_failure_hint(root_error(log.decode(errors="replace")), settings)
        raise RuntimeError(
            f"vLLM did not start on {model_dir}{hint}; its logs are in {logs}"
        ) from error


def shut_down() -> None:
    """End Serve; Ray keeps running."""
    stop_serve_updates()
    serve.shutdown()


def root_error(log: str) -> str:
    """Find the error at the root of a log of vLLM: "KindError: message", empty if none."""
    errors = re.findall(r"^\S*(?:Error|Exception): .+", log, re.MULTILINE)
    return next((line for line in errors if "Engine core initialization failed" not in line), "")


def start_failure_hint(reason: str, settings: EngineSettings) -> str:
    """Describe why vLLM did not start, with the option to change if the reason is a known one.

    Args:
        reason: an error as `root_error` returns it.
        settings: the settings with which it occurred.
    """
    size = f"{settings.kv_cache_gib:g}" if settings.kv_cache_gib else "what is free"
    cache = f"--engine.kv-cache-gib (now {size})"
    length = f"--engine.max-model-len (now {settings.max_model_len})"
    if re.search(r"larger than the (available KV cache|maximum number of tokens)", reason):
        return f": the KV cache is too small; raise {cache} or lower {length}: {reason}"
    if re.search(r"Free memory on device", reason):
        return (
            ": another process uses the memory of the GPU; end it (nvidia-smi names it), or give a "
            f"smaller share of the GPU, --engine.gpus (now {settings.gpus:g}): {reason}"
        )
    if re.search(r"memory", reason, re.IGNORECASE):
        return f": out of memory; lower {cache}, {length} or --engine.num-replicas: {reason}"
    return f": {reason}" if reason else ""


def _build(model_dir: Path, settings: EngineSettings, more: Mapping[str, Any]) -> Any:
    """Build the Serve application. It reserves one logical CPU per replica."""
    from ray.serve.llm import LLMConfig, build_openai_app  # takes seconds

    planned = plan(settings)
    configs = [
        LLMConfig.model_validate(
            {
                "server_cls": "evals.serving.server.ScoringServer",
                "model_loading_config": {"model_id": name, "model_source": str(model_dir)},
                # Also with GPUs, which the replica reserves itself. Of the kind "gpu", Ray leaves
                # them to actors of their own, in which vLLM then runs its workers.
                "accelerator_config": {"kind": "cpu"},
                "placement_group_config": {"bundles": [{"CPU": planned.cpus}]},
                "engine_kwargs": planned.engine | dict(more),
                "runtime_env": {"env_vars": planned.environment | _log_environment(settings)},
                "deployment_config": {
                    "num_replicas": 1,
                    "ray_actor_options": {"num_cpus": 0, "num_gpus": planned.gpus},
                    "health_check_period_s": HEALTH_CHECK_PERIOD_S,
                    "max_constructor_retry_count": 1,
                },
                "log_engine_metrics": False,
            }
        )
        for name in model_names(settings)
    ]
    endpoint = {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0}}
    return build_openai_app({"llm_configs": configs, "ingress_deployment_config": endpoint})


def check_can_start(settings: EngineSettings) -> None:
    """Check what the engine needs before it starts.

    Raises:
        ValueError: the context length is not chosen yet, the vLLM of this machine is built for
            another device, the Ray cluster has too few CPUs or GPUs, Serve already runs there, or
            the port is in use.
        RuntimeError: Ray is not initialized.
    """
    if not settings.max_model_len:
        raise ValueError(
            "engine.max_model_len is 0: let evals.prompts.fit_context choose it, or set it"
        )
    if not ray.is_initialized():
        raise RuntimeError("the engine runs in a Ray cluster: call ray.init() first")
    if serve.status().proxies:
        raise ValueError(
            "Ray Serve already runs in this Ray cluster, and the engine would share its port and "
            "end its applications; run `serve shutdown` or use another cluster"
        )
    check_port(settings.port)
    hardware.check_build(settings)
    total = ray.cluster_resources()
    needed = {"CPU": settings.num_replicas, "GPU": settings.num_replicas * settings.gpus}
    for name, amount in needed.items():
        if amount > total.get(name, 0):
            raise ValueError(
                f"the engine needs {amount:g} logical {name}s and the Ray cluster has "
                f"{total.get(name, 0):g}; lower --engine.num-replicas or --engine.gpus, or start "
                "Ray with more"
            )
    if settings.gpus and settings.num_replicas > (places := _places(settings.gpus)):
        raise ValueError(
            f"the engine needs {settings.num_replicas} replicas with {settings.gpus:g} GPUs of one "
            f"node each, and the cluster's nodes have room for {places}: lower "
            "--engine.num-replicas or --engine.gpus"
        )


def quiet_driver() -> None:
    """Silence the messages that Serve and vLLM print in this process."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)


def _log_environment(settings: EngineSettings) -> dict[str, str]:
    if sum(node["Alive"] for node in ray.nodes()) > 1:
        return {}  # the folder may not exist on other nodes: Ray's own log files have to suffice
    return {"VLLM_LOGGING_CONFIG_PATH": str(_log_to_file(settings))}


def _log_to_file(settings: EngineSettings) -> Path:
    """Write a logging configuration that sends vLLM's messages to log_dir/vllm.log."""
    folder = Path(settings.log_dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    line = "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"
    handler = {
        "class": "logging.FileHandler",
        "filename": str(folder / VLLM_LOG),
        "formatter": "line",
    }
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": line}},
        "handlers": {"file": handler},
        "loggers": {"vllm": {"handlers": ["file"], "level": "INFO", "propagate": False}},
    }
    path = folder / "vllm_logging.json"
    write_json(path, config)
    return path
