"""Token ids and targets are those that the engine will see, whatever the tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    LlamaTokenizer,
    PreTrainedTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

import otr.data
from otr import ModelConfig, load_tokenizer
from otr.data import Rejected, encode, tokenize, tokenize_batches
from otr.data import examples as examples_module
from otr.data.examples import PART_LEFT_OUT, SPLIT, TRUNCATED
from tests.assets.tiny import CHATML, byte_tokenizer

BASE = Path(otr.__file__).parents[1] / "pipelines" / "builtin" / "base"
TURNS = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
RECORD = {"messages": TURNS}
SYSTEM = {"role": "system", "content": "Be brief."}
CAUSES = Rejected.CAUSES


def trained(tokenizer: Any, example: Any) -> str:
    return tokenizer.decode([i for i, m in zip(*example, strict=True) if m])


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
            return super().__call__([some.swapcase() for some in text], **options)

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


def sentencepiece(legacy: bool) -> PreTrainedTokenizerBase:
    """Return a tokenizer like Llama 2's."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    letters = [*"▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?!<>|[]/+="]
    merges = [("▁", "a"), ("h", "m"), ("x", "x"), ("▁", "4"), ("▁", "▁"), ("▁", "2")]
    for piece in [*letters, *(left + right for left, right in merges)]:
        vocabulary.setdefault(piece, len(vocabulary))
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=merges, legacy=legacy)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    return tokenizer


def tokenizer_that_joins_line_ends(by_words: bool = False) -> PreTrainedTokenizerBase:
    """Merge two line ends, so that a prompt's last may share a token with an answer's first.

    By words, as GPT-2's tokenizer does it, the last blank before a word is apart from the others.
    """
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate([*symbols, "ĊĊ", "ĊĠ"])}
    merges = [("Ċ", "Ċ"), ("Ċ", "Ġ")]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=by_words)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")


class _Characters(PreTrainedTokenizer):
    """A tokenizer in Python, which can't tell where in the text its tokens stand."""

    def __init__(self, **options: Any) -> None:
        self.known = {chr(code): code for code in range(2000)}
        super().__init__(**options)
        names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        self.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])

    @property
    def vocab_size(self) -> int:
        return len(self.known)

    def get_vocab(self) -> dict[str, int]:
        return {**self.known, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return [*text]

    def _convert_token_to_id(self, token: str) -> int:
        return self.known.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)


TOKENIZERS = {
    "bytes": byte_tokenizer,
    "merges": lambda: load_tokenizer(ModelConfig(str(BASE))),
    "padded": tokenizer_that_pads_and_truncates,
    "prefixed": tokenizer_with_a_prefix,
    "subclass": tokenizer_that_changes_its_text,
    "sentencepiece": lambda: sentencepiece(legacy=False),
    "sentencepiece, legacy": lambda: sentencepiece(legacy=True),
    "python": lambda: _Characters(eos_token="<|im_end|>"),
}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_each_answer_follows_the_tokens_of_its_prompt(
    template: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples_module, "TOKENIZED_AT_ONCE", 7)  # some groups have unusable ones
    tokenizer = TOKENIZERS[kind]()
    tokenizer.chat_template = TEMPLATES[template]
    some = conversations()
    records = [{"messages": messages} for messages in some]
    done = tokenize(records, tokenizer, columns={}, sequence_length=10**4)
    examples, rejected = iter(done.examples), {one.number: one.cause for one in done.rejected}
    tokenizer = TOKENIZERS[kind]()
    tokenizer.chat_template = TEMPLATES[template]
    for number, messages in enumerate(some):
        prompts = [messages[:n] for n, m in enumerate(messages) if m["role"] == "assistant"]
        texts, whole, failed = [], [], False
        for prompt in prompts:
            try:
                text = written(tokenizer, messages[: len(prompt) + 1], generate=False)
                before = written(tokenizer, prompt, generate=True)
            except Exception:  # a greeting at the beginning is context alone
                failed |= any(message["role"] == "user" for message in prompt)
                continue
            if not text.startswith(before):  # Qwen's changes an answer that another follows
                text = before + text.rpartition("<|im_start|>assistant\n")[2]
            texts.append(before)
            whole.append(text)
        if failed or not texts:
            assert rejected[number] == ("template" if failed else "untrained")
            continue
        while texts:  # the answers of one example follow each other
            ids, mask = next(examples)
            asked = tokens(tokenizer, texts[0])
            while ids[: len(asked)] == asked and len(ids) > len(asked) and mask[len(asked)]:
                del texts[0]
                text = whole.pop(0)
                asked = tokens(tokenizer, texts[0]) if texts else ids
            assert ids == tokens(tokenizer, text)
    assert next(examples, None) is None


def written(tokenizer: Any, messages: list, *, generate: bool) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)


def tokens(tokenizer: Any, text: str) -> list[int]:
    return tokenizer([text], add_special_tokens=False)["input_ids"][0]


