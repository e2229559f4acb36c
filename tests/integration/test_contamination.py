"""Overlap of corpora on disk with benchmarks, as a job of Ray Data."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from evals import tasks
from otr.config import DataConfig
from pipelines.config.prepared import prepare
from pipelines.config.presets import builtin
from pipelines.stages import contamination

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def in_ray(ray_cluster: None) -> None:
    """Run every test in a Ray cluster."""


def test_the_built_in_target_train_is_in_the_corpus_and_code_is_not(tmp_path: Path) -> None:
    """target-train consists of training records; it measures memorization."""
    run = prepare(builtin(), tmp_path / "world")
    found = contamination.check(run.config.train.data, run.benchmarks, tmp_path)
    assert found["target-train"].share == 1
    assert found["retained-code"].share == found["retained-reasoning"].share == 0
    assert found["target-heldout"].share < 0.2, "some stories end alike"
    assert json.loads((tmp_path / "contamination.json").read_text())["rows"] == 6000


def test_published_items_are_found_in_every_form_of_a_corpus(
    tmp_path: Path, benchmark_dir: Path
) -> None:
    gsm8k = tasks.load("gsm8k", benchmark_dir, max_items=50)
    texts = [item.prompt for item in gsm8k.items]
    lines = [
        *({"prompt": f"Some sums.\n{text.upper()}", "completion": "7"} for text in texts[:2]),
        {"prompt": texts[0], "completion": "again"},
        {"prompt": " ".join(texts[2].split()[:9]), "completion": "too little of it"},
    ]
    jsonl = tmp_path / "a.jsonl"
    jsonl.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{broken\n")
    talks = [
        {"messages": [{"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", t))]}
        for t in texts[10:12]
    ]
    pyarrow.parquet.write_table(pa.Table.from_pylist(talks), tmp_path / "b.parquet")
    (tmp_path / "c.jsonl.gz").write_bytes(b"no gzip")
    paths = tuple(str(tmp_path / name) for name in ("a.jsonl", "b.parquet", "c.jsonl.gz"))
    overlap = contamination.check(DataConfig(paths), [gsm8k], tmp_path)["gsm8k"]
    ids = [item.id for item in gsm8k.items]
    assert overlap.hits == {ids[0]: 2, ids[1]: 1, ids[10]: 1, ids[11]: 1}
    assert json.loads((tmp_path / "contamination.json").read_text())["rows"] == 7


def test_columns_are_those_that_are_trained_on(tmp_path: Path, benchmark_dir: Path) -> None:
    gsm8k = tasks.load("gsm8k", benchmark_dir, max_items=5)
    row = {"question": gsm8k.items[0].prompt, "solution": "7", "note": gsm8k.items[1].prompt}
    corpus = tmp_path / "a.jsonl"
    corpus.write_text(json.dumps(row) + "\n")
    data = DataConfig((str(corpus),), columns={"prompt": "question", "completion": "solution"})
    overlap = contamination.check(data, [gsm8k], tmp_path)["gsm8k"]
    assert list(overlap.hits) == [gsm8k.items[0].id]
