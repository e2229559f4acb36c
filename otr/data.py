"""From examples to packed rows.

In: rows of a corpus (dicts with messages, prompt/completion or Alpaca columns) and a tokenizer with
a chat template. Out: packed rows, contract 1: {input_ids int32[S], loss_mask bool[S], segment_ids
int32[S]}. loss_mask marks the tokens to be predicted: the assistant's and its end-of-turn token.
segment_ids counts a row's examples from 1; 0 is padding.

Shapes: N rows, S row length.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from otr._compat import uses_plain_backend
from otr._deprecated import renamed_arguments

TOGETHER = 64  # conversations that are rendered and tokenized in one call

FORMS = (("messages",), ("prompt", "completion"), ("instruction", "input", "output"))
"""The columns a row may have; `input` may lack."""

Conversation = Sequence[Mapping[str, str]]
"""Messages, each with role and content."""

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
        messages = _turns(_instruction(row), row.get("output"))
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


def _instruction(row: Mapping[str, Any]) -> Any:
    parts = [part for part in (row["instruction"], row.get("input")) if part]
    return "\n\n".join(parts) if all(isinstance(part, str) for part in parts) else parts


def _turns(prompt: Any, completion: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


def encode(messages: Conversation, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Example:
    """Token ids of a conversation in the model's chat template, and which are to be predicted.

    Each assistant turn is tokenized after the exact prompt that inference would give.

    Raises:
        Rejected: "template", "over-long" or "untrained".
    """
    [found] = _encoded([messages], tokenizer, max_tokens)
    if isinstance(found, Rejected):
        raise found
    return found


def _encoded(
    conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> list[Example | Rejected]:
    """What `encode` makes of each; a call of template or tokenizer costs what a short text does."""
    turns = [[i for i, m in enumerate(c) if m["role"] == "assistant"] for c in conversations]
    both = [(c[:i], c[: i + 1]) for c, some in zip(conversations, turns, strict=True) for i in some]
    prompts = _rendered([prompt for prompt, _ in both], tokenizer, generate=True)
    wholes = _rendered([whole for _, whole in both], tokenizer, generate=False)
    texts = chain.from_iterable(zip(prompts, wholes, strict=True))
    added = [_added(list(islice(texts, 2 * len(some))), some) for some in turns]
    pieces = [piece for some in added if not isinstance(some, Rejected) for piece in some]
    ids = iter(_token_ids(pieces, tokenizer))
    special = frozenset(tokenizer.all_special_ids)

    def example(some: Sequence[str]) -> Example | Rejected:
        return _example(list(islice(ids, len(some))), special, max_tokens)

    return [some if isinstance(some, Rejected) else example(some) for some in added]


def _rendered(
    conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase, *, generate: bool
) -> list[str | Rejected]:
    """The text of each, or why there is none."""
    template: Any = tokenizer.apply_chat_template
    render = partial(template, tokenize=False, add_generation_prompt=generate)

    def alone(messages: Conversation) -> str | Rejected:
        try:
            return render(messages)
        except Exception as error:  # jinja's own errors, raised by the template's author
            return Rejected("template", str(error))

    with suppress(Exception):  # one of them has an error: which?
        if all(conversations):  # no messages are refused alone, but not among others
            return render(conversations)
    return list(map(alone, conversations))


def _added(texts: Sequence[str | Rejected], turns: Sequence[int]) -> list[str] | Rejected:
    """What each text adds to the one before it: a prompt and an answer, turn after turn."""
    added: list[str] = []
    before = ""
    for number, text in enumerate(texts):
        if isinstance(text, Rejected):
            return text
        if not text.startswith(before):
            detail = f"the chat template rewrites what came before turn {turns[number // 2]}"
            return Rejected("template", detail)
        added.append(text[len(before) :])
        before = text
    return added


def _token_ids(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Of each text; asking a fast tokenizer's backend saves the offsets, a quarter of the time."""
    if not texts:
        return []
    if uses_plain_backend(tokenizer):
        tokenizer("", add_special_tokens=False)  # from here on its backend neither pads nor cuts
        backend = tokenizer.backend_tokenizer
        return [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=False)]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def _example(
    pieces: Sequence[list[int]], special: Container[int], max_tokens: int
) -> Example | Rejected:
    """Of the token ids of prompts and answers in turn."""
    ids: list[int] = []
    mask: list[bool] = []
    for number, piece in enumerate(pieces):
        # An answer is trained up to its last special token, the end of the turn: what the template
        # writes after it (a newline, as a rule) is never generated.
        ends = (end for end in range(len(piece), 0, -1) if piece[end - 1] in special)
        trained = next(ends, len(piece)) if number % 2 else 0
        ids += piece
        mask += [True] * trained + [False] * (len(piece) - trained)
    if len(ids) > max_tokens:
        return Rejected("over-long", f"{len(ids)} tokens, a row holds {max_tokens}")
    if not any(mask[1:]):
        return Rejected("untrained", "no assistant turn")
    return ids, mask


@renamed_arguments(row_length="sequence_length")
def tokenize(
    rows: Iterable[Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    columns: Mapping[str, str],
    sequence_length: int,
) -> Tokenized:
    """Encode each row of a corpus; what can't be used comes back with its cause.

    A ValueError in the place of a row says why a file, or the rest of it, can't be read.
    """
    done = Tokenized([], [])
    rows = iter(rows)
    while some := list(islice(rows, TOGETHER)):
        found = [_conversation(row, columns) for row in some]
        usable = [one for one in found if not isinstance(one, Rejected)]
        encoded = iter(_encoded(usable, tokenizer, sequence_length))
        for row, one in zip(some, found, strict=True):
            example = one if isinstance(one, Rejected) else next(encoded)
            if isinstance(example, Rejected):
                shown = "" if isinstance(row, ValueError) else row
                done.rejected.append((shown, example.cause, example.detail))
            else:
                done.examples.append(example)
    return done


def _conversation(row: Any, columns: Mapping[str, str]) -> Conversation | Rejected:
    if isinstance(row, ValueError):
        return Rejected("unreadable", str(row))
    try:
        return messages_of(row, columns)
    except Rejected as error:
        return error


@renamed_arguments(row_length="sequence_length")
def pack(examples: Sequence[Example], sequence_length: int) -> dict[str, np.ndarray]:
    """Fill rows of `sequence_length` tokens with whole examples.

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
    if left and max(left) > sequence_length:
        raise ValueError(f"an example of {max(left)} tokens in rows of {sequence_length}")
    rows: list[list[Example]] = []
    while left:
        longest = max(left)
        rows.append([_take(left, longest)])
        rows[-1] += [_take(left, length) for length in _fullest(left, sequence_length - longest)]
    return _columns(rows, sequence_length)


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


def _columns(rows: Sequence[Sequence[Example]], sequence_length: int) -> dict[str, np.ndarray]:
    shape = (len(rows), sequence_length)
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
