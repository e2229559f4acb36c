"""From corpus records to packed batches.

A record is a dict with the columns `messages`, or `prompt` and `completion`, or `instruction`,
`input` and `output`. `tokenize` renders records with the model's chat template into examples, and
`pack` fills packed rows with whole examples.

A packed batch has three columns, [N, S] each:

- `input_ids`, int32: token ids, 0 in padding;
- `loss_mask`, bool: True for the target tokens, which are the assistant's and its end-of-turn
  token;
- `segment_ids`, int32: number of the token's example within its packed row, from 1; 0 in padding.

Shapes: N packed rows, S sequence length (tokens per packed row).
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from otr._compat import uses_plain_backend
from otr._deprecated import renamed_arguments

RENDERED_AT_ONCE = 64  # conversations per call of the chat template and the tokenizer

FORMS = (("messages",), ("prompt", "completion"), ("instruction", "input", "output"))
"""The columns that a record may have; `input` is optional."""

Conversation = Sequence[Mapping[str, str]]
"""Messages, each with role and content."""

Example = tuple[list[int], list[bool]]
"""Token ids, and for each whether it is a target token."""


class Rejected(ValueError):
    """A record that cannot be trained on; `cause` is one of CAUSES."""

    CAUSES = ("broken", "empty", "template", "over-long", "untrained", "unreadable")

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause, self.detail = cause, detail


class RejectedRecord(NamedTuple):
    """A record that gave no example, and why."""

    record: Any
    cause: str
    """One of `Rejected.CAUSES`."""
    detail: str


@dataclass(frozen=True)
class Tokenized:
    """The examples of some records, and the records that gave none."""

    examples: list[Example]
    rejected: list[RejectedRecord]


def messages_of(record: Any, columns: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the conversation of a record.

    Args:
        record: the record as read.
        columns: the corpus's names of columns by our names, if they differ. If any is given, only
            the forms of these columns are looked for.

    Raises:
        Rejected: "broken" or "empty".
    """
    if not isinstance(record, Mapping):
        raise Rejected("broken", f"{type(record).__name__} instead of an object")
    if columns:
        forms = [form for form in FORMS if not columns.keys().isdisjoint(form)]
        record = {name: record.get(columns.get(name, name)) for form in forms for name in form}
    if record.get("messages") is not None:
        messages = record["messages"]
    elif record.get("instruction") is not None:
        messages = _turns(_instruction(record), record.get("output"))
    else:
        messages = _turns(record.get("prompt"), record.get("completion"))
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


def _instruction(record: Mapping[str, Any]) -> Any:
    parts = [part for part in (record["instruction"], record.get("input")) if part]
    return "\n\n".join(parts) if all(isinstance(part, str) for part in parts) else parts


