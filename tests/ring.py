"""Pages in the layout that a real kernel states, and an instance of tracefs made of files and pipes."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import termios
from pathlib import Path
from typing import TYPE_CHECKING

from tcpwatchd.connection import MAPPED
from tcpwatchd.kernel.instance import TRACEPOINT, list_settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tcpwatchd.connection import Endpoint, Transition

FIXTURE = Path(__file__).parent / "fixtures" / "linux-6.18"
SIZE = 4096
MISSED, COUNTED = 1 << 31, 1 << 30
FULL = 40
"""Records of a page that is filled."""
RESET_EVENT = 2280
"""The number of tcp_send_reset in the fixture."""
BUFFER = 1 << 20


def word(kind: int, delta: int) -> bytes:
    return struct.pack("<I", kind | delta << 5)


def pack_record(
    skaddr: int, old: int, new: int, local: bytes, remote: bytes, pid: int = 77, delta: int = 1
) -> bytes:
    """An entry of the event; each end is an IPv6 address, then a port in the order of the network."""
    ports = [int.from_bytes(end[-2:], "big") for end in (local, remote)]
    head = struct.pack("<HBBiQiiHHHH4s4s", 2287, 0, 0, pid, skaddr, old, new, *ports, 2, 6, b"", b"")
    return word(18, delta) + head + local[:16] + remote[:16]


def record(skaddr: int, delta: int = 1) -> bytes:
    """→ESTABLISHED of 10.0.0.1:5000 → 10.0.0.2:80."""
    ends = (MAPPED + b"\x0a\0\0\1" + (5000).to_bytes(2, "big"), MAPPED + b"\x0a\0\0\2\0\x50")
    return pack_record(skaddr, 2, 1, *ends, delta=delta)


def pack_reset(
    local: Endpoint, remote: Endpoint, delta: int = 1, event: int = RESET_EVENT, family: int = 0
) -> bytes:
    """An entry of tcp_send_reset; `family` is another than the addresses'."""
    ends = (pack_sockaddr(local, family), pack_sockaddr(remote, family))
    return word(22, delta) + struct.pack(
        "<HBBiQQiI28s28s", event, 0, 0, 0, 0xFFFF888100000000, 0, 0, 1, *ends
    )


def pack_sockaddr(end: Endpoint, family: int = 0) -> bytes:
    """Ports and addresses in the order of the network; IPv6 has a label before its address."""
    if end.is_ipv4:
        return struct.pack("<H2s4s", family or 2, end[-2:], end.address)
    return struct.pack("<H2s4s16s", family or 10, end[-2:], b"\xff\xff\xff\xff", end.address)


def page(stamp: int, *entries: bytes, flags: int = 0, lost: int | None = None) -> bytes:
    data = b"".join(entries)
    counted = b"" if lost is None else struct.pack("<Q", lost)
    # The kernel's commit word is signed: its flag spreads over the upper half.
    commit = len(data) | flags | (0xFFFFFFFF << 32 if flags & MISSED else 0)
    return (struct.pack("<QQ", stamp, commit) + data + counted).ljust(SIZE, b"\0")


def make_settings(root: Path, closing: bool = False, event: str = TRACEPOINT) -> None:
    shutil.copytree(FIXTURE / "events", root / "events", dirs_exist_ok=True)
    for file, value in {**list_settings(event, closing), "buffer_size_kb": "512"}.items():
        text = {"trace_clock": f"local [{value}]", "tracing_cpumask": "ffffffff"}.get(file, value)
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_text(f"{text}\n")


def make_instance(root: Path, *cpus: bytes, overrun: int = 0, event: str = TRACEPOINT) -> str:
    """An instance with these pages to be read."""
    make_settings(root, event=event)
    for number, pages in enumerate(cpus):
        cpu = root / "per_cpu" / f"cpu{number}"
        cpu.mkdir(parents=True)
        os.mkfifo(cpu / "trace_pipe_raw")
        # Open for as long as the tests run: what is in a pipe goes with its last descriptor.
        os.write(os.open(cpu / "trace_pipe_raw", os.O_RDWR | os.O_NONBLOCK), pages)
        (cpu / "stats").write_text(f"entries: 0\noverrun: {overrun}\nread events: 0\n")
    return str(root)


class Ring:
    """The buffer of one CPU as a pipe: what is read is gone, and it stays while readers come and go."""

    def __init__(self, root: Path, closing: bool = False) -> None:
        make_settings(root, closing)
        cpu = root / "per_cpu" / "cpu0"
        cpu.mkdir(parents=True)
        os.mkfifo(cpu / "trace_pipe_raw")
        self._pipe = os.open(cpu / "trace_pipe_raw", os.O_RDWR | os.O_NONBLOCK)
        fcntl.fcntl(self._pipe, 1031, BUFFER)  # F_SETPIPE_SZ
        self._statistics = cpu / "stats"
        self._written = 0
        self._unread: list[int] = []
        self.count(read=False)

    def write(self, transitions: Iterable[Transition], lost: int = 0) -> None:
        """`lost`: so many were overwritten before these."""
        found = list(transitions)
        flags = {"flags": MISSED | COUNTED, "lost": lost} if lost else {}
        for start in range(0, len(found), FULL):
            some = found[start : start + FULL]
            times = [some[0].time, *(t.time for t in some)]
            deltas = [after - before for before, after in zip(times, times[1:])]
            self._unread.append(len(some))
            os.write(self._pipe, page(times[0], *map(pack_transition, some, deltas), **flags))
        self._written += len(found)

    def count_unread(self) -> int:
        """Records that wait to be read."""
        return sum(self._unread[len(self._unread) - self._count_pages() :])

    def _count_pages(self) -> int:
        (size,) = struct.unpack("i", fcntl.ioctl(self._pipe, termios.FIONREAD, bytes(4)))
        return int(size) // SIZE

    def steal(self) -> None:
        """Take out what there is, as a process does that is killed at once."""
        for _ in range(self._count_pages()):
            os.read(self._pipe, SIZE)

    def count(self, read: bool) -> None:
        """Write the statistics as they are now, or as they will be when all is read."""
        taken = self._written - (0 if read else self.count_unread())
        self._statistics.write_text(f"entries: 0\noverrun: 0\nread events: {taken}\n")

    def close(self) -> None:
        os.close(self._pipe)


def pack_transition(transition: Transition, delta: int) -> bytes:
    _, skaddr, old, new, end, thread, *_ = transition
    return pack_record(skaddr, old, new, widen(end.local), widen(end.remote), thread, delta)


def widen(end: Endpoint) -> bytes:
    return MAPPED + end if end.is_ipv4 else bytes(end)
