"""Amounts that floating point makes a little smaller than they are."""

from tuning.amounts import count_fitting, is_enough


def test_what_fills_an_amount_exactly_fits() -> None:
    assert is_enough(1 - 0.4 - 0.2 - 0.2, 0.2) and not is_enough(0.2, 0.3)
    assert count_fitting(1 - 0.4, 0.2) == 3 and count_fitting(3, 3 * 0.2) == 5
    assert count_fitting(0.5, 0.2) == 2 and count_fitting(0, 1) == 0
