"""The trace source: the kernel's tracepoint sock:inet_sock_set_state, read raw from an instance of tracefs.

Whoever reads takes out: what was read is nowhere else.
"""

from __future__ import annotations

import errno
import os
import re
import select
from typing import TYPE_CHECKING

from tcpwatchd.clock import boot_ns
from tcpwatchd.connection import Drain, Formats
from tcpwatchd.failure import describe
from tcpwatchd.kernel.instance import (
    EVENT,
    TraceError,
    check,
    explain,
    list_cpus,
    list_online_cpus,
    lock,
    read_file,
    write_settings,
)
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
        self.failure: Exception | None = None
        """Why a CPU could not be read at the last drain."""
        self.whole = True
        """Whether the last drain read all that was there when it began: not after a failure, at first."""
        self.cleared = False
        """Whether somebody emptied the buffers since the last `check`."""
        try:
            self._readable = select.epoll()
        except OSError as error:
            raise TraceError(describe(error)) from error
        try:
            self._lock = lock(path)
            self.instance = os.fstat(self._lock).st_ino
            """The inode of its directory: another instance has another."""
            check(path)
            self.formats = read_formats(path)
            self._layout = read_layout(self.formats)
            self._open_cpus()
        except TraceError:
            self.close()
            raise
        except (OSError, ValueError) as error:
            self.close()
            text = explain(error) if isinstance(error, OSError) else f"{path}: {error}"
            raise TraceError(text) from error

    def _open_cpus(self) -> None:
        """Those that are online and not open yet; a CPU that goes offline is kept."""
        known = {cpu.number for cpu in self._cpus}
        for name in list_online_cpus(self.path):
            if int(name[3:]) not in known:
                cpu = _Cpu(int(name[3:]), os.path.join(self.path, "per_cpu", name))
                self._cpus.append(cpu)
                self._readable.register(cpu.descriptor, select.EPOLLIN)

    def check(self) -> None:
        """See that the instance is what it was set up to be, and open CPUs that came online.

        Raises TraceError with what is wrong, and OSError.
        """
        self._open_cpus()
        check(self.path)
        if read_formats(self.path) != self.formats:
            raise TraceError(f"{self.path}: its pages have another layout (buffer_subbuf_size_kb)")
        if self.cleared:
            self.cleared = False
            raise TraceError(f"{self.path}: its buffers were emptied")

    def repair(self) -> None:
        """Set the instance up again. Raises OSError, without privilege always."""
        write_settings(self.path)

    def start_anew(self) -> None:
        """From now on: buffers that were emptied until now, as by another clock, are no further change.

        Raises OSError.
        """
        for cpu in self._cpus:
            cpu.is_cleared(cpu.read_statistics())
        self.cleared = False

    def fileno(self) -> int:
        """A descriptor that is readable when any CPU has records."""
        return self._readable.fileno()

    def drain(self) -> Drain:
        """Take out what is there. A CPU that cannot be read leaves its `failure`; its records come later."""
        began, self.failure = boot_ns(), None
        self.whole = not any(cpu.pages for cpu in self._cpus)
        filled = []
        for cpu in self._cpus:
            try:
                if not cpu.pages:
                    self._read(cpu)
                if cpu.pages:
                    filled.append((cpu, cpu.read_statistics()))
            except (OSError, ValueError) as error:
                self.failure, self.whole = error, False
        lost = sum(cpu.count_lost(statistics, self._layout) for cpu, statistics in filled)
        self.cleared |= any(cpu.is_cleared(statistics) for cpu, statistics in filled)
        taken = {cpu.number: statistics["read events"] for cpu, statistics in filled}
        pages = [trim(page, self._layout) for cpu, _ in filled for page in cpu.pages]
        for cpu, _ in filled:
            cpu.pages = []
        return Drain(began, pages, lost, taken)

    def _read(self, cpu: _Cpu) -> None:
        """An offline CPU is always reported as failing, which would spin: it is not waited for."""
        was_online = cpu.online
        cpu.read_pages(self._layout.size)
        if cpu.online and not was_online:
            self._readable.register(cpu.descriptor, select.EPOLLIN)
        elif was_online and not cpu.online:
            self._readable.unregister(cpu.descriptor)

    def count_taken(self) -> dict[int, int]:
        """How many records of each possible CPU were ever taken out, by whomever: the kernel's own count."""
        taken = {}
        for name in list_cpus(self.path):
            with open(os.path.join(self.path, "per_cpu", name, "stats")) as file:
                taken[int(name[3:])] = parse_statistics(file.read())["read events"]
        return taken

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
        self._statistics = -1
        self.online = True
        self.pages: list[bytes] = []
        """Taken out and not handed over yet: a drain can fail half-way."""
        try:
            self._statistics = os.open(os.path.join(path, "stats"), os.O_RDONLY | os.O_CLOEXEC)
            statistics = self.read_statistics()
        except (OSError, ValueError):
            self.close()
            raise
        self._overrun, self._dropped = statistics["overrun"], statistics.get("dropped events", 0)
        self._taken = statistics["read events"]

    def read_pages(self, size: int) -> None:
        """All there is. Nothing, and each error of NOTHING_NOW, means nothing now, never the end."""
        self.online = True
        try:
            while page := os.read(self.descriptor, size):
                self.pages.append(page)
        except OSError as error:
            if error.errno not in NOTHING_NOW:
                raise
            self.online = error.errno != errno.ENODEV

    def count_lost(self, statistics: dict[str, int], layout: Layout) -> int:
        """Records overwritten before these pages, as their headers tell, or the statistics."""
        lost = 0
        for page in self.pages:
            overwritten = find_loss(page, layout)
            if overwritten is None:
                overwritten = max(1, statistics["overrun"] - self._overrun)
            self._overrun += overwritten
            lost += overwritten
        # Where somebody has the newest records dropped rather than the oldest (options/overwrite).
        dropped = max(0, statistics.get("dropped events", 0) - self._dropped)
        self._dropped += dropped
        return lost + dropped

    def is_cleared(self, statistics: dict[str, int]) -> bool:
        """Whether the kernel's counts began anew since they were last read."""
        cleared = statistics["read events"] < self._taken
        self._taken = statistics["read events"]
        if cleared:
            self._overrun, self._dropped = statistics["overrun"], statistics.get("dropped events", 0)
        return cleared

    def read_statistics(self) -> dict[str, int]:
        """What the kernel writes anew for each reading at offset 0. Raises OSError and ValueError."""
        return parse_statistics(os.pread(self._statistics, 4096, 0).decode())

    def close(self) -> None:
        for descriptor in (self.descriptor, self._statistics):
            if descriptor >= 0:
                os.close(descriptor)


def parse_statistics(text: str) -> dict[str, int]:
    """Raises ValueError."""
    found = {name: int(number) for name, number in re.findall(r"^([a-z ]+): (\d+)$", text, re.MULTILINE)}
    if not {"overrun", "read events"} <= found.keys():
        raise ValueError(f"not the statistics of a buffer: {text[:60]!r}")
    return found


def read_formats(path: str) -> Formats:
    names = ("events/header_page", "events/header_event", f"{EVENT}/format")
    return Formats(*(read_file(path, name) for name in names))
