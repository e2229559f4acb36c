"""Suggestions for misspelt names."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message: "did you mean 'x'?", with the name nearest to `word`."""
    nearest = get_close_matches(word, list(known), n=1, cutoff=0)
    return f"did you mean {nearest[0]!r}?" if nearest else "there is none"