def _turns(prompt: Any, completion: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


def encode(messages: Conversation, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Example:
    """Return token ids of a conversation in the model's chat template, and which are targets.

    Each assistant turn is tokenized after the exact prompt that inference would use.

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
    """Encode several conversations at once, which is faster: each call has a fixed cost."""
    turns = [[i for i, m in enumerate(c) if m["role"] == "assistant"] for c in conversations]
    pairs = [(c[:i], c[: i + 1]) for c, ts in zip(conversations, turns, strict=True) for i in ts]
    prompts = _rendered([prompt for prompt, _ in pairs], tokenizer, generate=True)
    answered = _rendered([messages for _, messages in pairs], tokenizer, generate=False)
    texts = chain.from_iterable(zip(prompts, answered, strict=True))
    added = [_added(list(islice(texts, 2 * len(ts))), ts) for ts in turns]
    pieces = [piece for one in added if not isinstance(one, Rejected) for piece in one]
    ids = iter(_token_ids(pieces, tokenizer))
    special = frozenset(tokenizer.all_special_ids)

    def example(pieces: Sequence[str]) -> Example | Rejected:
        return _example(list(islice(ids, len(pieces))), special, max_tokens)

    return [one if isinstance(one, Rejected) else example(one) for one in added]


def _rendered(
    conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase, *, generate: bool
) -> list[str | Rejected]:
    """Return each conversation's text, or why the template rejects it."""
    template: Any = tokenizer.apply_chat_template
    render = partial(template, tokenize=False, add_generation_prompt=generate)

    def alone(messages: Conversation) -> str | Rejected:
        try:
            return render(messages)
        except Exception as error:  # jinja's own errors, raised by the template's author
            return Rejected("template", str(error))

    with suppress(Exception):  # if one fails, all are rendered alone to find it
        if all(conversations):  # templates that reject an empty list accept it in a batch
            return render(conversations)
    return list(map(alone, conversations))


def _added(texts: Sequence[str | Rejected], turns: Sequence[int]) -> list[str] | Rejected:
    """Return what each text adds to the one before: a prompt and an answer, turn after turn."""
    added: list[str] = []
    before = ""
    for number, text in enumerate(texts):
        if isinstance(text, Rejected):
            return text
        if not text.startswith(before):
            detail = f"the chat template rewrites the text before turn {turns[number // 2]}"
            return Rejected("template", detail)
        added.append(text[len(before) :])
        before = text
    return added


def _token_ids(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Tokenize texts; a fast tokenizer's backend saves a quarter of the time."""
    if not texts:
        return []
    if uses_plain_backend(tokenizer):
        tokenizer("", add_special_tokens=False)  # turns padding and truncation of its backend off
        backend = tokenizer.backend_tokenizer
        return [
            encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)
        ]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def _example(
    pieces: Sequence[list[int]], special: Container[int], max_tokens: int
) -> Example | Rejected:
    """Join the token ids of alternating prompts and answers."""
    ids: list[int] = []
    mask: list[bool] = []
    for number, piece in enumerate(pieces):
        # An answer is trained up to its last special token, the end of the turn. The model never
        # generates what the template writes after it, usually a newline.
        ends = (end for end in range(len(piece), 0, -1) if piece[end - 1] in special)
        trained = next(ends, len(piece)) if number % 2 else 0
        ids += piece
        mask += [True] * trained + [False] * (len(piece) - trained)
    if len(ids) > max_tokens:
        return Rejected("over-long", f"{len(ids)} tokens, data.sequence_length is {max_tokens}")
    if not any(mask[1:]):
        return Rejected("untrained", "no assistant turn")
    return ids, mask


@renamed_arguments(row_length="sequence_length", rows="records")
def tokenize(
    records: Iterable[Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    columns: Mapping[str, str],
    sequence_length: int,
) -> Tokenized:
    """Encode each record of a corpus; collect unusable ones with their causes.

    Args:
        records: dicts. A ValueError in place of a record reports that a file, or the rest of it,
            could not be read.
        tokenizer: with a chat template.
        columns: see `messages_of`.
        sequence_length: the most tokens that an example may have.
    """
    done = Tokenized([], [])
    records = iter(records)
    while some := list(islice(records, RENDERED_AT_ONCE)):
        conversations = [_conversation(record, columns) for record in some]
        usable = [one for one in conversations if not isinstance(one, Rejected)]
        encoded = iter(_encoded(usable, tokenizer, sequence_length))
        for record, one in zip(some, conversations, strict=True):
            example = one if isinstance(one, Rejected) else next(encoded)
            if isinstance(example, Rejected):
                shown = "" if isinstance(record, ValueError) else record
                done.rejected.append(RejectedRecord(shown, example.cause, example.detail))
            else:
                done.examples.append(example)
    return done


def _conversation(record: Any, columns: Mapping[str, str]) -> Conversation | Rejected:
    if isinstance(record, ValueError):
        return Rejected("unreadable", str(record))
    try:
        return messages_of(record, columns)
    except Rejected as error:
        return error


@renamed_arguments(row_length="sequence_length")
def pack(examples: Sequence[Example], sequence_length: int) -> dict[str, np.ndarray]:
    """Fill packed rows of `sequence_length` tokens with whole examples.

    Each packed row gets the longest example that is left, then those that fill it best (minimum bin
    slack; Gupta and Ho, 1999).

    Returns:
        The three columns of a packed batch, [N, S] each.

    Raises:
        ValueError: an example is longer than a packed row.
    """
    numbers = _rows([len(ids) for ids, _ in examples], sequence_length)
    return _columns([[examples[number] for number in row] for row in numbers], sequence_length)


def count_rows(lengths: Sequence[int], sequence_length: int) -> int:
    """Return the number of packed rows that `pack` fills with examples of these lengths."""
    return len(_rows(lengths, sequence_length))


def _rows(lengths: Sequence[int], sequence_length: int) -> list[list[int]]:
    """Return the numbers of the examples in each packed row.

    Raises:
        ValueError: an example is longer than a packed row.
    """
    left: dict[int, list[int]] = {}
    for number in reversed(range(len(lengths))):
        left.setdefault(lengths[number], []).append(number)
    if left and max(left) > sequence_length:
        raise ValueError(
            f"an example of {max(left)} tokens does not fit into packed rows of {sequence_length}"
        )
    rows: list[list[int]] = []
    while left:
        longest = max(left)
        rows.append([_take(left, longest)])
        rows[-1] += [_take(left, length) for length in _fullest(left, sequence_length - longest)]
    return rows


def _take(left: dict[int, list[int]], length: int) -> int:
    example = left[length].pop()
    if not left[length]:
        del left[length]
    return example


def _fullest(left: Mapping[int, Sequence[int]], capacity: int) -> list[int]:
    """Return lengths of examples with the largest sum that is at most `capacity`."""
    sums, within = 1, (1 << (capacity + 1)) - 1  # bit s: some examples have s tokens together
    added: list[tuple[int, int]] = []
    for length in sorted((n for n in left if n <= capacity), reverse=True):
        for _ in left[length]:
            more = (sums | sums << length) & within
            if more == sums or sums >> capacity:
                break
            added.append((length, sums))
            sums = more
    total, chosen = sums.bit_length() - 1, []
    for length, before in reversed(added):
        if not before >> total & 1:  # this total needs the example
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
            span = slice(start, start := start + len(ids))
            packed["input_ids"][n, span] = ids
            packed["loss_mask"][n, span] = mask
            packed["loss_mask"][n, span.start] = False  # no token of the example precedes it
            packed["segment_ids"][n, span] = segment
    return packed
