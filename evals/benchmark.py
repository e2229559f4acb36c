"""The records of scoring: questions, decoding settings and scores.

A `Benchmark` is all that the engine and the scorer know about a task. A new task is therefore a
function that returns a `Benchmark` (see `evals.tasks`).
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        id: unique within its benchmark, and the same in every version of it.
        prompt: text of the single user turn; the model's own chat template is applied to it.
        answer: the reference answer, in the form that the benchmark's grader expects.
        tests: Python source that runs without an exception if the code is right; "" if the
            answer is not code.
        meta: fields that reports group by (subject, level) and further fields for the grader.
        completion: text for a base model to continue, including worked examples; "" if the
            benchmark has no such prompt.
    """

    id: str
    prompt: str
    answer: str
    tests: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    completion: str = ""


def check_items(items: Sequence[Item], benchmark: str) -> None:
    """Check that there are items and that their IDs differ.

    Raises:
        ValueError: there are none, or an ID occurs twice; the message names the benchmark.
    """
    if not items:
        raise ValueError(f"benchmark {benchmark!r} has no items; give at least one")
    for id, count in Counter(item.id for item in items).items():
        if count > 1:
            raise ValueError(f"benchmark {benchmark!r} has the id {id!r} more than once")


@dataclass(frozen=True)
class Decoding:
    """How answers are sampled.

    Attributes:
        max_tokens: maximum number of new tokens per answer.
        temperature: sampling temperature; 0 takes the most likely token at each step.
        top_p: probability mass of the tokens to sample from, in (0, 1].
        num_samples: answers per item.
        stop: strings that end an answer.
        seed: the seed of each sample is derived from this one, the item and the sample's number.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    num_samples: int = 1
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name, valid, use in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("num_samples", self.num_samples >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < math.inf, "a finite number >= 0"),
            ("top_p", 1e-9 <= self.top_p <= 1, "more than 0, up to 1"),
        ):
            if not valid:
                raise ValueError(f"Decoding.{name} is {getattr(self, name)!r}: use {use}")


@dataclass(frozen=True)
class Benchmark:
    """A named set of items with its grader and its published decoding settings.

    Attributes:
        name: short and unique, e.g. "gsm8k".
        domain: "mathematics", "code", "reasoning" or "other".
        items: the questions, in published order.
        grade: takes an item and the whole text of an answer; returns whether the answer is right.
            Must be picklable, because it may be sent to other processes: a module-level function,
            or a method of a picklable object.
        decoding: settings of the published evaluation.
        metric: name of the reported number, e.g. "accuracy" or "pass@1".
        source: where items and settings come from (repository and commit, or paper).
        extract: takes an item and the whole text of an answer; returns the final answer, "" if
            there is none. Equal strings count as one vote in maj@n. None if answers can't be
            voted on, as with code.
        as_text: takes an item and the whole text of an answer; returns whether the verdict rests on
            spelling, because the answer or the reference could not be parsed. None if that can't
            happen. The score has the number of such answers.
        average: "items", or "harmonic over subjects" (of `Item.meta["subject"]`).
        notes: what was chosen for this benchmark, each in a few words.
        style: "chat" sends `Item.prompt` as a user turn; "completion" lets the model continue
            `Item.completion` as it is.
        thinking: whether the chat template asks the model to think before it answers
            (`enable_thinking`); None leaves it to the template.
        fixed_limit: whether a person chose `Decoding.max_tokens`, which is then also the limit for
            models that think.
    """

    name: str
    domain: str
    items: tuple[Item, ...]
    grade: Callable[[Item, str], bool]
    decoding: Decoding
    metric: str
    source: str
    extract: Callable[[Item, str], str] | None = None
    as_text: Callable[[Item, str], bool] | None = None
    average: str = "items"
    style: str = "chat"
    notes: tuple[str, ...] = ()
    thinking: bool | None = None
    fixed_limit: bool = False

    def __post_init__(self) -> None:
        assert self.average in ("items", "harmonic over subjects"), self.average
        assert self.style in ("chat", "completion"), self.style


@dataclass(frozen=True)
class TaskScore:
    """The score of a model on one benchmark.

    Attributes:
        task: name of the benchmark.
        metric: name of the number, e.g. "accuracy".
        value: the score, in [0, 1].
        low: lower end of its 95 % confidence interval.
        high: upper end of that interval.
        num_examples: number of items.
        settings: everything needed to repeat the measurement.
        also: further metrics of the same answers, as name -> [value, low, high].
    """

    task: str
    metric: str
    value: float
    low: float
    high: float
    num_examples: int
    settings: dict[str, Any]
    also: dict[str, list[float]] = field(default_factory=dict)
