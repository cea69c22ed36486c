"""The trace source: the kernel's tracepoint sock:inet_sock_set_state, read raw from an instance of tracefs.

Whoever reads takes out: what was read is nowhere else.
"""

from __future__ import annotations

import errno
import os
import re
import time
from typing import TYPE_CHECKING

from tcpwatchd.connection import Drain, Formats
from tcpwatchd.instance import EVENT, TraceError, check, explain, list_cpus, lock, read_file
from tcpwatchd.pages import find_loss, read_layout, trim

if TYPE_CHECKING:
    from tcpwatchd.pages import Layout

NOTHING_NOW = {errno.EAGAIN, errno.EBUSY, errno.ENODEV, errno.ENOMEM}
"""Errors of a reading after which the kernel still has all: try again later."""


class Trace:
    """A reader of an instance, and the only one: a second would steal its records.

    Raises TraceError when the instance is not there, not as it should be, or read by somebody else.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = -1
        self._cpus: list[_Cpu] = []
        try:
            self._lock = lock(path)
            self.instance = os.fstat(self._lock).st_ino
            """The inode of its directory: another instance has another."""
            check(path)
            self.formats = read_formats(path)
            self._layout = read_layout(self.formats)
            for cpu in list_cpus(path):
                self._cpus.append(_Cpu(int(cpu[3:]), os.path.join(path, "per_cpu", cpu)))
        except TraceError:
            self.close()
            raise
        except (OSError, ValueError) as error:
            self.close()
            text = explain(error) if isinstance(error, OSError) else f"{path}: {error}"
            raise TraceError(text) from error

    @property
    def descriptors(self) -> list[int]:
        """One a CPU, readable when it has records; an offline CPU has none until a drain finds it up."""
        return [cpu.descriptor for cpu in self._cpus if cpu.online]

    def drain(self) -> Drain:
        """Take out what is there."""
        began = time.monotonic_ns()
        pages, lost, taken = [], 0, {}
        for cpu in self._cpus:
            found = cpu.read_pages(self._layout.size)
            if found:
                lost += sum(cpu.count_lost(page, self._layout) for page in found)
                taken[cpu.number] = cpu.count_taken()
                pages += [trim(page, self._layout) for page in found]
        return Drain(began, pages, lost, taken)

    def count_taken(self) -> dict[int, int]:
        """How many records of each CPU were ever taken out, by whomever: the kernel's own count."""
        return {cpu.number: cpu.count_taken() for cpu in self._cpus}

    def close(self) -> None:
        for cpu in self._cpus:
            cpu.close()
        if self._lock >= 0:
            os.close(self._lock)
        self._cpus, self._lock = [], -1


class _Cpu:
    """The buffer of one CPU."""

    def __init__(self, number: int, path: str) -> None:
        self.number = number
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        self.descriptor = os.open(os.path.join(path, "trace_pipe_raw"), flags)
        self._statistics = os.open(os.path.join(path, "stats"), os.O_RDONLY | os.O_CLOEXEC)
        self.online = True
        self._overrun = self._count("overrun")

    def read_pages(self, size: int) -> list[bytes]:
        """All there is. Nothing, and each error of NOTHING_NOW, means nothing now, never the end."""
        pages = []
        self.online = True
        try:
            while page := os.read(self.descriptor, size):
                pages.append(page)
        except OSError as error:
            if error.errno not in NOTHING_NOW:
                raise
            self.online = error.errno != errno.ENODEV
        return pages

    def count_lost(self, page: bytes, layout: Layout) -> int:
        """Records overwritten before this page, as its header tells, or the statistics if it has no room."""
        lost = find_loss(page, layout)
        if lost is None:
            lost = max(1, self._count("overrun") - self._overrun)
        self._overrun += lost
        return lost

    def count_taken(self) -> int:
        return self._count("read events")

    def _count(self, name: str) -> int:
        """A number of the buffer's statistics, which the kernel writes anew for each reading at offset 0."""
        text = os.pread(self._statistics, 4096, 0).decode()
        return int(re.findall(rf"^{name}: (\d+)$", text, re.MULTILINE)[0])

    def close(self) -> None:
        os.close(self.descriptor)
        os.close(self._statistics)


def read_formats(path: str) -> Formats:
    names = ("events/header_page", "events/header_event", f"{EVENT}/format")
    return Formats(*(read_file(path, name) for name in names))
