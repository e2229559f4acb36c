"""Generation stops where answers were trained to end."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from otr import LoraConfig, Objective, load_model, load_tokenizer
from otr.config import ModelConfig
from otr.data import pack, tokenize
from otr.loop.checkpoint import Snapshot, saved_weights
from otr.loop.loop import train
from otr.models.lora import add_adapters
from otr.models.stops import count_ends, ending_tokens, trained_stops, with_stop, write_stops
from tests.assets.tiny import PAD, TURN_END, byte_tokenizer, make_tiny_model
from tests.otr.runs import config


def base_tokenizer(template: str | None = None):
    """Return a tokenizer whose texts end with PAD, as those of base models do."""
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = PAD
    tokenizer.chat_template = template or tokenizer.chat_template
    return tokenizer


def id_of(token: str) -> int:
    return byte_tokenizer().convert_tokens_to_ids(token)


def test_the_last_tokens_of_trained_stretches_are_counted() -> None:
    batch = {
        "input_ids": torch.tensor([[1, 2, 3, 4, 5, 6, 0], [7, 8, 9, 9, 9, 9, 9]]),
        "loss_mask": torch.tensor([[0, 1, 1, 0, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1]]).bool(),
        "segment_ids": torch.tensor([[1, 1, 1, 1, 1, 2, 0], [1, 1, 1, 1, 1, 1, 1]]),
    }
    assert count_ends(batch) == Counter({3: 1, 5: 1, 6: 1, 9: 1})


def test_only_tokens_that_are_no_text_and_not_rare_stop_generation() -> None:
    tokenizer = byte_tokenizer()
    end, pad = id_of(TURN_END), id_of(PAD)
    assert {end, pad} <= ending_tokens(tokenizer)
    assert trained_stops({end: 60, pad: 30, 5: 10}, tokenizer) == [end, pad]
    assert trained_stops({end: 98, pad: 2}, tokenizer) == [end]
    assert trained_stops({5: 10}, tokenizer) == [] == trained_stops({}, tokenizer)


def test_a_base_models_checkpoint_names_the_end_of_a_turn(tmp_path: Path) -> None:
    model = load_model(ModelConfig(str(make_tiny_model(tmp_path / "base"))))
    end, pad = id_of(TURN_END), id_of(PAD)
    model.generation_config = GenerationConfig(eos_token_id=pad, max_new_tokens=7)
    weights = saved_weights(model, model.state_dict())
    out = tmp_path / "out"
    Snapshot(1, model, weights, {}, ends={end: 5}).write(out, base_tokenizer())
    saved = AutoModelForCausalLM.from_pretrained(out).generation_config
    assert (saved.eos_token_id, saved.max_new_tokens) == ([end, pad], 7)
    assert AutoTokenizer.from_pretrained(out).eos_token == TURN_END
    Snapshot(2, model, weights, {}, dtype="bfloat16", ends={end: 5}).write(out, base_tokenizer())
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [end, pad]
    Snapshot(3, model, weights, {}).write(out, base_tokenizer())
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == pad


def test_an_adapter_has_the_file_beside_it(tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path / "base")
    model = add_adapters(load_model(ModelConfig(str(path))), LoraConfig(rank=2))
    before, end = model.get_base_model().config.eos_token_id, id_of(TURN_END)
    weights = saved_weights(model, model.state_dict())
    Snapshot(1, model, weights, {}, ends={id_of(PAD): 5}).write(tmp_path / "a", byte_tokenizer())
    content = json.loads((tmp_path / "a" / "generation_config.json").read_text())
    assert before == end and content["eos_token_id"] == [id_of(PAD), end]


def test_a_model_without_an_end_gets_one(tmp_path: Path) -> None:
    model = load_model(ModelConfig(str(make_tiny_model(tmp_path / "base"))))
    model.config.eos_token_id = model.generation_config = None
    write_stops(tmp_path, [3], model)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 3


@pytest.mark.parametrize(
    ("template", "changed"),
    [
        (None, TURN_END),
        # This one writes the end of sequence itself: another one would change the text.
        ("{% for m in messages %}{{ m.content + '<|im_end|>' + eos_token }}{% endfor %}", PAD),
    ],
)
def test_the_tokenizer_follows_unless_its_template_would_write_another_text(
    template: str | None, changed: str
) -> None:
    tokenizer = base_tokenizer(template)
    assert with_stop(tokenizer, [id_of(TURN_END)]).eos_token == changed
    assert tokenizer.eos_token == PAD
    assert with_stop(tokenizer, [id_of(TURN_END), id_of(PAD)]) is tokenizer


def test_the_loaded_tokenizer_of_a_checkpoint_renders_as_before(tmp_path: Path) -> None:
    tokenizer = base_tokenizer()
    with_stop(tokenizer, [id_of(TURN_END)]).save_pretrained(tmp_path)
    chat = [{"role": "user", "content": "Hello"}]
    again = load_tokenizer(ModelConfig(str(tmp_path)))
    assert again.apply_chat_template(chat) == tokenizer.apply_chat_template(chat)


def test_a_base_model_that_learned_a_conversation_stops_by_itself(tmp_path: Path) -> None:
    """In transformers, which reads the checkpoint's files and nothing else."""
    path, tokenizer = make_tiny_model(tmp_path / "base"), base_tokenizer()
    record = {"prompt": "2+2?", "completion": "four"}
    [example] = tokenize([record], tokenizer, columns={}, sequence_length=48).examples
    packed = {name: torch.from_numpy(column) for name, column in pack([example] * 8, 48).items()}
    run = config(path, Objective("sft"), 40, global_batch_size=8, micro_batch_size=8)

    def report(_: object, snapshot: Snapshot | None) -> None:
        if snapshot is not None:
            snapshot.write(tmp_path / "out", tokenizer)

    train(load_model(run.model), [packed] * 40, run, report)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    asked = AutoTokenizer.from_pretrained(tmp_path / "out").apply_chat_template(
        [{"role": "user", "content": "2+2?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**asked, do_sample=False, max_new_tokens=30)[0]
    answer = answer[asked["input_ids"].shape[1] :].tolist()
    assert tokenizer.decode(answer) == "four<|im_end|>"
