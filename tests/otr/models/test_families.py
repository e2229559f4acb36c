"""Packed examples are computed as if alone, with any attention and family; gradients too."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from otr import ModelConfig, Objective, load_model
from otr._compat import attention_name
from otr.loop.batch import PackedBatch
from otr.loop.policy import Policy
from otr.models import attention
from otr.models.architecture import max_positions
from otr.models.attention import PACKED
from otr.models.layout import Layout
from otr.models.load import empty_model
from otr.models.parts import head, hidden_states
from otr.models.unpacked import is_unpacked, set_unpacked
from tests.otr.models.families import (
    FAMILIES,
    LONG_ROWS,
    MODELS,
    OWN_ROWS,
    SIZE,
    alone,
    make_family,
    packed_rows,
    toy,
)

KINDS = [(name, tied) for name in FAMILIES for tied in (True, False)]
SFT = Objective("sft")


def slopes(loss: Tensor, model: PreTrainedModel) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def assert_computed_as_alone(config: ModelConfig, attention: str) -> None:
    """Check logits, loss and gradients against each example on its own with eager attention."""
    batch, reference = packed_rows(), load_model(replace(config, attention="eager"))
    wanted, wanted_loss = alone(reference, batch)
    model = load_model(config)
    assert attention_name(model.config) == attention
    found = head(model).logits(
        hidden_states(model, batch["input_ids"], Layout.of(batch["segment_ids"]))
    )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())
    loss = Policy(model, SFT)(PackedBatch.of(batch), 0).loss_sum
    torch.testing.assert_close(loss, wanted_loss)
    wanted_slopes = slopes(wanted_loss, reference)
    for name, slope in slopes(loss, model).items():
        most = wanted_slopes[name].abs().max().item()
        assert most > 0 or "k_proj.bias" in name, name
        torch.testing.assert_close(slope, wanted_slopes[name], rtol=1e-4, atol=1e-5 * max(1, most))


@pytest.mark.parametrize(("name", "tied"), KINDS, ids=str)
def test_packed_attention_without_padding(name: str, tied: bool, tmp_path: Path) -> None:
    assert_computed_as_alone(ModelConfig(str(make_family(tmp_path, name, tied))), PACKED)


@pytest.mark.parametrize(
    "name", [name for name, model in MODELS.items() if model.examples == LONG_ROWS]
)
def test_attention_computes_in_the_dtype_of_autocast(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotary positions and norms return float32, in which a GPU has no flash attention."""
    seen: list[torch.dtype] = []

    def attend(*tensors: Any) -> Tensor:
        seen.extend(tensor.dtype for tensor in tensors[:3])
        return attend_one(*tensors)

    attend_one = attention._attend_one
    monkeypatch.setattr(attention, "_attend_one", attend)
    attention.register()
    model, batch = toy(MODELS[name].config()), packed_rows()
    model.set_attn_implementation(PACKED)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        hidden_states(model, batch["input_ids"], Layout.of(batch["segment_ids"]))
    assert {*seen} == {torch.bfloat16}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_attention_on_padded_rows(name: str, attention: str, tmp_path: Path) -> None:
    config = ModelConfig(str(make_family(tmp_path, name)), attention=attention)
    if (name, attention) == ("gemma2", "sdpa"):
        with pytest.raises(ValueError, match="does not support"):
            load_model(config)
    else:
        assert_computed_as_alone(config, attention)


@pytest.mark.parametrize("name", ["qwen2", "mistral", "gemma2"])
def test_the_window_is_narrower_than_the_examples(name: str, tmp_path: Path) -> None:
    """Otherwise the tests above would not test the window."""
    narrow, batch = load_model(ModelConfig(str(make_family(tmp_path, name)))), packed_rows()
    wide = load_model(ModelConfig(str(tmp_path)))
    for holder in (wide.config, *wide.modules()):
        if getattr(holder, "sliding_window", None):
            holder.sliding_window = 1000
    rows = batch["input_ids"], Layout.of(batch["segment_ids"])
    assert (hidden_states(narrow, *rows) - hidden_states(wide, *rows)).abs().max() > 1e-2


@pytest.mark.parametrize("name", [name for name in MODELS if name != "gemma3"])
def test_a_model_is_set_to_the_way_that_keeps_examples_apart(name: str, tmp_path: Path) -> None:
    """As documented in docs/reference/models.md."""
    toy(MODELS[name].config()).save_pretrained(tmp_path)
    config = ModelConfig(str(tmp_path))
    model = load_model(config)
    assert is_unpacked(model) is (MODELS[name].examples == OWN_ROWS)
    assert (attention_name(model.config) == PACKED) >= (MODELS[name].examples == LONG_ROWS)
    assert_computed_as_alone(config, attention_name(model.config))


@pytest.mark.parametrize("unpacked", [False, True])
def test_rows_without_tokens_still_pass_through_all_weights(unpacked: bool, tmp_path: Path) -> None:
    model = load_model(ModelConfig(str(make_family(tmp_path, "qwen3"))))
    set_unpacked(model, unpacked)
    empty = {name: torch.zeros_like(column) for name, column in packed_rows().items()}
    loss = Policy(model, SFT)(PackedBatch.of(empty), 0).loss_sum
    assert loss == 0
    assert all((slope == 0).all() for slope in slopes(loss, model).values())


@pytest.mark.parametrize(("name", "tied"), KINDS, ids=str)
def test_the_empty_model_is_the_model_without_weights(
    name: str, tied: bool, tmp_path: Path
) -> None:
    config = ModelConfig(str(make_family(tmp_path, name, tied)))
    empty, model = empty_model(config), load_model(config)
    shapes = {n: (p.shape, p.dtype) for n, p in model.named_parameters()}
    assert {n: (p.shape, p.dtype) for n, p in empty.named_parameters()} == shapes
    assert {p.device.type for p in (*empty.parameters(), *empty.buffers())} == {"meta"}
    assert attention_name(empty.config) == PACKED


def test_the_length_of_the_longest_example(tmp_path: Path) -> None:
    def most(**change: object) -> int | None:
        kind, _ = FAMILIES["qwen3"]
        kind(**SIZE | change).save_pretrained(tmp_path)
        return max_positions(ModelConfig(str(tmp_path)))

    def rope(**more: object) -> dict[str, object]:
        return {"rope_theta": 10000.0, **more}

    assert most() == 64
    assert most(rope_parameters=rope(rope_type="linear", factor=4.0)) == 256
    yarn = rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
    assert most(rope_parameters=yarn) == 128
    assert most(rope_parameters=yarn, max_position_embeddings=256) == 256
    with pytest.raises(ValueError, match="no model config at 'nowhere/x'"):
        max_positions(ModelConfig("nowhere/x"))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    make_family(tmp_path, "qwen3")
    config = load_model(ModelConfig(str(tmp_path))).config
    config.num_hidden_layers, config.layer_types = 3, ["full_attention"] * 3
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks 11 of .* such as model.layers.2"):
        load_model(ModelConfig(str(tmp_path)))
