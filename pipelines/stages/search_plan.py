"""What a search will do and cost: trials per arm, tokens, time, disk.

The time is computed from the tokens per second that a few steps take on this machine.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from evals.hardware import GIB
from otr.config import TrainConfig
from otr.files import write_json
from otr.hints import counted
from pipelines.checks.machine import bytes_of_search, trials_at_once
from pipelines.config.prepared import PreparedRun
from pipelines.config.presets import SweepConfig, arms_of_search, size_of_search
from pipelines.runtime import console, run_directory
from tuning.arms import RATE, SearchArm, costliest, most_trials
from tuning.budget import NAMES, Budget, over
from tuning.space import config_of

FILE = "plan.json"
START_SECONDS = 10.0
"""Assumed time of a trial beside its steps: processes, imports, loading the model."""
_FORWARD = 1 / 3  # of the work of a training step


@dataclass(frozen=True)
class Plan:
    """A search and its cost."""

    trials: dict[str, int]
    """Number of trials by arm."""
    seed: int
    """Seed of the search's trials; the sweep has others."""
    tokens: dict[str, float]
    """Tokens of one trial, by arm."""
    seconds: dict[str, float] | None
    """Time of one trial, by arm; None if it can't be measured here."""
    at_once: int
    """Trials at once; 0 on a cluster: as many as it holds."""
    disk: int | None
    """Bytes that the search needs at any time; None if the size of the model, or the number of
    trials at once, is unknown."""
    unfair: str = ""
    """Why the arms can't be compared, if they can't."""

    @property
    def cost(self) -> Budget:
        """The cost of the whole search."""
        seconds = self.seconds and self._total(self.seconds) / self.at_once
        return Budget(sum(self.trials.values()), seconds or None, self._total(self.tokens))

    def _total(self, each: Mapping[str, float]) -> float:
        return sum(count * each[arm] for arm, count in self.trials.items())


def plan(run: PreparedRun, config: SweepConfig) -> Plan:
    """Return the plan of a run's search: the one that it began with, or a new one.

    Args:
        run: the run.
        config: its configuration, with paths as they were given.

    Raises:
        ValueError: the directory holds another run, whose plan would not fit; the budget is too
            small for the search, or the first steps fail.
    """
    run_directory.check_settings(config, run.directory)
    file = run.directory / "search" / FILE
    if file.is_file():
        return Plan(**json.loads(file.read_text()))
    config = run.config
    arms = arms_of_search(config)
    costs = [costliest(config.train, arm) for arm in arms]
    tokens_per_row, tokens = _tokens(run)
    speeds = _speeds(costs, tokens_per_row)
    evaluated = _validation_tokens(run)
    seconds = None
    if speeds is not None:
        seconds = {
            arm.name: START_SECONDS + (tokens + evaluated * _FORWARD) / speed
            for arm, speed in zip(arms, speeds, strict=True)
        }
    counted = not _on_cluster() or config.search.max_concurrent > 0
    made = Plan(
        trials={},
        seed=1 + max(trial.seed for trial in config.trials),
        tokens={arm.name: tokens for arm in arms},
        seconds=seconds,
        at_once=trials_at_once(config, size_of_search(config)) if counted else 0,
        disk=bytes_of_search(config) if counted else None,
        unfair=unfair(config),
    )
    made = replace(made, trials=_trials(config, arms, made))
    made = replace(made, at_once=min(made.at_once, sum(made.trials.values())))
    if found := over(config.search.limits, made.cost):
        more = " and ".join(NAMES[name] for name in found)
        raise ValueError(
            f"the search would take {_in_words(made.cost)}, more {more} than its budget "
            f"({config.search.budget}): give fewer trials, fewer --max-steps or a larger --budget"
        )
    return made


def write(made: Plan, run: PreparedRun) -> None:
    """Keep the plan: a search that resumes has the same one."""
    file = run.directory / "search" / FILE
    file.parent.mkdir(exist_ok=True)
    write_json(file, asdict(made))


def unfair(config: SweepConfig) -> str:
    """Return why a search does not allow to compare arms; "" if it does.

    Arms that all have been given a rate, and not the same one, have their own: found before, say.
    """
    if not config.search.space or RATE in config.search.domains:
        return ""
    rates = sorted({config_of(config.train, trial).optim.lr for trial in config.trials})
    if len(rates) > 1 and all(RATE in trial.overrides for trial in config.trials):
        return ""
    arms = "all arms" if len(rates) == 1 else "the arms"
    listed = " and ".join(f"{rate:g}" for rate in rates)
    return (
        f"the learning rate was not searched ({arms} have {listed}), and each objective has a "
        'best rate of its own: add "optim.lr=loguniform(1e-6,1e-4)" to --search'
    )


