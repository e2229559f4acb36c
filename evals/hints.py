"""Hints for names that a user may have mistyped."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest_name(word: str, known: Iterable[str]) -> str:
    """Return the name in `known`, which must not be empty, that resembles `word` most."""
    return get_close_matches(word, list(known), n=1, cutoff=0)[0]
