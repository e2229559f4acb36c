"""Rendering, masking, rejecting and packing of examples."""

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
    ("row", "columns"),
    [
        ({"messages": TURNS}, {}),
        ({"prompt": "2 + 2?", "completion": "4"}, {}),
        ({"question": "2 + 2?", "answer": "4"}, {"prompt": "question", "completion": "answer"}),
        ({"chat": TURNS}, {"messages": "chat"}),
        ({"instruction": "2 + 2?", "input": "", "output": "4"}, {}),
    ],
)
def test_every_layout_becomes_messages(row: dict, columns: dict) -> None:
    assert messages_of(row, columns) == TURNS


@pytest.mark.parametrize(
    "columns", [{"prompt": "question", "completion": "answer"}, {"completion": "answer"}]
)
def test_named_columns_win_over_what_else_the_corpus_has(columns: dict) -> None:
    other = {"messages": [{"role": "user", "content": "no"}], "instruction": "no", "output": "no"}
    row = {**other, "question": "2 + 2?", "prompt": "2 + 2?", "answer": "4", "completion": "no"}
    assert messages_of(row, columns) == TURNS


def test_alpaca_input_joins_the_instruction() -> None:
    row = {"instruction": "Add.", "input": "2 and 2", "output": "4"}
    assert messages_of(row, {})[0]["content"] == "Add.\n\n2 and 2"


def test_only_the_answer_and_its_end_of_turn_are_trained(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    ids, mask = encode(TURNS, tokenizer, 100)
    whole = tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert tokenizer.decode(ids) == whole
    assert tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m]) == "4<|im_end|>"


def test_every_assistant_turn_is_trained(tokenizer: PreTrainedTokenizerBase) -> None:
    turns = [*TURNS, {"role": "user", "content": "3 + 3?"}, {"role": "assistant", "content": "6"}]
    ids, mask = encode(turns, tokenizer, 200)
    trained = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
    assert trained == "4<|im_end|>6<|im_end|>"
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(turns, tokenize=False)


@pytest.mark.parametrize(
    ("row", "cause"),
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
def test_rejects_by_cause(row: object, cause: str, tokenizer: PreTrainedTokenizerBase) -> None:
    assert cause in Rejected.CAUSES
    done = tokenize([row, {"messages": TURNS}], tokenizer, columns={}, sequence_length=64)
    assert len(done.examples) == 1
    assert [(r, c) for r, c, _ in done.rejected] == [(row, cause)]


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
    # As Llama 3: contents are trimmed, the first message opens with a token of its own.
    "llama": "{% for m in messages %}{{ '<|endoftext|>' if loop.first else '' }}"
    "{{ '<|im_start|>' + m.role + '\n\n' + m.content | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}",
    # As Mistral: no generation prompt, the answer follows at once.
    "mistral": "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content + eos_token }}"
    "{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endif %}{% endfor %}",
    # As Gemma: refuses some roles, and an answer without a question.
    "gemma": "{% for m in messages %}{% if m.role == 'system' or (loop.first and m.role =="
    " 'assistant') %}{{ raise_exception('not this one') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}",
    # As Qwen3: what was thought is left out of all turns but the last.
    "qwen": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content if loop.last"
    " else m.content.split('</think>')[-1]) + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
}
WORDS = ["2 + 2?", " Straße \n\n", "4<|im_end|>", "<think>hm</think> 日本語 🙂", "x" * 90, "\ta  b"]
ROLES = ["ua", "sua", "uaua", "suauaua", "au", "u", "uaa", "a", "uauau", "uua"]


def conversations() -> list[list[dict[str, str]]]:
    """Orders of roles with all kinds of text."""
    names = {"u": "user", "a": "assistant", "s": "system"}
    return [
        [
            {"role": names[role], "content": WORDS[(start + n * step) % len(WORDS)]}
            for n, role in enumerate(roles)
        ]
        for roles in ROLES
        for start, step in ((0, 1), (2, 3), (4, 5))
    ]


def with_more_than_its_backend() -> PreTrainedTokenizerBase:
    class Shouting(PreTrainedTokenizerFast):
        def __call__(self, text: Any, **options: Any) -> Any:
            return super().__call__([some.upper() for some in text], **options)

    backend = byte_tokenizer().backend_tokenizer
    return Shouting(tokenizer_object=backend, eos_token="<|im_end|>")


def that_pads_and_cuts() -> PreTrainedTokenizerBase:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.enable_padding(length=50)
    tokenizer.backend_tokenizer.enable_truncation(20)
    return tokenizer


