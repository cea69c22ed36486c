"""The clock of what the daemon says; the kernel's records and the loop have CLOCK_MONOTONIC."""

from __future__ import annotations

import time


def now() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000
