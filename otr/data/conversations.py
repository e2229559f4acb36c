"""From the records of a corpus to conversations and plain texts.

A record has one of these forms. Fields in brackets are optional.

- messages: `messages`, also called `conversations` or `conversation` [, `system`, `tools`, also
  called `functions`, `chat_template_kwargs`]. A list of messages, each with role and content
  (OpenAI) or from and value (ShareGPT); JSON text of such a list; or one object that holds a list
  per field (Parquet).
- prompt and completion: `prompt`, `completion` [, `system`, `tools`, `chat_template_kwargs`]. Two
  strings, or two lists of messages. Only the completion is trained.
- instruction (Alpaca): `instruction`, `output` [, `input`, `system`, `history`].
- text: `text`. It does not go through the chat template, and all of it is trained.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from otr.hints import encodable, some_of

FORMS = (
    ("messages",),
    ("instruction", "input", "output"),
    ("prompt", "completion"),
    ("text",),
)
"""The fields that tell the form of a record, in the order in which they are looked for; `input` is
optional."""

OPTIONAL_FIELDS = {
    "messages": ("system", "tools", "chat_template_kwargs"),
    "prompt": ("system", "tools", "chat_template_kwargs"),
    "instruction": ("system", "history"),
    "text": (),
}
"""Fields that a record of a form may have beside these, by the form's first field."""

FIELDS = tuple(dict.fromkeys(name for form in FORMS for name in (*form, *OPTIONAL_FIELDS[form[0]])))
"""All fields that are understood."""

OTHER_NAMES = {"messages": ("conversations", "conversation"), "tools": ("functions",)}

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
    "function_call": "function_call",
    "tool_call": "function_call",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function": "tool",
    "ipython": "tool",
    "tool": "tool",
}
"""Our name for each role of ShareGPT and of older APIs, in lower case. A `function_call` becomes a
tool call of the assistant."""

THOUGHTS = frozenset({"reasoning_content", "reasoning", "thinking"})
"""Fields of a message that may hold its thought."""

LEARN_FLAGS = ("weight", "train", "training", "loss")
"""Fields of an assistant's message that say whether it is trained; absent ones mean yes."""

RESERVED_ARGUMENTS = frozenset(
    {
        *("add_generation_prompt", "chat_template", "continue_final_message", "conversation"),
        *("messages", "tokenize", "tools"),
    }
)
"""Arguments of `apply_chat_template` that a record can't set."""

Message = dict[str, Any]


class Rejected(ValueError):
    """A record that cannot be trained on; `cause` is one of CAUSES."""

    CAUSES = ("broken", "empty", "template", "over-long", "untrained", "unreadable")

    def __init__(self, cause: str, detail: str) -> None:
        detail = encodable(detail)  # it may name what the record has
        super().__init__(f"{cause}: {detail}")
        self.cause, self.detail = cause, detail


