"""A checkpoint has what other programs read, llama.cpp's converter to GGUF among them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from otr import LoraConfig, ModelConfig, load_model, load_tokenizer, save_checkpoint
from otr.models.lora import adapter_state, add_adapters, write_adapter
from pipelines.stages.merge import merge
from tests.assets.tiny import make_tiny_model

TEXT = "3 33 333 I've been 'told ------======= 我想 🚀 \n\n\t"


@pytest.mark.parametrize("merged", [False, True], ids=["trained whole", "merged adapter"])
def test_a_checkpoint_has_what_the_converter_to_gguf_reads(tmp_path: Path, merged: bool) -> None:
    """The converter knows a tokenizer by the ids of a text, and tensors by transformers' names."""
    base = ModelConfig(str(make_tiny_model(tmp_path / "base", tied=False)))
    tokenizer = load_tokenizer(base)
    if merged:
        model = add_adapters(load_model(base), LoraConfig(rank=2))
        write_adapter(tmp_path / "adapter", model, adapter_state(model))
        checkpoint = merge(tmp_path / "adapter", tmp_path / "full")
    else:
        checkpoint = save_checkpoint(tmp_path / "full", load_model(base), tokenizer)
    settings = json.loads((checkpoint / "config.json").read_text())
    theirs = json.loads((tmp_path / "base" / "config.json").read_text())
    assert settings["architectures"] == ["Qwen3ForCausalLM"] == theirs["architectures"]
    assert settings["vocab_size"] == theirs["vocab_size"]
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (checkpoint / name).is_file()
    again = AutoTokenizer.from_pretrained(checkpoint)
    assert again.encode(TEXT) == tokenizer.encode(TEXT)
    assert again.chat_template == tokenizer.chat_template
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert names == set(AutoModelForCausalLM.from_pretrained(tmp_path / "base").state_dict())
    loaded = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert loaded.dtype == torch.float32
