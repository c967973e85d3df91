"""What this computer's CPU can do, as far as it matters to a deployed model."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

__all__ = ["lacks_vnni", "say_once"]

_CPUINFO = Path("/proc/cpuinfo")
_SAFE = {"avx512_vnni", "avx_vnni", "amx_int8"}


def lacks_vnni() -> bool:
    """Whether the CPU adds up products of 8-bit integers in 16 bits, where two may not fit.

    So do those of x86 that have neither VNNI nor AMX. False where that cannot be known, which is
    anywhere but on Linux, and of other CPUs, ARM's among them.
    """
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), None)
    return flags is not None and _SAFE.isdisjoint(flags.partition(":")[2].split())


@functools.cache
def say_once(line: str) -> None:
    """Print a line on stderr, the same one once a process."""
    print(line, file=sys.stderr)