@pytest.mark.parametrize("answer", ["\n\nfour", " four", "four"])
def test_a_token_of_a_prompts_end_and_an_answers_beginning_is_cut(answer: str) -> None:
    tokenizer = tokenizer_that_joins_line_ends()
    tokenizer.chat_template = CHATML
    turns = [TURNS[0], {"role": "assistant", "content": answer}]
    example = encode(turns, tokenizer, 100)
    prompt = tokens(tokenizer, written(tokenizer, turns[:1], generate=True))
    assert example.ids[: len(prompt)] == prompt
    assert example.mask.index(True) == len(prompt)
    assert tokenizer.decode(example.ids) == written(tokenizer, turns, generate=False)
    assert trained(tokenizer, example) == f"{answer}<|im_end|>"


ENDS_IN_A_BLANK = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + ('<|im_end|>' if m.role == 'assistant' "
    "else '\n') }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
ENDS_IN_TWO_LINES = ENDS_IN_A_BLANK.replace(": ", ":\n\n")


@pytest.mark.parametrize("template", [ENDS_IN_A_BLANK, ENDS_IN_TWO_LINES])
@pytest.mark.parametrize("kind", ["merges", "words", "sentencepiece", "sentencepiece, legacy"])
def test_every_answer_follows_the_engines_tokens_where_they_are_others_than_the_texts(
    template: str, kind: str
) -> None:
    words = {"words": lambda: tokenizer_that_joins_line_ends(by_words=True)}
    tokenizer = (TOKENIZERS | words)[kind]()
    tokenizer.chat_template = template
    turns = [
        {"role": role, "content": text}
        for question, answer in (("2 + 2?", "4 am"), ("3 + 3?", "  a"), ("so?", "\nhm"), ("b", "4"))
        for role, text in (("user", question), ("assistant", answer))
    ]
    done = tokenize([{"messages": turns}], tokenizer, columns={}, sequence_length=1000)
    found = {}
    for ids, mask in done.examples:
        for start in range(len(ids)):
            if mask[start] and not mask[start - 1]:
                end = next((n for n in range(start, len(ids)) if not mask[n]), len(ids))
                assert tuple(ids[:start]) not in found, "each answer is trained once"
                found[tuple(ids[:start])] = ids[start:end]
    for number in range(1, len(turns), 2):
        prompt = tokens(tokenizer, written(tokenizer, turns[:number], generate=True))
        answer = found.pop(tuple(prompt))
        assert tokenizer.decode(prompt + answer) == tokenizer.decode(
            tokens(tokenizer, written(tokenizer, turns[: number + 1], generate=False))
        )
    assert not found


def test_only_the_answer_and_its_end_of_turn_are_trained() -> None:
    tokenizer = byte_tokenizer()
    ids, mask = encode(TURNS, tokenizer, 100)
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert trained(tokenizer, (ids, mask)) == "4<|im_end|>"


def test_all_tokens_or_the_last_answer_can_be_trained() -> None:
    tokenizer = byte_tokenizer()
    record = {
        "messages": [*TURNS, {"role": "user", "content": "3 + 3?"}, {**TURNS[1], "content": "6"}]
    }
    expected = {"assistant": "4<|im_end|>6<|im_end|>", "last": "6<|im_end|>"}
    expected["all"] = tokenizer.apply_chat_template(record["messages"], tokenize=False)
    for train_on, text in expected.items():
        done = tokenize(
            [record],
            tokenizer,
            columns={},
            sequence_length=200,
            train_on=train_on,  # type: ignore[arg-type]
        )
        assert trained(tokenizer, done.examples[0]) == text


@pytest.mark.parametrize("begins", [False, True])
def test_a_text_is_trained_whole_between_the_tokens_of_a_sequence(begins: bool) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None  # a base model's
    if begins:
        from tokenizers.processors import TemplateProcessing

        tokenizer.bos_token = "<|im_start|>"
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
        )
    begin = "<|im_start|>" if begins else ""
    for text in ("Once 🙂", f"{begin}Once 🙂", f"{begin}Once 🙂<|im_end|>"):
        done = tokenize([{"text": text}], tokenizer, columns={}, sequence_length=100)
        [(ids, mask)] = done.examples
        assert tokenizer.decode(ids) == f"{begin}Once 🙂<|im_end|>"
        assert all(mask)


def test_a_conversation_needs_a_chat_template() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    done = tokenize([RECORD], tokenizer, columns={}, sequence_length=100)
    [rejected] = done.rejected
    assert (rejected.cause, "give --chat-template" in rejected.detail) == ("template", True)


@pytest.mark.parametrize(
    ("record", "cause"),
    [
        ("no object", "broken"),
        ({"prompt": "a"}, "broken"),
        ({"prompt": "a", "completion": "  "}, "empty"),
        ({"prompt": "a", "completion": "b" * 100}, "over-long"),
        ({"messages": TURNS[:1]}, "untrained"),
        ({"prompt": "cut \ud83d", "completion": "off"}, "broken"),
        (ValueError("half a file"), "unreadable"),
        (
            {"messages": [{"role": "user", "content": "a", 7: {1, 2}}, {"role": "assistant"}]},
            "broken",
        ),
    ],
)
def test_an_unusable_record_is_rejected_and_the_others_are_used(record: Any, cause: str) -> None:
    tokenizer = byte_tokenizer()
    done = tokenize([RECORD, record, RECORD], tokenizer, columns={}, sequence_length=64)
    assert [trained(tokenizer, example) for example in done.examples] == ["4<|im_end|>"] * 2
    [rejected] = done.rejected
    shown = "" if isinstance(record, ValueError) else record
    assert (rejected.record, rejected.cause, rejected.number) == (shown, cause, 1)
    assert cause in CAUSES


