"""The trace source: the kernel's tracepoint sock:inet_sock_set_state, read raw from an instance of tracefs.

Whoever reads takes out: what was read is nowhere else.
"""

from __future__ import annotations

import errno
import os
import re
import select
import time
from typing import TYPE_CHECKING

from tcpwatchd.connection import Drain, Formats
from tcpwatchd.kernel.instance import EVENT, TraceError, check, explain, list_cpus, lock, read_file
from tcpwatchd.kernel.pages import find_loss, read_layout, trim

if TYPE_CHECKING:
    from tcpwatchd.kernel.pages import Layout

NOTHING_NOW = {errno.EAGAIN, errno.EBUSY, errno.ENODEV, errno.ENOMEM}
"""Errors of a reader after which the kernel still has all: try again later."""


class Trace:
    """A reader of an instance, and the only one: a second would steal its records.

    Raises TraceError when the instance is not there, not as it should be, or read by somebody else.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = -1
        self._cpus: list[_Cpu] = []
        self._readable = select.epoll()
        try:
            self._lock = lock(path)
            self.instance = os.fstat(self._lock).st_ino
            """The inode of its directory: another instance has another."""
            check(path)
            self.formats = read_formats(path)
            self._layout = read_layout(self.formats)
            for cpu in list_cpus(path):
                self._cpus.append(_Cpu(int(cpu[3:]), os.path.join(path, "per_cpu", cpu)))
                self._readable.register(self._cpus[-1].descriptor, select.EPOLLIN)
        except TraceError:
            self.close()
            raise
        except (OSError, ValueError) as error:
            self.close()
            text = explain(error) if isinstance(error, OSError) else f"{path}: {error}"
            raise TraceError(text) from error

    def fileno(self) -> int:
        """A descriptor that is readable when any CPU has records."""
        return self._readable.fileno()

    def drain(self) -> Drain:
        """Take out what is there."""
        began = time.monotonic_ns()
        pages, lost, taken = [], 0, {}
        for cpu in self._cpus:
            found = self._read(cpu)
            if found:
                lost += sum(cpu.count_lost(page, self._layout) for page in found)
                taken[cpu.number] = cpu.count_taken()
                pages += [trim(page, self._layout) for page in found]
        return Drain(began, pages, lost, taken)

    def _read(self, cpu: _Cpu) -> list[bytes]:
        """An offline CPU is always reported as failing, which would spin: it is not waited for."""
        was_online = cpu.online
        found = cpu.read_pages(self._layout.size)
        if cpu.online and not was_online:
            self._readable.register(cpu.descriptor, select.EPOLLIN)
        elif was_online and not cpu.online:
            self._readable.unregister(cpu.descriptor)
        return found

    def count_taken(self) -> dict[int, int]:
        """How many records of each CPU were ever taken out, by whomever: the kernel's own count."""
        return {cpu.number: cpu.count_taken() for cpu in self._cpus}

    def close(self) -> None:
        self._readable.close()
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
