"""The kernel's counters of TCP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tcpwatchd.kernel.counters import CountersError, read_counters

if TYPE_CHECKING:
    from pathlib import Path


def test_the_kernels_file(tmp_path: Path) -> None:
    assert len(read_counters()) == 4
    for text in ("", "Tcp: PassiveOpens\n", "Tcp: a b\nTcp: 1 2\n", "Tcp: PassiveOpens\nTcp: x\n"):
        (tmp_path / "snmp").write_text(text)
        with pytest.raises(CountersError, match="no counters of TCP"):
            read_counters(str(tmp_path))
