"""One progress bar for all rooms: on stderr, only where a person watches, gone when done."""

from __future__ import annotations

from functools import partial

from tqdm import tqdm

__all__ = ["progress"]

progress = partial(tqdm, disable=None, leave=False)
"""As :class:`tqdm.tqdm`, with the same arguments."""
