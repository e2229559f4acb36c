"""Intervals, paired differences and pass@k against closed forms and worked examples."""

from itertools import combinations

import numpy as np
import pytest

from evals import statistics
from evals.statistics import avg_at_n, interval, paired, pass_at_k, wilson


def test_interval_of_single_verdicts_is_near_the_normal_one() -> None:
    verdicts = np.arange(1000) % 10 < 3
    mean, low, high = interval(verdicts)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert mean == pytest.approx(0.3)
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.002)


def test_samples_of_one_item_are_not_counted_as_evidence_of_their_own() -> None:
    verdicts = np.arange(100) < 50
    once = interval(verdicts)
    sixteen_times = interval(np.repeat(verdicts[:, None], 16, axis=1))
    assert sixteen_times == once


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_wrong_and_all_right_have_wilson_intervals(value: float) -> None:
    mean, low, high = interval(np.full((20, 4), value))
    assert mean == value
    assert high - low == pytest.approx(0.1611, abs=1e-3)  # z^2 / (n + z^2) at n = 20
    assert (low if value == 0 else 1 - high) == 0


def test_wilson_against_a_worked_example() -> None:
    # Newcombe (1998), table I: 81 of 263
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-4)


def test_interval_covers_the_truth_19_times_in_20(monkeypatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        ability = generator.beta(2, 2, size=60)  # items differ, so samples of one are alike
        low, high = interval(generator.random((60, 4)) < ability[:, None], seed=seed)[1:]
        covered += low <= 0.5 <= high
    assert covered >= 88


def test_paired_sees_what_unpaired_intervals_hide() -> None:
    generator = np.random.default_rng(0)
    hard = generator.random(500) < 0.5
    better = hard | (np.arange(500) % 20 == 0)
    difference, low, high, p = paired(better, hard)
    assert difference == pytest.approx((better & ~hard).mean())
    assert 0 < low < difference < high
    assert p < 0.001
    assert interval(hard).high > interval(better).low
    assert paired(hard, better).difference == -difference


def test_paired_p_is_that_of_mcnemars_exact_test() -> None:
    # 8 items only the first gets right, 2 only the second: two-sided binomial p = 0.109375
    first = np.array([1] * 8 + [0] * 2 + [1] * 90)
    second = np.array([0] * 8 + [1] * 2 + [1] * 90)
    assert paired(first, second).p == pytest.approx(0.109375, abs=0.01)


def test_paired_of_equal_verdicts_is_no_proof_of_equality() -> None:
    verdicts = np.arange(50) % 2
    difference, low, high, p = paired(verdicts, verdicts)
    assert (difference, p) == (0, 1)
    assert low == -high < 0


def test_paired_takes_different_numbers_of_samples() -> None:
    assert paired(np.ones((5, 4)), np.zeros((5, 1))).difference == 1


def test_pass_at_k_equals_the_count_over_all_subsets() -> None:
    verdicts = np.array([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]])
    for k in range(1, 6):
        counted = [np.mean([max(s) for s in combinations(row, k)]) for row in verdicts]
        assert pass_at_k(verdicts, k) == pytest.approx(counted)
    assert pass_at_k(verdicts, 1) == pytest.approx(avg_at_n(verdicts))


@pytest.mark.parametrize(
    "call",
    [
        lambda: interval(np.zeros((0, 3))),
        lambda: interval([2.0]),
        lambda: interval([float("nan")]),
        lambda: paired([1, 0], [1]),
        lambda: pass_at_k(np.ones((2, 3)), 4),
        lambda: pass_at_k(np.ones((2, 3)), 0),
    ],
)
def test_input_that_makes_no_sense_is_refused(call) -> None:
    with pytest.raises(ValueError):
        call()