def that_marks_a_text_s_begin() -> PreTrainedTokenizerBase:
    """As SentencePiece does, so that pieces of a text have other tokens than the whole."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Prepend(" ")
    return tokenizer


TOKENIZERS = {
    "bytes": byte_tokenizer,
    "merges": lambda: load_tokenizer(ModelConfig(str(BASE))),
    "padded": that_pads_and_cuts,
    "prefixed": that_marks_a_text_s_begin,
    "subclass": with_more_than_its_backend,
}


def one_by_one(messages: list[dict[str, str]], tokenizer: Any, most: int) -> Any:
    """An example, or the cause why not; a call for every text."""
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
            whole = tokenizer.apply_chat_template(messages[: i + 1], tokenize=False)
        except Exception:
            return "template"
        if not (prompt.startswith(text) and whole.startswith(prompt)):
            return "template"
        pieces = (prompt[len(text) :], whole[len(prompt) :])
        asked, answer = (
            tokenizer([piece], add_special_tokens=False)["input_ids"][0] for piece in pieces
        )
        special = [n for n, token in enumerate(answer) if token in tokenizer.all_special_ids]
        ids += asked + answer
        mask += [False] * len(asked)
        mask += [n <= max(special, default=len(answer)) for n in range(len(answer))]
        text = whole
    if len(ids) > most:
        return "over-long"
    return (ids, mask) if any(mask[1:]) else "untrained"


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_many_at_once_are_what_each_is_alone(
    template: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otr.data, "TOGETHER", 7)  # some that only hold usable ones, some not
    some = conversations()
    tokenizer = TOKENIZERS[kind]()
    tokenizer.chat_template = TEMPLATES[template]
    wanted = [one_by_one(messages, tokenizer, 200) for messages in some]
    rows = [{"messages": messages} for messages in some]
    tokenizer = TOKENIZERS[kind]()
    tokenizer.chat_template = TEMPLATES[template]
    done = tokenize(rows, tokenizer, columns={}, sequence_length=200)
    assert done.examples == [one for one in wanted if not isinstance(one, str)] != []
    causes = [cause for _, cause, _ in done.rejected]
    assert causes == [one for one in wanted if isinstance(one, str)] != []


def test_pack_keeps_every_token_once_and_whole() -> None:
    rng = np.random.default_rng(0)
    examples = [
        ([i] * int(n), [True] * int(n)) for i, n in enumerate(rng.integers(2, 40, 300), start=1)
    ]
    packed = pack(examples, 64)
    for column, dtype in (("input_ids", "int32"), ("segment_ids", "int32"), ("loss_mask", "bool")):
        assert packed[column].dtype == dtype and packed[column].shape[1] == 64
    for ids, _ in examples:
        rows, places = np.nonzero(packed["input_ids"] == ids[0])
        assert len(set(rows)) == 1 and len(places) == len(ids)
        assert (np.diff(places) == 1).all()
        assert len(set(packed["segment_ids"][rows, places])) == 1
        assert (
            packed["loss_mask"][rows, places].sum() == len(ids) - 1
        )  # the first can't be predicted
    assert (packed["segment_ids"] > 0).mean() > 0.995
    assert not packed["loss_mask"][packed["segment_ids"] == 0].any()


def test_a_row_is_filled_by_the_examples_that_fill_it_best() -> None:
    """Best fit in decreasing length would take 6 + 3 first, and a third row."""
    examples = [([1] * n, [True] * n) for n in (6, 3, 3, 2, 2, 2, 2)]
    assert (pack(examples, 10)["segment_ids"] > 0).all()


def test_two_ranks_get_as_many_tokens() -> None:
    """Of any 32 rows, 16 a rank; the lengths of examples are log-normal."""
    order = np.random.default_rng(0)
    lengths = np.clip(order.lognormal(5, 0.8, 1000), 16, 1024).astype(int)
    packed = pack([([1] * n, [False] + [True] * (n - 1)) for n in lengths], 1024)
    tokens = order.permutation((packed["segment_ids"] > 0).sum(1))
    steps = tokens[: len(tokens) // 32 * 32].reshape(-1, 2, 16).sum(2)
    assert (abs(steps[:, 0] - steps[:, 1]) / steps.mean(1)).mean() < 0.01


def test_pack_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="9 tokens in rows of 8"):
        pack([([1] * 9, [True] * 9)], 8)
