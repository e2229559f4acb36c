"""The checks before anything expensive, cheapest first.

`require` stops a command at the first check that fails; `check` and `check_cluster` yield a
`Finding` per check, for `otr doctor`.
"""

from collections.abc import Callable, Collection, Iterator
from functools import partial

from pipelines import trackers
from pipelines.checks import cluster_file, gpu, hosts, machine, model
from pipelines.checks.findings import Check, Finding, run_checks
from pipelines.config.prepared import PreparedRun
from pipelines.config.presets import SweepConfig, check_trials
from pipelines.runtime import console


def require(run: PreparedRun, *, skip: Collection[str] = ()) -> PreparedRun:
    """Run all checks except those named in `skip`; stop at the first that fails.

    Returns:
        The run with a value for each option that was left open.

    Raises:
        ValueError: a check failed.
    """
    with console.stage("check") as stage:
        for finding in check(run, with_ray=False, skip=skip):
            if not finding.ok:
                stage.say(finding.check)
                raise ValueError(finding.text)
            stage.say(f"{finding.check}: {finding.text}")
        return run.decided


def check(run: PreparedRun, *, with_ray: bool, skip: Collection[str] = ()) -> Iterator[Finding]:
    """Yield the finding of each check.

    Args:
        run: the run to check.
        with_ray: also connect to the cluster at RAY_ADDRESS, and compute the memory of a step.
        skip: names of checks to leave out.
    """
    config = run.config
    checks: dict[str, Callable[[], str]] = {
        "packages": machine.check_packages,
        "trials": partial(check_trials, config),
        "disk": partial(machine.check_disk, config),
        "GPU": partial(gpu.check_gpu, config),
        "devices": partial(machine.check_devices, config),
        "port": partial(machine.check_engine_port, config),
        "MLflow store": partial(check_mlflow_store, config),
        "trackers": partial(check_trackers, config),
        "benchmarks": partial(check_benchmarks, run),
        "model": partial(model.check_model, config),
        "data": lambda: check_data(run.decided),  # chooses what was left open
        "training": lambda: model.check_training(run.decided.config),
        "engine": lambda: model.check_engine(run.decided),
    }
    if with_ray:
        # Imported here: Ray and the memory planner take seconds, and a run needs neither yet.
        from pipelines.checks import memory, ray_cluster

        checks["Ray"] = partial(ray_cluster.check_ray_address, config)
        checks["memory"] = lambda: memory.check_memory(run.decided.config)
    needs = {
        "engine": frozenset({"benchmarks", "model"}),
        "memory": frozenset({"devices", "model", "training", "Ray"}),
    }
    if config.chosen:
        needs = {name: needs.get(name, frozenset()) | {"data"} for name in ("training", *needs)}
        needs["data"] = frozenset({"model"})
    return run_checks(
        Check(name, call, needs.get(name, frozenset()))
        for name, call in checks.items()
        if name not in skip
    )


def check_cluster(file: str) -> Iterator[Finding]:
    """Yield the finding of each check of a cluster file, and of the hosts that it names."""
    try:
        cluster = cluster_file.read(file)
    except (ValueError, OSError) as error:
        yield Finding("file", False, " ".join(str(error).split()))
        return
    yield Finding("file", True, file)
    yield from run_checks(hosts.cluster_checks(cluster))


def check_mlflow_store(config: SweepConfig) -> str:
    """Check that the MLflow store can be used.

    Raises:
        ValueError: it is locked, broken or of another MLflow version.
    """
    from pipelines.tracking.tracker import check_store, store_uri

    return check_store(store_uri(config.output))


def check_trackers(config: SweepConfig) -> str:
    """Check that the trackers besides MLflow can be used.

    Raises:
        ValueError: a package is not installed, or a setting is missing.
    """
    for name in config.trackers:
        trackers.load(name).check()
    return ", ".join(("MLflow", *config.trackers))


def check_benchmarks(run: PreparedRun) -> str:
    """Check that every benchmark can be loaded and that their names differ.

    Raises:
        ValueError: a benchmark is unknown or broken, two have the same name, or the search's has
            items of another.
    """
    names = [benchmark.name for benchmark in run.loaded_benchmarks]
    if len(set(names)) < len(names):
        raise ValueError(
            f"two benchmarks have the same name: {', '.join(names)}; pass each once to --benchmarks"
        )
    texts = [f"{b.name} ({len(b.items)} items)" for b in run.loaded_benchmarks]
    if run.judge is not None:
        texts.append(f"for the search {run.judge.name} ({len(run.judge.items)} items)")
    return ", ".join(texts)


def check_data(run: PreparedRun) -> str:
    """Check the first records of the training and validation data.

    Raises:
        ValueError: a file does not exist, or its records can't be used.
    """
    from otr.training.corpus import inspect_corpus

    report, train = run.corpus, run.config.train
    if train.data.validation and not run.read:  # else it was read with the training data
        inspect_corpus(train.data.of_validation, train.model)
    rejected = ", ".join(f"{n} {cause}" for cause, n in report.rejected.items()) or "none"
    return (
        f"{'' if report.complete else 'the first '}{report.rows} records, {report.tokens} tokens, "
        f"of which {report.trained_tokens} are trained; rejected: {rejected}"
    )
