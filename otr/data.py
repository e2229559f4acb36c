"""From examples to packed rows.

In: rows of a corpus (dicts with messages, prompt/completion or Alpaca columns) and a tokenizer with
a chat template. Out: packed rows, contract 1: {input_ids int32[S], loss_mask bool[S], segment_ids
int32[S]}. loss_mask marks the tokens to be predicted: the assistant's and its end-of-turn token.
segment_ids counts a row's examples from 1; 0 is padding.

Shapes: N rows, S row length.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

FORMS = (("messages",), ("prompt", "completion"), ("instruction", "input", "output"))
"""The columns a row may have; `input` may lack."""

Example = tuple[list[int], list[bool]]
"""Token ids and, for each, whether it is to be predicted."""


class Rejected(ValueError):
    """An example that can't be trained on; `cause` is one of CAUSES."""

    CAUSES = ("broken", "empty", "template", "over-long", "untrained", "unreadable")

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause, self.detail = cause, detail


@dataclass(frozen=True)
class Tokenized:
    """The usable examples, and (row, cause, detail) of the others."""

    examples: list[Example]
    rejected: list[tuple[Any, str, str]]


def messages_of(row: Any, columns: Mapping[str, str]) -> list[dict[str, str]]:
    """The conversation in a corpus row.

    Args:
        row: the row as read.
        columns: our name of a column to the corpus's, where they differ. The forms they belong to
            are then the only ones looked for, whatever else the corpus has.

    Raises:
        Rejected: "broken" or "empty".
    """
    if not isinstance(row, Mapping):
        raise Rejected("broken", f"{type(row).__name__} instead of an object")
    if columns:
        wanted = [form for form in FORMS if not columns.keys().isdisjoint(form)]
        row = {name: row.get(columns.get(name, name)) for form in wanted for name in form}
    if row.get("messages") is not None:
        messages = row["messages"]
    elif row.get("instruction") is not None:
        prompt = "\n\n".join(t for t in (row["instruction"], row.get("input")) if t)
        messages = _turns(prompt, row.get("output"))
    else:
        messages = _turns(row.get("prompt"), row.get("completion"))
    try:
        messages = [{"role": m["role"], "content": m["content"]} for m in messages]
    except (TypeError, KeyError) as error:
        raise Rejected("broken", f"messages without role and content: {error}") from None
    for message in messages:
        if not isinstance(message["content"], str):
            raise Rejected("broken", f"the {message['role']}'s content is {message['content']!r}")
        if not message["content"].strip():
            raise Rejected("empty", f"the {message['role']}'s content")
    if not messages:
        raise Rejected("empty", "no messages")
    return messages


def _turns(prompt: Any, completion: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


def encode(
    messages: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> Example:
    """Token ids of a conversation in the model's chat template, and which are to be predicted.

    Each assistant turn is tokenized after the exact prompt that inference would give.

    Raises:
        Rejected: "template", "over-long" or "untrained".
    """
    ids: list[int] = []
    mask: list[bool] = []
    text = ""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = _render(tokenizer, messages[:i], generate=True)
        whole = _render(tokenizer, messages[: i + 1], generate=False)
        if not (prompt.startswith(text) and whole.startswith(prompt)):
            raise Rejected("template", f"the chat template rewrites what came before turn {i}")
        prompt_ids = _token_ids(tokenizer, prompt[len(text) :])
        answer_ids = _token_ids(tokenizer, whole[len(prompt) :])
        trained = _end_of_turn(answer_ids, tokenizer)
        ids += prompt_ids + answer_ids
        mask += [False] * len(prompt_ids) + [True] * trained
        mask += [False] * (len(ids) - len(mask))
        text = whole
    if len(ids) > max_tokens:
        raise Rejected("over-long", f"{len(ids)} tokens, a row holds {max_tokens}")
    if not any(mask[1:]):
        raise Rejected("untrained", "no assistant turn")
    return ids, mask


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], *, generate: bool
) -> str:
    try:
        text = tokenizer.apply_chat_template(
            [dict(m) for m in messages], tokenize=False, add_generation_prompt=generate
        )
    except Exception as error:  # jinja's own errors, raised by the template's author
        raise Rejected("template", str(error)) from None
    assert isinstance(text, str)
    return text


def _token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _end_of_turn(answer_ids: list[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """How many of an assistant turn's tokens are trained: up to its last special token.

    What the template writes after it (a newline, as a rule) is never generated.
    """
    special = set(tokenizer.all_special_ids)
    last = max((i for i, token in enumerate(answer_ids) if token in special), default=None)
    return len(answer_ids) if last is None else last + 1


def tokenize(
    rows: Iterable[Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    columns: Mapping[str, str],
    row_length: int,
) -> Tokenized:
    """Encode each row of a corpus; what can't be used comes back with its cause.

    A ValueError in the place of a row says why a file, or the rest of it, can't be read.
    """
    done = Tokenized([], [])
    for row in rows:
        if isinstance(row, ValueError):
            done.rejected.append(("", "unreadable", str(row)))
            continue
        try:
            done.examples.append(encode(messages_of(row, columns), tokenizer, row_length))
        except Rejected as error:
            done.rejected.append((row, error.cause, error.detail))
    return done


def pack(examples: Sequence[Example], row_length: int) -> dict[str, np.ndarray]:
    """Fill rows of `row_length` tokens with whole examples.

    Each row gets the longest example that is left, and of the others those that fill it best
    (minimum bin slack; Gupta and Ho, 1999).

    Returns:
        The columns of contract 1, [N, S] each.

    Raises:
        ValueError: an example is longer than a row.
    """
    left: dict[int, list[Example]] = {}
    for example in reversed(examples):
        left.setdefault(len(example[0]), []).append(example)
    if left and max(left) > row_length:
        raise ValueError(f"an example of {max(left)} tokens in rows of {row_length}")
    rows: list[list[Example]] = []
    while left:
        longest = max(left)
        rows.append([_take(left, longest)])
        rows[-1] += [_take(left, length) for length in _fullest(left, row_length - longest)]
    return _columns(rows, row_length)


def _take(left: dict[int, list[Example]], length: int) -> Example:
    example = left[length].pop()
    if not left[length]:
        del left[length]
    return example


def _fullest(left: Mapping[int, Sequence[Example]], room: int) -> list[int]:
    """Lengths of examples whose sum is the largest that is not above `room`."""
    sums, within = 1, (1 << (room + 1)) - 1  # bit s: some examples have s tokens together
    added: list[tuple[int, int]] = []
    for length in sorted((n for n in left if n <= room), reverse=True):
        for _ in left[length]:
            more = (sums | sums << length) & within
            if more == sums or sums >> room:
                break
            added.append((length, sums))
            sums = more
    total, chosen = sums.bit_length() - 1, []
    for length, before in reversed(added):
        if not before >> total & 1:  # not without this one
            chosen.append(length)
            total -= length
    return chosen


def _columns(rows: Sequence[Sequence[Example]], row_length: int) -> dict[str, np.ndarray]:
    shape = (len(rows), row_length)
    packed = {
        "input_ids": np.zeros(shape, np.int32),
        "loss_mask": np.zeros(shape, bool),
        "segment_ids": np.zeros(shape, np.int32),
    }
    for n, row in enumerate(rows):
        start = 0
        for segment, (ids, mask) in enumerate(row, 1):
            place = slice(start, start := start + len(ids))
            packed["input_ids"][n, place] = ids
            packed["loss_mask"][n, place] = mask
            packed["loss_mask"][n, place.start] = False  # nothing comes before to predict it from
            packed["segment_ids"][n, place] = segment
    return packed
