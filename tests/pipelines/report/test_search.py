"""The report's section on a search."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.config.presets import PRESETS
from pipelines.report import differences, page
from pipelines.report import search as report
from pipelines.report.leaderboard import BASE
from pipelines.stages import search, search_plan
from tests.assets import search as fake
from tests.assets.search import FakeSearch, settings
from tests.pipelines.report.test_report import BENCHMARKS, entries  # noqa: F401


def written(directory: Path, each: int = 4, unfair: str = "", **changes: str) -> Path:
    """A run's directory with the search.json of a search by formula."""
    found = FakeSearch(directory, settings(**changes), each)
    results = found.run()
    config = replace(
        PRESETS["debug"](), search=settings(**changes), train=fake.CONFIG, trials=(*fake.ARMS,)
    )
    plan = search_plan.Plan({arm.name: each for arm in found.plan.arms}, 7, {}, None, 1, 0, unfair)
    best = search._best_settings(found.plan.arms, results, "val_nll")
    search._write(directory / "search.json", config, plan, results, best)
    return directory


def test_a_search_is_shown(tmp_path: Path) -> None:
    shown = report.section(written(tmp_path, 8), page.html_table)
    assert "24 trials (24 finished) of a budget of 30 trials" in shown
    for text in ("sft: optim.lr", "otr: objective.reward_scale", "trials of the arm", "fANOVA"):
        assert text in shown
    assert "dft: objective.num_samples" not in shown, "dft has no such setting"
    assert shown.count("<svg") == 2, "with one metric there is no Pareto front"
    assert report.section(tmp_path / "none", page.html_table) == ""


def test_two_metrics_have_a_pareto_front(tmp_path: Path) -> None:
    shown = report.section(written(tmp_path, retain="val_kl_to_base"), page.html_table)
    assert shown.count("<svg") == 3 and "val_kl_to_base (lower is better)" in shown
    trials = [
        {"trial": name, "values": {"val_nll": a, "val_exact": b}}
        for name, a, b in (("x", 1, 0.5), ("y", 2, 0.9), ("beaten", 2, 0.4), ("tie", 1, 0.5))
    ]
    front = report.pareto_front(trials, ("val_nll", "val_exact"))
    assert [trial["trial"] for trial in front] == ["x", "y", "tie"]


def test_a_best_value_at_an_end_of_its_range_is_told(tmp_path: Path) -> None:
    space = {"optim.lr": "loguniform(1e-6,1e-5)", "objective.num_samples": "choice(4,64)"}
    found = search.read(written(tmp_path, 8, space=space))
    assert found is not None
    lines = report.at_the_edge(found)
    assert any("the end of loguniform(1e-06, 1e-05)" in line for line in lines)
    assert "otr: the best objective.num_samples, 64, is at the end of choice(4, 64)" in lines[-1]


def test_true_and_false_have_no_end() -> None:
    best = {"otr": {"values": {"lora.rs": True}}}
    assert (
        report.at_the_edge({"best": best, "arms": {"otr": {"lora.rs": "choice(True, False)"}}})
        == []
    )


def test_the_report_says_what_a_search_was_measured_on(tmp_path: Path) -> None:
    found = search.read(written(tmp_path, 1))
    assert found is not None and "by val_nll, on validation data, with seed 7." in report.overview(
        found
    )
    found["settings"] |= {"metric": "answers", "benchmark": "gsm8k:items=1-200"}
    assert "by answers, on gsm8k:items=1-200, with seed 7." in report.overview(found)


def test_arms_that_were_not_tuned_alike_have_no_winner(
    tmp_path: Path,
    entries: list,  # noqa: F811
) -> None:
    two = [entry for entry in entries if entry.arm in (BASE, "sft", "otr-k16")]
    assert differences.winning_arm(two, BENCHMARKS[0]) is not None
    unfair = [replace(entry, caveat="the learning rate was not searched") for entry in two]
    assert differences.winning_arm(unfair, BENCHMARKS[0]) is None
    verdict = differences.verdict(unfair, BENCHMARKS[0])
    assert verdict.startswith("No winner on target-heldout is named: the learning rate was not")
    shown = report.section(written(tmp_path, unfair="the rate"), page.html_table)
    assert "Unfair: the rate." in shown


@pytest.mark.parametrize("value", ["cosine", 3, 0.25, True])
def test_values_are_shown_as_they_are_given(value: object) -> None:
    assert report._short(value) in ("cosine", "3", "0.25", "true")
