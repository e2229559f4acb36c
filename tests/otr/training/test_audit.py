"""Tests of the audit of rejected records."""

import json

import pytest

from otr.data import RejectedRecord, Tokenized
from otr.training.audit import Audit, batch_audit
from otr.training.corpus import Text
from otr.training.sources import SourceChunk


def checked(cause: str) -> str:
    audit = Audit(0.0)
    chunk = SourceChunk("parquet", "data.parquet")
    texts = [Text(b"", chunk, number) for number in (1, 2)]
    done = Tokenized(rejected=[RejectedRecord({"prompt": "a"}, cause, "3834 tokens", number=1)])
    audit.add([batch_audit(texts, done)])
    with pytest.raises(ValueError, match="1 of 2 records") as error:
        audit.check()
    return str(error.value)


def test_the_option_that_admits_longer_records_is_named() -> None:
    remedy = "(1 over-long: raise --train.data.sequence-length, or give --over-long)"
    assert remedy in checked("over-long")
    assert "sequence-length" not in checked("broken")
    first = "0% (--train.data.max-rejected); the first: data.parquet, row 2, broken, 3834 tokens"
    assert first in checked("broken")


def test_the_first_rejected_record_is_shown() -> None:
    assert json.dumps({"prompt": "a"}) in checked("broken")
