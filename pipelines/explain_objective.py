"""Explain the training objectives: what each learns from, its formulas, settings and source.

otr explain
otr explain eaft dft
otr explain otr --train.objective.temperature 1 --figure otr.svg
python pipelines/explain_objective.py otr
"""

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from otr.files import write_text
from otr.loss.objective import Objective, kind_of, names, owners
from pipelines.config.options import UsageError, setting_docs
from pipelines.runtime import console

if TYPE_CHECKING:
    from pipelines.config.commands import Explain

AT = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
"""Probabilities of the target at which weights are printed."""
BAR = 40  # characters of a weight of 1
_SHAPE = 20  # characters of a curve
_LEVELS = "▁▂▃▄▅▆▇█"


def run(command: "Explain") -> int:
    """Print what a command line asks about; return the exit code.

    Raises:
        UsageError: no such objective or setting, or a value that it refuses.
    """
    settings = command.options.get("train", {}).get("objective", {})
    try:
        objectives = chosen(command.objective, settings)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if len(objectives) == 1:
        _explain(objectives[0])
    else:
        _compare(objectives)
    if command.figure:
        from pipelines.report.objective_plots import weight_curves

        write_text(Path(command.figure), weight_curves(objectives))
        console.note(f"figure: {command.figure}")
    return 0


def chosen(given: Sequence[str], settings: dict[str, Any]) -> list[Objective]:
    """Return objectives by name (none: all), each with those of the settings that it has.

    Raises:
        ValueError: no such objective, or none of them has a setting.
    """
    found = list(dict.fromkeys(given)) or names()
    for name in found:
        kind_of(name)
    for key in settings:
        if not set(owners(key)) & set(found):
            raise ValueError(
                f"{option(key)} is a setting of {' and '.join(owners(key))}, not of "
                f"{' or '.join(found)}: name an objective that has it"
            )
    return [
        Objective(name, **{key: value for key, value in settings.items() if name in owners(key)})
        for name in found
    ]


def option(setting: str) -> str:
    """Return the option of a setting."""
    return f"--train.objective.{setting}".replace("_", "-")


def _compare(objectives: Sequence[Objective]) -> None:
    """Print a row for each objective."""
    from otr.loss.curve import TYPICAL, depends_on_others, weights

    rows, depends = [], False
    for each in objectives:
        star = " *" if depends_on_others(each) else ""
        depends |= bool(star)
        shape = _shape(weights(each, _grid()).tolist())
        numbers = [f"{weight:.3f}" for weight in weights(each, AT).tolist()]
        rows.append([f"{each.name}{star}", *numbers, shape])
    title = "Weight on SFT's gradient, by the probability p(y) of the target"
    console.say(title)
    console.table(["objective", *(f"{p:g}" for p in AT), "from 0 to 1"], rows)
    console.say(
        "The weight is the gradient of the target's logit divided by SFT's, p(y) - 1. AdamW evens "
        "out the size\nof the gradient, so that the shape matters more than the height."
    )
    if depends:
        console.say(
            f"* also depends on the other tokens: here {TYPICAL} that are equally likely. `otr "
            "explain NAME` shows more cases."
        )
    if compared := [each.name for each in objectives if each.needs_start]:
        console.say(f"{', '.join(compared)}: at the first step; later by p(y) / its first value.")
    console.say("")
    console.table(
        ["objective", "what it does", "when it helps", "when not"],
        [[each.name, each.meaning, each.helps, each.hurts] for each in objectives],
    )
    console.say("\n`otr explain NAME` prints formulas, settings and source.")


def _explain(objective: Objective) -> None:
    """Print all about one objective."""
    kind, made = type(objective), objective.describe()
    console.say(f"{objective.name}: {made}")
    source = f"arXiv:{kind.arxiv}, https://arxiv.org/abs/{kind.arxiv}" if kind.arxiv else ""
    facts = {
        "what it does": kind.meaning,
        "loss per token": kind.loss,
        "gradient of the logits": kind.gradient,
        "when it helps": kind.helps,
        "when not": kind.hurts,
        "source": source,
    }
    for title, text in facts.items():
        if text:
            console.say(f"  {title:<23} {text}")
    _print_weights(objective)
    docs = setting_docs(objective.name)
    settings = [
        [option(f.name), f"{getattr(objective, f.name)}", f"{f.default}", docs.get(f.name, "")]
        for f in fields(objective)[1:]
    ]
    if settings:
        console.say("")
        console.table(["setting", "value", "default", "meaning"], settings)
    example = kind.example
    console.say(
        f"\nExample: p is (1/4, 3/4), the target is the first of the two tokens. "
        f"{Objective(objective.name, **example.settings).describe()} has the loss "
        f"{example.loss:.4f} and the gradient {example.gradient:.4f} of the target's logit."
    )


def _print_weights(objective: Objective) -> None:
    """Print the weight of one objective, for each number of other tokens if it depends on them."""
    from otr.loss.curve import OTHERS, TYPICAL, depends_on_others, weights

    cases = OTHERS if depends_on_others(objective) else (TYPICAL,)
    columns = [weights(objective, AT, others).tolist() for others in cases]
    drawn = columns[cases.index(TYPICAL)]
    scale = BAR / max(1.0, *map(abs, drawn))
    rows = [
        [f"{p:g}", *(f"{column[i]:.3f}" for column in columns), _bar(drawn[i] * scale)]
        for i, p in enumerate(AT)
    ]
    head = [f"{n:,} other{'s' * (n > 1)}" for n in cases] if len(cases) > 1 else ["weight"]
    which = "" if objective.expectation == objective else ", in expectation"
    which += ", at the first step" if objective.needs_start else ""
    title = f"Weight on SFT's gradient, by the probability p(y) of the target{which}"
    console.say(f"\n{title}")
    console.table(["p(y)", *head, ""], rows)
    if len(cases) > 1:
        console.say(
            "It also depends on the other tokens. Here these are equally likely; the bars are for "
            f"{TYPICAL} of them."
        )


def _bar(length: float) -> str:
    return ("█" if length >= 0 else "-") * round(abs(length))


def _grid() -> list[float]:
    """Return the middles of equal parts of the range from 0 to 1."""
    return [(i + 0.5) / _SHAPE for i in range(_SHAPE)]


def _shape(weights: Sequence[float]) -> str:
    """Return a curve in one line of text; its highest point is that of the weights."""
    top = max([*weights, 1e-9])
    last = len(_LEVELS) - 1
    return "".join(_LEVELS[max(0, round(last * weight / top))] for weight in weights)


if __name__ == "__main__":
    from pipelines import cli

    sys.exit(cli.main(["explain", *sys.argv[1:]]))
