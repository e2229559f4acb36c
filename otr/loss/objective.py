"""What an objective is, the registry of all objectives, and the result of a loss.

`otr.loss.objectives` has one file per objective. This file has what they share and what other code
asks of them.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib import import_module
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from otr.hints import did_you_mean

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

IGNORE_INDEX = -100
"""Target of a position that is not scored."""
UNIFORM = 1e30
"""A temperature at which q is uniform over the tokens that are not masked."""


class Style(NamedTuple):
    """How figures show an objective."""

    color: str
    dark: str
    """The color on a dark page."""
    marker: str
    """One of matplotlib."""


class Example(NamedTuple):
    """An objective's loss and gradient, computed by hand, where p is (1/4, 3/4).

    The vocabulary has two tokens and the target is the first. The gradient of the second logit is
    that of the first with the other sign, unless there is a penalty.
    """

    loss: float
    gradient: float
    """With respect to the target's logit."""
    settings: dict[str, Any] = {}  # noqa: RUF012 - never changed


_registered: dict[str, type[Objective]] = {}


class _Dispatch(type):
    """Makes ``Objective("sft", ...)`` an instance of the class that is registered as "sft"."""

    def __call__(cls, *given: Any, **settings: Any) -> Any:
        default = "otr" if cls is Objective else cls.name  # type: ignore[attr-defined]
        name, rest = (given[0], given[1:]) if given else (settings.pop("name", default), ())
        kind = kind_of(name)
        # Without a keyword, settings are those of otr: they were the only ones before 0.3.
        order = [field.name for field in fields(kind_of("otr"))[1:]]
        placed = dict(zip(order, rest, strict=False))
        if len(rest) > len(order) or placed.keys() & settings.keys():
            raise ValueError(f"settings {rest} without a name: use keywords")
        settings |= placed
        own = {field.name: field.default for field in fields(kind)[1:]}
        for key in sorted(settings.keys() - own.keys()):
            _check_foreign(name, own, key, settings.pop(key))
        for key, value in settings.items():
            if type(own[key]) is float and (isinstance(value, bool) or not isinstance(value, Real)):
                raise ValueError(f"{_key(key)} is {value!r}: use a number")
        return type.__call__(kind, name, **settings)