@dataclass(frozen=True)
class Conversation:
    """Messages for the chat template, and which of them are trained."""

    messages: list[Message]
    """Each with role and content, and whatever else the record gave."""
    trained: list[bool]
    """For each message, whether it is an answer to learn."""
    tools: list[Any] | None = None
    """Tools that the model may call, as the chat template takes them."""
    template_args: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the chat template."""
    unused: tuple[str, ...] = ()
    """Fields of the record that are not understood."""


@dataclass(frozen=True)
class PlainText:
    """A text that is trained as it is, without the chat template."""

    text: str
    unused: tuple[str, ...] = ()
    """Fields of the record that are not understood."""


def read_record(record: Any, columns: Mapping[str, str]) -> Conversation | PlainText:
    """Return what a record holds.

    Args:
        record: the record as read.
        columns: the corpus's names of fields by our names, if they differ. If any is given, only
            the forms of these fields are looked for.

    Raises:
        Rejected: "broken" or "empty".
    """
    if isinstance(record, str) and record.lstrip()[:1] == "{":
        _json(record, "the record")
    if isinstance(record, str) and "\ufffd" in record:  # in place of bytes that are not UTF-8
        raise Rejected("broken", "text that is not UTF-8: save the file as UTF-8")
    if not isinstance(record, Mapping):
        raise Rejected("broken", f"{_kind(record)} instead of an object")
    form, fields, unused = _fields(record, columns)
    if form == "text":
        text = _text(fields["text"], "text")
        if not text.strip():
            raise Rejected("empty", "text")
        return PlainText(text, unused)
    if form == "messages":
        messages, trained = _messages(fields["messages"], "messages")
    elif form == "instruction":
        messages, trained = _alpaca(fields)
    else:
        messages, trained = _prompt_and_completion(fields)
    _check(messages, trained)
    if system := fields.get("system"):
        if not messages or messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": _text(system, "system")})
            trained.insert(0, False)
        else:
            unused = (*unused, "system (the messages have one)")
    return Conversation(
        messages, trained, _tools(fields.get("tools")), _template_args(fields), unused
    )


def messages_of(record: Any, columns: Mapping[str, str]) -> list[Message]:
    """Return the messages of a record, or its text as one message of the assistant.

    Raises:
        Rejected: "broken" or "empty", as `read_record`.
    """
    found = read_record(record, columns)
    if isinstance(found, PlainText):
        return [{"role": "assistant", "content": found.text}]
    return found.messages


def load_json(text: str | bytes) -> Any:
    """Return a JSON value. Python's reader would keep the last of several values of a name.

    Raises:
        ValueError: it is no JSON, or an object has a name twice.
        RecursionError: it is nested too deeply.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    return _DECODER.decode(text)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has {twice!r} twice")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def form_of(fields: Mapping[str, Any], columns: Mapping[str, str]) -> str | None:
    """Return the first field of the form that a record or table with these fields has, or None."""
    return _form_of(_given(fields), columns)


def _given(record: Mapping[str, Any]) -> dict[str, None]:
    """Return the names of the fields that have a value."""
    return dict.fromkeys(name for name, value in record.items() if value is not None)


