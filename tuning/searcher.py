"""The searcher of a search: deals trials over the arms in turn, each arm with its own Optuna study.

The studies are those of Ray Tune's `OptunaSearch`. `suggestions.jsonl` has a line for each trial
that was suggested and for each that ended, written at once. Tune saves its own state only every
few seconds: a search that was killed reads the lines, and suggests again, with the same values,
what Tune does not know of.
"""

import json
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import optuna
from ray.tune.search import Searcher, SearchGenerator
from ray.tune.search.optuna import OptunaSearch

from otr.loop.progress import is_over
from tuning.arms import SearchArm
from tuning.budget import Budget, over
from tuning.samplers import distribution_of, sampler_of
from tuning.settings import SearchSettings, lower_is_better
from tuning.space import Trial

LOG = "suggestions.jsonl"


@dataclass(frozen=True)
class SearchPlan:
    """A search: its arms, and how many trials each of them gets."""

    arms: tuple[SearchArm, ...]
    trials: dict[str, int]
    """Number of trials by arm; an arm in which nothing is searched has none."""
    seed: int
    """Seed of all trials of the search, and of the sampler; the sweep has others."""
    budget: Budget = field(default_factory=Budget)


@dataclass
class Suggestion:
    """A trial that was suggested."""

    trial: Trial
    values: dict[str, Any]
    tune_id: str = ""
    last: dict[str, float] = field(default_factory=dict)
    """Last value of each metric of the search."""
    ended: bool = False
    over: bool = False
    """Whether it ran to its end."""
    tokens: float = 0.0


class ResumableGenerator(SearchGenerator):
    """Tune's generator, which makes trials again after a search that was stopped was restored."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore the state; whether the search is finished is for the searcher to say."""
        super().set_state({**state, "finished": False})


