"""The two checks of a model before a run: supported models pass, others fail."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AttentionInterface,
    GptOssConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3Config,
)

from otr import LoraConfig, ModelConfig, load_model
from otr._compat import attention_name
from otr.models.attention import PACKED, Lengths, packed_attention
from otr.models.checks import check_head, check_packing
from otr.models.lora import add_adapters
from otr.models.structure import without_adapters
from otr.models.unpacked import is_unpacked
from tests.otr.models.families import FAMILIES, SIZE, WINDOW, make_family, toy


def loaded(directory: Path, kind: type[Any], **more: Any) -> PreTrainedModel:
    toy(kind(**SIZE | more)).save_pretrained(directory)
    return load_model(ModelConfig(str(directory)))


@pytest.mark.parametrize(
    ("adapters", "quantize"),
    [(False, "none"), (True, "none"), (True, "nf4")],
    ids=["plain", "lora", "qlora"],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_supported_model_passes_and_stays_unchanged(
    name: str, adapters: bool, quantize: str, tmp_path: Path
) -> None:
    model = load_model(ModelConfig(str(make_family(tmp_path, name))), quantize=quantize).train()
    if adapters:
        model = add_adapters(model, LoraConfig(rank=2, quantize=quantize))
    before = torch.random.get_rng_state()
    check_head(model)
    check_packing(model)
    inside = without_adapters(model)
    assert inside.training and attention_name(inside.config) == PACKED
    assert getattr(inside.config, "sliding_window", None) in (WINDOW, None)
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.integration
def test_flex_attention_keeps_examples_apart(tmp_path: Path) -> None:
    """Compiling it takes most of a minute; test_families.py compares sdpa and eager."""
    check_packing(
        load_model(ModelConfig(str(make_family(tmp_path, "qwen3")), attention="flex_attention"))
    )


def test_logits_that_the_model_changes_after_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(tmp_path, Qwen3Config)
    plain = model.forward

    def shifted(*args: Any, **kwargs: Any) -> Any:
        output = plain(*args, **kwargs)
        output.logits = output.logits + 1.0
        return output

    monkeypatch.setattr(model, "forward", shifted)
    with pytest.raises(ValueError, match=r"type qwen3 are not supported: .* not those of the head"):
        check_head(model)


def test_an_attention_that_is_wrong_for_each_example_too(tmp_path: Path) -> None:
    model = loaded(tmp_path, GptOssConfig)
    model.set_attn_implementation(PACKED)  # omits the attention sinks
    with pytest.raises(ValueError, match=r"type gpt_oss are not supported: .*\(off by"):
        check_packing(model)


def test_a_sliding_window_that_only_the_mask_implements(tmp_path: Path) -> None:
    """The check shrinks the window; as configured it is longer than the check's examples."""
    window = {"sliding_window": 40, "use_sliding_window": True, "max_window_layers": 2}
    model = loaded(tmp_path, Qwen2MoeConfig, **window, num_experts=2, num_experts_per_tok=1)
    assert "sliding_attention" in model.config.layer_types
    assert (attention_name(model.config), is_unpacked(model)) == ("sdpa", False)
    assert model.config.sliding_window == 40
    check_packing(model)


def test_an_attention_across_examples(tmp_path: Path) -> None:
    model = loaded(tmp_path, Qwen3Config)

    def leaking(module: Any, *qkvm: Any, lengths: Any = None, **more: Any) -> Any:
        one = lengths and Lengths([sum(lengths.values)])
        return packed_attention(module, *qkvm, lengths=one, **more)

    AttentionInterface.register(PACKED, leaking)
    try:
        check_packing(model)
        assert is_unpacked(model)
    finally:
        AttentionInterface.register(PACKED, packed_attention)
