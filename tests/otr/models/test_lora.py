"""Only adapters train, with the right gradient; saved and merged ones are the same model."""

import copy
from dataclasses import replace
from pathlib import Path

import bitsandbytes
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import GPT2Config, PreTrainedModel

from otr import LoraConfig, ModelConfig, Objective, load_model
from otr.loop.batch import PackedBatch
from otr.loop.policy import Policy
from otr.models.layout import Layout
from otr.models.load import empty_model
from otr.models.lora import (
    adapter_state,
    add_adapters,
    load_adapters,
    merge_adapters,
    write_adapter,
)
from otr.models.parts import head, hidden_states
from otr.models.quantize import BYTES_PER_WEIGHT, dequantize, layers_to_quantize, quantized_layers
from tests.assets.tiny import make_tiny_model
from tests.otr.models.families import toy
from tests.otr.runs import batches

LORA = LoraConfig(rank=3, alpha=6.0)
LAYER = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    directory = tmp_path_factory.mktemp("base")
    return ModelConfig(str(make_tiny_model(directory, tied=request.param)))


def loss(model: PreTrainedModel) -> Tensor:
    (batch,) = batches(1)
    return (
        Policy(model, Objective("sft"))(PackedBatch.of(batch), 0).loss_sum
        / batch["loss_mask"].sum()
    )


@torch.no_grad()
def log_probs(model: PreTrainedModel) -> Tensor:
    (batch,) = batches(1)
    seen = hidden_states(model, batch["input_ids"], Layout.of(batch["segment_ids"]))
    return head(model).logits(seen).log_softmax(-1)


