"""Tests of the leaderboard, its significance tests, the tables, the figures and the page."""

import html
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from evals.records import Verdicts
from otr.config import DataConfig, ModelConfig
from otr.loss.buckets import BUCKETS, shares
from otr.loss.objective import Objective
from otr.training.corpus import CorpusReport, SourceReport, inspect_corpus
from pipelines.config.prepared import prepare
from pipelines.config.presets import PRESETS
from pipelines.report import __main__ as rerender
from pipelines.report import (
    data,
    differences,
    leaderboard,
    objective_plots,
    page,
    plot_style,
    plots,
    tables,
    terminal,
)
from pipelines.report.leaderboard import BASE, Arm, Entry, objective_kind
from pipelines.report.plot_style import ArmStyles, dark_css_colors
from pipelines.stages.contamination import Overlap
from tests.assets.tiny import make_tiny_model

RESULTS = Path(__file__).parents[3] / "docs" / "results"
BENCHMARKS = ["target-heldout", "target-harder", "retained-code", "retained-mathematics"]
RETAINED = BENCHMARKS[2:]
ITEMS = 200
SHARES = shares([10, 20, 30, 15, 25], [4.0, 3.0, 2.0, 0.92, 0.08])
RUN = {
    "name": "a & b",
    "command": "python pipelines/full_sweep.py --name 'a & b'",
    "created": "today",
    "git_commit": "0123456789abcdef-changed",
    "versions": {"ray": "2.60.0"},
    "config": asdict(PRESETS["debug"]()),
}


def score(value: float) -> dict:
    return {
        "task": "",
        "metric": "accuracy",
        "value": value,
        "low": max(0.0, value - 0.05),
        "high": min(1.0, value + 0.05),
        "num_examples": ITEMS,
        "settings": {},
        "also": {},
    }


def verdicts(value: float) -> Verdicts:
    """The first items are right, as many as the score says."""
    right = round(value * ITEMS)
    return Verdicts(tuple(map(str, range(ITEMS))), (1.0,) * right + (0.0,) * (ITEMS - right))


def results(values: dict[str, float]) -> dict[str, dict]:
    """The scores and verdicts of an entry."""
    return {
        "scores": {name: score(value) for name, value in values.items()},
        "verdicts": {name: verdicts(value) for name, value in values.items()},
    }


def base_entry(values: dict[str, float]) -> Entry:
    return Entry(BASE, BASE, None, None, None, BASE, **results(values))


def entry(arm: str, seed: int, target: float, retained: float, **changes: object) -> Entry:
    objective = Objective("sft") if arm == "sft" else Objective(num_samples=int(arm[5:]))
    values = {
        "trial": f"{arm}-seed{seed}",
        "arm": arm,
        "objective": asdict(objective),
        "lr": 3e-4,
        "seed": seed,
        "status": "finished",
        **results(dict(zip(BENCHMARKS, (target, target / 2, retained, retained), strict=True))),
        "tokens_per_second": 9000.0,
        "tokens": 5000.0,
        "seconds": 90.0,
        "validation": {"val_exact": target},
        "history": [
            {"step": s, "loss": 1 / s, "nll": 1 / s, "hit_rate": 0.5, "entropy": 1.0, **SHARES}
            for s in range(1, 12)
        ],
        "checkpoint": f"/runs/{arm}/{seed}",
    }
    return Entry(**(values | changes))


@pytest.fixture
def entries() -> list[Entry]:
    return [
        base_entry({name: 0.1 if "t-h" in name else 0.9 for name in BENCHMARKS}),
        *(entry("sft", seed, 0.60 + seed / 50, 0.5) for seed in (0, 1)),
        *(entry("otr-k16", seed, 0.80 + seed / 50, 0.8) for seed in (0, 1)),
        *(entry("otr-k256", seed, 0.82 + seed / 50, 0.8) for seed in (0, 1)),
    ]


@pytest.fixture
def compared(entries: list[Entry]) -> list[Entry]:
    return differences.with_differences(entries, BENCHMARKS)


def loaded(compared: list[Entry], tmp_path: Path) -> list[Entry]:
    """The entries after a round trip through leaderboard.json."""
    leaderboard.write(compared, tmp_path / "leaderboard.json")
    return leaderboard.read(tmp_path / "leaderboard.json")


