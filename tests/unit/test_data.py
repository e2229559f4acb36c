"""Rendering, masking, rejecting and packing of examples."""

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from otr import ModelConfig, load_tokenizer
from otr.data import Rejected, encode, messages_of, pack, tokenize
from tests.assets.tiny import make_tiny_model


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
    done = tokenize([row, {"messages": TURNS}], tokenizer, columns={}, row_length=64)
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


def test_pack_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="9 tokens in rows of 8"):
        pack([([1] * 9, [True] * 9)], 8)
