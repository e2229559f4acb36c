"""What a search is planned to cost, what is refused, and what search.json and the sweep get."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from otr.loss.objective import Objective
from pipelines import cli
from pipelines.checks import machine
from pipelines.config.prepared import PreparedRun, prepare
from pipelines.config.presets import SweepConfig
from pipelines.runtime import run_directory
from pipelines.stages import search, search_plan
from pipelines.stages.search_plan import START_SECONDS, plan
from tests.assets import search as fake
from tests.assets.search import FakeSearch, settings
from tuning.calibration import tokens_per_second
from tuning.search import best_of
from tuning.sweep import TrialResult

SPACE = '--search "optim.lr=loguniform(1e-5,1e-3)" "objective.num_samples=choice(4,16)"'


def load(line: str) -> SweepConfig:
    """The configuration of `otr sweep`."""
    return cli.parse(["sweep", "--preset", "debug", *shlex.split(line)]).load()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("builtin")


@pytest.fixture
def planned(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make the plan of a command line, on a machine that trains 1,000 tokens per second."""
    monkeypatch.setattr(search_plan, "_speeds", lambda configs, _: [1000.0] * len(configs))

    def make(line: str) -> search_plan.Plan:
        config = replace(load(f"{SPACE} {line}"), output=str(tmp_path))
        return plan(PreparedRun(prepare(config, files).config), config)

    return make


def test_a_budget_of_trials_is_shared_equally(planned: Any) -> None:
    made = planned("--budget 10 trials --search.max-concurrent 2")
    assert made.trials == {"sft": 3, "dft": 3, "otr": 3} and made.seed == 1
    assert made.cost.trials == 9 and made.unfair == ""
    tokens = made.tokens["sft"]
    assert 6 * 8 * 100 < tokens <= 6 * 8 * 256, "6 steps of 8 rows, without padding"
    assert made.cost.tokens == pytest.approx(9 * tokens)
    assert made.seconds["sft"] > START_SECONDS + tokens / 1000
    assert made.cost.seconds == pytest.approx(9 * made.seconds["sft"] / 2)


def test_no_more_trials_run_at_once_than_there_are(
    planned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "this_machine", lambda: SimpleNamespace(cores=64))
    made = planned("--budget 10 trials")
    assert made.at_once == 9 and made.cost.seconds == pytest.approx(made.seconds["sft"])
    assert made.disk == planned("--budget 3 trials").disk * 3


def test_other_budgets_say_how_many_trials_fit(planned: Any) -> None:
    one = planned("--budget 10 trials --search.max-concurrent 1")
    hours = planned("--budget 1 h --search.max-concurrent 1")
    each = hours.trials["sft"]
    assert hours.cost.seconds <= 3600 < 3 * (each + 1) * one.seconds["sft"]
    tokens = planned("--budget 100k tokens")
    assert tokens.cost.tokens <= 100_000 < 3 * (tokens.trials["sft"] + 1) * one.tokens["sft"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--budget 2 trials", "less than one trial for each of 3 arms"),
        ("--budget 1 min", "less than one trial for each of 3 arms"),
        ("--budget 400 trials, 1 h", "more time than its budget"),
        ("--budget 30 trials, 1k tokens", "more tokens than its budget"),
    ],
)
def test_more_than_the_budget_is_refused(line: str, message: str, planned: Any) -> None:
    with pytest.raises(ValueError, match=message):
        planned(f"{line} --search.max-concurrent 1")


def test_without_a_measured_speed_time_needs_a_number_of_trials(
    planned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_plan, "_speeds", lambda *_: None)
    with pytest.raises(ValueError, match="give their number too"):
        planned("--budget 6 h")
    assert planned("--budget 6 trials, 6 h").trials["otr"] == 2