def test_answers_that_are_cut_off_are_counted_beside_the_scores(
    entries: list[Entry], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tables.incomplete_answers(entries, BENCHMARKS) == []
    entries[1].scores[BENCHMARKS[0]]["settings"] |= {"num_truncated": 3, "num_samples": 2}
    entries[3].scores[BENCHMARKS[0]]["settings"] |= {"num_truncated": 7, "num_timeouts": 1}
    cut = "target-heldout: answers cut off at the length limit: otr-k16 7 of 400, sft 3 of 600"
    late = "target-heldout: answers timed out: otr-k16 1 of 400"
    assert tables.incomplete_answers(entries, BENCHMARKS) == [cut, late]
    entries[3].scores[BENCHMARKS[0]]["settings"] |= {"num_repeating": 5}
    loops = "target-heldout: answers cut off in a loop: otr-k16 5 of 400"
    assert tables.incomplete_answers(entries, BENCHMARKS) == [cut, loops, late]
    terminal.print_summary(entries, BENCHMARKS, {})
    page.write(entries, BENCHMARKS, RUN, tmp_path, {})
    for shown in (capsys.readouterr().out, (tmp_path / "report.html").read_text()):
        assert cut in shown
    assert cut in (tmp_path / "table.md").read_text()


def test_only_an_arm_that_beats_all_others_wins(entries: list[Entry]) -> None:
    def winner(*arms: str) -> Arm | None:
        some = [e for e in entries if e.arm in arms]
        won = differences.winning_arm(some, BENCHMARKS[0])
        assert (won is not None) == (" wins on " in differences.verdict(some, BENCHMARKS[0]))
        return won

    best = winner(BASE, "sft", "otr-k16")
    assert best is not None and best.name == "otr-k16"
    assert winner(BASE, "sft", "otr-k16", "otr-k256") is None, "the last two are level"
    assert winner("sft") is None and winner(BASE) is None


def test_more_seeds_do_not_shrink_the_uncertainty_of_the_items() -> None:
    def interval(*values: float) -> tuple[float, ...]:
        group = tuple(entry("sft", i, value, 0.5) for i, value in enumerate(values))
        found = Arm("sft", group).score(BENCHMARKS[0])
        assert found is not None
        return tuple(found)

    assert interval(0.5) == pytest.approx((0.5, 0.45, 0.55))
    assert interval(0.5, 0.5, 0.5, 0.5) == pytest.approx((0.5, 0.45, 0.55))
    # Two seeds 0.2 apart: 12.7 standard errors of 0.1 reach beyond both ends.
    assert interval(0.4, 0.6) == pytest.approx((0.5, 0, 1))


def test_ranking_and_best_trial_follow_the_target(entries: list[Entry]) -> None:
    order = [arm.name for arm in leaderboard.rank_arms(entries, "target-heldout")]
    assert order == ["otr-k256", "otr-k16", "sft", "base"]
    best = leaderboard.best_trial(entries, "target-heldout")
    assert best is not None and best.trial == "otr-k256-seed1"
    assert leaderboard.best_trial(entries[:1], "target-heldout") is None


def test_the_summary_has_the_scores_of_the_best_arm_and_of_the_base(entries: list[Entry]) -> None:
    found = leaderboard.summary(entries, BENCHMARKS)
    assert found["score/target-heldout"] == pytest.approx(0.83)
    assert found["base_score/target-heldout"] == pytest.approx(0.1)
    assert found["score/target-heldout_low"] < 0.83 < found["score/target-heldout_high"]
    assert len(found) == 2 * 3 * len(BENCHMARKS)
    assert set(leaderboard.summary(entries[:1], BENCHMARKS)) == {
        f"base_score/{name}{end}" for name in BENCHMARKS for end in ("", "_low", "_high")
    }


def test_the_retained_mean_leaves_out_the_target(entries: list[Entry]) -> None:
    assert leaderboard.retained_benchmarks(BENCHMARKS) == RETAINED
    (sft,) = (arm for arm in leaderboard.group_by_arm(entries) if arm.name == "sft")
    retained = sft.mean_score(RETAINED)
    assert retained is not None and retained.mean == pytest.approx(0.5)


def test_leaderboard_json_holds_the_entries_with_their_differences(
    compared: list[Entry], tmp_path: Path
) -> None:
    again = loaded(compared, tmp_path)
    assert again == [replace(each, history=[], verdicts={}) for each in compared]
    assert again[-1].differences["target-heldout"]["p"] < 0.05
    assert [p.name for p in tmp_path.iterdir()] == ["leaderboard.json"]


@pytest.mark.parametrize("content", ["{", '["text"]', '[{"trial": "a"}]'])
def test_a_file_that_is_no_leaderboard_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "leaderboard.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"leaderboard\.json is not a leaderboard"):
        leaderboard.read(path)


def test_a_lead_that_is_not_significant_is_not_a_win(entries: list[Entry]) -> None:
    verdict = differences.verdict(entries, "target-heldout")
    assert verdict.startswith("No clear winner") and "otr-k16" in verdict and "sft" not in verdict
    clear = [each for each in entries if each.arm != "otr-k16"]
    verdict = differences.verdict(clear, "target-heldout")
    assert verdict.startswith("otr-k256 wins on target-heldout: 83.0 % [")
    assert "The closest is sft, 22.0 [" in verdict


def test_a_paired_difference_can_be_significant_although_the_intervals_overlap() -> None:
    better, worse = entry("otr-k16", 0, 0.56, 0.5), entry("sft", 0, 0.50, 0.5)
    assert better.scores["target-heldout"]["low"] < worse.scores["target-heldout"]["high"]
    assert differences.verdict([worse, better], "target-heldout").startswith("otr-k16 wins")


def test_no_arm_wins_if_the_base_model_is_as_good(entries: list[Entry]) -> None:
    good_base = base_entry(dict.fromkeys(BENCHMARKS, 0.8))
    verdict = differences.verdict([good_base, entries[5]], "target-heldout")
    assert verdict.startswith("No clear winner") and "base" in verdict


def test_no_arm_wins_without_the_answers(entries: list[Entry]) -> None:
    bare = [replace(each, verdicts={}) for each in entries]
    verdict = differences.verdict(bare, "target-heldout")
    assert verdict.startswith("No clear winner") and "cannot be tested" in verdict
    assert not any(e.differences for e in differences.with_differences(bare, BENCHMARKS))


def test_a_loaded_leaderboard_compares_with_the_reference_arm(
    entries: list[Entry], tmp_path: Path
) -> None:
    pair = [each for each in entries if each.arm in ("sft", "otr-k16")]
    compared = differences.with_differences(pair, BENCHMARKS)
    again = loaded(compared, tmp_path)
    verdict = differences.verdict(compared, "target-heldout")
    assert differences.verdict(again, "target-heldout") == verdict
    sft, otr = leaderboard.group_by_arm(again)
    assert differences.compare_arms(sft, otr, "target-heldout") == pytest.approx(
        differences.compare_arms(*leaderboard.group_by_arm(pair), "target-heldout"), abs=0.01
    )


def test_arms_are_compared_with_sft_corrected_for_their_number(compared: list[Entry]) -> None:
    arms = {arm.name: arm for arm in leaderboard.group_by_arm(compared)}
    marks = [differences.mark(arm, "target-heldout") for arm in arms.values()]
    assert marks == ["▼", "", "▲", "▲"]
    difference = arms["otr-k16"].first.differences["target-heldout"]
    assert difference["against"] == "sft" and difference["difference"] == pytest.approx(0.2)
    assert difference["low"] < 0.2 < difference["high"]
    assert difference["p"] < difference["p_holm"] <= 3 * difference["p"]
    # A small difference may be significant alone, but not among many arms.
    many = [
        entry("sft", 0, 0.5, 0.5),
        *(entry(f"otr-k{k}", 0, 0.53, 0.5) for k in range(1, 20)),
    ]
    marks = [
        differences.mark(arm, "target-heldout")
        for arm in leaderboard.group_by_arm(differences.with_differences(many, BENCHMARKS))
    ]
    assert set(marks) == {"", "~"}


def test_without_sft_the_arms_are_compared_with_the_base_model(entries: list[Entry]) -> None:
    others = [each for each in entries if each.arm != "sft"]
    compared = differences.with_differences(others, BENCHMARKS)
    assert {d["against"] for e in compared for d in e.differences.values()} == {BASE}
    assert "better than base" in differences.legend(compared)


def test_highlighted_are_the_best_arm_and_those_not_distinguished_from_it(
    entries: list[Entry],
) -> None:
    arms = leaderboard.group_by_arm(entries)
    assert differences.best_and_ties(arms, "target-heldout") == {"otr-k16", "otr-k256"}
    assert differences.best_and_ties(arms, "retained-code") == {"base"}
    same = [arm for arm in arms if arm.name.startswith("otr")]
    assert differences.best_and_ties(same, "target-heldout") == set(), "no arm stands out"


def test_the_tables_in_markdown(compared: list[Entry]) -> None:
    failed = replace(entry("sft", 2, 0, 0, status="failed", scores={}, verdicts={}), arm="broken")
    overlaps = {BENCHMARKS[0]: Overlap(BENCHMARKS[0], 200, {"a": 3, "b": 1})}
    lines = tables.markdown([*compared, failed], BENCHMARKS, overlaps).splitlines()
    assert lines[0] == differences.verdict(compared, BENCHMARKS[0])
    columns, rule, *body = [line.strip("| ").split(" | ") for line in lines if line[:1] == "|"]
    assert columns == ["arm", "lr", "seeds", *BENCHMARKS, "tokens/s"]
    scores, compared_rows = body[:5], body[5:]
    assert {len(line) for line in (rule, *scores)} == {len(columns)}
    assert [line[0] for line in scores] == ["otr-k256", "otr-k16", "sft", "base", "items in corpus"]
    assert scores[0][:3] == ["otr-k256", "0.0003", "2"]
    assert re.fullmatch(r"83.0 \[\d+, \d+\] ▲", scores[0][3]), scores[0][3]
    assert scores[4][3:5] == ["1%", "-"]
    assert [line[0] for line in compared_rows] == ["arm", "-", "otr-k256", "otr-k16", "base"]
    assert compared_rows[2][1].startswith("+22.0 [+")
    assert "target-heldout: 2 of 200 items in the corpus (a, b)" in lines


def test_titles_of_columns_leave_out_options_that_do_not_tell_benchmarks_apart() -> None:
    short = ["gsm8k@8:temperature=0.7", "bbh:max_tokens=256", "file:a.jsonl"]
    assert [*leaderboard.headings(short).values()] == ["gsm8k@8", "bbh", "file:a.jsonl"]
    both = ["bbh:items=1-9", "mmlu:max_tokens=9", "bbh:items=10-19"]
    assert [*leaderboard.headings(both).values()] == ["bbh:items=1-9", "mmlu", "bbh:items=10-19"]


def test_sentences_leave_out_such_options_too(entries: list[Entry]) -> None:
    long = {name: f"{name}:max_tokens=32" for name in BENCHMARKS}
    some = [
        replace(
            each,
            scores={long[name]: score for name, score in each.scores.items()},
            verdicts={long[name]: verdicts for name, verdicts in each.verdicts.items()},
        )
        for each in entries
    ]
    names = [*long.values()]
    sentences = [
        differences.verdict(some, names[0]),
        differences.verdict([], names[0]),
        differences.recommendation(some, names),
        *(figure.caption for figure in page.figures(some, names, "val_nll")),
        tables.markdown(some, names, {names[0]: Overlap(names[0], 9, {"a": 1})}),
    ]
    assert BENCHMARKS[0] in sentences[0] and "retained-code" in sentences[2]
    assert not [sentence for sentence in sentences if "max_tokens" in sentence]
    twice = [replace(e, scores=e.scores | {f"{names[0]},top_p=1": {}}) for e in some]
    assert names[0] in differences.verdict(twice, names[0]), "it alone tells the two apart"


def test_metrics_of_several_answers_have_a_table_of_their_own(entries: list[Entry]) -> None:
    assert tables.other_metrics_table(entries, BENCHMARKS).rows == []
    several = [
        replace(
            each,
            scores={n: {**s, "also": {"pass@2": [0.7, 0.6, 0.8]}} for n, s in each.scores.items()},
        )
        for each in entries
    ]
    table = tables.other_metrics_table(several, BENCHMARKS)
    assert table.columns[:2] == ["arm", "target-heldout pass@2"]
    assert table.text_rows()[0][:2] == ["otr-k256", "70.0 [60, 80]"]


def test_an_objective_is_described_by_the_settings_that_matter_to_it() -> None:
    described = [
        tables.describe_objective(asdict(objective)).replace("\N{NO-BREAK SPACE}", " ")
        for objective in (
            Objective("sft"),
            Objective(num_samples=16, reward_scale=2.0),
            Objective(estimator="expected"),
            Objective("sft", label_smoothing=0.1),
            Objective("power"),
        )
    ]
    assert described == [
        "SFT",
        "OTR K 16, β -0.1, κ 1.3, reward scale 2",
        "OTR in expectation, β -0.1, κ 1.3",
        "SFT, label smoothing 0.1",
        "power",
    ]
    of_a_version_before = {**asdict(Objective(num_samples=16)), "name": "dft"}
    assert tables.describe_objective(of_a_version_before) == "DFT"
    assert tables.describe_objective({"name": "of-a-plugin", "most": 3}) == "of-a-plugin"


def test_of_two_learning_rates_the_one_with_the_better_validation_counts(
    entries: list[Entry],
) -> None:
    slow = entry("sft", 0, 0.9, 0.9, lr=1e-5, validation={"val_exact": 0.1})
    slow = replace(slow, arm="sft-slow")
    names = {arm.name for arm in plots.arms_at_best_rate([*entries, slow], "val_exact")}
    assert names == {"base", "sft", "otr-k16", "otr-k256"}
    without_metric = plots.arms_at_best_rate([*entries, slow], "val_nll")
    assert "sft-slow" not in {arm.name for arm in without_metric}, "the first arm stays"


def test_a_stopped_trial_does_not_count_for_its_learning_rate() -> None:
    stopped = entry("otr-k16", 1, 0.6, 0.8, status="stopped", validation={"val_exact": 0.1})
    fast = [replace(each, arm="fast") for each in (entry("otr-k16", 0, 0.6, 0.8), stopped)]
    slow = [replace(entry("otr-k16", seed, 0.5, 0.8), arm="slow") for seed in (0, 1)]
    never = replace(stopped, arm="never", validation={"val_exact": 0.9})
    (best,) = plots.arms_at_best_rate([never, *fast, *slow], "val_exact")
    assert best.name == "fast"


def test_the_figure_by_mismatch_reward_has_a_line_for_each_number_of_samples(
    entries: list[Entry],
) -> None:
    penalized = [
        replace(each, arm=f"{each.arm}-b1", objective={**each.objective, "mismatch_reward": -1.0})
        for each in entries
        if each.objective and each.objective["name"] == "otr"
    ]
    svg = plots.scores_by_setting(
        [*entries, *penalized], "mismatch_reward", "beta", BENCHMARKS, "val_exact"
    )
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    for text in (">beta<", ">K 16<", ">K 256<", ">sft<", ">base<"):
        assert text in svg, text


def test_figures_are_svg_or_empty_if_there_is_nothing_to_compare(entries: list[Entry]) -> None:
    for svg in (
        plots.scores(entries, BENCHMARKS),
        plots.trade_off(entries, BENCHMARKS[0], RETAINED),
        plots.scores_by_setting(entries, "num_samples", "K", BENCHMARKS, "val_exact"),
        plots.curves(entries, BENCHMARKS[0]),
        objective_plots.learned_from(entries, BENCHMARKS[0]),
    ):
        assert ElementTree.fromstring(svg).tag.endswith("svg")
    empty = plots.scores_by_setting(entries, "mismatch_reward", "beta", BENCHMARKS, "val_exact")
    assert empty == ""
    untested = replace(entries[-1], arm="untested", scores={}, verdicts={})
    untested = replace(untested, objective={**untested.objective, "mismatch_reward": -1.0})
    arguments = ("mismatch_reward", "beta", BENCHMARKS, "val_exact")
    assert plots.scores_by_setting([*entries, untested], *arguments) == ""
    assert plots.trade_off(entries, BENCHMARKS[0], []) == ""
    assert plots.curves(entries[:1], BENCHMARKS[0]) == ""
    assert objective_plots.learned_from(entries[:1], BENCHMARKS[0]) == ""


def test_what_each_arm_learned_from_is_the_mean_of_its_reports(entries: list[Entry]) -> None:
    svg = objective_plots.learned_from(entries, BENCHMARKS[0])
    assert objective_plots.CURVES[0][1] in svg and "KL" not in svg, "curves that were measured"
    numbers = re.findall(r">(\d+)<", svg)
    assert numbers.count("40") >= 3 and numbers.count("9") == 3, "one bar for each arm"
    assert ">1<" not in svg, "there is no room for the number of a small share"
    report = entries[1].history[-1]
    other = dict.fromkeys(SHARES, 0.0) | {f"gradient_share/{BUCKETS[0]}": 1.0}
    twice = replace(entries[1], history=[report, report | other, {"step": 13, "val_exact": 1.0}])
    assert ">70<" in objective_plots.learned_from([twice], BENCHMARKS[0])
    known = [
        replace(each, history=[{**h, "kl_to_base": 0.1} for h in each.history]) for each in entries
    ]
    assert "KL from the base model" in objective_plots.learned_from(known, BENCHMARKS[0])


def test_a_run_of_an_older_version_has_only_the_curves(entries: list[Entry]) -> None:
    old = [
        replace(e, history=[{"step": h["step"], "hit_rate": 0.5} for h in e.history])
        for e in entries
    ]
    svg = objective_plots.learned_from(old, BENCHMARKS[0])
    assert "hit rate" in svg and "share of the gradient" not in svg


def test_every_color_of_a_figure_changes_on_a_dark_page(entries: list[Entry]) -> None:
    drawn = page.figures(entries, BENCHMARKS, "val_exact")
    for svg in (plot_style.with_css_colors(figure.svg) for figure in drawn if figure.svg):
        assert ElementTree.fromstring(svg) is not None
        assert not re.search(r": #[0-9a-f]{6}", svg)
    for color in re.findall(r"var\((--c-\w+), #", svg):
        assert f"{color}: #" in plot_style.dark_css_colors()


def test_the_report_and_its_parts_are_files(compared: list[Entry], tmp_path: Path) -> None:
    written = page.write(compared, BENCHMARKS, RUN, tmp_path, {})
    assert {p.name for p in written} == {p.name for p in tmp_path.iterdir()}
    drawn = {p.name: p.read_text() for p in (tmp_path / "figures").iterdir()}
    names = ("scores", "target-against-forgetting", "score-against-k", "learned-from", "training")
    assert set(drawn) == {f"{name}.svg" for name in names}
    report = (tmp_path / "report.html").read_text()
    assert all(plot_style.with_css_colors(svg) in report for svg in drawn.values())
    assert (tmp_path / "table.md").read_text() == tables.markdown(compared, BENCHMARKS, {})


def test_the_report_says_which_model_to_use_and_what_it_cost(
    compared: list[Entry], tmp_path: Path
) -> None:
    page.write(compared, BENCHMARKS, RUN, tmp_path, {})
    report = (tmp_path / "report.html").read_text()
    assert html.escape(differences.recommendation(compared, BENCHMARKS)) in report
    assert "<code>/runs/otr-k256/1</code>" in report
    assert "<dd>9.0 minutes, 0.15 CPU core hours</dd>" in report, "6 trials of 90 s on one core"
    assert "<dd>30,000</dd>" in report and "<dt>finished</dt>" in report
    unknown = [replace(each, seconds=None, tokens=None) for each in compared]
    report = page.render(unknown, BENCHMARKS, RUN, [], {}, tmp_path)
    assert "training time" not in report and "<dt>finished</dt>" not in report


def test_each_benchmark_is_described_in_a_row(entries: list[Entry]) -> None:
    settings = {"domain": "mathematics", "source": "/data/mine.jsonl", "max_tokens": 512}
    entries[0].scores[BENCHMARKS[0]]["settings"] = settings
    rows = tables.benchmark_table(entries, BENCHMARKS).rows
    own = ["mathematics", "to learn", "200", "accuracy", "at most 512 tokens", "mine.jsonl"]
    assert [name for name, *_ in rows] == BENCHMARKS and rows[0][1:] == own
    assert rows[2][1:] == ["-", "retained", "200", "accuracy", "-", "-"], "an older leaderboard"


def test_the_recommendation_follows_the_tests(entries: list[Entry]) -> None:
    def said(*arms: str, base: float = 0.1) -> str:
        values = {name: base if "t-h" in name else 0.9 for name in BENCHMARKS}
        some = [base_entry(values), *(e for e in entries if e.arm in arms)]
        return differences.recommendation(some, BENCHMARKS)

    clear = said("sft", "otr-k16")
    assert clear.startswith("Use otr-k16-seed1, the best trial of otr-k16.")
    assert clear.endswith("worse than base on retained-code and retained-mathematics.")
    assert "no clear winner" not in clear and "no clear winner" in said("otr-k16", "otr-k256")
    assert said("otr-k16", base=0.9).startswith("No model is clearly better than the base model")
    assert said() == "There is no trained model to use."
    bare = [replace(each, verdicts={}) for each in entries]
    assert "was not compared" in differences.recommendation(bare, BENCHMARKS)


def test_the_report_needs_no_other_file_and_escapes_what_it_shows(
    compared: list[Entry], tmp_path: Path
) -> None:
    failed = entry(
        "sft", 2, 0, 0, status="failed", scores={}, error="<loss> is nan", checkpoint=None
    )
    entries = [*compared, replace(failed, differences={}, verdicts={})]
    overlaps = {BENCHMARKS[0]: Overlap(BENCHMARKS[0], 200, {"<item>": 3})}
    drawn = page.figures(entries, BENCHMARKS, "val_exact")
    report = page.render(entries, BENCHMARKS, RUN, drawn, overlaps, tmp_path)
    assert not re.search(r"""(src|href)=["']?(http|//)|@import|<script|<link""", report)
    assert "a &amp; b" in report and "&lt;loss&gt; is nan" in report and "<loss>" not in report
    assert "1 (0%)" in report and "&lt;item&gt;" in report and "<item>" not in report
    assert report.count("<svg") == 5, "no section for the mismatch reward, which does not vary"
    assert "mismatch reward, β" not in report
    assert f"<pre>{html.escape(RUN['command'])}</pre>" in report
    assert html.escape(differences.verdict(entries, BENCHMARKS[0])) in report
    assert html.escape(differences.legend(entries)) in report
    assert "4 benchmarks, 200 items each" in report
    assert "commit 0123456789ab, with local changes" in report
    assert re.search(r"class='n best'>83.0 ▲<small>", report)
    assert re.search(r"class='n best'>81.0 ▲<small>", report), "not distinguished from 83.0"
    assert re.search(r"class='n'>61.0 <small>", report)
    assert re.search(r"class='n'>10.0 ▼<small>", report)
    assert "$" not in re.sub(r"<svg.*?</svg>", "", report, flags=re.DOTALL)


@pytest.mark.parametrize("name", ["builtin", "study"])
def test_the_published_leaderboards_still_load_and_render(name: str, tmp_path: Path) -> None:
    shutil.copy(RESULTS / name / "leaderboard.json", tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    overlap = {"benchmark": "target-heldout", "items": 100, "hits": {"chain-183": 1}}
    (tmp_path / "contamination.json").write_text(json.dumps({"benchmarks": [overlap]}))
    report = rerender.rendered(tmp_path)
    assert "No clear winner on target-heldout: sft" in report
    assert "6 benchmarks, 100 items each" in report and "chain-183" in report
    assert "Training curves" not in report, "leaderboard.json does not store them"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> CorpusReport:
    """Two sources: 40 records of several lengths, and one record with two rejected ones."""
    folder = tmp_path_factory.mktemp("data")
    make_tiny_model(folder / "tiny")
    many = [
        {"prompt": "word " * (1 + n), "completion": "4", "<id>": n, **({"note": "a"} if n else {})}
        for n in range(40)
    ]
    few = [
        {"prompt": "2 + 2?", "completion": "4"},
        {"messages": [{"role": "user", "content": "hi"}]},
        {"prompt": "x" * 3000, "completion": "y"},
    ]
    for name, records in (("many", many), ("few", few)):
        lines = [json.dumps(record) + "\n" for record in records]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    paths = tuple(str(folder / f"{name}.jsonl") for name in ("many", "few"))
    config = DataConfig(paths, max_rejected=1.0, sequence_length=1024)
    return inspect_corpus(config, ModelConfig(str(folder / "tiny")))


def section(report: str) -> str:
    """The section of a page about the training data."""
    _, _, rest = report.partition("<section><h2>Training data</h2>")
    return rest.partition("</section>")[0]


def test_the_report_shows_the_training_data(
    compared: list[Entry], corpus: CorpusReport, tmp_path: Path
) -> None:
    many, few = corpus.sources
    summary = data.summarize(corpus, {many: "builtin:<many>"})
    data.write(summary, tmp_path / data.FILE)
    assert data.read(tmp_path / data.FILE) == summary
    page.write(compared, BENCHMARKS, RUN, tmp_path, {})
    shown = section((tmp_path / "report.html").read_text())
    rows = {
        name: [re.sub("<.*?>", "", cell) for cell in re.findall("<td.*?</td>", cells)]
        for name, cells in re.findall("<tr><th scope=row>(.*?)</th>(.*?)</tr>", shown)
    }
    tokens, trained = corpus.tokens, corpus.trained_tokens
    assert rows["builtin:&lt;many&gt;"][:3] == ["40", "0", "40"] and many not in shown
    assert rows[few][:3] == ["3", "2", "1"]
    assert rows["all sources"] == [
        "43",
        "2",
        "41",
        f"{tokens:,}",
        f"{trained:,}",
        "100.0\N{NO-BREAK SPACE}%",
    ]
    shares = [float(rows[name][-1].split()[0]) for name in ("builtin:&lt;many&gt;", few)]
    assert sum(shares) == pytest.approx(100, abs=0.11) and 0 < shares[1] < 50
    for cause in ("untrained", "over-long"):
        assert rows[f"records rejected as {cause}"] == ["1"]
    for field, count in (("&lt;id&gt;", 40), ("note", 39)):
        text = f"records with the field {field}, used neither by otr nor by the chat template"
        assert rows[text] == [str(count)]
    assert f"The 43 records gave 41 examples with {tokens:,} tokens" in shown
    for each in summary.lengths:
        between, count = each.texts()
        assert rows[between][0] == count
    assert len(re.findall("<div style='width:100.0%'>", shown)) >= 1
    assert shown.count("<div style") == sum(each.examples > 0 for each in summary.lengths)


def test_a_report_of_a_stored_run_has_the_training_data_if_the_run_has(
    compared: list[Entry], corpus: CorpusReport, tmp_path: Path
) -> None:
    leaderboard.write(compared, tmp_path / "leaderboard.json")
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    assert not section(rerender.rendered(tmp_path)), "a run of an earlier version"
    remark = "records whose thoughts the chat template leaves out"
    part = replace(corpus, complete=False, records=50_000, remarks={remark: 1234}, rejected={})
    part = replace(part, left_out={"test": 2}, files={"files that are named twice": 3})
    data.write(data.summarize(part), tmp_path / data.FILE)
    shown = section(rerender.rendered(tmp_path))
    assert "The first 43 of 50,000 records gave" in shown and "rejected records" not in shown
    assert f"<th scope=row>{remark}</th><td class=n>1,234</td>" in shown
    assert "files of the split test, which is not read</th><td class=n>2<" in shown
    assert "<th scope=row>files that are named twice</th><td class=n>3</td>" in shown
    assert "<details>" not in shown
    many = replace(part, unused={f"field{n}": 1 for n in range(20)}, rejected={"unreadable": 3})
    data.write(data.summarize(many), tmp_path / data.FILE)
    assert re.search("<details>.*field19.*</details>", section(rerender.rendered(tmp_path)))
    assert "files, or rests of files, that are unreadable</th>" in rerender.rendered(tmp_path)
    (tmp_path / data.FILE).write_text('{"rows": 1}')
    with pytest.raises(ValueError, match=r"data\.json is not a data\.json of a sweep"):
        rerender.rendered(tmp_path)


def test_the_sources_of_a_run_have_the_names_that_were_given(
    corpus: CorpusReport, tmp_path: Path
) -> None:
    config = PRESETS["debug"]()
    prepared = prepare(replace(config, output=str(tmp_path)))
    paths = prepared.config.train.data.paths
    source = SourceReport(records=1)
    prepared = replace(prepared, read=replace(corpus, sources=dict.fromkeys(paths, source)))
    assert [*data.summarize_run(prepared, config).sources] == [*config.train.data.paths] != [*paths]


@pytest.mark.parametrize("lengths", [[1, 8, 9, 100, 1000], [7], [8, 9], [96, 97], [1, 96], [1, 97]])
def test_the_histogram_of_lengths_counts_every_example(lengths: list[int]) -> None:
    bins = data.histogram(lengths)
    assert sum(each.examples for each in bins) == len(lengths) and len(bins) <= 12
    assert all(bins[n].last + 1 == bins[n + 1].first for n in range(len(bins) - 1))
    for each in bins:
        assert each.examples == sum(each.first <= length <= each.last for length in lengths)


def test_each_objective_has_its_style_in_every_figure() -> None:
    kinds = [Objective("eaft"), Objective("power"), Objective("power", exponent=2.0)]
    ranked = [
        Arm(f"arm{i}", (replace(entry("sft", 0, 0.5, 0.5), objective=asdict(each)),))
        for i, each in enumerate(kinds)
    ]
    styles = ArmStyles(ranked)
    assert styles["arm0"].color == kinds[0].style.color
    assert styles["arm1"].marker == kinds[1].style.marker
    assert "arm2" not in styles, "the best arm of a kind has the style"
    assert f"--c-{kinds[0].style.color[1:]}: {kinds[0].style.dark}" in dark_css_colors()


def test_an_objective_with_a_kl_is_an_arm_of_another_kind(entries: list[Entry]) -> None:
    """It is not the SFT that all are compared with, and its name in the table says what it is."""
    near = [
        replace(each, arm="sft-kl", trial=f"sft-kl-seed{each.seed}", kl_weight=0.1)
        for each in [entry("sft", seed, 0.9, 0.9) for seed in (0, 1)]
    ]
    reference = differences.reference_arm([*entries, *near], BENCHMARKS[0])
    assert reference is not None and reference.name == "sft"
    assert tables.describe_objective(near[0].objective, 0.1) == "SFT + 0.1 KL"
    arms = [Arm(each.arm, (each,)) for each in (entry("sft", 0, 0.5, 0.5), near[0])]
    assert objective_kind(arms[0]) != objective_kind(arms[1])
    assert ArmStyles(arms)["sft"] != ArmStyles(arms)["sft-kl"]
    best = plots.arms_at_best_rate([*entries, *near], "val_exact")
    assert {"sft", "sft-kl"} <= {arm.name for arm in best}
