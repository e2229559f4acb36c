"""From records to examples: token ids, and for each whether it is a target token."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain, islice, pairwise
from typing import Any, Literal, NamedTuple, TypeVar

from transformers import PreTrainedTokenizerBase

from otr._compat import uses_plain_backend
from otr._deprecated import renamed_arguments
from otr.data.chat_template import ChatTemplate, Rendered
from otr.data.conversations import Conversation, Message, PlainText, Rejected, read_record
from otr.hints import encodable

TOKENIZED_AT_ONCE = 256  # records; after each call, the tokenizer's thread waits for Python's lock

TrainOn = Literal["assistant", "last", "all"]
OverLong = Literal["reject", "truncate_end", "truncate_start", "split"]
T = TypeVar("T")

TRUNCATED = "records that are too long, truncated"
SPLIT = "records that are too long, split"
PART_LEFT_OUT = "records that are too long, split; parts that are still too long are left out"


class Example(NamedTuple):
    """A tokenized text."""

    ids: list[int]
    """Token ids."""
    mask: list[bool]
    """For each token, whether it is a target."""


class RejectedRecord(NamedTuple):
    """A record that gave no example, and why."""

    record: Any
    cause: str
    """One of `Rejected.CAUSES`."""
    detail: str
    number: int = 0
    """Its place among the records, from 0."""


@dataclass(frozen=True)
class Tokenized:
    """The examples of some records, and the records that gave none."""

    examples: list[Example] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    """For each example, the place of its record among the records, from 0."""
    rejected: list[RejectedRecord] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    """Records per field that neither otr nor the chat template uses."""
    remarks: Counter[str] = field(default_factory=Counter)
    """Records per remark: what became of them that their owner should know."""


def encode(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> Example:
    """Return token ids of a conversation in the model's chat template, and which are targets.

    If the template rewrites what came before an answer, a conversation has several examples. This
    is the last; `tokenize` returns all.

    Raises:
        Rejected: any of its causes.
    """
    encoder = _Encoder(tokenizer, max_tokens)
    [found] = encoder.finish(encoder.begin([{"messages": list(messages)}], {}))
    if isinstance(found, Rejected):
        raise found
    return found.examples[-1]


@renamed_arguments(row_length="sequence_length", rows="records")
def tokenize(
    records: Iterable[Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    columns: Mapping[str, str],
    sequence_length: int,
    train_on: TrainOn = "assistant",
    over_long: OverLong = "reject",
) -> Tokenized:
    """Encode each record of a corpus; collect unusable ones with their causes.

    Args:
        records: dicts. A ValueError in place of a record reports that a file, or the rest of it,
            could not be read.
        tokenizer: with a chat template, unless all records are texts.
        columns: see `read_record`.
        sequence_length: the most tokens that an example may have.
        train_on: which tokens of a conversation are targets: those of each answer and the token
            that ends it, those of the last answer, or all.
        over_long: what becomes of a record whose example is too long. `truncate_end` and
            `truncate_start` keep as many tokens as fit; an example that would keep no target is
            rejected. `split` makes several examples of a conversation, cut before questions, each
            with the system message; a text is cut anywhere.
    """
    [done] = tokenize_batches(
        [records],
        tokenizer,
        columns=columns,
        sequence_length=sequence_length,
        train_on=train_on,
        over_long=over_long,
    )
    return done


def tokenize_batches(
    batches: Iterable[Iterable[Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    columns: Mapping[str, str],
    sequence_length: int,
    train_on: TrainOn = "assistant",
    over_long: OverLong = "reject",
) -> Iterator[Tokenized]:
    """Yield what `tokenize` returns for each batch of records; it reads ahead into the next one."""
    encoder = _Encoder(tokenizer, sequence_length, train_on, over_long)
    done, number = Tokenized(), 0
    for pairs, ends_batch in _encoded_records(batches, columns, encoder):
        for record, found in pairs:
            if isinstance(found, Rejected):
                shown = "" if isinstance(record, ValueError) else record
                done.rejected.append(RejectedRecord(shown, found.cause, found.detail, number))
            else:
                done.examples.extend(found.examples)
                done.numbers.extend([number] * len(found.examples))
                done.unused.update(found.unused)
                done.remarks.update(found.remarks)
            number += 1
        if ends_batch:
            yield done
            done, number = Tokenized(), 0


def _encoded_records(
    batches: Iterable[Iterable[Any]], columns: Mapping[str, str], encoder: "_Encoder"
) -> "Iterator[tuple[list[tuple[Any, _Encoded | Rejected]], bool]]":
    """Yield records, some at a time, with what each gives, and whether they are a batch's last.

    While some are tokenized, the next are rendered.
    """

    def begun() -> Iterator[tuple[list[Any], bool, _Begun]]:
        for batch in batches:
            remaining, more = iter(batch), True
            some = list(islice(remaining, TOKENIZED_AT_ONCE))
            while more:
                following = list(islice(remaining, TOKENIZED_AT_ONCE))
                more = bool(following)
                yield some, not more, encoder.begin(some, columns, beside)
                some = following

    with ThreadPoolExecutor(1) as beside:  # tokenizers in Rust leave Python to other threads
        for one, _ in pairwise(chain(begun(), [None])):  # begins one ahead
            assert one is not None
            some, ends_batch, texts = one
            yield list(zip(some, encoder.finish(texts), strict=True)), ends_batch


@dataclass(frozen=True)
class _Encoded:
    """The examples of one record, with its unused fields and remarks."""

    examples: list[Example]
    unused: frozenset[str] = frozenset()
    remarks: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Begun:
    """Records that are rendered, and whose texts are being tokenized."""

    sources: Sequence[Conversation | PlainText | Rejected]
    rendered: Sequence[list[Rendered] | Rejected]
    texts: list[Rendered]
    """Of all records, in order."""
    encodings: Future[list[Any]] | None
    """Of all texts, if another thread tokenizes them."""


class _Encoder:
    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        sequence_length: int,
        train_on: TrainOn = "assistant",
        over_long: OverLong = "reject",
    ) -> None:
        self.tokenizer, self.sequence_length = tokenizer, sequence_length
        self.train_on, self.over_long = train_on, over_long
        self.template = ChatTemplate(tokenizer)
        self._short_ids = lru_cache(maxsize=1024)(self._ids)  # most prompts end alike

    def begin(
        self,
        records: Sequence[Any],
        columns: Mapping[str, str],
        beside: Executor | None = None,
    ) -> _Begun:
        """Read and render records, and have the executor tokenize their texts meanwhile."""
        return self._begun(
            [
                Rejected("unreadable", str(record))
                if isinstance(record, ValueError)
                else _or_rejected(self._read, record, columns)
                for record in records
            ],
            beside,
        )

    def finish(self, begun: _Begun) -> list[_Encoded | Rejected]:
        """Return what each record gives."""
        tokenized = iter(self._tokenized(begun))
        encoded: list[_Encoded | Rejected] = []
        for source, one in zip(begun.sources, begun.rendered, strict=True):
            if isinstance(one, Rejected) or isinstance(source, Rejected):
                encoded.append(one)  # type: ignore[arg-type]
                continue
            examples = list(chain.from_iterable(islice(tokenized, len(one))))
            remarks = frozenset(chain.from_iterable(text.remarks for text in one))
            encoded.append(_or_rejected(self._fitted, source, examples, remarks))
        return encoded

    def _read(self, record: Any, columns: Mapping[str, str]) -> Conversation | PlainText:
        source = read_record(record, columns)
        if isinstance(source, PlainText) or self.train_on != "last" or True not in source.trained:
            return source
        last = len(source.trained) - 1 - source.trained[::-1].index(True)
        return replace(source, trained=[number == last for number in range(len(source.trained))])

    def _begun(
        self,
        sources: Sequence[Conversation | PlainText | Rejected],
        beside: Executor | None = None,
    ) -> _Begun:
        rendered = [
            source if isinstance(source, Rejected) else _or_rejected(self._rendered, source)
            for source in sources
        ]
        texts = [each for one in rendered if not isinstance(one, Rejected) for each in one]
        encodings = None
        # A tokenizer in Python would only take turns with this thread.
        if beside is not None and texts and self.tokenizer.is_fast:
            encodings = beside.submit(self._encodings, [text.text for text in texts])
        return _Begun(sources, rendered, texts, encodings)

    def _rendered(self, source: Conversation | PlainText) -> list[Rendered]:
        if isinstance(source, PlainText):
            return [Rendered(source.text, [(0, len(source.text))], enclosed=True)]
        if not self.tokenizer.chat_template:
            raise Rejected("template", "the tokenizer has no chat template: give --chat-template")
        if self.train_on == "all":
            return [self.template.whole(source)]
        return self.template.render(source)

    def _fitted(
        self,
        source: Conversation | PlainText,
        examples: Sequence[Example | Rejected],
        remarks: frozenset[str],
    ) -> _Encoded:
        """Return the examples of a record after what `over_long` does to those that are too long.

        Raises:
            Rejected: none is left.
        """
        for example in examples:
            if isinstance(example, Rejected):
                raise example
        kept = [example for example in examples if isinstance(example, Example)]
        longest = max(len(example.ids) for example in kept)
        if longest > self.sequence_length:
            kept, remark = self._shortened(source, kept, longest)
            remarks |= {remark}
        kept = [example for example in kept if any(example.mask[1:])]
        if not kept:
            raise Rejected("untrained", "the answer has no token")
        unused = list(source.unused)
        if isinstance(source, Conversation):
            unused += self.template.unused(source)
        return _Encoded(kept, frozenset(map(encodable, unused)), remarks)

    def _shortened(
        self, source: Conversation | PlainText, examples: Sequence[Example], longest: int
    ) -> tuple[list[Example], str]:
        most = self.sequence_length
        too_long = Rejected("over-long", f"{longest} tokens, data.sequence_length is {most}")
        if self.over_long == "reject":
            raise too_long
        if self.over_long == "split" and isinstance(source, PlainText):
            [(ids, mask)] = examples
            # A part repeats the last token of the one before: nothing precedes a first token, so it
            # is never a target.
            starts = range(0, len(ids) - 1, most - 1)
            return [Example(ids[s : s + most], mask[s : s + most]) for s in starts], SPLIT
        if self.over_long == "split":
            assert isinstance(source, Conversation)
            halves = self.finish(self._begun(_halves(source)))
            kept = [e for half in halves if isinstance(half, _Encoded) for e in half.examples]
            if not kept:
                raise too_long
            left_out = any(isinstance(h, Rejected) and h.cause == "over-long" for h in halves)
            left_out |= any(isinstance(h, _Encoded) and PART_LEFT_OUT in h.remarks for h in halves)
            return kept, PART_LEFT_OUT if left_out else SPLIT
        end = self.over_long == "truncate_end"
        cut = [
            Example(ids[:most], mask[:most]) if end else Example(ids[-most:], mask[-most:])
            for ids, mask in examples
        ]
        kept = [example for example in cut if any(example.mask[1:])]
        if not kept:
            raise too_long
        return kept, TRUNCATED

    def _tokenized(self, begun: _Begun) -> Sequence[Sequence[Example | Rejected]]:
        """Return the examples of each text."""
        texts = begun.texts
        with suppress(Exception):  # if one fails, each is tokenized alone to find it
            if begun.encodings is not None:
                return list(map(self._examples, texts, begun.encodings.result()))
            return self._tokenized_together(texts)
        alone = (_or_rejected(self._tokenized_alone, text) for text in texts)
        return [[each] if isinstance(each, Rejected) else each for each in alone]

    def _tokenized_alone(self, text: Rendered) -> list[Example]:
        half = next((char for char in text.text if "\ud800" <= char <= "\udfff"), None)
        if half:
            raise Rejected("broken", f"{half!r} is half of a character (a lone surrogate)")
        return self._tokenized_together([text])[0]

    def _tokenized_together(self, texts: Sequence[Rendered]) -> list[list[Example]]:
        if not texts:
            return []
        if not self.tokenizer.is_fast:
            return [[self._by_pieces(text)] for text in texts]
        return list(map(self._examples, texts, self._encodings([text.text for text in texts])))

    def _encodings(self, strings: list[str]) -> list[Any]:
        """Return the encodings of a fast tokenizer."""
        if not uses_plain_backend(self.tokenizer):
            return list(self.tokenizer(strings, add_special_tokens=False).encodings or ())
        # The backend alone saves a quarter of the time.
        self.tokenizer([""], add_special_tokens=False)  # turns padding and truncation off
        backend: Any = self.tokenizer.backend_tokenizer
        return list(backend.encode_batch(strings, add_special_tokens=False))

    def _examples(self, text: Rendered, encoding: Any) -> list[Example]:
        """Return a text's token ids and targets, found by the tokens' places in the text.

        The engine tokenizes a prompt alone. An answer whose prompt then has other tokens than
        within the text gets an example of its own, with the engine's; the others share one.
        """
        if text.enclosed:
            return [self._enclosed(encoding.ids)]
        ids, mask = list(encoding.ids), [False] * len(encoding.ids)
        apart: list[Example] = []
        for start, end in text.answers:
            first, after = _token_at(encoding, start), _token_at(encoding, end)
            if after < len(ids) and encoding.token_to_chars(after)[0] < end:
                after += 1  # a token of the answer's end and of what follows
            prompt = self._other_prompt(text.text[:start], encoding, first)
            if prompt is None:
                mask[first:after] = [True] * (after - first)
                continue
            begin, stop = encoding.token_to_chars(first) if first < after else (start, end)
            answer = ids[first:after]
            if begin < start:  # a token of the prompt's end and the answer's beginning
                answer[:1] = self._ids_within(text.text[start:stop])
            rest = ids[after:] if (start, end) == text.answers[-1] else []
            targets = [False] * len(prompt) + [True] * len(answer) + [False] * len(rest)
            apart.append(Example([*prompt, *answer, *rest], targets))
        shared = [Example(ids, mask)] if any(mask) or not apart else []
        return shared + apart

    def _other_prompt(self, prompt: str, encoding: Any, first: int) -> list[int] | None:
        """Return the tokens of a prompt if they are not the first ones of the text that it begins.

        Args:
            prompt: a beginning of the text.
            encoding: the text's.
            first: the number of the first token that ends after the prompt.
        """
        if first < len(encoding.ids) and encoding.token_to_chars(first)[0] < len(prompt):
            return self._ids(prompt)
        white = len(prompt) - len(prompt.rstrip())
        # Many tokenizers leave the last of several blanks before a word to the word.
        if 1 < white < len(prompt):
            last = _token_at(encoding, len(prompt) - white - 1)
            begin, _ = encoding.token_to_chars(last)
            if self._short_ids(prompt[begin:]) != encoding.ids[last:first]:
                ids = self._ids(prompt)
                return ids if encoding.ids[: len(ids)] != ids else None
        return None

    def _ids_within(self, piece: str) -> list[int]:
        """Return the token ids of a piece as within a text, which some begin with a space."""
        for before in ("\n", ".", "a"):
            [encoding] = self._encodings([before + piece])
            first = _token_at(encoding, len(before))
            if first < len(encoding.ids) and encoding.token_to_chars(first)[0] == len(before):
                return list(encoding.ids[first:])
        return self._ids(piece)

    def _by_pieces(self, text: Rendered) -> Example:
        """Return a text's token ids and targets with a tokenizer that tells no places."""
        if text.enclosed:
            return self._enclosed(self._ids(text.text))
        ids: list[int] = []
        mask: list[bool] = []
        cuts = [0, *chain.from_iterable(text.answers), len(text.text)]
        for number, (start, end) in enumerate(pairwise(cuts)):
            piece = self._ids(text.text[start:end])
            ids += piece
            mask += [number % 2 == 1] * len(piece)
        return Example(ids, mask)

    def _enclosed(self, ids: Sequence[int]) -> Example:
        """Return a plain text between the tokens that begin and end a sequence, all targets."""
        empty = self.tokenizer([""])["input_ids"][0]
        begin = [token for token in empty[:1] if token == self.tokenizer.bos_token_id]
        begin = [] if list(ids[:1]) == begin else begin  # the text itself has it
        last = self.tokenizer.eos_token_id
        end = [last] if last is not None and list(ids[-1:]) != [last] else []
        whole = [*begin, *ids, *end]
        return Example(whole, [True] * len(whole))

    def _ids(self, text: str) -> list[int]:
        return (
            list(self.tokenizer([text], add_special_tokens=False)["input_ids"][0]) if text else []
        )


