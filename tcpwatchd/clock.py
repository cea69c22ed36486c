"""The time of day, and CLOCK_BOOTTIME, which the kernel's records have and which goes on in suspend."""

from __future__ import annotations

import time

TRIES = 5
QUICK = 10_000
"""Nanoseconds in which three clocks are read when nothing comes between."""


def _read_namespace_offset(path: str = "/proc/self/timens_offsets") -> int:
    """What this process's time namespace adds to the kernel's CLOCK_BOOTTIME, in ns (time_namespaces(7))."""
    try:
        with open(path) as file:
            found = dict(line.split(maxsplit=1) for line in file)
        seconds, nanoseconds = found["boottime"].split()
        return int(seconds) * 1_000_000_000 + int(nanoseconds)
    except (OSError, KeyError, ValueError):  # a kernel without time namespaces
        return 0


NAMESPACE_OFFSET = _read_namespace_offset()


def boot_ns() -> int:
    """Nanoseconds of the kernel's own CLOCK_BOOTTIME, also in a time namespace."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - NAMESPACE_OFFSET


def now() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


def read_offset() -> int:
    """What the time of day is ahead of `boot_ns`, in nanoseconds.

    One clock is read between two readings of the other, and again if something came between.
    """
    best, offset = -1, 0
    for _ in range(TRIES):
        before, boot, after = time.time_ns(), boot_ns(), time.time_ns()
        took = after - before
        if took >= 0 and (best < 0 or took < best):
            best, offset = took, (before + after) // 2 - boot
        if 0 <= best <= QUICK:
            break
    return offset
