"""Answers are found in what chat templates write, whatever the template.

The templates are those of public models, as TRL ships them.
"""

import json
from typing import Any

import pytest

from otr.data import Conversation, Rejected, read_record, tokenize
from otr.data.chat_template import (
    CALL_LEFT_OUT,
    CONTENT_LEFT_OUT,
    FLAGS_IGNORED,
    GREETING,
    NO_STOP,
    THOUGHT_EMPTY,
    THOUGHT_LEFT_OUT,
    UNANSWERED,
    ChatTemplate,
    mentioned_names,
)
from tests.assets.chat_templates import (
    AGAIN,
    ANSWERED,
    ANSWERED_AGAIN,
    ASKED,
    CALL,
    CALLED,
    FAMILIES,
    KINDS,
    RESULT,
    of_family,
    tokenizer_for,
)
from tests.assets.tiny import byte_tokenizer


def answers(tokenizer: Any, record: dict, **options: Any) -> list[str]:
    """Return the trained text of each example of a record."""
    done = tokenize([record], tokenizer, columns={}, sequence_length=10**6, **options)
    assert not done.rejected, done.rejected
    return [
        tokenizer.decode([i for i, m in zip(*example, strict=True) if m])
        for example in done.examples
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_answer_is_trained_once_after_the_prompt_of_inference(family: str, kind: str) -> None:
    """Or the record is rejected because the template itself can't write it."""
    tokenizer, record = of_family(family), KINDS[kind]
    done = tokenize([record], tokenizer, columns={}, sequence_length=10**6)
    found = read_record(record, {})
    assert isinstance(found, Conversation)
    numbers = [number for number, learned in enumerate(found.trained) if learned]
    if done.rejected:
        with pytest.raises(Exception, match=r".") as theirs:  # what the template says of it
            text = written(tokenizer, family, found, len(found.messages))
            assert "Oslo" in text or kind != "tools", "the template leaves out tool calls"
        ours = done.rejected[0]
        assert ours.cause == "template"
        assert "writes nothing" in ours.detail or str(theirs.value) in ours.detail
        return
    prompts = [
        tokenizer(
            written(tokenizer, family, found, number, add_generation_prompt=True),
            add_special_tokens=False,
        )["input_ids"]
        for number in numbers
    ]
    begun = [
        ids[:start]
        for ids, mask in done.examples
        for start in range(1, len(ids))
        if mask[start] and not mask[start - 1]
    ]
    for prompt in prompts:  # the engine's own tokens, exactly
        assert prompt in begun
    trained = "".join(answers(tokenizer, record))
    expected = [found.messages[number]["content"] or "Oslo" for number in numbers]
    assert [trained.count(text) for text in expected] == [1] * len(expected)


def written(
    tokenizer: Any, family: str, conversation: Conversation, count: int, **options: Any
) -> str:
    """Return what a template itself makes of the first messages."""
    messages = conversation.messages[:count]
    if family in ("idefics3", "llava_next", "smolvlm"):  # contents are lists of parts
        messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    if family.startswith("deepseek"):  # arguments are JSON text
        function = {**CALL["function"], "arguments": json.dumps({"city": "Oslo"})}
        calls = [{**CALL, "function": function}]
        messages = [{**m, "tool_calls": calls} if "tool_calls" in m else m for m in messages]
    return tokenizer.apply_chat_template(
        messages, tools=conversation.tools, tokenize=False, **options
    )


ENDS = {
    "cohere2": "4<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    "gemma3": "4<end_of_turn>",
    "glm4moe": "\n<think></think>\n4<|user|>",  # the mark of the next role ends a turn
    "gptoss": "<|channel|>final<|message|>4<|return|>",
    "llama3_1": "4<|eot_id|>",
    "llava_next": " 4</s>",
    "phi3": "4<|end|>",
    "qwen2_5": "4<|im_end|>",
    "qwen3": "<think>\n\n</think>\n\n4<|im_end|>",
    "deepseek_r1_distill": "\n</think>\n\n4<\uff5cend▁of▁sentence\uff5c>",
}


@pytest.mark.parametrize("family", ENDS)
def test_an_answer_ends_with_the_token_that_ends_the_turn(family: str) -> None:
    assert answers(of_family(family), KINDS["one turn"]) == [ENDS[family]]


def test_a_token_that_ends_the_whole_text_is_no_part_of_an_answer() -> None:
    """Phi-4-mini's template writes one after the token that ends the last turn."""
    tokenizer = tokenizer_for(
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
        "{{ '<|assistant|>' if add_generation_prompt else eos_token }}{# <|user|> #}"
    )
    turns = {"messages": [ASKED, ANSWERED, AGAIN, ANSWERED_AGAIN]}
    assert answers(tokenizer, turns) == ["4<|end|>6<|end|>"]


def test_answers_share_a_text_unless_the_template_rewrites_it() -> None:
    twice = KINDS["several turns"]
    assert answers(of_family("qwen2_5"), twice) == ["4<|im_end|>6<|im_end|>"]
    assert answers(of_family("phi3"), twice) == ["4<|end|>6<|end|>"]
    assert answers(of_family("glm4moe"), twice) == [
        "\n<think></think>\n4<|user|>\n<think></think>\n6<|user|>"
    ]
    empty = "<think>\n\n</think>\n\n"
    assert answers(of_family("qwen3"), twice) == [f"{empty}4<|im_end|>", f"{empty}6<|im_end|>"]
    thoughts = ["<think>\neasy\n</think>\n\n4<|im_end|>", "<think>\neasy\n</think>\n\n6<|im_end|>"]
    assert answers(of_family("qwen3"), KINDS["thoughts"]) == thoughts


def test_thoughts_follow_a_prompt_that_opens_them() -> None:
    r1 = of_family("deepseek_r1_distill")
    end = "<\uff5cend▁of▁sentence\uff5c>"
    expected = [f"easy\n</think>\n\n4{end}", f"easy\n</think>\n\n6{end}"]
    assert answers(r1, KINDS["thoughts"]) == expected
    written = {**ANSWERED, "content": "<think>\neasy\n</think>\n\n4"}
    assert answers(r1, {"messages": [ASKED, written]}) == expected[:1]
    done = tokenize([KINDS["one turn"]], r1, columns={}, sequence_length=1000)
    assert done.remarks == {THOUGHT_EMPTY: 1}


def test_thoughts_are_left_out_where_the_prompt_closes_them() -> None:
    done = tokenize(
        [KINDS["thoughts"]], of_family("qwen3_5_nothink"), columns={}, sequence_length=1000
    )
    assert done.remarks == {THOUGHT_LEFT_OUT: 1}
    assert answers(of_family("qwen3_5_nothink"), KINDS["thoughts"]) == [
        "4<|im_end|>",
        "6<|im_end|>",
    ]


CHAIN = [
    {"role": "user", "content": "Weather?"},
    {**CALLED, "reasoning_content": "need it"},
    RESULT,
    {"role": "assistant", "content": "Sunny.", "reasoning_content": "have it"},
]


def test_the_prompt_of_an_answer_keeps_what_the_template_drops_once_it_is_there() -> None:
    """gpt-oss leaves the thoughts of calls out as soon as there is a final answer."""
    tokenizer = of_family("gptoss")
    text = "".join(answers(tokenizer, {"messages": CHAIN}))
    assert text.count("need it") == text.count("have it") == 1
    done = tokenize([{"messages": CHAIN}], tokenizer, columns={}, sequence_length=10**6)
    [(ids, _)] = done.examples
    prompt = tokenizer.apply_chat_template(CHAIN[:3], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(ids).startswith(prompt)
    assert "need it" in prompt
    assert tokenizer.decode(ids).endswith("<|channel|>final<|message|>Sunny.<|return|>")


def test_answers_that_follow_each_other_are_trained_as_each_is_asked_for() -> None:
    record = {"messages": [ASKED, ANSWERED, {"role": "assistant", "content": "Sure."}]}
    empty = "<think>\n\n</think>\n\n"
    assert answers(of_family("qwen3"), record) == [f"{empty}4<|im_end|>{empty}Sure.<|im_end|>"]


@pytest.mark.parametrize("family", ["qwen3", "llama3_1", "gptoss", "deepseekv3"])
def test_a_greeting_without_a_prompt_is_context_alone(family: str) -> None:
    greeting = {"role": "assistant", "content": "Hello!"}
    tokenizer = of_family(family)
    record = {"messages": [greeting, ASKED, ANSWERED]}
    [answer] = answers(tokenizer, record)
    assert "4" in answer
    assert "Hello!" not in answer
    done = tokenize([record], tokenizer, columns={}, sequence_length=10**6)
    assert done.remarks[GREETING] == 1
    assert "Hello!" in tokenizer.decode(done.examples[0].ids)
    done = tokenize([{"messages": [greeting]}], tokenizer, columns={}, sequence_length=10**6)
    assert done.rejected[0].detail == "its answers have no question before them"


@pytest.mark.parametrize("last", [ASKED, RESULT])
def test_what_follows_the_last_answer_is_remarked(last: dict) -> None:
    record = {"messages": [ASKED, ANSWERED, last]}
    done = tokenize([record] * 2, byte_tokenizer(), columns={}, sequence_length=1000)
    assert done.remarks == {UNANSWERED: 2}
    [example, _] = done.examples
    assert (
        example
        == tokenize(
            [{"messages": [ASKED, ANSWERED]}], byte_tokenizer(), columns={}, sequence_length=1000
        ).examples[0]
    )


TWO_ENDS = {"role": "assistant", "content": "<think>hm</think>The tag </think> closes it."}


@pytest.mark.parametrize(
    ("family", "message", "left_out"),
    [
        ("qwen3", {"role": "developer", "content": "Be brief."}, True),
        ("llama3_1", {"role": "developer", "content": "Be brief."}, False),
        ("gptoss", {"role": "developer", "content": " Be brief.\n"}, False),
        ("qwen3", {"role": "critic", "content": "Too long."}, True),
        ("qwen3", TWO_ENDS, True),
        ("deepseek_r1_distill", {**TWO_ENDS, "weight": 0}, True),
        ("deepseek_r1_distill", {"role": "assistant", "content": "<think>hm</think>Yes"}, False),
        ("llama3_1", {"role": "tool", "content": '"sun"\n\t\u00e9\u2028'}, False),  # as JSON
    ],
)
def test_text_that_the_template_leaves_out_is_remarked(
    family: str, message: dict, left_out: bool
) -> None:
    first = [message] if message["role"] == "developer" else [ASKED, message]
    record = {"messages": [*first, AGAIN, ANSWERED_AGAIN]}
    for train_on in ("assistant", "all"):
        done = tokenize(
            [record], of_family(family), columns={}, sequence_length=10**6, train_on=train_on
        )
        assert len(done.rejected) == 0
        assert (CONTENT_LEFT_OUT.format(message["role"]) in done.remarks) == left_out


def test_what_the_template_leaves_out_of_an_earlier_answer_is_remarked() -> None:
    first = {**ANSWERED, "reasoning_content": "easy"}
    record = {"messages": [ASKED, first, AGAIN, ANSWERED_AGAIN]}
    done = tokenize([record], of_family("gemma4"), columns={}, sequence_length=10**6)
    assert (len(done.examples), done.remarks) == (1, {THOUGHT_LEFT_OUT: 1})


@pytest.mark.parametrize("said", ["", "I look."])
def test_a_tool_call_that_the_template_leaves_out_is_remarked(said: str) -> None:
    record = {"messages": [ASKED, {**CALLED, "content": said}, RESULT, ANSWERED]}
    done = [
        tokenize([record], of_family(family), columns={}, sequence_length=10**6)
        for family in ("deepseek_r1_distill", "qwen3")
    ]
    assert [CALL_LEFT_OUT in each.remarks for each in done] == [bool(said), False]
    assert [bool(each.rejected) for each in done] == [not said, False]


def test_an_answer_may_speak_of_the_tags_of_a_thought() -> None:
    answer = "the tag <think> opens it, </think> closes it"
    record = {"messages": [ASKED, {**ANSWERED, "content": answer}]}
    [trained] = answers(of_family("nemotron_3_nano"), record)
    assert trained == f"\n</think>\n\n{answer}<|im_end|>"
    done = tokenize([record], of_family("deepseek_r1_distill"), columns={}, sequence_length=10**6)
    assert CONTENT_LEFT_OUT.format("assistant") in done.remarks  # the template cuts it


def test_training_on_all_names_what_it_ignores_and_what_it_lacks() -> None:
    thoughts = [ASKED, {**ANSWERED, "reasoning_content": "easy"}, AGAIN, ANSWERED_AGAIN]
    unlearned = [ASKED, {**ANSWERED, "weight": 0}]
    for messages, remark in ((thoughts, THOUGHT_LEFT_OUT), (unlearned, FLAGS_IGNORED)):
        done = tokenize(
            [{"messages": messages}],
            of_family("qwen3"),
            columns={},
            sequence_length=1000,
            train_on="all",
        )
        assert done.remarks == {remark: 1}
    [whole] = answers(of_family("glm4moe"), KINDS["one turn"], train_on="all")
    assert whole.endswith("4<|user|>")


def test_the_roles_are_named_if_none_answers() -> None:
    done = tokenize(
        [{"messages": [ASKED, {"role": "expert", "content": "4"}]}],
        byte_tokenizer(),
        columns={},
        sequence_length=1000,
    )
    assert done.rejected[0].detail.endswith("(the roles are user, expert)")


def test_arguments_of_the_template_are_those_of_the_record() -> None:
    off = {**KINDS["one turn"], "chat_template_kwargs": {"enable_thinking": False}}
    assert answers(of_family("qwen3"), off) == ["4<|im_end|>"]  # the prompt has the empty thought


PLAIN = (
    "{% for m in messages %}{{ '### ' + m.role + ':\n' + m.content + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "end"),
    [(PLAIN, ""), (byte_tokenizer().chat_template.replace("<|im_", "<|turn_"), "<|turn_end|>")],
)
def test_an_answer_without_a_token_at_its_end_is_whole_and_remarked(
    template: str, end: str
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<s>", "</s>"], special_tokens=True)
    tokenizer.chat_template = template
    answer = {"role": "assistant", "content": "Write <s>old</s> and it is struck out."}
    record = {"messages": [ASKED, answer]}
    assert answers(tokenizer, record) == [answer["content"] + end]
    done = tokenize([record], tokenizer, columns={}, sequence_length=1000)
    assert done.remarks == {NO_STOP: 1}


def test_what_the_template_does_not_mention_is_named() -> None:
    record = {**KINDS["tools"], "chat_template_kwargs": {"enable_thinking": True}}
    thought = {**ANSWERED, "reasoning_content": "easy", "name": "Bot"}
    record = {**record, "messages": [ASKED, ANSWERED, ASKED, thought]}
    done = tokenize([record] * 2, byte_tokenizer(), columns={}, sequence_length=1000)
    assert done.unused == {
        "tools": 2,
        "enable_thinking (template argument)": 2,
        "reasoning_content of assistant messages": 2,
        "name of assistant messages": 2,
    }
    done = tokenize([KINDS["tools"]], of_family("qwen3"), columns={}, sequence_length=2000)
    assert done.unused == {"tool_call_id of tool messages": 1}


def test_names_are_those_of_expressions() -> None:
    template = "A tools list: {% if m['x'] and y.z %}{% generation %}{{ m.get('k') }}"
    template += "{% endgeneration %}{% endif %}"
    assert mentioned_names(template) == {"m", "x", "y", "z", "get", "k"}


def test_a_prompt_that_its_answer_does_not_follow_is_rejected() -> None:
    tokenizer = tokenizer_for(
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ 'Now!' if add_generation_prompt }}"
    )
    with pytest.raises(Rejected, match=r"'Now!'.*has '4'.*--chat-template"):
        ChatTemplate(tokenizer).render(Conversation([ASKED, ANSWERED], [False, True]))


def test_contents_are_parts_where_the_template_wants_parts() -> None:
    template = (
        "{% for m in messages %}{{ m.role + ': ' }}{% for part in m.content %}"
        "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{{ '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    assert answers(tokenizer_for(template), KINDS["one turn"]) == ["4<|im_end|>"]
