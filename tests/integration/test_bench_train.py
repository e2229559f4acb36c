"""The training benchmark runs at tiny sizes, and its bars judge given figures correctly."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.train_bars import flops_per_token, measures, mfu, summary, tables
from tests.benchmarks.train_data import SHAPES, Case, make_rows
from tests.benchmarks.train_turns import check_equal_work

ROOT = Path(__file__).parents[2]


def quick(report: Path, *parts: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.train", "--quick", "--json", str(report)]
    done = subprocess.run(
        [*command, "--device", "cpu", "--parts", *parts], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "measure" in done.stdout
    return json.loads(report.read_text())


@pytest.mark.integration
@pytest.mark.benchmarks
def test_contenders_take_the_same_steps(tmp_path: Path) -> None:
    """The benchmark fails if TRL's first loss or its tokens are not ours."""
    report = quick(tmp_path / "report.json", "speed", "memory", "ranks", "mfu")
    [speed], [memory], [ranks] = report["speed"], report["memory"], report["ranks"]
    assert set(speed["tokens_per_second"]) == {"otr", "sft", "trl-nll", "trl-nll-row"}
    assert set(ranks["tokens_per_second"]) == {"otr-1-rank", "otr-2-ranks", "otr-2-alone"}
    assert set(memory["peak_mib"]) == {"otr", "sft", "trl-nll"}
    assert all(mib > 0 for mib in memory["peak_mib"].values())
    assert set(speed["padding"].values()) == {0.0}
    assert "skipped" in report["mfu"][0]


@pytest.mark.integration
@pytest.mark.benchmarks
def test_the_data_path_is_measured(tmp_path: Path) -> None:
    """The benchmark fails if Ray Data and TRL do not find the same tokens."""
    report = quick(tmp_path / "report.json", "corpus", "fit", "order")
    [fit], [corpus], [order] = report["fit"], report["corpus"], report["order"]
    names = ("first_step_seconds", "second_trial_seconds", "further_trial_seconds")
    assert min(fit[name] for name in names) > 0
    assert 0 < order["mixed"] < 3 and 0 < order["sorted"] < 3
    [size] = corpus["sizes"]
    assert set(size["ways"]) == {"ray_data", "trl", "trl_batched"}
    assert size["ways"]["ray_data"]["peak_mib"] > 100
    values = {one["measure"]: one["value"] for one in report["measures"]}
    assert values["tokens/s of packing, Ray Data / best of datasets"] > 0
    assert 0 <= values["share of a step waiting for rows"] <= 1


def steps(seconds: float, fed: int = 100) -> list[dict[str, Any]]:
    """Return a slow step as warm-up, then two."""
    one = {"tokens": 100, "fed": fed, "loss": 2.0, "peak": 2**20}
    return [one | {"seconds": s} for s in (100.0, seconds, seconds)]


def test_the_fastest_peer_is_the_bar() -> None:
    figures = {"otr": steps(1.0), "sft": steps(0.98), "trl-nll": steps(2.0)}
    result = summary(figures | {"trl-nll-row": steps(1.05)}, 1) | {"name": "case"}
    found = {one["measure"]: one for one in measures({"speed": [result]})}
    otr, ours = found["tokens/s, otr / best TRL nll"], found["tokens/s, otr / our sft"]
    assert otr["value"] == pytest.approx(1.05) and not otr["met"]
    assert ours["value"] == pytest.approx(0.98) and ours["met"]
    assert found["padding given to the model, share of tokens"]["met"]
    padded = summary({"otr": steps(1.0, fed=103)}, 1)
    assert padded["padding"]["otr"] == pytest.approx(0.03)


def test_memory_that_grows_with_the_corpus_misses_its_bar() -> None:
    def size(megabytes: float, ours: float) -> dict[str, Any]:
        way = {"seconds": 2.0, "whole_seconds": 4.0, "tokens": 100, "density": 0.99}
        ways = {"ray_data": way | {"peak_mib": ours}, "trl": way | {"peak_mib": 1.0, "seconds": 1}}
        return {"megabytes": megabytes, "ways": ways}

    report = {
        "corpus": [{"name": "c", "sizes": [size(10, 50.0), size(100, 100.0), size(1000, 120.0)]}]
    }
    met = {one["measure"]: one["met"] for one in measures(report)}
    assert met["peak memory of packing, largest / smallest corpus"] is False
    assert met["tokens/s of packing, Ray Data / best of datasets"] is False
    assert met["packing density"] is True
    assert "| NO |" in tables(report, markdown=True)


def test_a_figure_that_was_not_reported_has_no_verdict() -> None:
    seconds = dict.fromkeys(("first_step_seconds", "further_trial_seconds"), 9.0)
    seconds["second_trial_seconds"] = 6.0
    report: dict[str, Any] = {"fit": [{"name": "f", "data_wait": None} | seconds]}
    report["mfu"] = [{"name": "m", "skipped": "no GPU"}]
    second, further, wait, start = measures(report)
    assert second["met"] is False and further["met"] is False
    assert wait["value"] is None and wait["met"] is None
    assert start["value"] == 9.0 and start["bar"] == ""
    assert "not reported" in tables(report) and "skipped: no GPU" in tables(report)


def test_mfu_is_that_of_a_count_by_hand() -> None:
    """A model of one layer, D 4, one head of 4, MLP 8, V 10; rows of 2 tokens."""
    shape = {"vocab_size": 10, "hidden_size": 4, "num_hidden_layers": 1, "intermediate_size": 8}
    shape |= {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 4}
    weights = 4 * 4 * 4 + 3 * 4 * 8 + 10 * 4
    # Scores and weighted sum, each 2 x 4 x 1 on average (a token sees half of 2), three times.
    attention = 3 * 2 * (2 * 4 * 1)
    assert flops_per_token(shape, 2) == 6 * weights + attention
    case = {"model": "large", "sequence_length": 4096}
    all_of_it = 989e12 / flops_per_token(SHAPES["large"], 4096)
    assert mfu(all_of_it, case, "NVIDIA H100 80GB HBM3") == pytest.approx(1.0)
    assert mfu(all_of_it, case, "a card of next year") is None


def test_unequal_work_is_an_error() -> None:
    case = Case("tiny", 64, 2, 1, 3)
    figures = {"otr": steps(1.0), "trl-nll": steps(1.0)}
    check_equal_work(figures, case)
    other = [step | {"loss": 2.1} for step in steps(1.0)]
    with pytest.raises(RuntimeError, match="nll"):
        check_equal_work(figures | {"trl-nll": other}, case)
    with pytest.raises(RuntimeError, match="leaves tokens out"):
        check_equal_work(figures | {"trl-nll": steps(1.0, fed=99)}, case)


def test_rows_are_the_same_each_time() -> None:
    case = Case("tiny", 64, 4, 2, 3)
    first, second = make_rows(case), make_rows(case)
    assert first["input_ids"].shape == (12, 64)
    assert all((first[name] == second[name]).all() for name in first)
