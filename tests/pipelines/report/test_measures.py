"""Measures besides accuracy: intervals, paired tests, the table and where it is shown."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.report import leaderboard, measures, page, terminal
from pipelines.report.leaderboard import BASE, Arm, Entry
from pipelines.report.measures import MEASURES
from pipelines.stages.measure import KL_TARGET, MEAN_TOKENS, NLL, TOKEN_ACCURACY, ItemValues
from tests.pipelines.report.test_report import BENCHMARKS, RUN, base_entry, entry

ITEMS = 64
LENGTHS = np.random.default_rng(0).integers(5, 50, ITEMS)
NLL_MEASURE = MEASURES[0]


def values(per_token: float, noise: float = 0.1, seed: int = 1, **changes: object) -> ItemValues:
    """Values whose ratio is about `per_token`, with noise that all of one seed share."""
    drawn = np.random.default_rng(seed).normal(per_token, noise, ITEMS)
    items = ItemValues(
        tuple(map(str, range(ITEMS))), tuple(drawn * LENGTHS), tuple(LENGTHS.tolist())
    )
    return replace(items, **changes)


@pytest.fixture
def entries() -> list[Entry]:
    """SFT is the reference arm; OTR raises the NLL and the accuracy."""
    plain = [
        base_entry(dict.fromkeys(BENCHMARKS, 0.1)),
        *(entry("sft", seed, 0.6, 0.5) for seed in (0, 1)),
        *(entry("otr-k16", seed, 0.6, 0.5) for seed in (0, 1)),
        entry("otr-k256", 0, 0.6, 0.5),
    ]
    nll = {"base": 1.4, "sft": 0.9, "otr-k16": 2.0, "otr-k256": 0.9}
    found = {
        each.trial: {
            NLL: values(nll[each.arm], seed=i),
            MEAN_TOKENS: values(4, 0.1, seed=i, counts=(1,) * ITEMS),  # times the lengths
        }
        | ({} if each.arm == BASE else {KL_TARGET: values(0.02, 0.001)})
        for i, each in enumerate(plain)
    }
    return measures.with_measures(plain, found, BENCHMARKS[0])


def arm(entries: list[Entry], name: str) -> Arm:
    return Arm(name, tuple(each for each in entries if each.arm == name))


def test_a_measure_is_the_ratio_of_totals_with_its_interval(entries: list[Entry]) -> None:
    items = values(0.9, seed=1)
    stored = entries[1].measures[NLL]
    assert stored["value"] == pytest.approx(sum(items.sums) / sum(items.counts))
    assert stored["n"] == ITEMS
    ratio = np.array(items.sums).sum() / LENGTHS.sum()
    draws = np.random.default_rng(5).integers(0, ITEMS, (4000, ITEMS))
    ratios = np.array(items.sums)[draws].sum(1) / LENGTHS[draws].sum(1)
    expected = np.quantile(ratios, [0.025, 0.975])
    assert (stored["low"], stored["high"]) == pytest.approx(tuple(expected), abs=0.004)
    assert stored["low"] < ratio < stored["high"]


def test_arms_are_compared_with_the_reference_arm_without_a_judgement(entries) -> None:
    marks = {name: measures.mark(arm(entries, name), NLL_MEASURE) for name in (BASE, "sft")}
    marks |= {n: measures.mark(arm(entries, n), NLL_MEASURE) for n in ("otr-k16", "otr-k256")}
    assert marks == {BASE: "↑", "sft": "", "otr-k16": "↑", "otr-k256": "~"}
    difference = arm(entries, "otr-k16").first.measures[NLL]["difference"]
    assert difference["against"] == "sft"
    assert difference["low"] < 1.1 < difference["high"] and difference["difference"] > 1
    assert difference["p"] < difference["p_holm"] <= 3 * difference["p"]
    higher_is_not_better = measures.legend(entries)
    assert "higher than sft" in higher_is_not_better and "better" not in higher_is_not_better


def test_equal_values_differ_by_nothing() -> None:
    same = values(0.02, 0.0)
    pair = [entry("sft", 0, 0.6, 0.5), entry("otr-k16", 0, 0.5, 0.5)]
    found = {each.trial: {KL_TARGET: same} for each in pair}
    _, otr = measures.with_measures(pair, found, BENCHMARKS[0])
    difference = otr.measures[KL_TARGET]["difference"]
    assert (difference["difference"], difference["low"], difference["high"]) == (0, 0, 0)
    assert difference["p"] == 1


def test_other_items_are_not_compared() -> None:
    pair = [entry("sft", 0, 0.6, 0.5), entry("otr-k16", 0, 0.5, 0.5)]
    others = tuple(f"other {i}" for i in range(ITEMS))
    found = {"sft-seed0": {NLL: values(1)}, "otr-k16-seed0": {NLL: values(1, ids=others)}}
    _, otr = measures.with_measures(pair, found, BENCHMARKS[0])
    assert "difference" not in otr.measures[NLL]


def test_the_table_has_what_was_measured(entries: list[Entry]) -> None:
    table = measures.measure_table(entries, BENCHMARKS[0])
    assert table.columns == ["arm", "NLL per token", "KL, target", "answer tokens"]
    rows = {row[0]: row[1:] for row in table.text_rows()}
    assert list(rows) == [a.name for a in leaderboard.rank_arms(entries, BENCHMARKS[0])]
    assert rows["otr-k16"][0].startswith(("1.9", "2.0")) and rows["otr-k16"][0].endswith("] ↑")
    assert rows[BASE][1] == "-", "the base model has no KL from itself"
    bare = [replace(each, measures={}) for each in entries]
    assert measures.measure_table(bare, BENCHMARKS[0]).rows == []
    assert measures.markdown(bare, BENCHMARKS[0]) == ""


def test_shares_stay_between_0_and_100_percent() -> None:
    sure = entry("sft", 0, 0.6, 0.5)
    stored = {TOKEN_ACCURACY: {"value": 0.99, "low": 0.97, "high": 1.02, "n": 9}}
    table = measures.measure_table([replace(sure, measures=stored)], BENCHMARKS[0])
    assert table.text_rows() == [["sft", "99.0 [97.0, 100.0]"]]


def test_every_place_shows_the_table_and_warns_of_the_nll(
    entries: list[Entry], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.print_summary(entries, BENCHMARKS, {})
    page.write(entries, BENCHMARKS, RUN, tmp_path, {})
    report = (tmp_path / "report.html").read_text()
    (row,) = (r for r in measures.measure_table(entries, BENCHMARKS[0]).rows if r[0] == "otr-k16")
    cell = row[1]
    assert f"<td class=n>{cell.value} ↑<small>{cell.low} to {cell.high}</small></td>" in report
    assert report.index("<h2>Scores") < report.index("<h2>Besides accuracy")
    for text in (capsys.readouterr().out, (tmp_path / "table.md").read_text()):
        assert str(cell) in text and "Do not judge by the NLL alone" in text
    loaded = leaderboard.read(tmp_path / "leaderboard.json")
    assert [each.measures for each in loaded] == [each.measures for each in entries]
    bare = [replace(each, measures={}) for each in entries]
    page.write(bare, BENCHMARKS, RUN, tmp_path, {})
    assert "Besides accuracy" not in (tmp_path / "report.html").read_text()
