"""The three records of scoring: what is asked, how it is decoded, what came out.

In: nothing. Out: frozen dataclasses. A `Benchmark` is all that the engine and the scorer know of a
task, so a new one is a function that returns a `Benchmark` (see `evals.tasks`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        id: unique within its benchmark and stable from version to version.
        prompt: text of the single user turn; the model's own chat template goes around it.
        answer: the reference answer, in the form that the benchmark's grader expects.
        tests: Python text that ends without an exception for right code; "" outside of code.
        meta: what reports group by (subject, level) and what a grader needs besides.
        completion: the text that a base model continues, worked examples included; "" if the
            benchmark has no such prompt.
    """

    id: str
    prompt: str
    answer: str
    tests: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    completion: str = ""


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn: at most `max_tokens` new tokens, `num_samples` answers an item."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    num_samples: int = 1
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_tokens", 1, float("inf")),
            ("num_samples", 1, float("inf")),
            ("temperature", 0, float("inf")),
            ("top_p", 1e-9, 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(
                    f"Decoding.{name} is {getattr(self, name)!r}; it must lie in [{low}, {high}]"
                )


@dataclass(frozen=True)
class Benchmark:
    """A named set of items with its grader and its published decoding settings.

    Attributes:
        name: short and unique, e.g. "gsm8k".
        domain: "mathematics", "code", "reasoning" or "other".
        items: the questions, in published order.
        grade: (item, whole answer text) -> right or wrong. A module-level function or a method of
            an object that can be pickled, because it may be sent to other processes.
        decoding: settings of the published evaluation.
        metric: name of the number reported, e.g. "accuracy" or "pass@1".
        source: where items and settings come from (repository and commit, or paper).
        extract: (item, whole answer text) -> the final answer, "" if there is none; equal strings
            are one vote for maj@n. None where answers can't be voted on, as in code.
        average: "items", or "harmonic over subjects" (`Item.meta["subject"]`).
        style: "chat" asks `Item.prompt` as a user turn, "completion" lets the model continue
            `Item.completion` as it is.
    """

    name: str
    domain: str
    items: tuple[Item, ...]
    grade: Callable[[Item, str], bool]
    decoding: Decoding
    metric: str
    source: str
    extract: Callable[[Item, str], str] | None = None
    average: str = "items"
    style: str = "chat"

    def __post_init__(self) -> None:
        assert self.average in ("items", "harmonic over subjects"), self.average
        assert self.style in ("chat", "completion"), self.style


@dataclass(frozen=True)
class TaskScore:
    """A score in [0, 1] with its 95 % interval and all that is needed to repeat it.

    `also` has further metrics of the same answers: name -> [value, low, high].
    """

    task: str
    metric: str
    value: float
    low: float
    high: float
    num_examples: int
    settings: dict[str, Any]
    also: dict[str, list[float]] = field(default_factory=dict)