class ArmSearcher(Searcher):
    """Deals trials over arms in turn, so that all arms are equally far at any time.

    Args:
        plan: the arms and their numbers of trials.
        settings: sampler and metrics.
        directory: the search's directory, a path.
        limit: returns how many trials may run at once.
        max_steps: steps of a trial that runs to its end.
        on_end: called with the trial and its last report when a trial has ended without an error.
        is_stopping: returns whether the trials were asked to stop.

    Raises:
        ValueError: the directory has the suggestions of another search.
    """

    def __init__(  # noqa: PLR0913 - what a search depends on; all go by keyword
        self,
        plan: SearchPlan,
        settings: SearchSettings,
        *,
        directory: str,
        limit: Callable[[], int],
        max_steps: int,
        on_end: Callable[[Trial, Mapping[str, Any]], None],
        is_stopping: Callable[[], bool],
    ) -> None:
        metrics = [*settings.metrics]
        modes = ["min" if lower_is_better(metric) else "max" for metric in metrics]
        single = len(metrics) == 1
        # Ray types what it documents as a name or a list of names as a name.
        names: Any = metrics[0] if single else metrics
        super().__init__(names, modes[0] if single else modes)  # type: ignore[arg-type]
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.plan, self.settings, self.metrics = plan, settings, metrics
        self._log = Path(directory, LOG)
        self._limit, self._max_steps = limit, max_steps
        self._on_end, self._is_stopping = on_end, is_stopping
        self._suggested: dict[str, Suggestion] = {}  # by the trial's name
        self._running: dict[str, Suggestion] = {}  # by Tune's id of the trial
        self._again: deque[Suggestion] = deque()
        self._studies: dict[str, OptunaSearch] = {}
        self._seen: set[str] = set()  # metrics of the search that any trial has reported
        self._spent_before, self._began = 0.0, time.monotonic()
        self.unreported: list[str] = []
        """Metrics that the first trial that ended without a metric of the search did report."""
        self._replay(self._read(), known=())

    def suggest(self, trial_id: str) -> Any:
        """Return Tune's config of the next trial; FINISHED after the last, None while all run."""
        arm = self._next_arm()
        done = not self._again and (arm is None or self._is_used_up())
        if done or self.unreported or self._is_stopping():
            return Searcher.FINISHED
        if len(self._running) >= self._limit():
            return None
        if self._again:
            suggestion = self._again.popleft()
            self._study_of(suggestion).suggest(trial_id)
        else:
            assert arm is not None
            values = self._studies[arm.name].suggest(trial_id) or {}
            self._dealt[arm.name] += 1
            trial = arm.trial(self._dealt[arm.name], values, self.plan.seed)
            suggestion = Suggestion(trial, values)
            self._suggested[suggestion.trial.name] = suggestion
            self._write({"suggested": asdict(suggestion.trial), "values": values})
        suggestion.tune_id = trial_id
        self._running[trial_id] = suggestion
        return {"trial": asdict(suggestion.trial)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Note the metrics of a report."""
        if trial_id not in self._running:
            return
        suggestion = self._running[trial_id]
        if not suggestion.ended:  # else it was suggested again, and does not train
            suggestion.tokens += float(result.get("tokens", 0))
        found = {name: float(result[name]) for name in self.metrics if name in result}
        self._seen |= found.keys()
        finite = all(map(math.isfinite, found.values()))
        kept = suggestion.last | found
        suggestion.last = {name: value for name, value in kept.items() if math.isfinite(value)}
        if len(self.metrics) == 1 and found and finite:
            told = {**found, "training_iteration": int(result["step"])}
            self._study_of(suggestion).on_trial_result(trial_id, told)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the arm's study; a trial that was asked to stop has not ended."""
        if trial_id not in self._running or (error and self._is_stopping()):
            return
        suggestion = self._running.pop(trial_id)
        if error:  # it runs again when the search resumes
            self._study_of(suggestion).on_trial_complete(trial_id, error=True)
            return
        report = result or {}
        suggestion.ended, suggestion.over = True, is_over(report, self._max_steps)
        if suggestion.over and not self._seen >= {*self.metrics}:
            self.unreported = sorted(name for name in report if "/" not in name)
        self._tell(suggestion)
        self._write(
            {
                "ended": suggestion.trial.name,
                "over": suggestion.over,
                "metrics": suggestion.last,
                "tokens": suggestion.tokens,
                "seconds": self._seconds(),
            }
        )
        self._on_end(suggestion.trial, report)

    def save(self, checkpoint_path: str) -> None:
        """Save which trials Tune knows; all else is in the log."""
        known = [s.tune_id for s in self._suggested.values() if s.tune_id]
        Path(checkpoint_path).write_text(json.dumps(known))

    def restore(self, checkpoint_path: str) -> None:
        """Go on from the log."""
        self._replay(self._read(), known=json.loads(Path(checkpoint_path).read_text()))

    def _next_arm(self) -> SearchArm | None:
        """Return the arm of which the smallest share of trials was dealt; None: all were."""
        dealt = self._dealt
        open_ = [arm for arm in self.plan.arms if dealt[arm.name] < self.plan.trials[arm.name]]
        return min(open_, key=lambda a: dealt[a.name] / self.plan.trials[a.name], default=None)

    def _is_used_up(self) -> bool:
        limits, tokens = self.plan.budget, 0.0
        if limits.tokens is not None:
            tokens = sum(suggestion.tokens for suggestion in self._suggested.values())
        cost = Budget(seconds=self._seconds(), tokens=tokens)
        return bool(over(limits, cost)) or tokens == limits.tokens

    def _seconds(self) -> float:
        """Return how long the search has run, over all attempts."""
        return self._spent_before + time.monotonic() - self._began

    def _study_of(self, suggestion: Suggestion) -> OptunaSearch:
        return self._studies[suggestion.trial.arm]

    def _tell(self, suggestion: Suggestion) -> None:
        """Tell the arm's study how a trial ended.

        A trial that was stopped early counts as pruned: its last value is one of an earlier step.
        """
        complete = suggestion.over and suggestion.last.keys() >= {*self.metrics}
        several = len(self.metrics) > 1
        self._study_of(suggestion).on_trial_complete(
            suggestion.tune_id,
            dict(suggestion.last) if complete else None,
            error=not complete and several,
        )

    def _replay(self, lines: Sequence[Mapping[str, Any]], known: Sequence[str]) -> None:
        """Bring the studies to where the lines end.

        Args:
            lines: lines of the log, in order.
            known: Tune's ids of the first trials; the others will be suggested to Tune again.
        """
        suggested: dict[str, Suggestion] = {}
        ended: dict[str, Suggestion] = {}
        for line in lines:
            if "suggested" in line:
                trial = Trial(**line["suggested"])
                suggested[trial.name] = Suggestion(trial, line["values"])
            elif "ended" in line:
                suggestion = suggested[line["ended"]]
                suggestion.last, suggestion.over = dict(line["metrics"]), line["over"]
                suggestion.tokens, suggestion.ended = line["tokens"], True
                self._spent_before = line["seconds"]
                ended[suggestion.trial.name] = suggestion
        self._suggested, self._running = suggested, {}
        self._dealt = Counter(suggestion.trial.arm for suggestion in suggested.values())
        self._studies = {arm.name: self._new_study(arm) for arm in self.plan.arms if arm.domains}
        for tune_id, suggestion in zip(known, suggested.values(), strict=False):
            suggestion.tune_id = tune_id
            self._study_of(suggestion).suggest(tune_id)
            self._running[tune_id] = suggestion
        self._again = deque([*suggested.values()][len(known) :])
        for suggestion in ended.values():
            if suggestion.tune_id in self._running:
                self._tell(self._running.pop(suggestion.tune_id))

    def _new_study(self, arm: SearchArm) -> OptunaSearch:
        """Return an arm's study, which first suggests again what was suggested."""
        before = [s.values for s in self._suggested.values() if s.trial.arm == arm.name]
        count = self.plan.trials[arm.name]
        return OptunaSearch(
            {key: distribution_of(domain) for key, domain in arm.domains.items()},
            metric=self.metric,
            mode=self.mode,
            points_to_evaluate=before or None,
            sampler=sampler_of(self.settings.sampler, arm.domains, self.plan.seed, count),
        )

    def _head(self) -> dict[str, Any]:
        arms = {
            arm.name: {key: domain.text for key, domain in arm.domains.items()}
            for arm in self.plan.arms
        }
        return {"arms": arms, "sampler": self.settings.sampler, "seed": self.plan.seed}

    def _write(self, line: Mapping[str, Any]) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        new = not self._log.exists()
        with self._log.open("a") as file:
            if new:
                file.write(json.dumps(self._head()) + "\n")
            file.write(json.dumps(line) + "\n")

    def _read(self) -> list[dict[str, Any]]:
        """Return the lines of the log; one that was not written to its end is cut off.

        Raises:
            ValueError: the lines are those of another search.
        """
        if not self._log.exists():
            return []
        text = self._log.read_text()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self._log.write_text(whole)
        lines = [json.loads(line) for line in whole.splitlines()]
        if lines and lines[0] != json.loads(json.dumps(self._head())):
            raise ValueError(f"{self._log.parent} holds another search: use another name")
        return lines
