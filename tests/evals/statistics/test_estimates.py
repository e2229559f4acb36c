"""Intervals, paired differences and pass@k against closed forms and worked examples."""

from itertools import combinations

import numpy as np
import pytest

from evals.statistics import resampling
from evals.statistics.estimates import (
    Interval,
    holm,
    interval,
    interval_over_seeds,
    majority,
    multi_sample_metrics,
    paired,
    paired_seeds,
    pass_at_k,
)
from evals.statistics.proportions import wilson
from evals.statistics.resampling import HARMONIC_FLOOR
from tests.benchmarks import coverage


def test_interval_of_single_verdicts_is_near_the_normal_approximation() -> None:
    verdicts = np.arange(1000) % 10 < 3
    mean, low, high = interval(verdicts)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert mean == pytest.approx(0.3)
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.002)


def test_repeating_the_samples_of_each_item_does_not_narrow_the_interval() -> None:
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


@pytest.mark.parametrize("items", [10, 30, 100])
def test_coverage_of_single_verdicts_by_exact_enumeration(items) -> None:
    rates = np.linspace(0.001, 0.999, 999)
    covered = coverage.of_verdicts(items, rates, interval)
    assert abs(covered.mean() - 0.95) < 0.01
    assert covered.min() >= 0.92


@pytest.mark.parametrize("agreement", [0.5, 2.0, 20.0])
def test_coverage_of_items_with_samples_by_exact_enumeration(agreement) -> None:
    for rate in (0.05, 0.2, 0.5):
        ability = coverage.Ability(rate, agreement)
        assert coverage.of_samples(10, 4, ability) >= 0.92


def test_paired_detects_a_difference_that_unpaired_intervals_hide() -> None:
    generator = np.random.default_rng(0)
    hard = generator.random(500) < 0.5
    better = hard | (np.arange(500) % 20 == 0)
    difference, low, high, p = paired(better, hard)
    assert difference == pytest.approx((better & ~hard).mean())
    assert 0 < low < difference < high
    assert p < 0.001
    assert interval(hard).high > interval(better).low
    assert paired(hard, better).difference == -difference


def test_paired_p_agrees_with_mcnemars_exact_test() -> None:
    # Only the first answers 8 items, only the second 2: two-sided binomial p = 0.109375
    first = np.array([1] * 8 + [0] * 2 + [1] * 90)
    second = np.array([0] * 8 + [1] * 2 + [1] * 90)
    assert paired(first, second).p == pytest.approx(0.109375, abs=0.01)


def test_paired_interval_of_equal_verdicts_still_has_a_width() -> None:
    verdicts = np.arange(50) % 2
    difference, low, high, p = paired(verdicts, verdicts)
    assert (difference, p) == (0, 1)
    assert low == -high < 0


def test_paired_accepts_different_numbers_of_samples() -> None:
    assert paired(np.ones((5, 4)), np.zeros((5, 1))).difference == 1


def test_pass_at_k_equals_the_mean_over_all_subsets() -> None:
    verdicts = np.array([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]])
    for k in range(1, 6):
        counted = [np.mean([max(s) for s in combinations(row, k)]) for row in verdicts]
        assert pass_at_k(verdicts, k) == pytest.approx(counted)
    assert pass_at_k(verdicts, 1) == pytest.approx(verdicts.mean(axis=1))