def test_on_a_cluster_the_plan_does_not_count_this_machine_s_cores(
    planned: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.setattr(search_plan, "_speeds", lambda *_: None)
    made = planned("--budget 6 trials")
    assert (made.at_once, made.disk) == (0, None)
    search_plan.show(made, load(f"{SPACE} --budget 6 trials"))
    said = capsys.readouterr().out
    assert "as many at once as the cluster holds" in said and "disk unknown" in said
    assert planned("--budget 6 trials --search.max-concurrent 4").at_once == 4


def test_a_resumed_run_has_the_plan_that_it_began_with(
    planned: Any, tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planned("--budget 1 h --name mine")
    config = replace(load(f"{SPACE} --budget 1 h --name mine"), output=str(tmp_path))
    run = PreparedRun(prepare(config, files).config)
    run.directory.mkdir()
    search_plan.write(made, run)
    monkeypatch.setattr(search_plan, "_speeds", lambda configs, _: [1.0] * len(configs))
    assert plan(run, config) == made


def test_another_run_s_plan_is_not_taken(
    planned: Any, tmp_path: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"{SPACE} --budget 6 trials --name mine --output {tmp_path}"
    before = load(line)
    run_directory.open_run(before, tmp_path / "mine")
    search_plan.write(planned("--budget 6 trials --name mine"), prepare(before, files))
    words = ["sweep", "--preset", "debug", *shlex.split(line), "--arms", "otr", "eaft", "--dry-run"]
    assert cli.main(words) == 1
    assert "holds a run with other settings (trials" in capsys.readouterr().err


def test_one_rate_for_all_arms_is_unfair_and_has_no_winner(
    planned: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    line = '--search "objective.num_samples=choice(4,16)" --budget 4 trials'
    made = planned(line)
    assert made.trials == {"sft": 0, "dft": 0, "otr": 4}
    assert "the learning rate was not searched (all arms have 0.0003)" in made.unfair
    search_plan.show(made, load(line))
    said = capsys.readouterr()
    assert "no winner will be named" in said.err and "nothing" in said.out


def test_arms_with_rates_of_their_own_are_compared() -> None:
    config = load('--search "objective.num_samples=choice(4,16)" --budget 4 trials')
    rates = {"sft": 1e-4, "dft": 1e-4, "otr": 3e-5}
    trials = [replace(t, overrides=t.overrides | {"optim.lr": rates[t.arm]}) for t in config.trials]
    assert search_plan.unfair(config) and not search_plan.unfair(replace(config, trials=trials))
    one = [
        given if given.arm == "otr" else t for t, given in zip(config.trials, trials, strict=True)
    ]
    assert "the arms have 3e-05 and 0.0003" in search_plan.unfair(replace(config, trials=one))


def test_the_sweep_has_the_best_setting_of_each_arm(tmp_path: Path) -> None:
    found = FakeSearch(tmp_path, settings(), each=10)
    results = found.run()
    best = search._best_settings(found.plan.arms, results, "val_nll")
    assert best["sft"]["values"].keys() == {"optim.lr"} and len(best["otr"]["values"]) == 3
    values = {r.trial.name: r.history[-1]["val_nll"] for r in results}
    for arm, chosen in best.items():
        assert values[chosen["trial"]] == min(v for n, v in values.items() if n.startswith(arm))
    stopped = [replace(r, status="stopped") for r in results if r.trial.arm == "dft"]
    with pytest.raises(ValueError, match="no trial of dft ran to its end"):
        search._best_settings(found.plan.arms, stopped + results[:1], "val_nll")


def test_a_trial_whose_last_checkpoint_has_no_score_is_not_the_best(tmp_path: Path) -> None:
    found = FakeSearch(tmp_path, settings(), each=3)
    results = found.run()
    best = best_of(results, "val_nll")["sft"].trial.name
    note = "step 8 has no score of answers: the engine ended"

    def without_last(result: TrialResult) -> TrialResult:
        return replace(result, history=[*result.history, {"step": 8, "note": note}])

    others = [without_last(r) if r.trial.name == best else r for r in results]
    assert best_of(others, "val_nll")["sft"].trial.name != best
    with pytest.raises(ValueError, match="sft has val_nll at its last step; step 8 has"):
        search._best_settings(found.plan.arms, [*map(without_last, results)], "val_nll")


def test_search_json_has_every_trial(tmp_path: Path) -> None:
    found = FakeSearch(tmp_path, settings(sampler="random"), each=20)
    results = found.run()
    config = replace(
        load(f"{SPACE} --budget 9 trials"),
        search=settings(),
        train=fake.CONFIG,
        trials=(*fake.ARMS,),
    )
    made = search_plan.Plan({"sft": 20}, 7, {}, None, 1, None)
    best = search._best_settings(found.plan.arms, results, "val_nll")
    search._write(tmp_path / "search.json", config, made, results, best)
    stored = search.read(tmp_path)
    assert stored is not None and len(stored["trials"]) == 60
    shares = stored["importance"]
    assert shares["sft"] == {}, "one setting explains everything"
    assert next(iter(shares["otr"])) == "optim.lr"
    for value, low, high in shares["otr"].values():
        assert 0 <= low <= high <= 1 and 0 <= value <= 1
    assert json.loads((tmp_path / "search.json").read_text())["trials"][0]["curves"]["val_nll"]


def test_speed_is_measured(files: Path) -> None:
    config = prepare(load(f"{SPACE} --budget 9 trials"), files).config.train
    short = replace(config, micro_batch_size=1, global_batch_size=2)
    # These two compare with the model before training.
    others = [replace(short, objective=Objective("psft")), replace(short, kl_weight=0.1)]
    speeds = tokens_per_second([short, *others], 200.0)
    assert len(speeds) == 3 and min(speeds) > 1