def trained(base: ModelConfig, config: LoraConfig = LORA, steps: int = 5) -> PeftModel:
    model = add_adapters(load_model(base), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    return model


def test_only_adapters_train(base: ModelConfig) -> None:
    start = load_model(base)
    before, weights = loss(start).item(), dict(start.named_parameters())
    model = trained(base, steps=20)
    assert loss(model) < before - 0.3
    adapters = frozen = 0
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            assert parameter.requires_grad and parameter.dtype == torch.float32
            assert parameter.abs().max() > 1e-3, name
            adapters += 1
        else:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert not parameter.requires_grad and parameter.grad is None
            assert torch.equal(parameter, weights.pop(plain))
            frozen += 1
    assert adapters == 2 * 7 * 2 and not weights, "two matrices, seven linear layers, two blocks"


def test_the_gradient_is_the_weights_through_the_other_matrix(base: ModelConfig) -> None:
    """For W + (alpha / rank) B A: dB = (alpha / rank) dW A^T; dA = 0, since B starts at 0."""
    plain = load_model(base)
    loss(plain).backward()
    model = add_adapters(load_model(base), LORA)
    loss(model).backward()
    layer = model.get_base_model().get_submodule(LAYER)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    wanted = LORA.alpha / LORA.rank * plain.get_submodule(LAYER).weight.grad @ a.T
    torch.testing.assert_close(b.grad, wanted, rtol=1e-4, atol=1e-7)
    assert wanted.abs().max() > 1e-4 and (a.grad == 0).all()


def test_rslora_scales_by_the_root_of_the_rank(base: ModelConfig) -> None:
    deltas = []
    for config in (LORA, replace(LORA, rs=True)):
        layer = add_adapters(load_model(base), config).get_base_model().get_submodule(LAYER)
        torch.nn.init.ones_(layer.lora_B["default"].weight)
        deltas.append(layer.get_delta_weight("default").detach())
    torch.testing.assert_close(deltas[1], deltas[0] * LORA.rank**0.5)
    a = layer.lora_A["default"].weight.detach()
    torch.testing.assert_close(deltas[1], LORA.alpha / 3**0.5 * a.sum(0).expand_as(deltas[1]))


def test_dora_trains_the_lengths_of_rows_and_starts_as_the_base(base: ModelConfig) -> None:
    model = add_adapters(load_model(base), replace(LORA, dora=True))
    torch.testing.assert_close(log_probs(model), log_probs(load_model(base)), rtol=0, atol=1e-5)
    layer = model.get_base_model().get_submodule(LAYER)
    length = layer.lora_magnitude_vector["default"].weight
    torch.testing.assert_close(length, layer.base_layer.weight.norm(dim=1))
    loss(model).backward()
    assert length.requires_grad and length.grad.abs().max() > 1e-5


def test_a_base_model_in_4_bits_has_an_eighth_of_the_bytes_and_its_own_head(
    base: ModelConfig,
) -> None:
    model, plain = load_model(base, quantize="nf4"), load_model(base)
    names = dict(layers_to_quantize(plain))
    assert dict(quantized_layers(model)).keys() == names.keys() and len(names) == 14
    found = expected = 0
    for name in names:
        weight, exact = model.get_submodule(name).weight, plain.get_submodule(name).weight
        assert weight.dtype == torch.uint8 and not weight.requires_grad
        state = weight.quant_state
        parts = (weight, state.absmax, state.state2.absmax)
        found += sum(part.numel() * part.element_size() for part in parts)
        expected += exact.numel() * BYTES_PER_WEIGHT
        rounded = bitsandbytes.functional.dequantize_4bit(weight, state)
        assert 0.05 < (rounded - exact).norm() / exact.norm() < 0.15
    in_bfloat16 = sum(2 * layer.weight.numel() for layer in names.values())
    assert found == pytest.approx(expected, rel=0.05) and found < 0.3 * in_bfloat16
    assert torch.equal(head(model).weight, head(plain).weight)
    assert (head(model).weight is model.get_input_embeddings().weight) == is_tied(plain)


def is_tied(model: PreTrainedModel) -> bool:
    return head(model).weight is model.get_input_embeddings().weight


def test_4_bits_are_the_same_before_and_after_an_evaluation(base: ModelConfig) -> None:
    """bitsandbytes would store them in another layout there, and round to bfloat16."""
    model = load_model(base, quantize="nf4")
    before = model.get_submodule(LAYER).weight.clone()
    same = [log_probs(model.train(mode)) for mode in (True, False, True)]
    assert torch.equal(model.get_submodule(LAYER).weight, before)
    torch.testing.assert_close(same[1], same[0], rtol=0, atol=1e-5)
    assert torch.equal(same[2], same[0])
    plain = dequantize(load_model(base, quantize="nf4"))
    torch.testing.assert_close(log_probs(plain), same[0], rtol=0, atol=1e-5)


def test_a_missing_package_and_another_base_model_are_refused(
    base: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    four_bits = LoraConfig(rank=2, quantize="nf4")
    with pytest.raises(ValueError, match=r"'nf4', but the model is loaded with 'none'"):
        add_adapters(load_model(base), four_bits)
    with pytest.raises(ValueError, match=r"'none', but the model is loaded with 'nf4'"):
        add_adapters(load_model(base, quantize="nf4"), LORA)
    monkeypatch.setattr("otr.models.quantize.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"package bitsandbytes, .* pip install bitsandbytes"):
        load_model(base, quantize="nf4")


@pytest.mark.parametrize("names", [("lm_head",), ("embed_tokens",)], ids=lambda names: names[0])
def test_modules_to_save_are_trained_whole_and_ties_stay(
    base: ModelConfig, names: tuple[str, ...]
) -> None:
    config = LoraConfig(rank=2, modules_to_save=(*names, "layers.1.mlp.up_proj"))
    model = trained(base, config, steps=1)
    plain, inside = load_model(base), model.get_base_model()
    whole = {
        name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
        for name, p in model.named_parameters()
        if p.requires_grad and ".lora_" not in name
    }
    tied = is_tied(plain)
    assert is_tied(inside) == tied
    kept = "model.embed_tokens.weight" if tied or names == ("embed_tokens",) else "lm_head.weight"
    assert whole == {kept, f"{LAYER}.weight"}
    assert not hasattr(inside.get_submodule(LAYER), "lora_A"), "no adapter beside"
    changed = head(model).weight if names == ("lm_head",) else inside.get_input_embeddings().weight
    assert not torch.equal(changed, plain.get_parameter(kept))


@pytest.mark.parametrize(
    ("names", "quantize", "message"),
    [
        (("lm_hed",), "none", "no module's name ends with 'lm_hed': did you mean lm_head"),
        (("q_proj",), "nf4", "'q_proj' is in 4 bits"),
        (("mlp",), "nf4", "'mlp' is in 4 bits"),
    ],
)
def test_an_invalid_module_to_save_is_refused_before_weights_are_read(
    base: ModelConfig, names: tuple[str, ...], quantize: str, message: str
) -> None:
    config = LoraConfig(rank=2, modules_to_save=names, quantize=quantize)
    for model in (empty_model(base), load_model(base, quantize=quantize)):
        with pytest.raises(ValueError, match=message):
            add_adapters(model, config)


@pytest.mark.parametrize("name", ["wte", "lm_head"])
def test_ties_that_peft_does_not_know_are_refused(tmp_path: Path, name: str) -> None:
    size = {"vocab_size": 259, "n_embd": 32, "n_layer": 1, "n_head": 2}
    toy(GPT2Config(**size)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="this gpt2 model the embeddings are the head"):
        config = LoraConfig(rank=2, modules_to_save=(name,))
        add_adapters(load_model(ModelConfig(str(tmp_path))), config)


def test_gradients_survive_checkpointing(base: ModelConfig) -> None:
    models = [trained(base, steps=2) for _ in range(2)]
    models[1].gradient_checkpointing_enable({"use_reentrant": False})
    slopes = []
    for model in models:
        model.train().zero_grad()
        loss(model).backward()
        slopes.append([p.grad for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(*slopes)


def test_a_seed_makes_the_same_adapters_and_leaves_the_global_random_state(
    base: ModelConfig,
) -> None:
    before = torch.random.get_rng_state()
    one, same, other = (
        adapter_state(add_adapters(load_model(base), LORA, seed=seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_saved_and_a_merged_adapter_are_the_same_model(base: ModelConfig, tmp_path: Path) -> None:
    model = trained(base)
    wanted = log_probs(model)
    assert (wanted - log_probs(load_model(base))).abs().max() > 0.1
    write_adapter(tmp_path / "adapter", model, adapter_state(model))
    names = sorted(path.name for path in (tmp_path / "adapter").iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    loaded = load_adapters(tmp_path / "adapter", base)
    assert torch.equal(log_probs(loaded), wanted)
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == trains
    merge_adapters(loaded).save_pretrained(tmp_path / "full")
    full = load_model(ModelConfig(str(tmp_path / "full")))
    torch.testing.assert_close(log_probs(full), wanted, rtol=0, atol=1e-5)
    shapes = {name: p.shape for name, p in load_model(base).named_parameters()}
    assert {name: p.shape for name, p in full.named_parameters()} == shapes


def test_the_adapters_state_may_be_gathered_first(base: ModelConfig) -> None:
    """Under FSDP it is gathered without the frozen weights."""
    model = trained(base, steps=1)
    gathered = {n: t.clone() for n, t in model.state_dict().items() if ".lora_" in n}
    found, wanted = adapter_state(model, gathered), adapter_state(model)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert all(found[name].data_ptr() != wanted[name].data_ptr() for name in wanted)


def test_targets_choose_layers(base: ModelConfig) -> None:
    model = add_adapters(load_model(base), LoraConfig(rank=2, targets=("q_proj", "mlp.up_proj")))
    layers = {name.split(".lora_")[0] for name in adapter_state(model)}
    assert {name.split(".", 4)[-1].split(".", 1)[1] for name in layers} == {
        "self_attn.q_proj",
        "mlp.up_proj",
    }


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("q_prj", "no linear layer's name ends with 'q_prj': did you mean q_proj"),
        ("embed_tokens", "ends with 'embed_tokens': did you mean down_proj, gate_proj, k_proj"),
        ("lm_head", "'lm_head' is the head, which gets no adapter"),
        ("proj", "no linear layer"),
    ],
)
def test_an_invalid_target_is_refused(base: ModelConfig, target: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        add_adapters(load_model(base), LoraConfig(rank=2, targets=("q_proj", target)))


def test_an_empty_model_gets_empty_adapters(base: ModelConfig) -> None:
    kinds = LoraConfig(rank=3, dora=True, modules_to_save=("lm_head",))
    empty = add_adapters(empty_model(base), kinds)
    real = add_adapters(load_model(base), kinds)
    shapes = {n: (p.shape, p.requires_grad) for n, p in real.named_parameters()}
    assert {n: (p.shape, p.requires_grad) for n, p in empty.named_parameters()} == shapes
    assert {p.device.type for p in empty.parameters()} == {"meta"}


def test_an_adapter_of_another_model_is_refused(base: ModelConfig, tmp_path: Path) -> None:
    model = trained(base, steps=1)
    state = adapter_state(model)
    fewer = {name: t for name, t in state.items() if "layers.1." not in name}
    for i, wrong in enumerate((fewer, {name: t[:, :1] for name, t in state.items()})):
        write_adapter(tmp_path / str(i), model, wrong)
        with pytest.raises(ValueError, match="does not fit the model at"):
            load_adapters(tmp_path / str(i), base)
    (tmp_path / "0" / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"there is no adapter_model\.safetensors"):
        load_adapters(tmp_path / "0", base)


def test_an_adapter_is_refused_as_a_model(base: ModelConfig, tmp_path: Path) -> None:
    model = add_adapters(load_model(base), LORA)
    write_adapter(tmp_path, model, adapter_state(model))
    with pytest.raises(ValueError, match=r"holds a LoRA adapter: .*`otr merge"):
        load_model(ModelConfig(str(tmp_path)))


def test_a_merge_that_is_not_finite_is_refused(base: ModelConfig) -> None:
    model = copy.deepcopy(trained(base, steps=1))
    layer = model.get_base_model().get_submodule(LAYER)
    layer.lora_B["default"].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        merge_adapters(model)
