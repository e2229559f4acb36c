"""The leaderboard says what the scores allow to be said, and the report shows it by itself."""

import html
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from evals.records import Verdicts
from otr.loss.objective import Objective
from pipelines.config.presets import PRESETS
from pipelines.report import differences, leaderboard, plot_settings, plots, tables
from pipelines.report import page as report
from pipelines.report.leaderboard import BASE, Entry
from pipelines.stages.contamination import Overlap

BENCHMARKS = ["target-heldout", "target-harder", "retained-code", "retained-mathematics"]
ITEMS = 200


def score(value: float, half: float = 0.05) -> dict:
    return {
        "task": "",
        "metric": "accuracy",
        "value": value,
        "low": max(0.0, value - half),
        "high": min(1.0, value + half),
        "num_examples": ITEMS,
        "settings": {},
        "also": {},
    }


def verdicts(value: float) -> Verdicts:
    """The first of the items are right, as many as the score says."""
    right = round(value * ITEMS)
    return Verdicts(tuple(map(str, range(ITEMS))), (1.0,) * right + (0.0,) * (ITEMS - right))


def told(values: dict[str, float]) -> dict[str, dict]:
    """The scores and verdicts of a row."""
    return {
        "scores": {name: score(value) for name, value in values.items()},
        "verdicts": {name: verdicts(value) for name, value in values.items()},
    }


def base_row(values: dict[str, float]) -> Entry:
    return Entry(BASE, BASE, None, None, None, BASE, **told(values))


def row(arm: str, seed: int, target: float, retained: float, **changes: object) -> Entry:
    objective = Objective("sft") if arm == "sft" else Objective(num_samples=int(arm[5:]))
    values = {
        "trial": f"{arm}-seed{seed}",
        "arm": arm,
        "objective": asdict(objective),
        "lr": 3e-4,
        "seed": seed,
        "status": "finished",
        **told(dict(zip(BENCHMARKS, (target, target / 2, retained, retained), strict=True))),
        "tokens_per_second": 9000.0,
        "validation": {"val_exact": target},
        "history": [
            {"step": s, "loss": 1 / s, "nll": 1 / s, "hit_rate": 0.5} for s in range(1, 12)
        ],
        "checkpoint": f"/runs/{arm}/{seed}",
    }
    return Entry(**(values | changes))


@pytest.fixture
def rows() -> list[Entry]:
    base = base_row({name: 0.1 if "t-h" in name else 0.9 for name in BENCHMARKS})
    return [
        base,
        *(row("sft", seed, 0.60 + seed / 50, 0.5) for seed in (0, 1)),
        *(row("otr-k16", seed, 0.80 + seed / 50, 0.8) for seed in (0, 1)),
        *(row("otr-k256", seed, 0.82 + seed / 50, 0.8) for seed in (0, 1)),
    ]


@pytest.fixture
def compared(rows: list[Entry]) -> list[Entry]:
    return differences.with_differences(rows, BENCHMARKS)


def test_seeds_do_not_shrink_the_uncertainty_of_the_items() -> None:
    one = leaderboard.mean_over_seeds([score(0.5)])
    same = leaderboard.mean_over_seeds([score(0.5)] * 4)
    scattered = leaderboard.mean_over_seeds([score(0.4), score(0.6)])
    assert (one.low, one.high) == pytest.approx((0.45, 0.55))
    assert (same.low, same.high) == pytest.approx((0.45, 0.55))
    assert scattered.value == pytest.approx(0.5)
    # seeds that far apart say next to nothing: 12.7 * 0.1 reaches beyond both ends
    assert (scattered.low, scattered.high) == (0, 1)


def test_what_the_paired_test_does_not_tell_apart_is_not_called_a_win(rows: list[Entry]) -> None:
    said = differences.verdict(rows, "target-heldout")
    assert said.startswith("No clear winner") and "otr-k16" in said and "sft" not in said
    clear = [r for r in rows if r.arm != "otr-k16"]
    said = differences.verdict(clear, "target-heldout")
    assert said.startswith("otr-k256 wins") and "the nearest, sft, by 22.0 [" in said


def test_a_paired_difference_counts_where_the_intervals_overlap() -> None:
    """As many items in one direction as here are no chance, whatever the two intervals say."""
    better, worse = row("otr-k16", 0, 0.56, 0.5), row("sft", 0, 0.50, 0.5)
    assert better.scores["target-heldout"]["low"] < worse.scores["target-heldout"]["high"]
    assert differences.verdict([worse, better], "target-heldout").startswith("otr-k16 wins")


def test_a_base_model_that_is_not_told_from_the_best_spoils_the_win(rows: list[Entry]) -> None:
    good_base = base_row(dict.fromkeys(BENCHMARKS, 0.8))
    said = differences.verdict([good_base, rows[5]], "target-heldout")
    assert said.startswith("No clear winner") and "base" in said


