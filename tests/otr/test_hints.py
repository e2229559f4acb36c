"""What messages say about a name that does not exist."""

import pytest

from otr.hints import counted, did_you_mean, key_hint

ARMS = ("sft", "dft", "otr-k16", "otr-k256")


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("stf", "did you mean 'sft'?"),
        ("OTR-K16", "did you mean 'otr-k16'?"),
        ("otr", "did you mean 'otr-k16' or 'otr-k256'?"),
        ("lion", "use one of 'sft', 'dft', 'otr-k16', 'otr-k256'"),
        ("", "use one of 'sft', 'dft', 'otr-k16', 'otr-k256'"),
    ],
)
def test_a_hint_names_what_is_near_or_all(word: str, hint: str) -> None:
    assert did_you_mean(word, ARMS) == hint


def test_a_long_list_of_names_is_cut() -> None:
    assert did_you_mean("x", [f"name-{i}" for i in range(30)]).endswith("... (30 in all)")
    assert did_you_mean("x", []) == "there is none"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_stps", "max_steps"),
        ("lr", "optim.lr"),
        ("learning_rate", "optim.lr"),
        ("K", "objective.num_samples"),
        ("warmup-steps", "optim.warmup_steps"),
        ("dtyp", "dtype"),
    ],
)
def test_a_key_is_known_elsewhere_and_by_other_names(name: str, hint: str) -> None:
    keys = ["max_steps", "dtype", "optim", "optim.lr", "optim.warmup_steps"]
    known = [*keys, "objective.num_samples", "engine.dtype"]
    assert key_hint(name, ["max_steps", "dtype", "optim"], known) == f"did you mean {hint!r}?"


def test_one_thing_is_singular() -> None:
    assert [counted(n, "trial") for n in (0, 1, 2)] == ["0 trials", "1 trial", "2 trials"]