def show(made: Plan, config: SweepConfig) -> None:
    """Print a plan."""
    arms = arms_of_search(config)
    rows = []
    for arm in arms:
        count = made.trials.get(arm.name, 0)
        searched = ", ".join(f"{key} {domain.text}" for key, domain in arm.domains.items())
        time = "unknown"
        if made.seconds:
            time = console.duration(count * made.seconds[arm.name] / made.at_once)
        each = count * made.tokens[arm.name]
        rows.append([arm.name, f"{count}", f"{each / 1e6:,.3g} M", time, searched or "nothing"])
    console.table(("search", "trials", "tokens", "time", "searched"), rows)
    budget = f", of a budget of {config.search.budget}" if config.search.budget else ""
    disk = "unknown" if made.disk is None else f"{made.disk / GIB:.1f} GiB"
    at_once = f"{made.at_once} at once" if made.at_once else "as many at once as the cluster holds"
    console.say(
        f"search: {_in_words(made.cost)}{budget}; {config.search.sampler} by "
        f"{' and '.join(config.search.metrics)}, scheduler {config.search.scheduler}, "
        f"{at_once}, seed {made.seed}; disk {disk} (only running trials have checkpoints)"
    )
    if config.search.benchmark:
        console.say(f"answering {config.search.benchmark} takes additional time")
    after = len(config.trials)
    time = "unknown"
    if made.seconds:
        seconds = sum(made.seconds[trial.arm] for trial in config.trials)
        time = console.duration(seconds / trials_at_once(config, after))
    console.say(
        f"then: {counted(after, 'trial')}, the best setting of each arm on other seeds, {time}"
    )
    if len({*made.trials.values()} - {0}) > 1:
        console.note("the arms have unequal numbers of trials: a grid tries every combination")
    if made.unfair:
        console.note(f"unfair, so no winner will be named: {made.unfair}")


def _in_words(cost: Budget) -> str:
    time = console.duration(cost.seconds) if cost.seconds else "an unknown time"
    return f"{counted(cost.trials or 0, 'trial')}, {(cost.tokens or 0) / 1e6:,.3g} M tokens, {time}"


def _trials(config: SweepConfig, arms: Sequence[SearchArm], made: Plan) -> dict[str, int]:
    """Return the number of trials of each arm: all that are searched have equally many.

    Raises:
        ValueError: the budget does not hold one trial per arm, or its time can't be converted.
    """
    searched = [arm for arm in arms if arm.domains]
    most, budget = most_trials(arms, config.search), config.search.limits
    if config.search.sampler == "grid":
        return most
    limits = [float(most[searched[0].name])]
    if budget.trials is None:
        if budget.tokens is not None:
            limits.append(budget.tokens / sum(made.tokens[arm.name] for arm in searched))
        if budget.seconds is not None:
            if made.seconds is None:
                raise ValueError(
                    f"how many trials fit into {config.search.budget} can't be measured here: give "
                    f'their number too, as in --budget "40 trials, {config.search.budget}"'
                )
            each = sum(made.seconds[arm.name] for arm in searched) / made.at_once
            limits.append(budget.seconds / each)
    each_arm = int(min(limits))
    if each_arm < 1:
        one = replace(made, trials={arm.name: 1 for arm in searched})
        raise ValueError(
            f"the budget of {config.search.budget} is less than one trial for each of "
            f"{counted(len(searched), 'arm')}, which take {_in_words(one.cost)}: give a larger "
            "--budget, fewer --arms or fewer --max-steps"
        )
    return {name: min(count, each_arm) for name, count in most.items()}


def _tokens(run: PreparedRun) -> tuple[float, float]:
    """Return the tokens of a packed row and of a trial; full rows where the data's size is open."""
    train, corpus = run.config.train, run.corpus
    length = train.data.sequence_length
    rows = corpus.packed_rows(length)
    whole = corpus.tokens * (corpus.records or 0) / corpus.rows if corpus.rows else 0.0
    per_row = min(float(length), whole / rows) if rows and whole else float(length)
    return per_row, per_row * train.global_batch_size * train.max_steps


def _validation_tokens(run: PreparedRun) -> float:
    """Return the tokens that a trial evaluates."""
    from otr.training.corpus import VALIDATION_EXAMPLES, inspect_corpus

    train = run.config.train
    if not train.data.validation:
        return 0.0
    report = inspect_corpus(train.data.of_validation, train.model)
    share = min(1.0, VALIDATION_EXAMPLES / max(1, report.rows))
    return report.tokens * share * -(-train.max_steps // train.eval_interval)


def _speeds(configs: Sequence[TrainConfig], tokens_per_row: float) -> list[float] | None:
    """Return the tokens per second of each run; None on a cluster, whose hosts may differ."""
    if _on_cluster():
        return None
    from tuning.calibration import tokens_per_second

    with console.stage("measure", "tokens per second of two steps of each arm") as stage:
        found = tokens_per_second(configs, tokens_per_row)
        ends = dict.fromkeys(f"{speed:,.0f}" for speed in (min(found), max(found)))
        stage.say(f"{' to '.join(ends)} tokens per second and worker")
    return [speed * config.workers.count for speed, config in zip(found, configs, strict=True)]


def _on_cluster() -> bool:
    """Return whether the run goes to a cluster, whose hosts are unknown here."""
    return bool(os.environ.get("RAY_ADDRESS"))