def _or_rejected(function: Callable[..., T], *args: Any) -> T | Rejected:
    try:
        return function(*args)
    except Rejected as error:
        return error
    except Exception as error:  # one record, however odd, never ends a run
        return Rejected("broken", f"{type(error).__name__}: {error}")


def _token_at(encoding: Any, place: int) -> int:
    """Return the number of the first token that ends after a place in the text."""
    found = encoding.char_to_token(place)
    if found is None:  # a character that no token has, or the text's end
        found = bisect_right([end for _, end in encoding.offsets], place)
    return found


def _halves(conversation: Conversation) -> list[Conversation]:
    """Return a conversation in two parts, each with the leading system messages.

    Returns:
        An empty list if there is only one question.
    """
    roles = [message["role"] for message in conversation.messages]
    head = next((n for n, role in enumerate(roles) if role not in ("system", "developer")), 0)
    questions = [
        number
        for number in range(head, len(roles))
        if roles[number] == "user" and (number == head or roles[number - 1] != "user")
    ]
    if len(questions) < 2:
        return []
    middle = questions[len(questions) // 2]
    messages, trained = conversation.messages, conversation.trained
    first = replace(conversation, messages=messages[:middle], trained=trained[:middle])
    second = replace(
        conversation,
        messages=messages[:head] + messages[middle:],
        trained=[False] * head + trained[middle:],
    )
    return [first, second]