def test_without_the_answers_nothing_is_called_a_win(rows: list[Entry]) -> None:
    bare = [replace(r, verdicts={}) for r in rows]
    assert differences.verdict(bare, "target-heldout").startswith("No clear winner")
    assert not any(r.differences for r in differences.with_differences(bare, BENCHMARKS))


def test_arms_are_compared_with_sft_corrected_for_their_number(compared: list[Entry]) -> None:
    arms = {arm.name: arm for arm in leaderboard.group_by_arm(compared)}
    assert [differences.mark(arms[name], "target-heldout") for name in arms] == [
        "▼", "", "▲", "▲"
    ]  # fmt: skip
    difference = arms["otr-k16"].first.differences["target-heldout"]
    assert difference["against"] == "sft" and difference["difference"] == pytest.approx(0.2)
    assert difference["low"] < 0.2 < difference["high"]
    assert difference["p"] < difference["p_holm"] <= 3 * difference["p"]
    # a few items less: by itself perhaps a difference, among many arms none
    few = [row("sft", 0, 0.5, 0.5), *(row(f"otr-k{k}", 0, 0.53, 0.5) for k in range(1, 20))]
    marks = {
        differences.mark(arm, "target-heldout")
        for arm in leaderboard.group_by_arm(differences.with_differences(few, BENCHMARKS))
    }
    assert marks == {"", "~"}


def test_without_sft_the_base_model_is_what_is_compared_with(rows: list[Entry]) -> None:
    some = differences.with_differences([r for r in rows if r.arm != "sft"], BENCHMARKS)
    assert {d["against"] for r in some for d in r.differences.values()} == {BASE}
    assert "worse than base" in differences.legend(some)


def test_ranking_and_winner_follow_the_target(rows: list[Entry]) -> None:
    order = [arm.name for arm in leaderboard.rank_arms(rows, "target-heldout")]
    assert order == ["otr-k256", "otr-k16", "sft", "base"]
    winner = leaderboard.best_trial(rows, "target-heldout")
    assert winner is not None and winner.trial == "otr-k256-seed1"
    assert leaderboard.best_trial(rows[:1], "target-heldout") is None


def test_retained_leaves_out_the_target(rows: list[Entry]) -> None:
    names = leaderboard.retained_benchmarks(BENCHMARKS)
    assert names == ["retained-code", "retained-mathematics"]
    (sft,) = (arm for arm in leaderboard.group_by_arm(rows) if arm.name == "sft")
    retained = sft.retained(names)
    assert retained is not None and retained.value == pytest.approx(0.5)


def test_leaderboard_json_holds_the_rows_with_their_differences(
    compared: list[Entry], tmp_path: Path
) -> None:
    path = tmp_path / "leaderboard.json"
    leaderboard.write(compared, path)
    again = [Entry(**told) for told in json.loads(path.read_text())]
    assert again == [replace(row, history=[], verdicts={}) for row in compared]
    assert again[-1].differences["target-heldout"]["p"] < 0.05
    assert [p.name for p in tmp_path.iterdir()] == ["leaderboard.json"]


def test_the_tables_in_markdown(compared: list[Entry]) -> None:
    failed = replace(row("sft", 2, 0, 0, status="failed", scores={}), arm="broken", verdicts={})
    overlaps = {BENCHMARKS[0]: Overlap(BENCHMARKS[0], 200, {"a": 3, "b": 1})}
    lines = tables.markdown([*compared, failed], BENCHMARKS, overlaps).splitlines()
    assert lines[0] == differences.verdict(compared, BENCHMARKS[0])
    heads, rule, *body = [line.strip("| ").split(" | ") for line in lines if line[:1] == "|"]
    assert heads == ["arm", "lr", "seeds", *BENCHMARKS, "tokens/s"]
    body, more = body[:5], body[5:]
    assert {len(line) for line in (rule, *body)} == {len(heads)}
    assert [line[0] for line in body] == ["otr-k256", "otr-k16", "sft", "base", "items in corpus"]
    assert body[0][:3] == ["otr-k256", "0.0003", "2"]
    assert re.fullmatch(r"83.0 \[\d+, \d+\] ▲", body[0][3]), body[0][3]
    assert body[4][3:5] == ["1%", "-"]
    assert [line[0] for line in more] == ["arm", "-", "otr-k256", "otr-k16", "base"]
    assert more[2][1].startswith("+22.0 [+")
    assert "target-heldout: 2 of 200 items in the corpus (a, b)" in lines


def test_further_metrics_have_a_table_of_their_own(rows: list[Entry]) -> None:
    heads, lines = tables.further(rows, BENCHMARKS)
    assert lines == []
    several = [
        replace(
            r, scores={n: {**s, "also": {"pass@2": [0.7, 0.6, 0.8]}} for n, s in r.scores.items()}
        )
        for r in rows
    ]
    heads, lines = tables.further(several, BENCHMARKS)
    assert heads[:2] == ["arm", "target-heldout pass@2"]
    assert lines[0][:2] == ["otr-k256", "70.0 [60, 80]"]


