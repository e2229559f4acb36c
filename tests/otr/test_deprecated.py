"""Old names work until version 0.3, with a DeprecationWarning."""

import sys
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest

from otr import DataConfig, ModelConfig, TrainConfig
from otr._deprecated import MOVED
from otr.config import RENAMED
from otr.data import pack, tokenize
from tests.assets.tiny import byte_tokenizer

CONFIG = TrainConfig(ModelConfig("model"), DataConfig(("data",)), global_batch_size=192)
RENAMED_FIELDS = {old: new for old, new in RENAMED.items() if "." not in old}


@pytest.mark.parametrize("old", MOVED)
def test_an_old_module_path_is_the_module_at_its_new_path(
    old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=f"{old} has moved to {MOVED[old]}"):
        module = import_module(old)
    assert module is import_module(MOVED[old])
    assert module.__name__ == module.__spec__.name == MOVED[old]


def test_names_of_old_modules_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for old in ("otr.objective", "otr.linear"):
        monkeypatch.delitem(sys.modules, old, raising=False)
    from otr.linear import LinearLoss
    from otr.objective import Objective

    from otr.loop import train  # was a module, is a package
    from otr.loss import token_loss  # was a module, is a package

    assert Objective is import_module("otr.loss.objective").Objective
    assert LinearLoss is import_module("otr.loss.fused").LinearLoss
    assert callable(train) and callable(token_loss)


def test_every_new_path_exists_and_no_old_one_does() -> None:
    for old, new in MOVED.items():
        assert find_spec(new) is not None
        assert find_spec(old).loader is not None, "a package without a loader shadows the alias"


@pytest.mark.parametrize("old", RENAMED_FIELDS)
def test_an_old_option_of_a_run_sets_the_new_one(old: str) -> None:
    new = RENAMED_FIELDS[old]
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        assert getattr(replace(CONFIG, **{old: 96}), new) == 96


def test_row_length_is_the_sequence_length() -> None:
    with pytest.warns(DeprecationWarning, match="row_length is now sequence_length"):
        assert DataConfig(("data",), row_length=64).sequence_length == 64
    example = ([1] * 8, [True] * 8)
    with pytest.warns(DeprecationWarning, match="row_length is now sequence_length"):
        packed = pack([example], row_length=16)
    assert np.array_equal(packed["input_ids"], pack([example], 16)["input_ids"])
    tokenizer, records = byte_tokenizer(), [{"prompt": "a", "completion": "b"}]
    with pytest.warns(DeprecationWarning, match="row_length is now sequence_length"):
        old = tokenize(records, tokenizer, columns={}, row_length=64)
    assert old == tokenize(records, tokenizer, columns={}, sequence_length=64)


def test_new_names_do_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    replace(CONFIG, global_batch_size=64)
    import_module("otr.loss.objective")
    assert not [warning for warning in recwarn if warning.category is DeprecationWarning]


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("otr.training.corpus", "inspect", "inspect_corpus"),
        ("otr.training.sources", "pieces", "list_chunks"),
        ("otr.training.sources", "rows", "read_records"),
    ],
)
def test_an_old_name_is_the_new_one(module: str, old: str, new: str) -> None:
    found = import_module(module)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        assert getattr(found, old) is getattr(found, new)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        found.nothing  # noqa: B018
