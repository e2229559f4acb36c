"""Means, intervals, paired tests and pass@k over the verdicts of a benchmark."""

from evals.statistics.estimates import (
    Difference,
    Interval,
    holm,
    interval,
    interval_over_seeds,
    majority,
    multi_sample_metrics,
    paired,
    paired_seeds,
    pass_at_k,
    ratio_values,
    standard_error,
)
from evals.statistics.proportions import score_interval, wilson

__all__ = [
    "Difference",
    "Interval",
    "holm",
    "interval",
    "interval_over_seeds",
    "majority",
    "multi_sample_metrics",
    "paired",
    "paired_seeds",
    "pass_at_k",
    "ratio_values",
    "score_interval",
    "standard_error",
    "wilson",
]
