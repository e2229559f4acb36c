"""Records are rendered, masked, rejected and packed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import normalizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

import otr.data
from otr import ModelConfig, load_tokenizer
from otr.data import Rejected, encode, messages_of, pack, tokenize
from tests.assets.tiny import CHATML, byte_tokenizer, make_tiny_model

BASE = Path(otr.__file__).parents[1] / "pipelines" / "builtin" / "base"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return load_tokenizer(ModelConfig(str(make_tiny_model(tmp_path_factory.mktemp("m") / "tiny"))))


TURNS = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]


@pytest.mark.parametrize(
    ("record", "columns"),
    [
        ({"messages": TURNS}, {}),
        ({"prompt": "2 + 2?", "completion": "4"}, {}),
        ({"question": "2 + 2?", "answer": "4"}, {"prompt": "question", "completion": "answer"}),
        ({"chat": TURNS}, {"messages": "chat"}),
        ({"instruction": "2 + 2?", "input": "", "output": "4"}, {}),
    ],
)
def test_every_layout_becomes_messages(record: dict, columns: dict) -> None:
    assert messages_of(record, columns) == TURNS


@pytest.mark.parametrize(
    "columns", [{"prompt": "question", "completion": "answer"}, {"completion": "answer"}]
)
def test_named_columns_take_precedence_over_others(columns: dict) -> None:
    other = {"messages": [{"role": "user", "content": "no"}], "instruction": "no", "output": "no"}
    record = {**other, "question": "2 + 2?", "prompt": "2 + 2?", "answer": "4", "completion": "no"}
    assert messages_of(record, columns) == TURNS


def test_alpaca_input_joins_the_instruction() -> None:
    record = {"instruction": "Add.", "input": "2 and 2", "output": "4"}
    assert messages_of(record, {})[0]["content"] == "Add.\n\n2 and 2"


def test_only_the_answer_and_its_end_of_turn_are_trained(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    ids, mask = encode(TURNS, tokenizer, 100)
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m]) == "4<|im_end|>"


def test_every_assistant_turn_is_trained(tokenizer: PreTrainedTokenizerBase) -> None:
    turns = [*TURNS, {"role": "user", "content": "3 + 3?"}, {"role": "assistant", "content": "6"}]
    ids, mask = encode(turns, tokenizer, 200)
    trained = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
    assert trained == "4<|im_end|>6<|im_end|>"
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(turns, tokenize=False)


@pytest.mark.parametrize(
    ("record", "cause"),
    [
        ("no object", "broken"),
        ({"prompt": "a"}, "broken"),
        ({"messages": "hello"}, "broken"),
        ({"prompt": "a", "completion": "  "}, "empty"),
        ({"messages": []}, "empty"),
        ({"prompt": "a", "completion": "b" * 100}, "over-long"),
        ({"messages": TURNS[:1]}, "untrained"),
    ],
)
def test_unusable_records_are_rejected_with_their_cause(
    record: object, cause: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert cause in Rejected.CAUSES
    done = tokenize([record, {"messages": TURNS}], tokenizer, columns={}, sequence_length=64)
    assert len(done.examples) == 1
    assert [(rejected.record, rejected.cause) for rejected in done.rejected] == [(record, cause)]


def test_a_template_that_rewrites_history_is_rejected(tokenizer: PreTrainedTokenizerBase) -> None:
    template = tokenizer.chat_template
    tokenizer.chat_template = "{{ messages | length }}{{ messages[-1].content }}"
    try:
        with pytest.raises(Rejected, match="template"):
            encode(TURNS, tokenizer, 100)
    finally:
        tokenizer.chat_template = template


TEMPLATES = {
    "chatml": CHATML,
    # Like Llama 3: trims contents, and starts the first message with a special token.
    "llama": "{% for m in messages %}{{ '<|endoftext|>' if loop.first else '' }}"
    "{{ '<|im_start|>' + m.role + '\n\n' + m.content | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}",
    # Like Mistral: no generation prompt.
    "mistral": "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content + eos_token }}"
    "{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endif %}{% endfor %}",
    # Like Gemma: refuses some roles, and an answer without a question.
    "gemma": "{% for m in messages %}{% if m.role == 'system' or (loop.first and m.role =="
    " 'assistant') %}{{ raise_exception('not this one') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}",
    # Like Qwen3: drops the reasoning of all turns except the last.
    "qwen": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content if loop.last"
    " else m.content.split('</think>')[-1]) + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
}
WORDS = ["2 + 2?", " Straße \n\n", "4<|im_end|>", "<think>hm</think> 日本語 🙂", "x" * 90, "\ta  b"]
ROLES = ["ua", "sua", "uaua", "suauaua", "au", "u", "uaa", "a", "uauau", "uua"]


def conversations() -> list[list[dict[str, str]]]:
    """Return conversations with several orders of roles and kinds of text."""
    names = {"u": "user", "a": "assistant", "s": "system"}
    return [
        [
            {"role": names[role], "content": WORDS[(start + n * step) % len(WORDS)]}
            for n, role in enumerate(roles)
        ]
        for roles in ROLES
        for start, step in ((0, 1), (2, 3), (4, 5))
    ]


def tokenizer_that_changes_its_text() -> PreTrainedTokenizerBase:
    class Upper(PreTrainedTokenizerFast):
        def __call__(self, text: Any, **options: Any) -> Any:
            return super().__call__([some.upper() for some in text], **options)

    backend = byte_tokenizer().backend_tokenizer
    return Upper(tokenizer_object=backend, eos_token="<|im_end|>")


def tokenizer_that_pads_and_truncates() -> PreTrainedTokenizerBase:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.enable_padding(length=50)
    tokenizer.backend_tokenizer.enable_truncation(20)
    return tokenizer


def tokenizer_with_a_prefix() -> PreTrainedTokenizerBase:
    """Mark the start of a text as SentencePiece does: its pieces have other tokens than it."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Prepend(" ")
    return tokenizer


