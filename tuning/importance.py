"""How much each searched setting matters in an arm: fANOVA (Hutter et al., 2014), from Optuna."""

import random
from collections.abc import Mapping, Sequence
from statistics import quantiles
from typing import Any

import optuna

from tuning.domains import Domain
from tuning.samplers import distribution_of

FEWEST = 8
"""Fewest finished trials of an arm from which the importance is computed."""
RESAMPLES = 20
_TREES = 8


def importance(
    domains: Mapping[str, Domain], points: Sequence[tuple[Mapping[str, Any], float]]
) -> dict[str, list[float]]:
    """Return the share of the metric's variance that each setting explains: [value, low, high].

    The ends are the 5 % and 95 % quantiles over resampled trials (bootstrap).

    Args:
        domains: what was searched in the arm.
        points: values of the settings, and the metric, of each finished trial.

    Returns:
        Shares by setting; empty with fewer than two settings or FEWEST trials, or if the metric
        never changed.
    """
    if len(domains) < 2 or len(points) < FEWEST or len({value for _, value in points}) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    spaces = {key: distribution_of(domain) for key, domain in domains.items()}
    trials = [
        optuna.trial.create_trial(
            params={key: values[key] for key in spaces}, distributions=spaces, value=value
        )
        for values, value in points
    ]
    draw = random.Random(0)
    shares = _shares(trials, seed=0)
    resampled = [_shares(draw.choices(trials, k=len(trials)), seed=i) for i in range(RESAMPLES)]
    found = {}
    for key in sorted(shares, key=lambda key: -shares[key]):
        cuts = quantiles([each[key] for each in resampled if each] or [shares[key]] * 2, n=20)
        found[key] = [shares[key], cuts[0], cuts[-1]]
    return found


def _shares(trials: Sequence[optuna.trial.FrozenTrial], seed: int) -> dict[str, float]:
    """Return the importance of each setting; empty if the trials do not differ."""
    if len({trial.value for trial in trials}) < 2:
        return {}
    study = optuna.create_study()
    study.add_trials(trials)
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=_TREES, seed=seed)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(value) for key, value in found.items()}
