"""What the pipeline asks the loop for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcpwatchd.clock import boot_ns
from tcpwatchd.connection import TcpState, Transition
from tcpwatchd.kernel.trace import Trace
from tcpwatchd.pipeline import Pipeline
from tcpwatchd.state.store import Store
from tests.kept import END
from tests.ring import Ring
from tests.state.test_recovery import Reader
from tests.table import write_counters, write_tables

if TYPE_CHECKING:
    from pathlib import Path


def test_a_deferred_record_wants_another_drain(tmp_path: Path) -> None:
    """It is out of the kernel, whose buffers wake nobody for it any more."""
    for name in ("net", "trace"):
        (tmp_path / name).mkdir()
    write_counters(tmp_path / "net")
    write_tables(tmp_path / "net", [], [])
    ring = Ring(tmp_path / "trace")
    trace = Trace(str(tmp_path / "trace"))
    pipeline = Pipeline(Reader(), Store(None), trace, root=str(tmp_path / "net"))
    pipeline.poll()
    assert pipeline.next_release is None
    soon = boot_ns() + 100_000_000
    ring.write([Transition(soon, 7, TcpState.SYN_RECV, TcpState.ESTABLISHED, END, 1)])
    pipeline.drain()
    assert pipeline.next_release == soon
    assert not pipeline.outbox.waiting
    while boot_ns() <= soon:
        pass
    pipeline.drain()
    assert pipeline.next_release is None
    assert len(pipeline.outbox.waiting) == 1
    trace.close()
    ring.close()
