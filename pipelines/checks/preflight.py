"""Checks that run before anything expensive: one `Finding` per check.

`check` looks at what a resolved `SweepConfig` needs, in order of cost; `require` stops a command at
the first failure. `before_ray_up` looks at a cluster file and the hosts that it names.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pipelines.checks import hosts, machine
from pipelines.checks.training import training
from pipelines.config.presets import SweepConfig

_BEFORE_MEMORY = {"devices", "model", "training", "Ray"}  # without them it can't be counted


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    ok: bool
    text: str


def before_ray_up(file: str) -> Iterator[Finding]:
    """Look at a file for `ray up`, and at its hosts, until what the rest builds on has failed."""
    for name, run in hosts.checks(file):
        finding = _finding(name, run)
        yield finding
        if not finding.ok and name in hosts.STOPS:
            return


def _finding(name: str, run: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, run())
    except (ValueError, OSError) as error:
        return Finding(name, False, " ".join(str(error).split()))


def require(config: SweepConfig, *, without: Sequence[str] = ()) -> None:
    """Run the checks but those named in `without`, and stop at the first that fails.

    Raises:
        ValueError: what it found.
    """
    from pipelines.runtime import console

    with console.stage("check") as stage:
        for finding in check(config, with_ray=False, without=without):
            if not finding.ok:
                raise ValueError(finding.text)
            stage.say(f"{finding.check}: {finding.text}")


def check(config: SweepConfig, *, with_ray: bool, without: Sequence[str] = ()) -> Iterator[Finding]:
    """Run the checks in order of cost.

    Args:
        config: resolved.
        with_ray: also connect to the cluster at RAY_ADDRESS, and count the memory of a step.
        without: names of checks to leave out.
    """
    checks: dict[str, Callable[[SweepConfig], str]] = {
        "packages": machine.packages,
        "arms": _arms,
        "disk": machine.disk,
        "devices": machine.devices,
        "port": machine.port,
        "MLflow store": _store,
        "benchmarks": _benchmarks,
        "model": _model,
        "training": training,
        "engine": _engine,
        "data": _data,
    }
    if with_ray:
        checks |= {"Ray": machine.at_ray_address, "memory": _memory}
    failed: set[str] = set()
    for name, run in checks.items():
        if name in without or (name == "memory" and failed & _BEFORE_MEMORY):
            continue
        finding = _finding(name, partial(run, config))
        if not finding.ok:
            failed.add(name)
        yield finding


def _arms(config: SweepConfig) -> str:
    from tuning.space import config_of

    for trial in config.trials:
        config_of(config.train, trial)
    return f"{len(config.trials)} trials in {len({t.arm for t in config.trials})} arms"


def _store(config: SweepConfig) -> str:
    from pipelines.tracking.tracker import check_store, store_uri

    return check_store(store_uri(config.output))


def _benchmarks(config: SweepConfig) -> str:
    from pipelines.config.resolve import load_benchmarks

    loaded = load_benchmarks(config.benchmarks, config.benchmark_dir, config.max_items)
    names = [benchmark.name for benchmark in loaded]
    if len(set(names)) < len(names):
        raise ValueError(f"two benchmarks have the same name: {', '.join(names)}")
    return ", ".join(f"{b.name} ({len(b.items)})" for b in loaded)


def _model(config: SweepConfig) -> str:
    from otr.models.architecture import shape_of
    from otr.models.tokenizer import load_tokenizer

    model = config.train.model
    tokenizer = load_tokenizer(model)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers made one of nothing
        raise ValueError(f"no tokenizer at {model.path!r}: it holds no vocabulary")
    shape = shape_of(model)
    rows = shape.get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise ValueError(
            f"vocabulary mismatch at {model.path!r}: the tokenizer has {len(tokenizer)} tokens, "
            f"the model {rows} embeddings; use the model's own tokenizer"
        )
    if Path(model.path).is_dir() and not any(Path(model.path).glob("*.safetensors")):
        raise ValueError(f"no weights at {model.path!r}: there is no .safetensors file")
    return f"{shape.model_type}, {rows} embeddings, {len(tokenizer)} tokens, a chat template"


def _engine(config: SweepConfig) -> str:
    from otr.models.architecture import shape_of

    model, wanted = config.train.model, config.engine.max_model_len
    if model.trust_remote_code:
        raise ValueError(
            "train.model.trust_remote_code is set, but scoring never runs code that comes with a "
            "model: use a model whose architecture transformers has; `otr train` alone can take it"
        )
    shape = shape_of(model).get_text_config()
    most = getattr(shape, "max_position_embeddings", None)
    # A stretched rope has its own bound: vLLM knows it.
    stretched = "factor" in (getattr(shape, "rope_parameters", None) or {})
    if most and wanted > most and not stretched:
        raise ValueError(
            f"engine.max_model_len is {wanted}, but {model.path!r} has {most} positions: give "
            f"--engine.max-model-len {most} or less"
        )
    return f"{wanted} of {most or 'any number of'} positions, {config.engine.dtype}"


def _memory(config: SweepConfig) -> str:
    from pipelines.checks.memory import memory  # its imports take seconds, and a run never asks

    return memory(config)


def _data(config: SweepConfig) -> str:
    from otr.training.corpus import inspect_corpus

    report = inspect_corpus(config.train.data, config.train.model)
    if config.train.data.validation:
        validation = replace(config.train.data, paths=config.train.data.validation)
        inspect_corpus(validation, config.train.model)
    rejected = ", ".join(f"{n} {cause}" for cause, n in report.rejected.items()) or "none"
    return (
        f"{report.rows}{'' if report.complete else ' (the first)'} examples, {report.tokens} "
        f"tokens of which {report.trained_tokens} are trained; rejected: {rejected}"
    )
