"""Texts that end in a loop: the same words again and again, up to the limit."""

_TAIL = 2000  # characters at the end of a text that are looked at
_SHORTEST_LOOP = 200  # characters
_LEAST_TIMES = 4


def ends_in_loop(text: str) -> bool:
    """Return whether the last 200 to 2,000 characters are one string at least four times in a row.

    The last repetition may be cut off anywhere.
    """
    tail = text[-_TAIL:][::-1]
    # Knuth, Morris and Pratt's failure function: a prefix of length n has the period n - border[n].
    border = [0] * (len(tail) + 1)
    matched = 0
    for n in range(2, len(tail) + 1):
        while matched and tail[n - 1] != tail[matched]:
            matched = border[matched]
        matched += tail[n - 1] == tail[matched]
        border[n] = matched
        if n >= max(_SHORTEST_LOOP, _LEAST_TIMES * (n - matched)):
            return True
    return False
