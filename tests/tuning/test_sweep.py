"""What becomes of the reports of a trial."""

from types import SimpleNamespace
from typing import Any

import pandas

from tuning.space import Trial
from tuning.sweep import outcome_of


def test_repeated_steps_count_once_in_the_history_and_twice_in_the_cost() -> None:
    rows: list[dict[str, Any]] = [
        {"step": 1, "nll": 3.0, "tokens": 10, "time_this_iter_s": 5.0},
        {"step": 2, "nll": 2.0, "tokens": 10, "time_this_iter_s": 1.0},
        {"step": 2, "nll": 2.0, "tokens": 10, "time_this_iter_s": 4.0},  # after a restart
        {"step": 3, "val_nll": 2.5, "time_this_iter_s": 1.0},
    ]
    result: Any = SimpleNamespace(metrics_dataframe=pandas.DataFrame(rows), error=None)
    outcome = outcome_of(Trial("sft"), result, "nowhere", max_steps=3)
    assert (outcome.status, outcome.tokens, outcome.seconds) == ("finished", 30, 11)
    assert [row["step"] for row in outcome.history] == [1, 2, 3]
    assert outcome.history[-1] == {"step": 3, "val_nll": 2.5}
    rows[-1] |= {"ended_early": 1}
    for reports, steps, status in ((rows, 9, "finished"), (rows[:-1], 3, "stopped")):
        result.metrics_dataframe = pandas.DataFrame(reports)
        assert outcome_of(Trial("sft"), result, "nowhere", max_steps=steps).status == status
    result.metrics_dataframe = None
    assert (outcome_of(Trial("sft"), result, "nowhere", max_steps=3).seconds) == 0