def test_majority_takes_the_most_votes_and_gives_partial_credit_for_a_tie() -> None:
    verdicts = np.array([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    answers = [
        ["7", "7", "8", "9", ""],  # two votes for 7
        ["7", "8", "8", "9", "9"],  # 8 and 9 have two votes each, both wrong
        ["7", "7", "8", "8", "9"],  # one of the two tied answers is right
        ["", "", "", "", ""],
    ]
    assert list(majority(verdicts, answers)) == [1, 0, 0.5, 0]


def test_multi_sample_metrics_are_pass_at_powers_of_two_and_majority() -> None:
    verdicts = np.array([[1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1]])
    metrics = multi_sample_metrics(verdicts, [["a"] * 6, ["b"] * 6])
    assert list(metrics) == ["pass@1", "pass@2", "pass@4", "pass@6", "maj@6"]
    assert metrics["pass@1"][0] == pytest.approx(verdicts.mean())
    assert metrics["pass@6"][0] == 1 and metrics["maj@6"][0] == pytest.approx((1 / 3 + 1 / 6) / 2)
    assert all(low <= value <= high for value, low, high in metrics.values())
    assert (
        "maj@6" not in multi_sample_metrics(verdicts, None)
        and multi_sample_metrics(verdicts[:, :1], None) == {}
    )


SUBJECTS = ["a"] * 4 + ["b"] * 2
VERDICTS = np.array([1, 1, 1, 0, 0, 1])  # a: 3/4, b: 1/2


def test_harmonic_mean_is_over_subjects_and_resampled_within_them() -> None:
    mean, low, high = interval(VERDICTS, subjects=SUBJECTS)
    assert mean == pytest.approx(2 / (1 / 0.76 + 1 / 0.51))
    assert low < mean < high
    order = [4, 0, 5, 1, 2, 3]  # the order of items does not matter
    mixed = interval(VERDICTS[order], subjects=[SUBJECTS[i] for i in order])
    assert mixed.mean == pytest.approx(mean)
    # All of subject b is right in the first: the difference is between averages over subjects.
    better = paired(VERDICTS | [0, 0, 0, 0, 1, 0], VERDICTS, subjects=SUBJECTS)
    assert better.difference == pytest.approx(2 / (1 / 0.76 + 1 / 1.01) - mean)
    assert better.p == 1  # one item differs, so every swap gives a difference as large


def test_subjects_of_one_or_two_items_still_add_uncertainty() -> None:
    """A plain bootstrap would find none if each subject is all right or all wrong."""
    generator = np.random.default_rng(0)
    for each in (1, 2):
        verdicts = np.repeat(generator.integers(2, size=23), each)
        subjects = [str(n) for n in range(23) for _ in range(each)]
        mean, low, high = interval(verdicts, subjects=subjects)
        assert low <= mean <= high and high - low > 0.05


def test_interval_of_a_harmonic_mean_covers_the_true_value() -> None:
    generator, hit = np.random.default_rng(1), 0
    for _ in range(30):
        rates = generator.beta(0.6, 4, size=23)
        truth = 23 / (1 / (rates + HARMONIC_FLOOR)).sum()
        verdicts = generator.random((23, 200)) < rates[:, None]
        _, low, high = interval(verdicts.ravel(), subjects=[str(n // 200) for n in range(4600)])
        hit += low <= truth <= high
    assert hit >= 25  # of 30, where 92 % is 27.6; a plain bootstrap reaches about 15


def test_two_seeds_without_other_uncertainty_have_a_t_interval_of_one_degree_of_freedom() -> None:
    low, high = interval_over_seeds([Interval(m, m, m) for m in (0.49, 0.51)], 100)[1:]
    assert (low, high) == pytest.approx((0.5 - 12.7062 * 0.01, 0.5 + 12.7062 * 0.01), abs=1e-6)


def test_scatter_between_seeds_widens_the_difference_and_agreement_does_not() -> None:
    generator = np.random.default_rng(0)
    weak = generator.random(200) < 0.5
    strong = weak | (np.arange(200) % 8 == 0)
    one = paired(strong, weak)
    assert one.p < 0.001
    assert paired_seeds([strong] * 2, [weak] * 2) == one
    lucky, unlucky = strong | (np.arange(200) % 5 == 0), strong & (np.arange(200) % 6 != 0)
    scattered = paired_seeds([lucky, unlucky], [weak] * 2)
    assert scattered.p > 0.05 and scattered.low < 0 < scattered.difference
    again = interval_over_seeds([Interval(0.5, 0.4, 0.6)] * 3, 100)
    assert (again.low, again.high) == pytest.approx((0.4, 0.6))


def test_two_equal_arms_differ_significantly_at_most_5_percent_of_the_time(monkeypatch) -> None:
    """Each seed has its own quality, and its own set of items that it answers by chance."""
    monkeypatch.setattr(resampling, "RESAMPLES", 1000)
    generator = np.random.default_rng(0)
    found = 0
    for seed in range(200):
        ability = generator.beta(2, 2, size=60)
        seeds = [
            generator.random(60) < np.clip(ability + generator.normal(0, 0.06), 0, 1)
            for _ in range(4)
        ]
        found += paired_seeds(seeds[:2], seeds[2:], seed=seed).p < 0.05
    assert found <= 16


def test_holm_corrects_for_the_number_of_comparisons() -> None:
    # By hand: 0.01 * 4, 0.03 * 3; then 0.035 * 2 and 0.04 * 1, but not below 0.09.
    assert holm([0.04, 0.01, 0.03, 0.035]) == pytest.approx([0.09, 0.04, 0.09, 0.09])
    assert holm([]) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda: paired_seeds([], [[1, 0]]),
        lambda: interval([1, 0], subjects=["a"]),
        lambda: interval(np.zeros((0, 3))),
        lambda: interval([2.0]),
        lambda: interval([float("nan")]),
        lambda: paired([1, 0], [1]),
        lambda: pass_at_k(np.ones((2, 3)), 4),
        lambda: pass_at_k(np.ones((2, 3)), 0),
    ],
)
def test_invalid_input_is_refused(call) -> None:
    with pytest.raises(ValueError):
        call()
