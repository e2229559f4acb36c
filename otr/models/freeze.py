"""Parameters that are not trained, chosen by glob patterns of their names."""

import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from otr.hints import did_you_mean
from otr.models.structure import decoder_layers


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Exclude the parameters whose names match a pattern from training.

    Tied weights are one parameter with several names; a match of one of them is enough.

    Args:
        model: a transformers model; the names are those of its parameters.
        patterns: glob patterns as `fnmatch` reads them; none of them changes nothing.

    Raises:
        ValueError: a pattern matches no parameter, or together they match all.
    """
    names = [name for name, _ in _named(model)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            hint = did_you_mean(pattern, _possible_patterns(names))
            raise ValueError(f"freeze: no parameter of the model matches {pattern!r}: {hint}")
    for name, parameter in _named(model):
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"freeze is {' '.join(patterns)}, which matches all parameters of the model: nothing "
            "would be trained"
        )


def freeze_equally(model: nn.Module, like: nn.Module) -> None:
    """Freeze what is frozen in `like`, a model of the same kind with more layers.

    In a layer this is what is frozen in every layer of `like`, so that all layers are equal.
    """
    inside = _layers_name(like)
    frozen: dict[str, bool] = {}
    for name, parameter in _named(like):
        key = _without_number(name, inside)
        frozen[key] = frozen.get(key, True) and not parameter.requires_grad
    for name, parameter in _named(model):
        if frozen.get(_without_number(name, inside), False):
            parameter.requires_grad_(False)


def _named(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return model.named_parameters(remove_duplicate=False)


def _possible_patterns(names: Iterable[str]) -> set[str]:
    """Return patterns that match something: the names, and each of their beginnings with a star."""
    found = set(names)
    for name in [*found]:
        parts = name.split(".")
        found |= {".".join([*parts[:length], "*"]) for length in range(1, len(parts))}
    return found


def _layers_name(model: nn.Module) -> str:
    layers = decoder_layers(model)
    return next(name for name, module in model.named_modules() if module is layers)


def _without_number(name: str, layers: str) -> str:
    """Return a parameter's name without the number of its layer."""
    return re.sub(rf"^{re.escape(layers)}\.\d+\.", f"{layers}.*.", name)
