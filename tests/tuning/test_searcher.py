"""Trials are dealt over arms with spaces of their own; a killed search goes on as it would have."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.assets import search as fake
from tests.assets.search import ARMS, CONFIG, FakeSearch, settings
from tuning.arms import search_arms
from tuning.domains import parse_space
from tuning.search import best_of
from tuning.searcher import LOG
from tuning.space import Trial


def space_of(arm: Trial, **space: str) -> set[str]:
    given = parse_space({key.replace("__", "."): text for key, text in space.items()})
    [found] = [a for a in search_arms(CONFIG, [*ARMS, arm], given) if a.name == arm.arm]
    return {*found.domains}


def test_an_arm_has_the_settings_of_its_objective() -> None:
    spaces = {arm.name: {*arm.domains} for arm in fake.arms(settings())}
    draws = {"optim.lr", "objective.num_samples", "objective.reward_scale"}
    assert spaces == {"sft": {"optim.lr"}, "dft": {"optim.lr"}, "otr": draws}
    expected = Trial("expected", {"objective.estimator": "expected"})
    assert space_of(expected, objective__num_samples="choice(4,8)") == set(), "it draws nothing"
    lora = Trial("adapters", {"lora.rank": 8})
    assert space_of(lora, lora__alpha="uniform(8,64)") == {"lora.alpha"}
    assert space_of(Trial("sft-kl"), kl_weight="choice(0,0.1)") == {"kl_weight"}


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("optim.learning_rate", "uniform(1,2)", r"is not a setting: did you mean 'optim\.lr'"),
        ("lr", "uniform(1,2)", r"did you mean 'optim\.lr'"),
        ("K", "choice(1,2)", r"did you mean 'objective\.num_samples'"),
        ("objective.beta", "uniform(-1,0)", r"did you mean 'objective\.mismatch_reward'"),
        ("objective.nam", "choice('a','b')", "names objective.nam, which is not a setting"),
        ("objective.name", "choice('sft','otr')", "choose objectives with --arms"),
        ("objective", "choice(1,2)", "only settings of"),
        ("max_steps", "choice(1,2)", "only settings of objective, optim and lora, and kl_weight"),
        ("kl_wieght", "choice(0,0.1)", "did you mean 'kl_weight'"),
        ("kl_weight", "uniform(-1,0)", "value -1: kl_weight is -1"),
        ("data.sequence_length", "choice(64,128)", "could not be compared"),
        ("optim.lr", "uniform(0,1)", r"value 0: optim\.lr is 0: use a number > 0"),
        ("optim.lr", "choice('1e-5','1e-4')", "a number, not '1e-5': write numbers without quotes"),
        ("optim.schedule", "choice('cosine','lineal')", "takes 'cosine' or .*, not 'lineal'"),
        ("objective.num_samples", "uniform(1,9)", "use randint or choice of whole numbers"),
        ("objective.num_samples", "randint(0,9)", r"otr has the value 0: objective.num_samples"),
        (
            "objective.threshold",
            "uniform(0.1,0.2)",
            "of clipped and threshold, but no arm",
        ),
        ("lora.alpha", "uniform(8,64)", r"no arm has it .* or set --train\.lora\.rank"),
        ("optim.betas", "uniform(0.1,0.5)", "optim.betas has several values"),
        ("lora.targets", "choice('q_proj','v_proj')", "lora.targets has several values"),
    ],
)
def test_what_no_arm_can_search_is_refused(key: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search_arms(CONFIG, ARMS, parse_space({key: text}))


def test_an_arm_that_has_a_value_already_is_refused() -> None:
    arms = [Trial("sft", {"objective.name": "sft", "optim.lr": 1e-4})]
    with pytest.raises(ValueError, match=r"the arm sft sets optim\.lr to 0\.0001, and it is"):
        search_arms(CONFIG, arms, parse_space({"optim.lr": "uniform(1,2)"}))


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_every_arm_has_an_equal_share_at_any_time(sampler: str, tmp_path: Path) -> None:
    search = FakeSearch(tmp_path, settings(sampler=sampler), each=5)
    results = search.run()
    assert [t.arm for t in search.trials] == ["sft", "dft", "otr"] * 5
    assert {t.name for t in search.trials} >= {"sft-0001", "otr-0005"}
    assert {t.seed for t in search.trials} == {7} and len(results) == len(search.ended) == 15
    first = [t.overrides["optim.lr"] for t in search.trials[:3]]
    assert len({*first}) == 1, "random trials have the same rates in every arm"
    assert [*best_of(results, "val_nll")] == ["sft", "dft", "otr"]


def test_tpe_tries_values_near_the_better_ones(tmp_path: Path) -> None:
    chosen = settings(space={"optim.lr": "loguniform(1e-6,1e-2)"})
    found = {}
    for sampler in ("tpe", "random"):
        search = FakeSearch(tmp_path / sampler, settings(space=chosen.space, sampler=sampler), 24)
        search.run()
        rates = [t.overrides["optim.lr"] for t in search.trials[36:]]
        found[sampler] = sum(2e-5 < rate < 5e-4 for rate in rates) / len(rates)
    assert found["tpe"] > 0.5 > found["random"]


def test_a_grid_has_every_combination_once(tmp_path: Path) -> None:
    space = {"optim.lr": "choice(1e-4,1e-3)", "objective.num_samples": "choice(4,16,64)"}
    search = FakeSearch(tmp_path, settings(space=space, sampler="grid", budget=""), each=6)
    search.plan.trials.update(sft=2, dft=2, otr=6)
    search.run()
    tried = Counter(
        (t.arm, t.overrides["optim.lr"], t.overrides.get("objective.num_samples"))
        for t in search.trials
    )
    assert len(tried) == 10 and {*tried.values()} == {1}


@pytest.mark.parametrize("known", [0, 5, 9], ids=["Tune knows nothing", "some", "all"])
def test_a_killed_search_goes_on_as_it_would_have(known: int, tmp_path: Path) -> None:
    """Whatever Tune's own state knows: each trial once, with the values of a search that ran on."""
    whole = FakeSearch(tmp_path / "whole", settings(), each=8, at_once=1)
    whole.run()
    first = FakeSearch(tmp_path / "killed", settings(), each=8, at_once=1)
    state, states = tmp_path / "state", []
    for i in range(9):
        first.run(most=1, start=i)
        first.searcher.save(str(state))
        states.append(state.read_text())
    (tmp_path / "killed" / LOG).open("a").write('{"ended": "sft-00')  # killed while it wrote
    second = FakeSearch(tmp_path / "killed", settings(), each=8, at_once=1)
    if known:
        state.write_text(states[known - 1])
        second.searcher.restore(str(state))
    second.run(start=100)
    names = [t.name for t in second.trials]
    assert names == [t.name for t in whole.trials[known:]], "and none that Tune has ended"
    assert second.trials == whole.trials[known:]
    lines = [json.loads(line) for line in (tmp_path / "killed" / LOG).open()]
    suggested = [line["suggested"]["number"] for line in lines if "suggested" in line]
    assert len(suggested) == 24, "a trial is suggested once"


