"""What a search may cost: trials, seconds, tokens."""

import math
import re
from dataclasses import dataclass, fields

_UNITS = {
    **dict.fromkeys(("trial", "trials"), ("trials", 1)),
    **dict.fromkeys(("min", "minute", "minutes"), ("seconds", 60)),
    **dict.fromkeys(("h", "hour", "hours"), ("seconds", 3600)),
    **dict.fromkeys(("d", "day", "days"), ("seconds", 86400)),
    **dict.fromkeys(("token", "tokens"), ("tokens", 1)),
    "k tokens": ("tokens", 10**3),
    "m tokens": ("tokens", 10**6),
    "b tokens": ("tokens", 10**9),
}
NAMES = {"trials": "trials", "seconds": "time", "tokens": "tokens"}
"""What each field of a `Budget` limits, in words."""
_PART = re.compile(r"(\d+\.?\d*(?:e\d+)?)\s*([a-z ]+?)", re.IGNORECASE)
_USE = (
    'use trials, min, h, d or tokens, as in "40 trials", "6 h", "200M tokens" or "40 trials, 6 h"'
)


@dataclass(frozen=True)
class Budget:
    """Limits of a search; None: no limit."""

    trials: int | None = None
    seconds: float | None = None
    tokens: float | None = None


def parse_budget(text: str) -> Budget:
    """Return the budget that a text names; "" is one without limits.

    Raises:
        ValueError: a part of the text has no number > 0 or no unit, or two parts limit the same.
    """
    found: dict[str, float] = {}
    for part in text.split(",") if text.strip() else ():
        matched = _PART.fullmatch(part.strip())
        unit = " ".join(matched[2].lower().split()) if matched else ""
        if not matched or unit not in _UNITS:
            raise ValueError(f"budget {text!r}: {part.strip()!r} is not understood: {_USE}")
        kind, factor = _UNITS[unit]
        value = float(matched[1]) * factor
        if not 0 < value < math.inf or (kind == "trials" and value % 1):
            whole = "whole number" if kind == "trials" else "number"
            raise ValueError(f"budget {text!r}: {part.strip()!r} is not a {whole} > 0: {_USE}")
        if kind in found:
            raise ValueError(f"budget {text!r} limits the {NAMES[kind]} twice: give each once")
        found[kind] = value
    trials = found.pop("trials", None)
    return Budget(None if trials is None else int(trials), **found)


def over(budget: Budget, cost: Budget) -> list[str]:
    """Return the names of the limits that a cost is above; what is not known is above none."""
    names = [each.name for each in fields(Budget)]
    pairs = ((name, getattr(budget, name), getattr(cost, name)) for name in names)
    return [name for name, limit, spent in pairs if limit and spent and spent > limit]
