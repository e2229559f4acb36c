"""Many requests to an OpenAI-compatible completions endpoint, a bounded number in flight.

In: the URL of the endpoint and request bodies (dictionaries of JSON). Out: the answers in the
same order; None where an answer did not come in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import aiohttp


def post_all(
    url: str, bodies: Sequence[dict[str, Any]], *, concurrency: int, timeout_s: float
) -> list[dict[str, Any] | None]:
    """POST each body to `url` with at most `concurrency` requests in flight.

    Args:
        url: the endpoint, e.g. "http://127.0.0.1:8000/v1/completions".
        bodies: one JSON object a request.
        concurrency: requests in flight.
        timeout_s: seconds that a request may take once it is sent; a later answer becomes None.

    Raises:
        RuntimeError: the server refused a request (with its message) or could not be reached.
    """
    return asyncio.run(_post_all(url, bodies, concurrency, timeout_s))


async def _post_all(
    url: str, bodies: Sequence[dict[str, Any]], concurrency: int, timeout_s: float
) -> list[dict[str, Any] | None]:
    answers: list[dict[str, Any] | None] = [None] * len(bodies)
    waiting = iter(enumerate(bodies))

    async def work(session: aiohttp.ClientSession) -> None:
        for index, body in waiting:
            answers[index] = await _post(session, url, body)

    connector = aiohttp.TCPConnector(limit=concurrency)
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        await asyncio.gather(*(work(session) for _ in range(min(concurrency, len(bodies)))))
    return answers


async def _post(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any]
) -> dict[str, Any] | None:
    try:
        async with session.post(url, json=body) as response:
            if response.status == 200:
                return await response.json()
            problem = f"status {response.status}: {(await response.text())[:500]}"
    except TimeoutError:
        return None
    except aiohttp.ClientError as error:
        raise RuntimeError(f"no answer from {url}: {error!r}") from error
    raise RuntimeError(f"{url} refused a request with {problem}")
