"""Suggestions for misspelt names."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the name in `known` that is most similar to `word`; None if `known` is empty."""
    return next(iter(get_close_matches(word, list(known), n=1, cutoff=0)), None)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message about an unknown name: "did you mean 'x'?"."""
    name = nearest(word, known)
    return "there is none" if name is None else f"did you mean {name!r}?"