@dataclass(frozen=True)
class Objective(metaclass=_Dispatch):
    """The training objective of a token: ``Objective("otr", num_samples=16)``.

    The name chooses one of the registered objectives (`names`), each of which is a subclass with
    its own settings. With p = softmax(z), q = softmax(z / kappa) held constant, target y and draws
    a_j from q, every objective has a gradient with respect to the logits of the form

        dz = P p - Q q - Y e_y - M sum_j e_(a_j)

    An objective that multiplies SFT's loss by a weight w that is held constant has P = Y = w: it
    defines `weight`, or `of_ratio` if w depends on p(y) divided by its value before training.
    Others define `coefficients`, and the properties that say what these use. All are compiled by
    Triton as they stand, so they may use arithmetic, comparisons, ``if`` on settings, other
    attributes of ``self`` that are numbers or strings, and of ``xp`` (torch, or triton.language)
    only: exp, log, sqrt, abs, where, minimum, maximum, clamp.

    A setting of another objective is refused unless it has its default; read from an objective
    without it, it is that default.

    Raises:
        ValueError: no such objective (the nearest name is given), a setting that it does not have,
            or a value that is out of range.
    """

    name: str = ""
    """Name of the objective. Its settings are the options that name it; the others do not apply."""

    label: ClassVar[str]
    """Name in tables and figures."""
    arxiv: ClassVar[str] = ""
    """Number of the paper."""
    loss: ClassVar[str]
    """Formula of a token's loss."""
    gradient: ClassVar[str]
    """Formula of the gradient with respect to the logits."""
    meaning: ClassVar[str]
    """What the gradient does, in words."""
    helps: ClassVar[str] = ""
    """When to choose it, with the source of that; with a figure, where it comes from."""
    hurts: ClassVar[str] = ""
    """When not to."""
    example: ClassVar[Example]
    arms: ClassVar[dict[str, dict[str, Any]]] = {}
    """Settings of the arms that sweeps compare, by arm; empty: one, with the default settings."""
    rolls_out: ClassVar[bool] = False
    """Whether draws from q have rewards; then hit share and reward are those of q, else of p."""

    if TYPE_CHECKING:  # the settings are those of the subclass

        def __init__(self, name: str = "otr", *settings: Any, **named: Any) -> None: ...

    def __init_subclass__(cls) -> None:
        """Register a subclass under its name.

        Raises:
            TypeError: it has no name or one that is taken, or a function that Triton could not
                compile.
        """
        name = cls.__dict__.get("name")
        if not isinstance(name, str) or not name.isidentifier():
            raise TypeError(f"{cls.__name__}.name is {name!r}: give it a default, an identifier")
        for form in ("weight", "of_ratio", "coefficients"):
            if getattr(cls.__dict__.get(form), "__annotations__", None):
                raise TypeError(f"{cls.__name__}.{form}: leave out the annotations, for Triton")
        _check_names(cls, name)
        _registered[name] = cls

    def __getattr__(self, key: str) -> Any:
        for kind in _registered.values():
            for field in fields(kind):
                if field.name == key:
                    return field.default
        raise AttributeError(f"objective {self.name!r} has no {key!r}")

    def weight(self, xp: Any, p: Any, log_p: Any, entropy: Any) -> Any:
        """Return w of a token, by which SFT's gradient p - e_y is multiplied.

        Args:
            xp: the library whose functions apply: torch, or triton.language.
            p: the target's probability.
            log_p: its natural logarithm.
            entropy: of the model's distribution, in nats.
        """
        raise NotImplementedError

    def of_ratio(self, xp: Any, ratio: Any) -> Any:
        """Return w of a token, and its loss, of an objective that compares with the start.

        Args:
            xp: the library whose functions apply: torch, or triton.language.
            ratio: the target's probability, divided by its probability under the model that
                training started from.
        """
        raise NotImplementedError

    def coefficients(self, xp: Any, p: Any, q: Any, share: Any, entropy: Any, lse: Any) -> Any:
        """Return P, Q, Y and M of a token's gradient, and what is added to its loss.

        The loss is otherwise the one that has this gradient where the coefficients are constant:
        -Y log p(y) - Q sum_a q(a) log p(a) - M sum_j log p(a_j).

        Args:
            xp: the library whose functions apply: torch, or triton.language.
            p: the target's probability.
            q: the same at the temperature kappa.
            share: of the draws that are the target; if hits are not drawn, its expectation.
            entropy: of the model's distribution, in nats.
            lse: log of the sum of the exponentials of the logits, in nats.
        """
        raise NotImplementedError

    @property
    def is_weighted(self) -> bool:
        """Whether the gradient is SFT's times `weight`."""
        return type(self).weight is not Objective.weight

    @property
    def needs_start(self) -> bool:
        """Whether it needs each target's log-probability under the model that training starts from.

        The gradient is then SFT's times the weight of `of_ratio`.
        """
        return type(self).of_ratio is not Objective.of_ratio

    @property
    def kappa(self) -> float:
        """Temperature of q; 1 if q is p."""
        return 1.0

    @property
    def uses_q(self) -> bool:
        """Whether anything depends on q."""
        return False

    @property
    def dense_q(self) -> bool:
        """Whether Q is not 0."""
        return False

    @property
    def draws_hits(self) -> bool:
        """Whether the target's share of the draws is drawn, not computed in expectation."""
        return False

    @property
    def draws_misses(self) -> bool:
        """Whether tokens other than the target are drawn, and M is not 0."""
        return False

    @property
    def has_penalty(self) -> bool:
        """Whether something is added to the loss."""
        return False

    @property
    def expectation(self) -> Objective:
        """An objective without draws that has the same gradient in expectation."""
        return self

    @property
    def variant(self) -> str:
        """Name of this form of the objective in tables and figures; empty if it has one form."""
        return ""

    @property
    def style(self) -> Style | None:
        """Style in figures; None: a free one."""
        return None

    def forms(self) -> list[Objective]:
        """Return this objective in each of its variants."""
        return [self]

    def describe(self) -> str:
        """Return the label, and the settings that are not the default ones."""
        changed = [f for f in fields(self)[1:] if getattr(self, f.name) != f.default]
        settings = [f"{f.name.replace('_', ' ')} {getattr(self, f.name):g}" for f in changed]
        return ", ".join([self.label, *settings])

    def changed(self, **changes: Any) -> Objective:
        """Return this objective with other settings, or with `name` another one.

        The settings that the other one has too stay as they are.
        """
        name = changes.pop("name", self.name)
        kept = {f.name for f in fields(kind_of(name))[1:]} & {f.name for f in fields(self)}
        return Objective(name, **{key: getattr(self, key) for key in kept} | changes)

    def require(self, ok: bool, setting: str, use: str) -> None:
        """Raise a ValueError with the value of a setting and what to use instead, unless `ok`."""
        if not ok:
            raise ValueError(f"{_key(setting)} is {getattr(self, setting)!r}: use {use}")


def names() -> list[str]:
    """Return the names of all objectives, the built-in ones in alphabetical order of their files.

    A class derived from `Objective` is registered when its module is imported.
    """
    import_module("otr.loss.objectives")
    return list(_registered)


