"""The two clocks."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tcpwatchd.clock import _read_namespace_offset, boot_ns, now, read_offset

if TYPE_CHECKING:
    from pathlib import Path


def test_the_offset_joins_the_clocks() -> None:
    assert abs(boot_ns() + read_offset() - time.time_ns()) < 1_000_000_000
    assert abs(now() - time.time() * 1e6) < 1_000_000


def test_the_offset_of_a_time_namespace(tmp_path: Path) -> None:
    offsets = tmp_path / "timens_offsets"
    assert _read_namespace_offset(str(offsets)) == 0
    offsets.write_text("monotonic           0         0\nboottime       100000         7\n")
    assert _read_namespace_offset(str(offsets)) == 100_000 * 1_000_000_000 + 7
    offsets.write_text("something else\n")
    assert _read_namespace_offset(str(offsets)) == 0
