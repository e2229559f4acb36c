"""Tests of the audit of rejected records."""

import json

import pytest

from otr.training.audit import Audit, batch_audit


def checked(cause: str) -> str:
    audit = Audit(0.0)
    audit.add([batch_audit(2, [({"prompt": "a"}, cause, "3834 tokens")])])
    with pytest.raises(ValueError, match="1 of 2 records") as error:
        audit.check()
    return str(error.value)


def test_the_option_that_admits_longer_records_is_named() -> None:
    assert "(1 over-long: raise --train.data.sequence-length)" in checked("over-long")
    assert "sequence-length" not in checked("broken")
    assert "0% (--train.data.max-rejected); the first: broken, 3834 tokens" in checked("broken")


def test_the_first_rejected_record_is_shown() -> None:
    assert json.dumps({"prompt": "a"}) in checked("broken")