TOKENIZERS = {
    "bytes": byte_tokenizer,
    "merges": lambda: load_tokenizer(ModelConfig(str(BASE))),
    "padded": tokenizer_that_pads_and_truncates,
    "prefixed": tokenizer_with_a_prefix,
    "subclass": tokenizer_that_changes_its_text,
}


def encoded_alone(messages: list[dict[str, str]], tokenizer: Any, max_tokens: int) -> Any:
    """Return a conversation's example, or the cause of its rejection; one call per text."""
    ids: list[int] = []
    mask: list[bool] = []
    text = ""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        try:
            prompt = tokenizer.apply_chat_template(
                messages[:i], tokenize=False, add_generation_prompt=True
            )
            answered = tokenizer.apply_chat_template(messages[: i + 1], tokenize=False)
        except Exception:
            return "template"
        if not (prompt.startswith(text) and answered.startswith(prompt)):
            return "template"
        pieces = (prompt[len(text) :], answered[len(prompt) :])
        asked, answer = (
            tokenizer([piece], add_special_tokens=False)["input_ids"][0] for piece in pieces
        )
        special = [n for n, token in enumerate(answer) if token in tokenizer.all_special_ids]
        ids += asked + answer
        mask += [False] * len(asked)
        mask += [n <= max(special, default=len(answer)) for n in range(len(answer))]
        text = answered
    if len(ids) > max_tokens:
        return "over-long"
    return (ids, mask) if any(mask[1:]) else "untrained"


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_encoding_together_equals_encoding_alone(
    template: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otr.data, "RENDERED_AT_ONCE", 7)  # some groups have unusable ones
    some = conversations()
    tokenizer = TOKENIZERS[kind]()
    tokenizer.chat_template = TEMPLATES[template]
    expected = [encoded_alone(messages, tokenizer, 200) for messages in some]
    records = [{"messages": messages} for messages in some]
    tokenizer = TOKENIZERS[kind]()
    tokenizer.chat_template = TEMPLATES[template]
    done = tokenize(records, tokenizer, columns={}, sequence_length=200)
    assert done.examples == [one for one in expected if not isinstance(one, str)] != []
    causes = [rejected.cause for rejected in done.rejected]
    assert causes == [one for one in expected if isinstance(one, str)] != []


def test_pack_stores_every_example_once_and_unsplit() -> None:
    rng = np.random.default_rng(0)
    examples = [
        ([i] * int(n), [True] * int(n)) for i, n in enumerate(rng.integers(2, 40, 300), start=1)
    ]
    packed = pack(examples, 64)
    for column, dtype in (("input_ids", "int32"), ("segment_ids", "int32"), ("loss_mask", "bool")):
        assert packed[column].dtype == dtype and packed[column].shape[1] == 64
    for ids, _ in examples:
        rows, columns = np.nonzero(packed["input_ids"] == ids[0])
        assert len(set(rows)) == 1 and len(columns) == len(ids)
        assert (np.diff(columns) == 1).all()
        assert len(set(packed["segment_ids"][rows, columns])) == 1
        # No token of the example precedes its first, so that is not a target.
        assert packed["loss_mask"][rows, columns].sum() == len(ids) - 1
    assert (packed["segment_ids"] > 0).mean() > 0.995
    assert not packed["loss_mask"][packed["segment_ids"] == 0].any()


def test_packed_rows_are_filled_optimally() -> None:
    """Best fit in decreasing length would combine 6 + 3 and need a third packed row."""
    examples = [([1] * n, [True] * n) for n in (6, 3, 3, 2, 2, 2, 2)]
    assert (pack(examples, 10)["segment_ids"] > 0).all()


def test_two_ranks_get_nearly_the_same_number_of_tokens() -> None:
    """Each step has 32 packed rows, 16 per rank; lengths of examples are log-normal."""
    order = np.random.default_rng(0)
    lengths = np.clip(order.lognormal(5, 0.8, 1000), 16, 1024).astype(int)
    packed = pack([([1] * n, [False] + [True] * (n - 1)) for n in lengths], 1024)
    tokens = order.permutation((packed["segment_ids"] > 0).sum(1))
    steps = tokens[: len(tokens) // 32 * 32].reshape(-1, 2, 16).sum(2)
    assert (abs(steps[:, 0] - steps[:, 1]) / steps.mean(1)).mean() < 0.01


def test_pack_refuses_an_example_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="9 tokens does not fit into packed rows of 8"):
        pack([([1] * 9, [True] * 9)], 8)
