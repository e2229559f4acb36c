"""Records of every form become conversations; what is odd is rejected with its reason."""

import json
from typing import Any

import numpy as np
import pytest

from otr.data import Conversation, PlainText, Rejected, messages_of, read_record, tokenize
from tests.assets.tiny import byte_tokenizer

ASKED, ANSWERED = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
TURNS = [ASKED, ANSWERED]
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]


@pytest.mark.parametrize(
    ("record", "columns"),
    [
        ({"messages": TURNS}, {}),
        ({"messages": json.dumps(TURNS)}, {}),
        ({"messages": {"role": ["user", "assistant"], "content": ["2 + 2?", "4"]}}, {}),
        ({"messages": [{**m, "weight": None, "tool_calls": None} for m in TURNS]}, {}),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]},
                    ANSWERED,
                ]
            },
            {},
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "2 + 2?"},
                    {"from": "gpt", "value": "4"},
                ]
            },
            {},
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "2 + 2?"},
                    {"from": "bing", "value": "4"},
                ]
            },
            {},
        ),
        ({"conversation": TURNS}, {}),
        (
            {"messages": [{"role": "human", "content": "2 + 2?"}, {"role": "gpt", "content": "4"}]},
            {},
        ),
        ({"messages": tuple(TURNS)}, {}),
        ({"messages": np.array(TURNS, dtype=object)}, {}),
        ({"messages": {"role": np.array(["user", "assistant"]), "content": ["2 + 2?", "4"]}}, {}),
        ({"messages": [{**m, "role": f" {m['role'].title()}"} for m in TURNS]}, {}),
        (
            {"conversations": [{"from": "Human", "value": "2 + 2?"}, {"from": "ai", "value": "4"}]},
            {},
        ),
        (
            {
                "messages": [
                    {"role": "user", "value": "2 + 2?"},
                    {"from": "assistant", "content": "4"},
                ]
            },
            {},
        ),
        ({"chat": TURNS}, {"messages": "chat"}),
        ({"prompt": "2 + 2?", "completion": "4"}, {}),
        ({"prompt": [ASKED], "completion": [ANSWERED]}, {}),
        ({"prompt": [ASKED], "completion": "4"}, {}),
        ({"prompt": json.dumps([ASKED]), "completion": f" {json.dumps([ANSWERED])}"}, {}),
        ({"question": "2 + 2?", "answer": "4"}, {"prompt": "question", "completion": "answer"}),
        ({"instruction": "2 + 2?", "input": "", "output": "4"}, {}),
        ({"instruction": "2 + 2?", "output": "4", "history": []}, {}),
        ({"messages": TURNS, "tools": " ", "system": ""}, {}),
    ],
)
def test_every_form_gives_the_same_conversation(record: dict, columns: dict) -> None:
    found = read_record(record, columns)
    assert isinstance(found, Conversation)
    assert (found.messages, found.trained, found.unused) == (TURNS, [False, True], ())


@pytest.mark.parametrize(
    "columns", [{"prompt": "question", "completion": "answer"}, {"completion": "answer"}]
)
def test_named_columns_take_precedence_over_others(columns: dict) -> None:
    other = {"messages": [{"role": "user", "content": "no"}], "instruction": "no", "output": "no"}
    record = {**other, "question": "2 + 2?", "prompt": "2 + 2?", "answer": "4", "completion": "no"}
    assert messages_of(record, columns) == TURNS


def test_alpaca_has_input_system_and_history() -> None:
    record = {"instruction": "Add.", "input": "2 and 2", "output": "4", "system": "Be brief."}
    record |= {"history": [["1 + 1?", "2"], ["1 + 2?", "3"]]}
    found = read_record(record, {})
    assert isinstance(found, Conversation)
    told = [(message["role"][0], message["content"]) for message in found.messages]
    assert told[:3] == [("s", "Be brief."), ("u", "1 + 1?"), ("a", "2")]
    assert told[3:] == [("u", "1 + 2?"), ("a", "3"), ("u", "Add.\n\n2 and 2"), ("a", "4")]
    assert found.trained == [False, False, True, False, True, False, True]


def test_a_text_is_no_conversation() -> None:
    found = read_record({"text": "Once upon a time."}, {})
    assert found == PlainText("Once upon a time.")
    assert messages_of({"story": "Once."}, {"text": "story"})[0]["content"] == "Once."