def long_record(answers: list[str]) -> dict:
    turns = [({**TURNS[0]}, {**TURNS[1], "content": answer}) for answer in answers]
    return {"messages": [SYSTEM, *(message for turn in turns for message in turn)]}


def test_a_long_example_can_be_truncated_but_keeps_a_target() -> None:
    tokenizer = byte_tokenizer()
    for over_long in ("truncate_end", "truncate_start"):
        records = [
            {"prompt": "2?", "completion": "a" * 100},
            {"prompt": "2" * 100, "completion": "4"},  # cut at the end, no answer is left
        ]
        done = tokenize(
            records,
            tokenizer,
            columns={},
            sequence_length=73,
            over_long=over_long,  # type: ignore[arg-type]
        )
        first = trained(tokenizer, done.examples[0])
        assert len(done.examples[0].ids) == 73 and set(first) <= set("a<|im_end|>")
        causes = [rejected.cause for rejected in done.rejected]
        assert causes == (["over-long"] if over_long == "truncate_end" else [])
        assert done.remarks == {TRUNCATED: 2 - len(causes)}


def test_only_the_last_answer_is_trained_where_a_conversation_is_split() -> None:
    done = tokenize(
        [long_record(["b" * 80, "c" * 80, "d" * 80])],
        byte_tokenizer(),
        columns={},
        sequence_length=150,
        train_on="last",
        over_long="split",
    )
    assert [trained(byte_tokenizer(), each) for each in done.examples] == [f"{'d' * 80}<|im_end|>"]
    assert done.remarks == {SPLIT: 1}


def test_a_long_conversation_can_be_split_at_questions() -> None:
    tokenizer = byte_tokenizer()
    record = long_record([letter * 30 for letter in "abcde"])
    done = tokenize([record], tokenizer, columns={}, sequence_length=150, over_long="split")
    texts = [tokenizer.decode(example.ids) for example in done.examples]
    assert len(texts) > 1 and all("Be brief." in text for text in texts)
    assert all(len(example.ids) <= 150 for example in done.examples)
    learned = "".join(trained(tokenizer, example) for example in done.examples)
    assert learned == "".join(f"{letter * 30}<|im_end|>" for letter in "abcde")
    assert done.remarks == {SPLIT: 1}
    parts = tokenize(
        [long_record(["a" * 30, "b" * 200])],
        tokenizer,
        columns={},
        sequence_length=150,
        over_long="split",
    )
    assert [trained(tokenizer, example) for example in parts.examples] == ["a" * 30 + "<|im_end|>"]
    assert parts.remarks == {PART_LEFT_OUT: 1}
    none = tokenize(
        [long_record(["b" * 200])], tokenizer, columns={}, sequence_length=150, over_long="split"
    )
    assert [rejected.cause for rejected in none.rejected] == ["over-long"]


@pytest.mark.parametrize(("length", "parts"), [(250, [100, 100, 53]), (200, [100, 100, 3])])
def test_each_token_of_a_split_text_is_trained_once(length: int, parts: list[int]) -> None:
    """A first token is not: nothing precedes it."""
    text = "".join(map(chr, range(1000, 1000 + length)))

    def parted(sequence_length: int) -> list[list[int]]:
        record = {"text": text[: length // 2]}  # of two bytes each
        done = tokenize(
            [record],
            byte_tokenizer(),
            columns={},
            sequence_length=sequence_length,
            over_long="split",
        )
        assert all(all(example.mask) for example in done.examples)
        return [list(example.ids) for example in done.examples]

    [whole] = parted(1000)
    cut = parted(100)
    assert [*map(len, cut)] == parts
    assert [token for part in cut for token in part[1:]] == whole[1:]


def test_old_names_of_a_record_in_json_still_work() -> None:
    done = tokenize(
        rows=[json.loads(json.dumps(RECORD))],
        tokenizer=byte_tokenizer(),
        columns={},
        row_length=64,  # type: ignore[call-arg]
    )
    assert len(done.examples) == 1


def test_batches_are_tokenized_as_each_of_them_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples_module, "TOKENIZED_AT_ONCE", 3)
    tokenizer, options = byte_tokenizer(), {"columns": {}, "sequence_length": 100}
    records = [{"text": f"record {number}"} if number % 4 else {} for number in range(20)]
    ends = [0, 0, 1, 4, 7, 13, 13, 20]  # some batches are empty, some end with a call's records
    batches = [records[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    done = list(tokenize_batches(iter(batches), tokenizer, **options))
    assert done == [tokenize(batch, tokenizer, **options) for batch in batches]
    assert [each.number for each in done[5].rejected] == [1, 5]
