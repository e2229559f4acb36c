"""`otr merge`: a complete directory or none, and errors in one line."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from otr import LoraConfig, ModelConfig, load_model, load_tokenizer
from otr.models.layout import Layout
from otr.models.lora import adapter_state, add_adapters, write_adapter
from otr.models.parts import head, hidden_states
from pipelines import cli
from pipelines.stages.merge import merge
from tests.assets.tiny import make_tiny_model


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter that changes every linear layer; it names its model by a relative path."""
    make_tiny_model(tmp_path / "base")
    back = Path.cwd()
    os.chdir(tmp_path)
    try:
        model = add_adapters(load_model(ModelConfig("base")), LoraConfig(rank=2))
    finally:
        os.chdir(back)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    write_adapter(tmp_path / "adapter", model, adapter_state(model))
    torch.save(logits(model), tmp_path / "logits.pt")
    return tmp_path / "adapter"


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(5, 25)[None]
    return head(model).logits(hidden_states(model, ids, Layout.of(torch.ones_like(ids))))


def test_the_directory_is_the_adapted_model(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (adapter / "run.json").write_text('{"note": "copied"}')
    (adapter / "generation_config.json").write_text('{"eos_token_id": [3, 258]}')
    out = tmp_path / "new" / "full"
    assert cli.main(["merge", str(adapter), str(out)]) == 0
    said = capsys.readouterr().out
    assert f"model: {out}" in said and "# score it" in said
    config = ModelConfig(str(out))
    wanted = torch.load(tmp_path / "logits.pt", weights_only=True)
    torch.testing.assert_close(logits(load_model(config)), wanted, rtol=0, atol=1e-4)
    assert (wanted - logits(load_model(ModelConfig(str(tmp_path / "base"))))).abs().max() > 0.1
    assert load_tokenizer(config).chat_template
    assert not (out / "adapter_config.json").exists()
    assert json.loads((out / "run.json").read_text()) == {"note": "copied"}
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [3, 258], "generation stops where the adapter's did"
    assert [p.name for p in out.parent.iterdir()] == ["full"]


KINDS = [
    {"rs": True},
    {"dora": True},
    {"modules_to_save": ("lm_head",)},
    {"quantize": "nf4"},
    {"dora": True, "modules_to_save": ("embed_tokens",), "quantize": "nf4"},
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "+".join(kind))
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_each_kind_is_merged(
    tmp_path: Path, tied: bool, kind: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    base = ModelConfig(str(make_tiny_model(tmp_path / "base", tied=tied)))
    config = LoraConfig(rank=2, **kind)
    model = add_adapters(load_model(base, quantize=config.quantize), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    write_adapter(tmp_path / "adapter", model, adapter_state(model))
    assert cli.main(["merge", str(tmp_path / "adapter"), str(tmp_path / "full")]) == 0
    full = load_model(ModelConfig(str(tmp_path / "full")))
    torch.testing.assert_close(logits(full), logits(model), rtol=0, atol=1e-4)
    assert (logits(full) - logits(load_model(base))).abs().max() > 0.1
    said = " ".join(capsys.readouterr().out.split())
    assert ("the 4 bits of its base model stand for" in said) == (config.quantize == "nf4")


def test_a_merge_into_other_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The original weights in place of those that the 4 bits stand for."""
    base = ModelConfig(str(make_tiny_model(tmp_path / "base")))
    model = add_adapters(load_model(base, quantize="nf4"), LoraConfig(rank=2, quantize="nf4"))
    write_adapter(tmp_path / "adapter", model, adapter_state(model))
    monkeypatch.setattr("otr.models.lora.dequantize", lambda _: load_model(base))
    assert cli.main(["merge", str(tmp_path / "adapter"), str(tmp_path / "full")]) == 1
    assert "is not the model with the adapter: its logits are off by" in capsys.readouterr().err
    assert not (tmp_path / "full").exists()


@pytest.mark.parametrize(
    ("base", "options", "expected"),
    [
        ("bfloat16", [], torch.bfloat16),
        ("bfloat16", ["--dtype", "float32"], torch.float32),
        ("float32", [], torch.float32),
    ],
)
def test_the_merged_model_has_the_data_type_of_its_base(
    adapter: Path, tmp_path: Path, base: str, options: list[str], expected: torch.dtype
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=getattr(torch, base))
    model.save_pretrained(tmp_path / "base")
    assert cli.main(["merge", str(adapter), str(tmp_path / "full"), *options]) == 0
    weights = load_file(tmp_path / "full" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {expected}
    config = json.loads((tmp_path / "full" / "config.json").read_text())
    assert config["dtype"] == str(expected).removeprefix("torch.")


def test_the_tokenizer_of_the_adapter_is_used(adapter: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(str(tmp_path / "base")))
    tokenizer.chat_template = "mine"
    tokenizer.save_pretrained(adapter)
    out = merge(adapter, tmp_path / "full")
    assert load_tokenizer(ModelConfig(str(out))).chat_template == "mine"


def test_a_merge_that_fails_leaves_nothing(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", full)
    with pytest.raises(OSError, match="no space left"):
        merge(adapter, tmp_path / "out" / "full")
    assert not list((tmp_path / "out").iterdir())


def test_merges_that_are_refused(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def refused(*words: object) -> str:
        assert cli.main(["merge", *map(str, words)]) == 1
        [line] = [s for s in capsys.readouterr().err.splitlines() if s.startswith("error: ")]
        return line

    new = tmp_path / "new"
    assert "no LoRA adapter in" in refused(tmp_path / "base", new)
    assert "exists: choose another directory" in refused(adapter, tmp_path / "base")
    for words in ([], [str(adapter)], [str(adapter), str(new), "--trust-remot-code"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["merge", *words])
    shutil.move(tmp_path / "base", tmp_path / "moved")
    line = refused(adapter, new)
    assert f"is not at {tmp_path / 'base'}" in line and "base_model_name_or_path" in line
    assert not new.exists()
