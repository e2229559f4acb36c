"""The values that a search tries, as they are written, and what a search may cost."""

import pytest

from tuning.budget import Budget, over, parse_budget
from tuning.domains import parse, parse_space
from tuning.samplers import distribution_of
from tuning.settings import SearchSettings, lower_is_better


@pytest.mark.parametrize(
    ("text", "listed", "ends"),
    [
        ("choice(4, 16, 64)", [4, 16, 64], [4, 16, 64]),
        ("choice('cosine', 'linear')", ["cosine", "linear"], ["cosine", "linear"]),
        ("choice(1.2345678e-4, 0.001)", [1.2345678e-4, 0.001], [1.2345678e-4, 0.001]),
        ("uniform(-1, 0)", None, [-1, 0]),
        (" loguniform(1e-6,1e-4) ", None, [1e-6, 1e-4]),
        ("quniform(0, 1, 0.25)", [0, 0.25, 0.5, 0.75, 1.0], [0, 1]),
        ("quniform(1, 8, 3)", [1, 4, 7], [1, 8]),
        ("randint(1, 3)", [1, 2, 3], [1, 3]),
    ],
)
def test_a_domain_is_read(text: str, listed: list | None, ends: list) -> None:
    domain = parse("optim.lr", text)
    assert domain.listed() == listed and domain.ends() == ends
    assert parse("optim.lr", domain.text) == domain, "what is shown can be given"
    space = distribution_of(domain)
    for value in listed or ends:
        assert space._contains(space.to_internal_repr(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unifrm(0, 1)", "unknown function 'unifrm': did you mean 'uniform'"),
        ("exit()", "unknown function 'exit'"),
        ("__import__('os').system('true')", r"is not understood: write choice\("),
        ("choice(open('x'))", "use numbers, True, False, or strings in quotes"),
        ("choice(cosine, linear)", r"strings in quotes, as in choice\('cosine', 'linear'\)"),
        ("0.1", "is not understood"),
        ("uniform(0, 1", "can't be read"),
        ("choice()", "two or more values"),
        ("choice(4)", "give a single one as an option"),
        ("choice(4, 4)", "the value 4 occurs twice"),
        ("choice([1], [2])", "use numbers, True, False"),
        ("choice([4, 16])", "write the values without brackets"),
        ("choice(1e999, 1)", "finite"),
        ("uniform(1)", "has the arguments low, high"),
        ("uniform(2, 1)", "low 2 is not below high 1"),
        ("uniform(1, 1)", "low 1 is not below high 1"),
        ("uniform(0, 1e999)", "finite"),
        ("loguniform(0, 1)", "low 0 has no logarithm"),
        ("randint(1, 2.5)", "whole numbers"),
        ("quniform(0, 1, 2)", "step 2 does not fit"),
    ],
)
def test_what_is_no_domain_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        parse("optim.lr", text)
    assert f"optim.lr={text}" in str(raised.value)


def test_a_setting_has_one_domain_under_either_name() -> None:
    assert parse_space({"train.optim.lr": "uniform(0,1)"}).keys() == {"optim.lr"}
    with pytest.raises(ValueError, match=r"names optim\.lr twice"):
        parse_space({"train.optim.lr": "uniform(0,1)", "optim.lr": "uniform(0,2)"})


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("", Budget()),
        ("40 trials", Budget(trials=40)),
        ("6 h", Budget(seconds=21600)),
        ("90min", Budget(seconds=5400)),
        ("200M tokens", Budget(tokens=2e8)),
        ("1.5 B tokens", Budget(tokens=1.5e9)),
        ("2e8 tokens", Budget(tokens=2e8)),
        ("40 trials, 6 h", Budget(trials=40, seconds=21600)),
    ],
)
def test_a_budget_is_read(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("40", "'40' is not understood"),
        ("4 apples", "'4 apples' is not understood: use trials"),
        ("0 trials", "'0 trials' is not a whole number > 0"),
        ("2.5 trials", "'2.5 trials' is not a whole number > 0"),
        ("1e999 trials", "'1e999 trials' is not a whole number > 0"),
        ("-1 h", "is not understood"),
        ("1 h, 2 h", "limits the time twice"),
    ],
)
def test_what_is_no_budget_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_budget(text)


def test_a_cost_is_compared_with_each_limit() -> None:
    assert over(Budget(10, 100.0, 5.0), Budget(10, 101.0, 5.0)) == ["seconds"]
    assert over(Budget(seconds=100.0), Budget(99, None, 9.0)) == []


def test_lower_is_better_for_losses_and_distances() -> None:
    assert all(map(lower_is_better, ("loss", "val_nll", "val_kl_to_base", "kl/target")))
    assert not any(map(lower_is_better, ("val_exact", "answers", "val_token_accuracy", "lossless")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": ""}, "a search needs a budget"),
        ({"sampler": "grid", "budget": ""}, "has no list of values"),
        ({"sampler": "tpee"}, "use 'tpe', 'random' or 'grid'"),
        ({"grace_steps": 0}, "search.grace_steps is 0: use at least 1"),
        ({"max_concurrent": -1}, "search.max_concurrent is -1: use 0"),
        ({"retain": "val_nll"}, "the metric itself"),
        ({"retain": "val_kl", "scheduler": "asha"}, "stop trials by search.metric alone"),
        ({"space": {}}, "nothing is searched"),
        ({"space": {"optim.lr": "choice(1,2)"}, "sampler": "grid"}, "leave out the number"),
    ],
)
def test_settings_that_exclude_each_other(changes: dict, message: str) -> None:
    given = {"metric": "val_nll", "space": {"optim.lr": "uniform(1,2)"}, "budget": "4 trials"}
    with pytest.raises(ValueError, match=message):
        SearchSettings(**{**given, **changes})
