"""Tokens are added to the vocabulary; their embeddings begin as the mean of the others."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from otr import LoraConfig, ModelConfig, Objective, load_model, load_tokenizer
from otr.data import tokenize
from otr.loop.checkpoint import Snapshot
from otr.loop.identity import identity
from otr.loop.loop import train
from otr.models.load import empty_model
from otr.models.tokenizer import added_tokens
from tests.assets.tiny import make_tiny_model
from tests.otr.runs import batches, config

TOKENS = ["<tool>", "ångström", "two words"]


@pytest.fixture
def model(tmp_path: Path) -> ModelConfig:
    (tmp_path / "tokens.txt").write_text("\n".join(TOKENS))
    path = make_tiny_model(tmp_path / "model")
    return ModelConfig(str(path), add_tokens=str(tmp_path / "tokens.txt"))


def padded(model: ModelConfig, rows: int) -> None:
    whole = load_model(replace(model, add_tokens=""))
    whole.resize_token_embeddings(rows, mean_resizing=False)
    whole.save_pretrained(model.path)


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_the_mean_and_the_others_stay(
    tied: bool, model: ModelConfig, tmp_path: Path
) -> None:
    model = replace(model, path=str(make_tiny_model(tmp_path / "one", tied=tied)))
    before = load_model(replace(model, add_tokens=""))
    after, tokenizer = load_model(model), load_tokenizer(model)
    known, old = len(tokenizer) - 3, before.get_input_embeddings().weight
    assert (known, len(after.get_input_embeddings().weight)) == (259, 262)
    assert after.config.vocab_size == 262
    for layer in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(before, layer)().weight, getattr(after, layer)().weight
        assert torch.equal(new[:known], old)
        torch.testing.assert_close(new[known:], old.mean(0).expand(3, -1))
    assert tied == (after.get_input_embeddings().weight is after.get_output_embeddings().weight)
    shapes = {n: p.shape for n, p in after.named_parameters()}
    assert {n: p.shape for n, p in empty_model(model).named_parameters()} == shapes
    ids = tokenizer("a <tool> of two words")["input_ids"]
    assert {known, known + 2} <= set(ids)
    assert tokenizer.decode(ids) == "a <tool> of two words"


@pytest.mark.parametrize(("rows", "wanted"), [(320, 320), (261, 262), (256 + 64, 320)])
def test_padding_is_used_up_first(rows: int, wanted: int, model: ModelConfig) -> None:
    padded(model, rows)
    after = load_model(model)
    weight = after.get_input_embeddings().weight
    assert len(weight) == wanted
    torch.testing.assert_close(weight[259:262], weight[:259].mean(0).expand(3, -1))


def test_a_padded_vocabulary_stays_padded(model: ModelConfig, tmp_path: Path) -> None:
    padded(model, 320)
    (tmp_path / "tokens.txt").write_text("".join(f"<{n}>\n" for n in range(62)))
    assert len(load_model(model).get_input_embeddings().weight) == 384


def test_a_run_trains_them_and_resumes(model: ModelConfig, tmp_path: Path) -> None:
    run = replace(config(Path(model.path), Objective("sft"), 2, checkpoint_interval=1), model=model)
    tokenizer = load_tokenizer(model)
    record = {"prompt": "call", "completion": "<tool>two words"}
    [example] = tokenize([record], tokenizer, columns={}, sequence_length=48).examples
    assert {259, 261} <= set(example.ids)
    some = [{k: v.clone() for k, v in batch.items()} for batch in batches(2)]
    for batch in some:
        batch["input_ids"][0, 1:3] = torch.tensor([259, 261])

    def report(_: object, snapshot: Snapshot | None) -> None:
        if snapshot is not None:
            snapshot.write(tmp_path / str(snapshot.step), tokenizer)

    train(load_model(model), some, run, report)
    saved = load_model(ModelConfig(str(tmp_path / "2"))).get_input_embeddings().weight
    again = load_model(replace(model, path=str(tmp_path / "1")))  # as a run resumes
    train(again, some[1:], run, report, resume_from=tmp_path / "1")
    assert torch.equal(again.get_input_embeddings().weight, saved)
    start = load_model(model).get_input_embeddings().weight
    assert not torch.equal(saved[259], start[259])


@pytest.mark.parametrize(
    ("text", "message"),
    [("a\n\nb\n", "line 2 is empty"), ("a\nb\na\n", "'a' occurs twice: leave one out")],
)
def test_a_list_that_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokens.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        added_tokens(str(tmp_path / "tokens.txt"))


def test_what_does_not_go_with_new_tokens(model: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.txt' can't be read"):
        load_tokenizer(replace(model, add_tokens="nowhere.txt"))
    run = config(Path(model.path), Objective("sft"), 1)
    with pytest.raises(ValueError, match=r"model.add_tokens with LoRA: .*: leave one of them out"):
        replace(run, model=model, lora=LoraConfig(rank=2))
    first = identity(replace(run, model=model), [])
    (tmp_path / "tokens.txt").write_text("<other>")
    assert identity(replace(run, model=model), []) != first
    assert json.dumps(first)