def _forms(columns: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """Yield the forms that are looked for; if columns are named, those with one of them."""
    for form in FORMS:
        if not columns or not columns.keys().isdisjoint((*form, *OPTIONAL_FIELDS[form[0]])):
            yield form


def _form_of(given: Collection[str], columns: Mapping[str, str]) -> str | None:
    for form in _forms(columns):
        first, *others = (name for name in form if name != "input")
        if _source(given, columns, first) and all(_source(given, columns, n) for n in others):
            return form[0]
    return None


def _source(given: Collection[str], columns: Mapping[str, str], name: str) -> str | None:
    """Return the corpus's name of one of our fields, None if the record has no value for it."""
    if name in columns:
        names: Sequence[str] = (columns[name],)
    else:
        names = (name, *OTHER_NAMES.get(name, ()))
    return next((each for each in names if each in given), None)


def _fields(
    record: Mapping[str, Any], columns: Mapping[str, str]
) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """Return the form of a record, its fields by our names, and the names of all others."""
    form, sources, unused = _sources(tuple(_given(record)), tuple(columns.items()))
    if form is None:
        absent = [name for name in FIELDS if name in columns and record.get(columns[name]) is None]
        if absent:
            missing = ", ".join(repr(columns[name]) for name in absent)
            raise Rejected("broken", f"no value for {missing}")
        named = some_of(map(repr, record)) or "none"
        missing = ", ".join(map(repr, missing_fields(record, columns)))
        without = f" without a value for {missing}" if missing else ""
        raise Rejected("broken", f"fields {named}: no form that is known{without}")
    return form, {name: record[source] for name, source in sources.items()}, unused


def missing_fields(record: Mapping[str, Any], columns: Mapping[str, str]) -> list[str]:
    """Return which fields the first form lacks of which the record has any, by its own names."""
    given = _given(record)
    for form in _forms(columns):
        names = {name: _source(record, columns, name) for name in form if name != "input"}
        if any(names.values()):
            return [own or name for name, own in names.items() if own not in given]
    return []


@lru_cache(maxsize=256)  # most records of a corpus have the same fields
def _sources(
    given: tuple[str, ...], columns: tuple[tuple[str, str], ...]
) -> tuple[str | None, Mapping[str, str], tuple[str, ...]]:
    """Return the form of records with these fields, their names by ours, and all others' names."""
    by_name = dict(columns)
    form = _form_of(given, by_name)
    if form is None:
        return None, {}, ()
    known = next(each for each in FORMS if each[0] == form) + OPTIONAL_FIELDS[form]
    found = ((name, _source(given, by_name, name)) for name in known)
    sources = {name: source for name, source in found if source is not None}
    used = {*sources.values(), *(by_name.get(name, name) for name in known)}
    return form, sources, tuple(str(name) for name in given if name not in used)


def _messages(value: Any, name: str) -> tuple[list[Message], list[bool]]:
    """Return the messages that a field holds, and which are to be learned."""
    if isinstance(value, str):
        value = _json(value, name) if value.strip() else []
    if isinstance(value, Mapping):  # a list per field, as a struct of lists is read from Parquet
        value = list(_rows_of(value, name))
    value = _listed(value)
    if not isinstance(value, list):
        raise Rejected("broken", f"{name} is {_kind(value)} instead of a list of messages")
    if not value:
        raise Rejected("empty", f"no {name}")
    for number, message in enumerate(value):
        if not isinstance(message, Mapping):
            what = f"message {number} of {name} is {_kind(message)}"
            raise Rejected("broken", f"{what} instead of an object with role and content")
    read = [_message(message, number) for number, message in enumerate(value)]
    return [message for message, _ in read], [learn for _, learn in read]


def _rows_of(value: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
    listed = {key: _listed(each) for key, each in value.items()}
    lists = {key: each for key, each in listed.items() if isinstance(each, list)}
    lengths = {len(each) for each in lists.values()}
    if not lists or len(lists) < len(value) or len(lengths) > 1:
        by_column = value and all(key.isdecimal() for key in map(str, value))  # by pandas
        remedy = ": write records, as pandas does with orient='records'" if by_column else ""
        raise Rejected("broken", f"{name} is an object, but not of one list per field{remedy}")
    for row in zip(*lists.values(), strict=True):
        yield dict(zip(lists, row, strict=True))


def _message(message: Mapping[str, Any], number: int) -> tuple[Message, bool]:
    """Return a message with role and content, and whether it is an answer to learn."""
    made = {str(key): value for key, value in message.items() if value is not None}
    if "content" not in made and "value" in made:
        made["content"] = made.pop("value")
    if "role" not in made and "from" in made:
        made["role"] = made.pop("from")
        if _known_role(made["role"]) is None:
            known = ", ".join(SHAREGPT_ROLES)
            raise Rejected("broken", f"message {number} is from {made['role']!r}: use {known}")
    role = made.get("role")
    if not isinstance(role, str):
        named = ", ".join(made) or "none"
        raise Rejected(
            "broken",
            f"message {number} has the role {role!r}, its fields are {named}: use role and content",
        )
    made["role"] = _known_role(role) or role
    if calls := _tool_calls(made, number):
        made["tool_calls"] = calls
    for thought in THOUGHTS & made.keys():
        _text(made[thought], f"{thought} of message {number}")
    beside = _beside_texts(made.get("content"))
    made["content"] = _content(made, number)
    made |= beside
    return made, _is_learned(made, number)


def _is_learned(message: Message, number: int) -> bool:
    """Return whether a message is an answer to learn, and take its flags out.

    Only answers can be learned: a flag that asks for it stays in another's message, where it is
    named as unused.
    """
    flags = {flag: _flag(message[flag], flag, number) for flag in LEARN_FLAGS if flag in message}
    is_answer = message["role"] == "assistant"
    for flag, learn in flags.items():
        if is_answer or not learn:
            del message[flag]
    return is_answer and all(flags.values())


def _known_role(role: Any) -> str | None:
    return SHAREGPT_ROLES.get(role.strip().lower()) if isinstance(role, str) else None


def _content(message: Message, number: int) -> str:
    """Return the content as text. Parts are joined by line ends, as vLLM's server does it."""
    content = _listed(message.get("content"))
    if content is None:
        if "tool_calls" in message or not THOUGHTS.isdisjoint(message):
            return ""
        named = ", ".join(message)
        raise Rejected(
            "broken", f"message {number} ({message['role']}) has no content, its fields are {named}"
        )
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Rejected("broken", f"the content of message {number} is {_kind(content)}: use text")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        kind = str(part.get("type") or "text") if isinstance(part, Mapping) else _kind(part)
        if not isinstance(text, str) or not kind.endswith("text"):  # such as OpenAI's input_text
            raise Rejected(
                "broken", f"the content of message {number} has a part of type {kind!r}: use text"
            )
        texts.append(text)
    return "\n".join(texts)


def _beside_texts(content: Any) -> dict[str, Any]:
    """Return what parts of a content have beside their texts, under names that no template reads.

    So it is named as unused.
    """
    content = _listed(content)
    parts = content if isinstance(content, list) else []
    return {
        f"content.{name}": value
        for part in parts
        if isinstance(part, Mapping)
        for name, value in part.items()
        if name not in ("type", "text") and value is not None and str(value) not in ("", "[]", "{}")
    }


def _tool_calls(message: Message, number: int) -> list[dict[str, Any]]:
    """Take the tool calls out of a message and return them."""
    calls = message.pop("tool_calls", None)
    if message["role"] == "function_call":  # of ShareGPT: one call, or a list of them
        message["role"] = "assistant"
        calls = message.pop("content", None)
    elif "function_call" in message:  # of OpenAI's API before it had tools
        calls = message.pop("function_call") if calls is None else calls
    if isinstance(calls, str):
        calls = _json(calls, f"the tool calls of message {number}") if calls.strip() else None
    calls = [calls] if calls and isinstance(calls, Mapping) else _listed(calls)
    if not calls:
        return []
    if not isinstance(calls, list):
        raise Rejected("broken", f"tool_calls of message {number} is {_kind(calls)}")
    return [_tool_call(call, number) for call in calls]


def _tool_call(call: Any, number: int) -> dict[str, Any]:
    """Return a tool call as OpenAI's API has it, but with its arguments as an object.

    Chat templates expect that. The record's may lack the type and the wrapper of the function.
    """
    name = f"a tool call of message {number}"
    call = _json(call, name) if isinstance(call, str) else call
    if not isinstance(call, Mapping):
        raise Rejected("broken", f"{name} is {_kind(call)}")
    made = {key: value for key, value in call.items() if value is not None}
    if "function" not in made:
        inside = ("name", "arguments", "parameters")
        made["function"] = {key: made.pop(key) for key in inside if key in made}
    function = made["function"]
    function = _json(function, name) if isinstance(function, str) else function
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Rejected("broken", f"{name} names no function")
    function = {key: value for key, value in function.items() if value is not None}
    arguments = function.pop("parameters", None)  # the name that Llama's models write
    arguments = function.get("arguments", arguments)
    for _ in range(2):  # some data sets have JSON text of JSON text
        if isinstance(arguments, str):
            arguments = _json(arguments.strip() or "{}", f"the arguments of {name}")
    if not isinstance(arguments, Mapping | None):
        what = _kind(arguments)
        raise Rejected("broken", f"the arguments of {name} are {what} instead of an object")
    function["arguments"] = arguments or {}
    made["function"] = function
    made.setdefault("type", "function")
    return made


def _flag(value: Any, name: str, number: int) -> bool:
    if value not in (0, 1):
        raise Rejected("broken", f"{name} of message {number} is {value!r}: use 0 or 1")
    return bool(value)


def _prompt_and_completion(fields: Mapping[str, Any]) -> tuple[list[Message], list[bool]]:
    sides = fields["prompt"], fields["completion"]
    if all(map(_lists_messages, sides)):  # one alone may be a text that is about JSON
        sides = load_json(sides[0]), load_json(sides[1])
    prompt, _ = _side(sides[0], "prompt", "user")
    completion, trained = _side(sides[1], "completion", "assistant")
    return prompt + completion, [False] * len(prompt) + trained


def _lists_messages(value: Any) -> bool:
    """Return whether a value is JSON text of a list of messages, as CSV files have them."""
    if not isinstance(value, str) or value.lstrip()[:1] != "[":
        return False
    try:
        found = load_json(value)
    except (ValueError, RecursionError):
        return False
    messages = [each for each in found if isinstance(each, dict)]
    return 0 < len(messages) == len(found) and all({"role", "from"} & m.keys() for m in messages)


def _side(value: Any, name: str, role: str) -> tuple[list[Message], list[bool]]:
    if isinstance(value, str):
        return [{"role": role, "content": value}], [role == "assistant"]
    if not isinstance(_listed(value), Mapping | list):
        raise Rejected("broken", f"{name} is {_kind(value)} instead of text or a list of messages")
    return _messages(value, name)


def _alpaca(fields: Mapping[str, Any]) -> tuple[list[Message], list[bool]]:
    asked = [
        _text(fields[n], n) for n in ("instruction", "input") if fields.get(n) not in ("", None)
    ]
    answer = _text(fields["output"], "output")
    turns: list[Message] = []
    history = _listed(fields.get("history", []))
    if isinstance(history, str):
        history = _json(history or "[]", "history")
    if not isinstance(history, list):
        raise Rejected("broken", f"history is {_kind(history)} instead of a list of pairs")
    for pair in map(_listed, [*history, ["\n\n".join(asked), answer]]):
        if not isinstance(pair, list) or len(pair) != 2:
            raise Rejected("broken", f"history has {pair!r} instead of [question, answer]")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            turns.append({"role": role, "content": _text(text, f"a text of {role} in history")})
    return turns, [turn["role"] == "assistant" for turn in turns]


def _tools(value: Any) -> list[Any] | None:
    value = _listed(value)
    if isinstance(value, str):
        value = _json(value, "tools") if value.strip() else None
    if not value:
        return None
    if not isinstance(value, list):
        raise Rejected("broken", f"tools is {_kind(value)} instead of a list")
    tools = [_json(tool, "a tool") if isinstance(tool, str) else tool for tool in value]
    return list(map(_tool, tools))


def _tool(tool: Any) -> Any:
    """Return a tool as OpenAI's API has it; the record's may lack the wrapper of the function."""
    bare = isinstance(tool, Mapping) and "function" not in tool and "name" in tool
    if not bare or tool.get("type", "function") != "function":
        return tool
    function = {key: value for key, value in tool.items() if key != "type"}
    return {"type": "function", "function": function}


def _template_args(fields: Mapping[str, Any]) -> dict[str, Any]:
    value = fields.get("chat_template_kwargs") or {}
    value = _json(value, "chat_template_kwargs") if isinstance(value, str) else value
    if not isinstance(value, Mapping):
        raise Rejected("broken", f"chat_template_kwargs is {_kind(value)} instead of an object")
    if reserved := sorted(RESERVED_ARGUMENTS & value.keys()):
        raise Rejected("broken", f"chat_template_kwargs sets {', '.join(reserved)}: leave it out")
    return {str(name): each for name, each in value.items() if each is not None}


def _check(messages: Sequence[Message], trained: Sequence[bool]) -> None:
    """Check that no user's turn and no answer to learn is empty.

    Raises:
        Rejected: "empty".
    """
    for number, (message, learn) in enumerate(zip(messages, trained, strict=True)):
        speaks = message["content"].strip() or any(
            message.get(name) for name in ("tool_calls", *THOUGHTS)
        )
        if not speaks and (learn or message["role"] == "user"):
            raise Rejected("empty", f"the {message['role']}'s content, of message {number}")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise Rejected("broken", f"{name} is {_kind(value)} instead of text")
    return value


def _json(text: Any, name: str) -> Any:
    try:
        return load_json(text)
    except json.JSONDecodeError as error:
        why = f" ({error.msg}: character {error.pos})"
    except ValueError as error:
        why = f" ({error})"
    except (TypeError, RecursionError):
        why = ""
    python = re.match(r"[\s\[{]*'", str(text))
    remedy = ": that is Python's notation, write it with json.dumps" if python else ""
    raise Rejected("broken", f"{name} is no JSON: {str(text)[:60]!r}{why}{remedy}")


def _listed(value: Any) -> Any:
    """Return a tuple or an array, as pandas has them, as a list; anything else as it is."""
    if isinstance(value, tuple):
        return list(value)
    return value.tolist() if hasattr(value, "tolist") else value


def _kind(value: Any) -> str:
    names = {type(None): "nothing", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"{type(value).__name__} {str(value)[:40]!r}")