def test_of_two_learning_rates_the_better_validation_counts(rows: list[Entry]) -> None:
    slow = row("sft", 0, 0.9, 0.9, lr=1e-5, validation={"val_exact": 0.1})
    slow = replace(slow, arm="sft-slow")
    names = {arm.name for arm in plot_settings.at_best_rate([*rows, slow], "val_exact")}
    assert names == {"base", "sft", "otr-k16", "otr-k256"}
    by_loss = plot_settings.at_best_rate(
        [*rows, slow], "val_nll"
    )  # nobody has it: the first one stays
    assert "sft-slow" not in {arm.name for arm in by_loss}


def test_a_trial_that_was_stopped_early_does_not_speak_for_its_rate() -> None:
    """It was measured at step 40, the others at the end."""
    stopped = row("otr-k16", 1, 0.6, 0.8, status="stopped", validation={"val_exact": 0.1})
    fast = [replace(r, arm="fast") for r in (row("otr-k16", 0, 0.6, 0.8), stopped)]
    slow = [replace(row("otr-k16", seed, 0.5, 0.8), arm="slow") for seed in (0, 1)]
    never = replace(stopped, arm="never", validation={"val_exact": 0.9})
    (best,) = plot_settings.at_best_rate([never, *fast, *slow], "val_exact")
    assert best.name == "fast"


def test_the_figure_of_the_reward_has_a_line_for_each_number_of_draws(rows: list[Entry]) -> None:
    penalised = [
        replace(r, arm=f"{r.arm}-b1", objective={**r.objective, "mismatch_reward": -1.0})
        for r in rows
        if r.objective and r.objective["name"] == "otr"
    ]
    svg = plot_settings.against(
        [*rows, *penalised], "mismatch_reward", "beta", BENCHMARKS, "val_exact"
    )
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    for text in (">beta<", ">K 16<", ">K 256<", ">sft<", ">base<"):
        assert text in svg, text


def test_figures_are_svg_and_empty_where_there_is_nothing_to_compare(rows: list[Entry]) -> None:
    drawn = [
        plots.scores(rows, BENCHMARKS),
        plots.trade_off(rows, BENCHMARKS),
        plot_settings.against(rows, "num_samples", "K", BENCHMARKS, "val_exact"),
        plots.curves(rows, BENCHMARKS),
    ]
    for svg in drawn:
        assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert plot_settings.against(rows, "mismatch_reward", "beta", BENCHMARKS, "val_exact") == ""
    assert plots.trade_off(rows, BENCHMARKS[:2]) == ""
    assert plots.curves(rows[:1], BENCHMARKS) == ""


RUN = {
    "name": "a & b",
    "command": "python pipelines/full_sweep.py --name 'a & b'",
    "created": "today",
    "git_commit": "abc",
    "versions": {"ray": "2.60.0"},
    "config": asdict(PRESETS["debug"]()),
}


def test_the_report_and_its_parts_are_files(compared: list[Entry], tmp_path: Path) -> None:
    written = report.write(compared, BENCHMARKS, RUN, tmp_path, {})
    assert {p.name for p in written} == {p.name for p in tmp_path.iterdir()}
    drawn = {p.name: p.read_text() for p in (tmp_path / "figures").iterdir()}
    names = ("scores", "target-against-forgetting", "score-against-k", "training")
    assert set(drawn) == {f"{name}.svg" for name in names}
    page = (tmp_path / "report.html").read_text()
    assert all(ElementTree.fromstring(svg) is not None and svg in page for svg in drawn.values())
    assert (tmp_path / "table.md").read_text() == tables.markdown(compared, BENCHMARKS, {})


def test_the_report_stands_alone_and_escapes_what_it_shows(compared: list[Entry]) -> None:
    failed = row("sft", 2, 0, 0, status="failed", scores={}, error="<loss> is nan", checkpoint=None)
    rows = [*compared, replace(failed, differences={}, verdicts={})]
    overlaps = {BENCHMARKS[0]: Overlap(BENCHMARKS[0], 200, {"<item>": 3})}
    drawn = report.figures(rows, BENCHMARKS, "val_exact")
    page = report.render(rows, BENCHMARKS, RUN, drawn, overlaps)
    assert not re.search(r"""(src|href)=["']?(http|//)|@import|<script|<link""", page)
    assert "a &amp; b" in page and "&lt;loss&gt; is nan" in page and "<loss>" not in page
    assert "1 (0%)" in page and "&lt;item&gt;" in page and "<item>" not in page
    assert page.count("<svg") == 4
    assert f"<pre>{html.escape(RUN['command'])}</pre>" in page
    assert html.escape(differences.verdict(rows, BENCHMARKS[0])) in page
    assert html.escape(differences.legend(rows)) in page
    # 83 % is the highest, bold, as is what can't be told from it; SFT's 61 % can
    assert re.search(r"class='n best'>83.0 ▲<small>", page)
    assert re.search(r"class='n best'>81.0 ▲<small>", page)
    assert re.search(r"class='n'>61.0 <small>", page)
    assert re.search(r"class='n'>10.0 ▼<small>", page)
    assert "$" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)