def test_what_a_message_has_beside_role_and_content_is_kept() -> None:
    answer = {
        "role": "assistant",
        "content": None,
        "tool_calls": [CALL],
        "reasoning_content": "Hm.",
    }
    result = {"role": "tool", "content": "sun", "tool_call_id": "1", "name": "weather"}
    record = {"messages": [ASKED, answer, result, ANSWERED], "tools": TOOLS}
    found = read_record({**record, "chat_template_kwargs": {"enable_thinking": False}}, {})
    assert isinstance(found, Conversation)
    assert found.messages == [ASKED, {**answer, "content": ""}, result, ANSWERED]
    assert found.trained == [False, True, False, True]
    assert (found.tools, found.template_args) == (TOOLS, {"enable_thinking": False})


@pytest.mark.parametrize("arguments", ['{"city": "Oslo"}', {"city": "Oslo"}])
def test_tools_and_arguments_may_be_json_text(arguments: Any) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    for calls in ([call], json.dumps([call])):
        answer = {"role": "assistant", "content": "", "tool_calls": calls}
        found = read_record({"messages": [ASKED, answer], "tools": json.dumps(TOOLS)}, {})
        assert isinstance(found, Conversation)
        assert (found.messages[1]["tool_calls"], found.tools) == ([CALL], TOOLS)


FUNCTION = CALL["function"]


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_calls": [FUNCTION]},
        {"tool_calls": [{"function": FUNCTION}]},
        {"tool_calls": [{"function": json.dumps(FUNCTION)}]},
        {"tool_calls": [json.dumps(CALL)]},
        {"tool_calls": CALL},
        {"tool_calls": [{**FUNCTION, "arguments": json.dumps('{"city": "Oslo"}')}]},
        {"tool_calls": [{"name": "weather", "parameters": {"city": "Oslo"}}]},
        {"function_call": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
        {"function_call": FUNCTION, "tool_calls": None},
        {"role": "tool_call", "content": json.dumps(FUNCTION)},
    ],
)
def test_tool_calls_of_every_kind_are_the_same(fields: dict) -> None:
    turns = [ASKED, {"role": "assistant", **fields}, {"role": "function", "content": "sun"}]
    found = messages_of({"messages": [*turns, ANSWERED]}, {})
    assert found[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert found[2] == {"role": "tool", "content": "sun"}


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [TOOLS[0]["function"]]},
        {"tools": json.dumps([TOOLS[0]["function"]])},
        {"tools": [{"type": "function", **TOOLS[0]["function"]}]},
        {"functions": [TOOLS[0]["function"]]},
    ],
)
def test_tools_of_every_kind_are_the_same(fields: dict) -> None:
    found = read_record({"messages": TURNS, **fields}, {})
    assert isinstance(found, Conversation)
    assert (found.tools, found.unused) == (TOOLS, ())


def test_tools_that_are_no_functions_stay_as_they_are() -> None:
    search = {"type": "web_search", "name": "search"}
    found = read_record({"messages": TURNS, "tools": [search]}, {})
    assert isinstance(found, Conversation)
    assert found.tools == [search]


@pytest.mark.parametrize("arguments", [{}, {"arguments": None}, {"arguments": " "}])
def test_a_call_without_arguments_has_none(arguments: dict) -> None:
    answer = {"role": "assistant", "tool_calls": [{"id": "1", "name": "now", **arguments}]}
    found = messages_of({"messages": [ASKED, answer]}, {})[1]["tool_calls"]
    function = {"name": "now", "arguments": {}}
    assert found == [{"id": "1", "type": "function", "function": function}]


def test_sharegpt_function_calls_may_be_parallel() -> None:
    called = {"from": "function_call", "value": json.dumps([FUNCTION, FUNCTION])}
    found = messages_of({"conversations": [{"from": "human", "value": "Weather?"}, called]}, {})
    assert found[1] == {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}


def test_a_flag_that_asks_to_learn_a_question_stays_to_be_named() -> None:
    found = read_record({"messages": [{**ASKED, "train": True}, {**ANSWERED, "train": True}]}, {})
    assert isinstance(found, Conversation)
    assert (found.messages, found.trained) == ([{**ASKED, "train": True}, ANSWERED], [False, True])


