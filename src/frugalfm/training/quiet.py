"""Keeps known, harmless remarks of the tuning libraries off the screen, and no others."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

__all__ = ["quiet_libraries"]

_WARNINGS = (
    # PEFT asks a 4-bit model by the name that transformers will give up some day.
    "`is_gradient_checkpointing` is deprecated",
)
"""Beginnings of messages, as regular expressions."""
_LOGGED = {
    # A faster kernel from the hub, which is never asked here.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community",
}
"""Beginnings of messages, by the logger that they come from."""


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Leave out what is known to be harmless, for as long as the context lasts."""
    with contextlib.ExitStack() as stack:
        for name, beginning in _LOGGED.items():
            logger, leave_out = logging.getLogger(name), _LeaveOut(beginning)
            logger.addFilter(leave_out)
            stack.callback(logger.removeFilter, leave_out)
        stack.enter_context(warnings.catch_warnings())
        for message in _WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield


class _LeaveOut(logging.Filter):
    def __init__(self, beginning: str) -> None:
        super().__init__()
        self._beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self._beginning)
