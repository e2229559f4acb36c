"""Names of benchmarks with options."""

import json
from pathlib import Path

import pytest

from evals import tasks
from evals.jobs import make_jobs
from evals.settings import EngineSettings
from evals.tasks import _options
from tests.assets.tiny import make_tiny_model


def write(path: Path) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"prompt": "p", "answer": "a"}) + "\n")
    return f"file:{path}"


@pytest.mark.parametrize(
    ("name", "address", "suffix"),
    [
        ("gsm8k", "gsm8k", ""),
        ("gsm8k@16", "gsm8k", "@16"),
        ("gsm8k:max_tokens=512", "gsm8k", ":max_tokens=512"),
        (
            "gsm8k@16:top_p=0.950,temperature=0.7,max_tokens=2048",
            "gsm8k",
            "@16:max_tokens=2048,temperature=0.7,top_p=0.95",
        ),
        ("gsm8k-base:seed=3", "gsm8k-base", ":seed=3"),
        ("gsm8k:thinking=True", "gsm8k", ":thinking=true"),
        ("gsm8k:items=1-200,seed=3", "gsm8k", ":seed=3,items=1-200"),
        ("file:a.jsonl#b@2:max_tokens=9", "file:a.jsonl#b", "@2:max_tokens=9"),
        ("file:a:b=1/c.jsonl", "file:a:b=1/c.jsonl", ""),
        ("class:m:C:max_tokens=9", "class:m:C", ":max_tokens=9"),
        ("class:m:C", "class:m:C", ""),
    ],
)
def test_parts_of_a_name(name: str, address: str, suffix: str) -> None:
    parts = _options.parse(name)
    assert (parts.address, parts.suffix) == (address, suffix)
    assert _options.parse(address + suffix) == parts


def test_a_file_with_the_form_of_options_is_a_file(tmp_path: Path) -> None:
    name = write(tmp_path / "mine:max_tokens=3")
    assert tasks.load(name).decoding.max_tokens == 512
    assert tasks.load(f"{name}:max_tokens=4").decoding.max_tokens == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("max_token=9", 'unknown option "max_token"; did you mean "max_tokens"'),
        ("max_tokens=many", 'max_tokens is "many"; expected an integer'),
        ("temperature=", 'temperature is ""; expected a number'),
        ("thinking=yes", 'thinking is "yes"; expected true or false'),
        ("seed=1,seed=2", '"seed" twice'),
        ("items=2-1", 'items is "2-1"; expected FIRST-LAST in this order, as in 1-200'),
        ("items=0-1", 'items is "0-1"; expected FIRST-LAST'),
        ("items=1-2", "the benchmark has 1 items: give items=FIRST-LAST up to 1"),
        ("num_samples=4", 'as "@4"'),
        ("max_tokens=0", r'"mine:max_tokens=0": Decoding\.max_tokens is 0: use at least 1'),
        ("top_p=2", "top_p is 2.0: use more than 0, up to 1"),
        ("temperature=inf", "temperature is inf: use a finite number >= 0"),
    ],
)
def test_options_that_are_refused(tmp_path: Path, options: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.load(f"{write(tmp_path / 'mine.jsonl')}:{options}")


def test_options_change_decoding_name_and_identity(tmp_path: Path) -> None:
    model, file = make_tiny_model(tmp_path / "model"), write(tmp_path / "mine.jsonl")
    plain = tasks.load(file)
    other = tasks.load(f"{file}@2:temperature=0.5")
    assert (other.name, other.metric) == ("mine@2:temperature=0.5", "avg@2")
    assert (other.decoding.num_samples, other.decoding.temperature) == (2, 0.5)
    assert (other.decoding.top_p, other.decoding.max_tokens) == (1.0, 512)
    settings = EngineSettings(dtype="float32", max_model_len=1024)
    first, second = make_jobs(model, [plain, other], settings)
    assert first.identity != second.identity
    assert "thinking" not in first.identity, "stored scores of earlier versions have no such key"


def test_items_are_counted_from_one_and_thinned_after(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    rows = [{"id": str(n), "prompt": f"p{n}", "answer": "a"} for n in range(1, 10)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    part = tasks.load(f"file:{file}:items=4-9")
    assert part.name == "mine:items=4-9" and [i.id for i in part.items] == [*"456789"]
    assert part.notes[0] == "items 4 to 9 of 9"
    few = tasks.load(f"file:{file}:items=4-9", max_items=3)
    assert [item.id for item in few.items] == ["4", "6", "8"]


def test_prompts_for_base_models_have_no_thinking(benchmark_dir: Path) -> None:
    with pytest.raises(ValueError, match="prompts for base models have none"):
        tasks.load("gsm8k-base:thinking=true", benchmark_dir)