def test_sharegpt_function_calls_are_tool_calls() -> None:
    said = [("human", "Weather?"), ("function_call", json.dumps(CALL["function"]))]
    said += [("observation", "sun"), ("gpt", "Sunny.")]
    turns = [{"from": role, "value": text} for role, text in said]
    found = read_record({"conversations": turns, "system": "Be brief."}, {})
    assert isinstance(found, Conversation)
    assert found.messages[0] == SYSTEM
    assert found.messages[2] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert [message["role"] for message in found.messages[3:]] == ["tool", "assistant"]
    assert found.trained == [False, False, True, False, True]


@pytest.mark.parametrize(
    ("name", "no", "yes"),
    [("weight", 0, 1), ("train", False, True), ("training", False, True), ("loss", 0.0, 1.0)],
)
def test_flags_say_which_answers_are_learned(name: str, no: Any, yes: Any) -> None:
    turns = [ASKED, {**ANSWERED, name: no}, {**ASKED, name: no}, {**ANSWERED, name: yes}]
    found = read_record({"messages": turns}, {})
    assert isinstance(found, Conversation)
    assert (found.messages, found.trained) == (TURNS + TURNS, [False, False, False, True])


def test_answers_in_a_prompt_are_not_learned() -> None:
    found = read_record({"prompt": [*TURNS, ASKED], "completion": [ANSWERED]}, {})
    assert isinstance(found, Conversation)
    assert found.trained == [False, False, False, True]


def test_fields_that_are_not_understood_are_named() -> None:
    record = {"messages": [SYSTEM, *TURNS], "id": 7, "source": "web", "score": None}
    found = read_record({**record, "system": "Be long."}, {})
    assert found.unused == ("id", "source", "system (the messages have one)")
    both = read_record({"prompt": "2 + 2?", "completion": "4", "text": "x"}, {})
    assert both.unused == ("text",)


def test_a_prompt_or_a_completion_alone_may_be_about_json() -> None:
    told = json.dumps(TURNS)
    for prompt, completion in ((told, "4"), ("2 + 2?", told), (told, "[1]"), ("[]", told)):
        record = {"prompt": prompt, "completion": completion}
        assert [message["content"] for message in messages_of(record, {})] == [prompt, completion]


def test_what_parts_have_beside_their_texts_is_named() -> None:
    parts = [{"type": "text", "text": "4", "weight": 0}, {"text": "!", "annotations": []}]
    record = {"messages": [ASKED, {**ANSWERED, "content": parts}]}
    assert messages_of(record, {})[1] == {**ANSWERED, "content": "4\n!", "content.weight": 0}
    done = tokenize([record], byte_tokenizer(), columns={}, sequence_length=99)
    assert done.unused == {"content.weight of assistant messages": 1}


def test_an_empty_system_message_is_kept() -> None:
    silent = {"role": "system", "content": ""}
    assert messages_of({"messages": [silent, *TURNS]}, {}) == [silent, *TURNS]