def test_another_search_does_not_go_on(tmp_path: Path) -> None:
    FakeSearch(tmp_path, settings(), each=2).run()
    with pytest.raises(ValueError, match="holds another search"):
        FakeSearch(tmp_path, settings(sampler="random"), each=2)


def test_a_used_up_budget_ends_the_search(tmp_path: Path) -> None:
    """A trial reports 200 tokens."""
    search = FakeSearch(tmp_path, settings(budget="1000 tokens"), each=9, at_once=1)
    search.run()
    assert len(search.trials) == 5


def test_a_metric_that_is_not_reported_ends_the_search(tmp_path: Path) -> None:
    search = FakeSearch(tmp_path, settings(), each=9, at_once=1)
    search.searcher.metrics[:] = ["val_exact"]
    search.run()
    assert len(search.trials) == 1 and "val_nll" in search.searcher.unreported


def test_two_metrics_are_searched_together(tmp_path: Path) -> None:
    search = FakeSearch(tmp_path, settings(retain="val_kl_to_base"), each=8)
    search.run()
    told = search.searcher._studies["otr"]._ot_study
    assert len(told.directions) == 2 and len(told.best_trials) >= 1
    assert all(len(trial.values) == 2 for trial in told.trials)


def test_a_failed_trial_is_not_an_end(tmp_path: Path) -> None:
    search = FakeSearch(tmp_path, settings(), each=1)
    tune = search.searcher.suggest("0")
    search.searcher.on_trial_complete("0", error=True)
    assert not search.ended and tune is not None
    again = FakeSearch(tmp_path, settings(), each=1)
    again.run(start=5)
    assert again.trials[0] == Trial(**tune["trial"]), "it runs again when the search resumes"
