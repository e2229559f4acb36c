"""How each family of chat templates is trained: ``python -m tests.assets.chat_template_table``.

Prints the table of docs/reference/chat-templates.md.
"""

from collections.abc import Iterator
from typing import Any

from otr.data import Tokenized, tokenize
from otr.data.chat_template import THOUGHT_LEFT_OUT
from tests.assets.chat_templates import FAMILIES, KINDS, of_family

COLUMNS = (
    "templates",
    "answers of a conversation",
    "system",
    "thoughts",
    "tool calls",
    "an answer ends with",
)


def lines() -> Iterator[str]:
    """Yield the table; families that are trained alike share a row."""
    families: dict[tuple[str, ...], list[str]] = {}
    for family in FAMILIES:
        families.setdefault(_cells(family), []).append(family)
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"|{'---|' * len(COLUMNS)}"
    for cells, names in families.items():
        row = (", ".join(names), *(cell.replace("|", r"\|") for cell in cells))
        yield f"| {' | '.join(row)} |"


def _cells(family: str) -> tuple[str, ...]:
    tokenizer = of_family(family)
    found = {kind: _tokenized(tokenizer, kind) for kind in KINDS}
    trained = [_trained(tokenizer, each) for each in found["one turn"].examples]
    end = trained[0].partition("4")[2]
    several = (
        "share one example" if len(found["several turns"].examples) == 1 else "one example each"
    )
    system = "rejected by the template" if found["system"].rejected else "yes"
    return several, system, _thoughts(tokenizer, found), _tools(found["tools"]), f"`{end}`"


def _thoughts(tokenizer: Any, found: dict[str, Tokenized]) -> str:
    done = found["thoughts"]
    if any("reasoning_content" in name for name in done.unused):
        return "not used by the template"
    trained = _trained(tokenizer, done.examples[-1])
    if "easy" not in trained:
        return "left out, with a remark" if THOUGHT_LEFT_OUT in done.remarks else "lost"
    return "after a prompt that opens `<think>`" if trained.startswith("easy") else "yes"


def _tools(done: Tokenized) -> str:
    if not done.rejected:
        return "yes"
    return (
        "not written: rejected"
        if "writes nothing" in done.rejected[0].detail
        else "rejected by the template"
    )


def _tokenized(tokenizer: Any, kind: str) -> Tokenized:
    return tokenize([KINDS[kind]], tokenizer, columns={}, sequence_length=10**6)


def _trained(tokenizer: Any, example: Any) -> str:
    return tokenizer.decode([i for i, m in zip(*example, strict=True) if m])


if __name__ == "__main__":
    print("\n".join(lines()))
