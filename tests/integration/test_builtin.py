"""The built-in base model and the script that made it."""

import json
from pathlib import Path

import pytest
import torch

import pipelines.builtin.pretrain as script
from otr import ModelConfig, Objective, load_model, load_tokenizer
from otr.data import pack, tokenize
from otr.loop.evaluate import evaluate
from otr.loop.policy import Policy
from pipelines.builtin.world import items

pytestmark = pytest.mark.integration

BASE = Path(script.__file__).parent / "base"


@pytest.fixture(scope="module")
def base() -> tuple:
    config = ModelConfig(str(BASE))
    tokenizer = load_tokenizer(config)
    return load_model(config, tokenizer), tokenizer


def share_exact(base: tuple, skill: str, split: str) -> float:
    model, tokenizer = base
    rows = [vars(item) for item in items(skill, split, 100, seed=3)]
    done = tokenize(rows, tokenizer, columns={}, sequence_length=256)
    packed = {k: torch.from_numpy(v) for k, v in pack(done.examples, 256).items()}
    return evaluate(Policy(model, Objective("sft")), [packed])["val_exact"]


def test_it_is_small(base: tuple) -> None:
    assert 1e6 <= base[0].num_parameters() <= 4e6
    assert (BASE / "model.safetensors").stat().st_size <= 8 * 2**20


def test_it_solves_the_target_sometimes(base: tuple) -> None:
    assert 0.1 < share_exact(base, script.TARGET, "heldout") < 0.5
    assert share_exact(base, script.TARGET, "harder") < 0.1


@pytest.mark.parametrize("skill", ["sum", "difference", "function", "boolean", "sorting", "dates"])
def test_it_has_the_skills_that_training_may_lose(base: tuple, skill: str) -> None:
    assert share_exact(base, skill, "heldout") > 0.8


def test_its_training_log_is_complete() -> None:
    log = [json.loads(line) for line in (BASE / "pretrain.jsonl").read_text().splitlines()]
    settings = script.Pretrain(Path("unused"))
    last = {entry["stage"]: entry["step"] for entry in log}
    assert last == {0: settings.steps, 1: settings.taste_steps}


def test_the_script_makes_a_model_that_loads(tmp_path: Path) -> None:
    output = tmp_path / "made"
    script.pretrain(script.Pretrain(output, steps=3, taste_steps=2, global_batch_size=2))
    config = ModelConfig(str(output))
    model = load_model(config, load_tokenizer(config))
    assert model.config.tie_word_embeddings
    log = [json.loads(line) for line in (output / "pretrain.jsonl").read_text().splitlines()]
    assert {entry["stage"] for entry in log} == {0, 1}
    with pytest.raises(ValueError, match="exists: name another"):
        script.pretrain(script.Pretrain(output))
