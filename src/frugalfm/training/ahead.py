"""Make batches while the device computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["look_ahead"]

_Item = TypeVar("_Item")


def look_ahead(items: Iterator[_Item], count: int = 2) -> Iterator[_Item]:
    """Yield the same items in the same order, the next few made in a thread meanwhile.

    Parameters
    ----------
    items
        What is slow to make; an error there is raised where its item would have been.
    count
        Items that are made ahead.
    """
    end = object()
    with ThreadPoolExecutor(1) as worker:
        pending: deque[Future] = deque()

        def order() -> None:
            pending.append(worker.submit(next, items, end))  # type: ignore[arg-type]

        for _ in range(count):
            order()
        while (item := pending.popleft().result()) is not end:
            order()
            yield item
