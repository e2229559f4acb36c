"""The private interfaces that otr uses still exist and behave as it expects."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import bitsandbytes
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils import SAFE_WEIGHTS_NAME

from otr import _compat
from otr._compat import FakeTensorMode, TorchDispatchMode, tree_leaves, tree_map_with_path
from otr.loop.checkpoint import _os_errors
from tests.assets.tiny import byte_tokenizer
from tests.otr.models.families import MODELS, toy
from tests.otr.runs import join_ranks


def test_fake_tensors_have_shapes_and_storages_but_no_contents() -> None:
    with FakeTensorMode():
        tensor = torch.zeros(2**40)
        assert tensor.untyped_storage().nbytes() == 4 * 2**40
        view, other = tensor[1:], torch.zeros(2**40)
    assert _compat.storage_key(view) == _compat.storage_key(tensor) != _compat.storage_key(other)


def test_a_dispatch_mode_sees_operations_and_may_answer_for_them() -> None:
    class Answers(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return 42 if _compat.reads_number(func) else func(*args, **(kwargs or {}))

    with Answers():
        assert int(torch.tensor(1)) == 42
        assert torch.equal(torch.tensor([1]) + 1, torch.tensor([2]))


def test_trees_are_mapped_with_their_paths() -> None:
    tree = {"a": [1, (2,)], "b": 3}
    assert tree_leaves(tree) == [1, 2, 3]
    paths = tree_leaves(tree_map_with_path(lambda path, leaf: "".join(map(str, path)), tree))
    assert len(set(paths)) == 3 and paths[0] == "['a'][0]"


def test_a_shard_is_named_after_its_rank(tmp_path: Path) -> None:
    dcp.save({"w": torch.ones(2)}, checkpoint_id=tmp_path, no_dist=True)
    [shard] = tmp_path.glob("*.distcp")
    assert _compat.shard_rank(shard) == 0
    assert _compat.shard_rank(tmp_path / "__12_0.distcp") == 12


def lose_a_rank(rank: int, directory: Path) -> None:
    join_ranks(rank, directory)
    dist.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RuntimeError) as error, _os_errors():
        dist.barrier()
    (directory / "error").write_text(str(error.value))
    assert _compat.is_lost_peer(error.value)


def test_the_error_that_a_lost_rank_leaves_its_peer_is_recognized(tmp_path: Path) -> None:
    """By its type and text, and it stays what it is while a checkpoint is written."""
    ranks = mp.spawn(lose_a_rank, (tmp_path,), nprocs=2, join=False)
    ranks.processes[0].join(60)  # `ranks.join` would end it before it has seen the loss
    with pytest.raises(mp.ProcessExitedException) as killed:  # of rank 1, not of rank 0
        ranks.join()
    assert killed.value.error_index == 1
    error = RuntimeError((tmp_path / "error").read_text())
    assert _compat.is_lost_peer(error)
    assert not _compat.is_lost_peer(OSError(str(error)))
    assert not _compat.is_lost_peer(RuntimeError(f"training said: {error}"))


def model_of(cls: type[PreTrainedModel], config: type, **options: object) -> PreTrainedModel:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 8, "intermediate_size": 16}
    with torch.device("meta"):
        return cls(config(**small, num_attention_heads=2, num_key_value_heads=1, **options))


def test_what_a_model_says_about_its_attention() -> None:
    model = model_of(Qwen3ForCausalLM, Qwen3Config)
    assert _compat.can_set_attention(model) is True
    assert _compat.supports_attention_interface(model) is True
    assert _compat.supports_sdpa(model) is True
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert _compat.attention_name(model.config) == name
    with_sinks = model_of(GptOssForCausalLM, GptOssConfig, num_local_experts=2)
    assert _compat.supports_sdpa(with_sinks) is False


def test_a_tokenizer_that_changes_its_text_is_not_plain() -> None:
    class Upper(PreTrainedTokenizerFast):
        def _encode_plus(self, text, *args, **options):
            return super()._encode_plus([one.upper() for one in text], *args, **options)

    plain = byte_tokenizer()
    assert _compat.uses_plain_backend(plain)
    backend = plain.backend_tokenizer
    assert not _compat.uses_plain_backend(Upper(tokenizer_object=backend))
    texts = ["a b", "<|im_end|>c"]
    ids = [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=False)]
    assert ids == plain(texts, add_special_tokens=False)["input_ids"]
    assert Upper(tokenizer_object=backend)(texts[:1])["input_ids"] != ids[:1]


def test_a_part_of_a_model_is_stored_as_the_whole_would_be(tmp_path: Path) -> None:
    """On the meta device too, and with the conversions of another process."""
    toy(MODELS["mixtral"].config()).save_pretrained(tmp_path)
    model = MixtralForCausalLM.from_pretrained(tmp_path)
    conversions = pickle.loads(pickle.dumps(_compat.weight_conversions(model)))
    assert conversions
    [name] = [n for n in model.state_dict() if n.endswith("layers.1.mlp.experts.down_proj")]
    part = {name: model.state_dict()[name]}
    stored, files = (
        _compat.stored_tensors(model, part, conversions),
        load_file(tmp_path / SAFE_WEIGHTS_NAME),
    )
    assert len(stored) == 4 and all(torch.equal(files[n], t) for n, t in stored.items())
    empty = MixtralForCausalLM(model.config).to("meta")
    assert _compat.weight_conversions(empty) is None
    shapes = _compat.stored_tensors(empty, {name: part[name].to("meta")}, conversions)
    assert {n: t.shape for n, t in shapes.items()} == {n: t.shape for n, t in stored.items()}
    assert _compat.ignored_when_saved(model) == frozenset()


def test_nothing_is_imported_before_it_is_used() -> None:
    code = "import sys, otr._compat; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_dtensor_gives_its_local_part(tmp_path: Path) -> None:
    """`Staging` copies this part; the public `to_local` shares its memory."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        local = torch.arange(4.0)
        sharded = DTensor.from_local(local, init_device_mesh("cpu", (1,)), [Shard(0)])
        part: Tensor = sharded.to_local()
        assert part.data_ptr() == local.data_ptr()
    finally:
        torch.distributed.destroy_process_group()


def test_a_layer_in_4_bits_computes_as_a_linear_layer() -> None:
    layer = bitsandbytes.nn.LinearNF4(64, 32, bias=False)
    names = {"support_avx512bf16_for_cpu", "compute_dtype", "compute_type_is_set"}
    assert names <= vars(layer).keys()
    layer.to("cpu")  # quantizes it
    _compat.prepare_4bit(layer)
    bits, x = layer.weight.clone(), torch.randn(3, 64, requires_grad=True)
    exact = x @ bitsandbytes.functional.dequantize_4bit(layer.weight, layer.weight.quant_state).T
    for train in (True, False):
        found = layer.train(train)(x)
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        with torch.no_grad():
            torch.testing.assert_close(layer(x), exact, rtol=0, atol=1e-5)
            with torch.autocast("cpu", torch.bfloat16):
                assert layer(x).dtype == torch.bfloat16
        assert torch.equal(layer.weight, bits)
