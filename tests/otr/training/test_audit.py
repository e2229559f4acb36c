"""Tests of the audit of rejected records."""

import json
from pathlib import Path

import pytest

from otr import DataConfig, ModelConfig
from otr.data import RejectedRecord, Tokenized
from otr.training.audit import Audit, batch_audit
from otr.training.corpus import Text, inspect_corpus
from otr.training.sources import SourceChunk
from tests.assets.tiny import make_tiny_model


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


def test_half_a_character_in_a_name_is_escaped_wherever_it_is_told(tmp_path: Path) -> None:
    """JSON may have lone surrogates, which no UTF-8 file can."""
    answer = {"role": "assistant", "content": "2"}
    records = [
        {"prompt": "1 + 1?", "completion": "2", "\ud800": 1, "caf\u00e9": 2},
        {"messages": [{"role": "user", "content": "1 + 1?", "a\udfffb": 1}, answer]},
        {"messages": [{"role": "user", "a\udfffb": 1}, answer]},
        {"prompt": "1 + \udc00?", "completion": "2"},
        {"\ud800": "no form"},
    ]
    (rows := tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    data = DataConfig((str(rows),), sequence_length=64, max_rejected=1.0)
    model = ModelConfig(str(make_tiny_model(tmp_path / "model")))
    report = inspect_corpus(data, model)
    assert report.unused == {"\\ud800": 1, "caf\u00e9": 1, "a\\udfffb of user messages": 1}
    assert report.rejected == {"broken": 3}
    with pytest.raises(ValueError, match="3 of 5 records can't be used") as error:
        inspect_corpus(DataConfig((str(rows),), sequence_length=64), model)
    assert str(error.value).encode()


def test_all_that_an_audit_tells_can_be_written() -> None:
    chunk = SourceChunk("json", "da\udcffta.json")
    done = Tokenized(rejected=[RejectedRecord("not \udcff UTF-8", "broken", "why", number=0)])
    audit = Audit(1.0)
    audit.add([batch_audit([Text(b"", chunk, 1)], done)])
    [sample] = audit.samples
    assert sample["row"] == "not \\udcff UTF-8" and "da\\udcffta.json" in sample["place"]
