"""The objectives: ``python -m tests.assets.objective_table`` prints tables of docs.

They are in docs/concepts/objectives.md: what each objective is, when it helps, and an example with
its settings.
"""

from collections.abc import Iterator
from dataclasses import fields

from otr.loss.objective import Objective, kind_of, names


def lines() -> Iterator[str]:
    """Yield the tables, with an empty line between."""
    head = (
        "`--train.objective.name`",
        "loss per token",
        "gradient of the logits",
        "what it does",
        "source",
    )
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * 5}"
    for name in names():
        kind = kind_of(name)
        link = f"[arXiv:{kind.arxiv}](https://arxiv.org/abs/{kind.arxiv})" if kind.arxiv else ""
        yield f"| `{name}` | {kind.loss} | {kind.gradient} | {kind.meaning} | {link} |"
    yield ""
    yield "| `--train.objective.name` | when it helps | when not |"
    yield f"|{'---|' * 3}"
    for name in names():
        yield f"| `{name}` | {kind_of(name).helps} | {kind_of(name).hurts} |"
    yield ""
    head = ("example", "settings and their defaults", "loss", "gradient of the target's logit")
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * 4}"
    for name in names():
        example = kind_of(name).example
        settings = [f"`{_option(f.name)}` {f.default}" for f in fields(kind_of(name))[1:]]
        made = Objective(name, **example.settings)
        yield (
            f"| {made.describe()} | {', '.join(settings) or 'none'} | {example.loss:.4f} | "
            f"{example.gradient:.4f} |"
        )


def _option(setting: str) -> str:
    return setting.replace("_", "-")


if __name__ == "__main__":
    print("\n".join(lines()))
