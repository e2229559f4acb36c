"""A chat template and its arguments can be given, and checkpoints keep them."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from otr import ModelConfig, load_tokenizer
from otr.data import tokenize
from otr.loop.identity import chat_template_digest
from otr.models.tokenizer import check_chat_template
from tests.assets.tiny import byte_tokenizer

THINKING = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think></think>' }}"
    "{% endif %}{{ style }}{% endif %}"
)
ASKED = [{"role": "user", "content": "2 + 2?"}]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def asked(tokenizer, **arguments) -> str:
    return tokenizer.apply_chat_template(
        ASKED, tokenize=False, add_generation_prompt=True, **arguments
    )


@pytest.mark.parametrize("as_file", [True, False])
def test_a_template_of_ones_own_replaces_the_models(model: Path, as_file: bool) -> None:
    given = THINKING
    if as_file:
        (model.parent / "mine.jinja").write_text(THINKING)
        given = str(model.parent / "mine.jinja")
    tokenizer = load_tokenizer(ModelConfig(str(model), chat_template=given))
    assert asked(tokenizer) == "user: 2 + 2?<|im_end|>assistant: "
    tokenizer.save_pretrained(model.parent / "saved")
    saved = load_tokenizer(ModelConfig(str(model.parent / "saved")))
    assert asked(saved) == asked(tokenizer)
    assert chat_template_digest(given) == chat_template_digest(THINKING) != THINKING


def test_arguments_are_defaults_that_a_checkpoint_keeps(model: Path) -> None:
    arguments = {"enable_thinking": False, "style": "brief"}
    config = ModelConfig(str(model), chat_template=THINKING, chat_template_args=arguments)
    tokenizer = load_tokenizer(config)
    assert asked(tokenizer).endswith("assistant: <think></think>brief")
    tokenizer.save_pretrained(model.parent / "saved")
    saved = load_tokenizer(ModelConfig(str(model.parent / "saved")))
    assert asked(saved) == asked(tokenizer)
    assert asked(saved, enable_thinking=True, style="").endswith("assistant: ")
    # As a resumed run loads it: from its checkpoint, with the same options.
    again = load_tokenizer(replace(config, path=str(model.parent / "saved"), chat_template=""))
    assert again.chat_template == saved.chat_template


def test_each_of_several_templates_gets_the_arguments(model: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(str(model)))
    tokenizer.chat_template = {"default": THINKING, "tool_use": "{{ tools | length }}" + THINKING}
    tokenizer.save_pretrained(model)
    config = ModelConfig(str(model), chat_template_args={"style": "brief"})
    tokenizer = load_tokenizer(config)
    assert asked(tokenizer).endswith("assistant: brief")
    assert asked(tokenizer, tools=[{}, {}]) == "2" + asked(tokenizer)


def test_values_are_json_or_text() -> None:
    given = {"enable_thinking": False, "style": "brief", "most": 3}
    told = {"enable_thinking": "false", "style": "brief", "most": "3"}
    assert ModelConfig("m", chat_template_args=given).chat_template_args == told


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chat_template": "chatlm"}, r"'chatlm' is no file.*did you mean 'chatml'\?"),
        ({"chat_template": "{% for %}"}, "can't be rendered"),
        (
            {"chat_template": THINKING, "chat_template_args": {"enable_thinkin": "false"}},
            r"enable_thinkin=false.*did you mean 'enable_thinking'\?",
        ),
    ],
)
def test_what_can_not_be_used_is_refused(model: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_tokenizer(ModelConfig(str(model), **settings))


def test_named_templates_need_their_tokens(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "base")
    base = str(tmp_path / "base")
    plain = load_tokenizer(ModelConfig(base, chat_template="plain"))
    assert asked(plain) == "User: 2 + 2?\nAssistant:"
    answered = [*ASKED, {"role": "assistant", "content": "4"}]
    text = plain.apply_chat_template(answered, tokenize=False)
    assert text == "User: 2 + 2?\nAssistant: 4<|im_end|>\n"
    assert asked(load_tokenizer(ModelConfig(base, chat_template="chatml"))).endswith("assistant\n")
    with pytest.raises(ValueError, match=r"no chat template: give --chat-template FILE.*chatml or"):
        check_chat_template(load_tokenizer(ModelConfig(base)), base)
    lacking = byte_tokenizer()
    lacking.backend_tokenizer.normalizer = None
    backend = lacking.backend_tokenizer.to_str().replace("<|im_start|>", "<|start|>")
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(backend), eos_token="<|im_end|>"
    )
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"'chatml' needs the token <\|im_start\|>.*use 'plain'"):
        load_tokenizer(ModelConfig(str(tmp_path / "other"), chat_template="chatml"))


@pytest.mark.parametrize("name", ["tekken_240718.json", "tekken_240911.json"])
def test_a_tokenizer_of_mistral_common_is_converted_token_for_token(
    name: str, tmp_path: Path
) -> None:
    """mistral-common's package comes with two of its vocabularies."""
    common = pytest.importorskip("mistral_common")
    shutil.copy(Path(common.__file__).parent / "data" / name, tmp_path / "tekken.json")
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert type(theirs).__name__ == "MistralCommonBackend"
    ours = load_tokenizer(ModelConfig(str(tmp_path)))
    asked = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "12345 ünïcode, and\n\n\tdef f(x):\n    return x?"},
        {"role": "assistant", "content": "  Yes.\n"},
        {"role": "user", "content": "日本語"},
    ]
    for conversation in (asked[1:2], asked):
        wanted = theirs.apply_chat_template(conversation, tokenize=True)
        assert ours.apply_chat_template(conversation, tokenize=True) == wanted
    record = {"messages": [*asked, {"role": "assistant", "content": "No."}]}
    examples = tokenize([record], ours, columns={}, sequence_length=200).examples
    trained = [[i for i, t in zip(*each, strict=True) if t] for each in examples]
    # The system message is written before the last question, so each answer has its own example.
    assert [*map(ours.decode, trained)] == ["  Yes.\n</s>", "No.</s>"]
    ours.save_pretrained(tmp_path / "saved")
    saved = load_tokenizer(ModelConfig(str(tmp_path / "saved")))
    assert saved.apply_chat_template(asked) == ours.apply_chat_template(asked)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert load_tokenizer(ModelConfig(str(tmp_path))).chat_template == "{{ messages[0].content }}"