def kind_of(name: str) -> type[Objective]:
    """Return the class of an objective.

    Raises:
        ValueError: there is none of this name; the message gives the nearest one.
    """
    known = names()
    if name not in known:
        hint = did_you_mean(name, known)
        if hint.startswith("did"):
            hint += f" Use one of {', '.join(map(repr, known))}"
        raise ValueError(f"{_key('name')} is {name!r}: {hint}")
    return _registered[name]


def owners(setting: str) -> list[str]:
    """Return the names of the objectives that have a setting."""
    return [name for name in names() if setting in {f.name for f in fields(kind_of(name))[1:]}]


def setting_types() -> dict[str, Any]:
    """Return the annotated type of the name, and of each setting of any objective."""
    names()
    types: dict[str, Any] = {"name": str}
    for kind in _registered.values():
        hints = typing.get_type_hints(kind)
        types |= {f.name: hints[f.name] for f in fields(kind)[1:]}
    return types


def setting_defaults() -> dict[str, Any]:
    """Return the default of the name, and of each setting of any objective."""
    own = {f.name: f.default for name in names() for f in fields(kind_of(name))}
    return own | {"name": "otr"}


def stored(settings: dict[str, Any] | None) -> Objective | None:
    """Return an objective from its stored fields; None if this version can't make it.

    Versions before 0.3 stored the settings of `otr` with every objective.
    """
    try:
        return None if settings is None else Objective(**own_settings(settings))
    except (TypeError, ValueError):
        return None


def own_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return stored fields of an objective without those that had no effect on it."""
    if settings.get("name") not in ("sft", "dft"):
        return settings
    kept = {f.name for f in fields(kind_of(settings["name"]))}
    return {k: v for k, v in settings.items() if k in kept or owners(k) != ["otr"]}


def _check_names(new: type[Objective], name: str) -> None:
    """Raise a TypeError if the name of an objective or of its settings has another meaning."""
    others = {each: kind for each, kind in _registered.items() if not _is_reloaded(kind, new)}
    if name in others:
        raise TypeError(f"{new.__name__}.name is {name!r}, which is {others[name].__name__}'s")
    for kind in others.values():
        for field in fields(kind)[1:]:
            if new.__dict__.get(field.name, field.default) != field.default:
                raise TypeError(
                    f"{new.__name__}.{field.name}: {kind.__name__} has a setting of this name with "
                    f"the default {field.default!r}: use that, or another name"
                )


def _is_reloaded(kind: type, new: type) -> bool:
    """Return whether a class was made again from the same source."""
    return (kind.__module__, kind.__qualname__) == (new.__module__, new.__qualname__)


def _key(setting: str) -> str:
    """Return the dotted key of a setting, as the other parts of a configuration name theirs."""
    return f"objective.{setting}"


def _check_foreign(name: str, own: Iterable[str], key: str, value: Any) -> None:
    """Raise a ValueError for a setting that an objective does not have, unless it has no effect."""
    has = owners(key)
    if not has:
        nearest = get_close_matches(key, setting_types(), n=1, cutoff=0)[0]
        raise ValueError(f"objective {name!r} has no {key!r}: did you mean {nearest!r}?")
    if value != setting_defaults()[key]:
        raise ValueError(
            f"{_key(key)} is {value!r}, but it is a setting of {' and '.join(has)}, not of {name}: "
            f"leave it out, or set one of {name}'s ({', '.join(own) or 'none'})"
        )


@dataclass(frozen=True)
class LossOutput:
    """Sums over the scored tokens: 0-d float32 tensors, except `num_tokens` (0-d int64).

    `token_sums` and `gradient_sums` are vectors of the sums in each bucket of the target's
    probability (`otr.loss.buckets`).

    Only `loss_sum` has a gradient. `hit_sum` (draws that equal the target, as a share of K) and
    `reward_sum` come from the draws; if hits are not drawn, they are expectations under q for otr,
    and under p for objectives without draws. `entropy_sum` is p's entropy in nats. `gradient_sums`
    are of |dz_y|, the absolute gradient of a token's loss with respect to the logit of the target
    (after a soft cap), with the token's weight and without the KL to the base. `kl_sum` is
    KL(base || p) in nats, None without a base to compare with.
    """

    loss_sum: Float[Tensor, ""]
    num_tokens: Int[Tensor, ""]
    nll_sum: Float[Tensor, ""]
    reward_sum: Float[Tensor, ""]
    hit_sum: Float[Tensor, ""]
    entropy_sum: Float[Tensor, ""]
    token_sums: Int[Tensor, " B"]
    gradient_sums: Float[Tensor, " B"]
    kl_sum: Float[Tensor, ""] | None = None

    def __add__(self, other: LossOutput) -> LossOutput:
        sums: dict[str, Any] = {}
        for f in fields(self):
            one, two = getattr(self, f.name), getattr(other, f.name)
            sums[f.name] = None if one is None or two is None else one + two
        return LossOutput(**sums)
