"""Training sees the tokens that vLLM's server makes of the same conversation."""

import json
from typing import Any

import pytest

from otr.data import Conversation, read_record, tokenize
from tests.assets.chat_templates import FAMILIES, KINDS, template_of, tokenizer_for
from tests.assets.tiny import make_tiny_model

WITH_PARTS = ("diffusion_gemma", "gemma4", "qwen3_vl")
"""Families for which vLLM gives contents as lists of parts, which their templates write with other
white space, or as Python's text of a list. `--chat-template-content-format string` avoids it."""


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """vLLM's renderer, with a tokenizer for all families."""
    from vllm.config import ModelConfig, VllmConfig
    from vllm.renderers.hf import HfRenderer
    from vllm.tokenizers import get_tokenizer

    model = make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    tokenizer_for(*map(template_of, FAMILIES)).save_pretrained(model)
    longer = {"max_position_embeddings": 10**5}
    settings = ModelConfig(model=str(model), dtype="float32", hf_overrides=longer)
    return HfRenderer(VllmConfig(model_config=settings), get_tokenizer(str(model)))


def sent(messages: list[dict]) -> list[dict]:
    """Return messages as OpenAI's API has them: arguments are JSON text."""
    copies = []
    for message in map(dict, messages):
        if thought := message.pop("reasoning_content", None):
            message["reasoning"] = thought
        if calls := message.get("tool_calls"):
            text = json.dumps(calls[0]["function"]["arguments"])
            function = {**calls[0]["function"], "arguments": text}
            message["tool_calls"] = [{**calls[0], "function": function}]
        copies.append(message)
    return copies


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_follow_the_prompt_that_vllm_makes(family: str, renderer: Any) -> None:
    from vllm.renderers.params import ChatParams

    tokenizer = tokenizer_for(template_of(family), *map(template_of, FAMILIES))
    parts = "string" if family.startswith(WITH_PARTS) else "auto"
    compared = 0
    for record in KINDS.values():
        done = tokenize([record], tokenizer, columns={}, sequence_length=10**6)
        found = read_record(record, {})
        assert isinstance(found, Conversation)
        for number in (n for n, learned in enumerate(found.trained) if learned and done.examples):
            options = {"add_generation_prompt": True, "tools": found.tools, "tokenize": False}
            params = ChatParams(template_of(family), parts, options)  # type: ignore[arg-type]
            try:
                _, [prompt] = renderer.render_chat([sent(found.messages[:number])], params)
            except ValueError as error:
                assert family.startswith("deepseek"), error  # takes arguments as text alone
                continue
            ids = prompt["prompt_token_ids"]
            assert any(
                example.ids[: len(ids)] == ids
                and example.mask[len(ids) - 1 : len(ids) + 1] == [False, True]
                for example in done.examples
            ), f"answer {number} of {record} does not follow {prompt['prompt']!r}"
            compared += 1
    assert compared >= 4
