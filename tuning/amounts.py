"""Amounts of resources, compared without the errors of floating point."""

ROUNDING = 1e-6
"""Amounts that differ by less are equal: in floating point, (1 - 0.4) / 0.2 is below 3."""


def is_enough(available: float, needed: float) -> bool:
    """Return whether an amount holds another one."""
    return available >= needed - ROUNDING


def count_fitting(available: float, each: float) -> int:
    """Return how many shares of `each` an amount holds."""
    return int(available / each + ROUNDING)