@pytest.mark.parametrize(
    ("record", "cause", "detail"),
    [
        ("no object", "broken", "text instead of an object"),
        ([1], "broken", "a list instead of an object"),
        ('{"prompt": "a", "prompt": "b", "completion": "c"}', "broken", "has 'prompt' twice"),
        ({"messages": [ASKED, ANSWERED], "tools": '[{"a": 1, "a": 2}]'}, "broken", "has 'a' twice"),
        ('{"prompt": "caf\ufffd", "completion": "a"}', "broken", "not UTF-8: save the file as"),
        (
            {"prompt": "a"},
            "broken",
            "fields 'prompt': no form that is known without a value for 'c",
        ),
        ({"messages": None}, "broken", "without a value for 'messages'"),
        ({"conversations": None, "id": 1}, "broken", "without a value for 'conversations'"),
        ({"instruction": "a", "output": None}, "broken", "without a value for 'output'"),
        ({"foo": "a"}, "broken", "fields 'foo': no form that is known"),
        ({"prompt": "a", "completion": 7}, "broken", "completion is int '7' instead of text or"),
        (
            {"messages": [{"role": "user", "content": [{"type": 1, "text": "a"}]}]},
            "broken",
            "a part of type '1': use text",
        ),
        (
            {"instruction": "a", "output": "b", "history": [["q", None]]},
            "broken",
            "a text of assistant in history is nothing instead of text",
        ),
        ({"messages": "hello"}, "broken", "messages is no JSON: 'hello' (Expecting value"),
        ({"messages": "[{'role': 1}]"}, "broken", "Python's notation, write it with json.dumps"),
        ({"messages": " "}, "empty", "no messages"),
        ({"messages": 7}, "broken", "messages is int '7' instead of a list of messages"),
        ({"messages": {"role": ["user"], "content": []}}, "broken", "not of one list per field"),
        ({"messages": ["hello"]}, "broken", "message 0 of messages is text instead of an object"),
        ({"prompt": "a", "completion": ["b"]}, "broken", "message 0 of completion is text instead"),
        (
            {"prompt": {"0": "a"}, "completion": {"0": "b"}},
            "broken",
            "prompt is an object, but not of one list per field: write records, as pandas does",
        ),
        ({"messages": [{"content": "a"}]}, "broken", "message 0 has the role None"),
        (
            {"messages": [{"speaker": "user", "text": "a"}]},
            "broken",
            "the role None, its fields are speaker, text: use role and content",
        ),
        (dict.fromkeys(map(str, range(999)), 1), "broken", "'29' and 969 more: no form that is"),
        (
            {"messages": [{"role": "user", "text": "a"}]},
            "broken",
            "message 0 (user) has no content, its fields are role, text",
        ),
        (
            '{"messages": oops}',
            "broken",
            "the record is no JSON: '{\"messages\": oops}' (Expecting",
        ),
        ({"prompt": "a", "completion": None}, "broken", "without a value for 'completion'"),
        (
            {"messages": [ASKED, {**ANSWERED, "reasoning_content": ["a"]}]},
            "broken",
            "reasoning_content of message 1 is a list instead of text",
        ),
        (
            {"messages": [ASKED, {"role": "assistant", "tool_calls": [{"arguments": {}}]}]},
            "broken",
            "a tool call of message 1 names no function",
        ),
        (
            {
                "messages": [
                    ASKED,
                    {"role": "assistant", "tool_calls": {"name": "now", "arguments": [1]}},
                ]
            },
            "broken",
            "the arguments of a tool call of message 1 are a list instead of an object",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "text": ""}]}]},
            "broken",
            "a part of type 'image': use text",
        ),
        ({"instruction": "a", "input": 0, "output": "b"}, "broken", "input is int '0' instead of"),
        (
            {"messages": TURNS, "chat_template_kwargs": {"tokenize": True}},
            "broken",
            "chat_template_kwargs sets tokenize: leave it out",
        ),
        (
            {"messages": TURNS, "chat_template_kwargs": {"tools": [], "conversation": []}},
            "broken",
            "chat_template_kwargs sets conversation, tools: leave it out",
        ),
        ({"messages": [{"role": "user", "content": 7}]}, "broken", "content of message 0 is int"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "broken",
            "a part of type 'image_url': use text",
        ),
        ({"messages": [{"from": "alien", "value": "a"}]}, "broken", "message 0 is from 'alien'"),
        ({"messages": [{"from": ["a"], "value": "a"}]}, "broken", "message 0 is from ['a']"),
        (
            {"messages": [ASKED, {**ANSWERED, "weight": 0.5}]},
            "broken",
            "weight of message 1 is 0.5",
        ),
        ({"messages": [ASKED, {**ANSWERED, "tool_calls": 7}]}, "broken", "tool_calls of message 1"),
        ({"messages": TURNS, "tools": "{"}, "broken", "tools is no JSON"),
        ({"instruction": "a", "output": "b", "history": [["q"]]}, "broken", "history has ['q']"),
        ({"instruction": "a", "output": 4}, "broken", "output is int '4' instead of text"),
        ({"prompt": "a", "completion": "  "}, "empty", "the assistant's content, of message 1"),
        (
            {"messages": [*TURNS, ASKED, {**ANSWERED, "content": ""}], "system": "a"},
            "empty",
            "the assistant's content, of message 3",
        ),
        ({"prompt": " ", "completion": "a"}, "empty", "the user's content"),
        ({"messages": []}, "empty", "no messages"),
        ({"text": " "}, "empty", "text"),
    ],
)
def test_unusable_records_are_rejected_with_their_reason(
    record: Any, cause: str, detail: str
) -> None:
    with pytest.raises(Rejected) as caught:
        read_record(record, {})
    assert caught.value.cause == cause in Rejected.CAUSES
    assert detail in caught.value.detail


def test_the_column_that_has_no_value_is_named() -> None:
    columns = {"prompt": "question", "completion": "answer"}
    for record in ({"question": "a"}, {"question": "a", "answer": None}):
        with pytest.raises(Rejected, match="no value for 'answer'"):
            read_record(record, columns)
