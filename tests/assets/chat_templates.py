"""Conversations of several kinds, and the chat templates of public models, as TRL ships them."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from tests.assets.tiny import byte_tokenizer

FOLDER = Path(find_spec("trl").origin).parent / "chat_templates"  # type: ignore[union-attr, arg-type]
FAMILIES = sorted(
    path.stem for path in FOLDER.glob("*.jinja") if not path.stem.endswith("_training")
)
ASKED, ANSWERED = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
AGAIN, ANSWERED_AGAIN = {"role": "user", "content": "3 + 3?"}, {"role": "assistant", "content": "6"}
CALL = {"type": "function", "id": "call12345"}
CALL |= {"function": {"name": "weather", "arguments": {"city": "Oslo"}}}
CITY = {"type": "object", "properties": {"city": {"type": "string", "description": "a city"}}}
WEATHER = {"name": "weather", "description": "Tells the weather.", "parameters": CITY}
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "call12345", "content": "sun"}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
KINDS: dict[str, dict[str, Any]] = {
    "one turn": {"messages": [ASKED, ANSWERED]},
    "several turns": {"messages": [ASKED, ANSWERED, AGAIN, ANSWERED_AGAIN]},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, ASKED, ANSWERED]},
    "thoughts": {
        "messages": [
            ASKED,
            {**ANSWERED, "reasoning_content": "easy"},
            AGAIN,
            {**ANSWERED_AGAIN, "reasoning_content": "easy"},
        ]
    },
    "tools": {
        "tools": [{"type": "function", "function": WEATHER}],
        "messages": [{"role": "user", "content": "Weather?"}, CALLED, RESULT, ANSWERED],
    },
}


def tokenizer_for(*templates: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes with the first template, and the tokens that all write."""
    tokenizer = byte_tokenizer()
    marks = set(re.findall(r"<[|\uff5c]?[A-Za-z_▁]+[|\uff5c]?>|\[/?[A-Z_]+\]", "".join(templates)))
    tokenizer.add_tokens(sorted(marks | {"<s>", "</s>"}), special_tokens=True)
    tokenizer.bos_token = "<s>"
    tokenizer.chat_template = templates[0]
    return tokenizer


def template_of(family: str) -> str:
    """Return the chat template of a family of models."""
    return (FOLDER / f"{family}.jinja").read_text(encoding="utf-8")


def of_family(name: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with the template of a family of models."""
    return tokenizer_for(template_of(name))
