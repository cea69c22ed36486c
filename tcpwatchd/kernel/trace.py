"""The trace source: the kernel's tracepoint sock:inet_sock_set_state, read raw from an instance of tracefs.

Whoever reads takes out: what was read is nowhere else.
"""

from __future__ import annotations

import contextlib
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
    ONLINE,
    SIZES,
    TraceError,
    check,
    explain,
    list_cpus,
    lock,
    parse_cpus,
    read_buffer_size,
    read_file,
    write_settings,
)
from tcpwatchd.kernel.pages import find_loss, read_layout, trim

if TYPE_CHECKING:
    from tcpwatchd.kernel.pages import Layout

PAGE_FORMAT = "events/header_page"
NOTHING_NOW = {errno.EAGAIN, errno.EBUSY, errno.ENODEV, errno.ENOMEM}
"""Errors of a reader after which the kernel still has all: try again later."""


class Trace:
    """A reader of an instance, and the only one: a second would steal its records.

    Raises TraceError when the instance is not there, not as it should be, or read by somebody else.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = -1
        self._cpus: dict[int, _Cpu] = {}
        self._online, self._online_text = -1, b""
        """The file that lists CPUs that are online, and what it said when they were last opened."""
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
            self._sizes = self._read_sizes()
            self.buffer_kb = read_buffer_size(path)
            """KiB of memory a CPU; None where CPUs differ."""
            with contextlib.suppress(OSError):  # then all that are possible are opened
                self._online = os.open(ONLINE, os.O_RDONLY | os.O_CLOEXEC)
            self._open_cpus()
            self.taken = self.count_taken()
            """How many records of each possible CPU were taken out before, by whomever."""
        except TraceError:
            self.close()
            raise
        except (OSError, ValueError) as error:
            self.close()
            text = explain(error) if isinstance(error, OSError) else f"{path}: {error}"
            raise TraceError(text) from error

    def _open_cpus(self) -> None:
        """Those that came online since the last time; a CPU that goes offline is kept.

        Raises OSError and ValueError.
        """
        text = os.pread(self._online, 4096, 0) if self._online >= 0 else b""
        if text and text == self._online_text:
            return
        possible = list_cpus(self.path)
        online = parse_cpus(text.decode()) if text else possible
        for number in possible:
            if number in online and number not in self._cpus:
                cpu = self._cpus[number] = _Cpu(os.path.join(self.path, f"per_cpu/cpu{number}"))
                self._readable.register(cpu.descriptor, select.EPOLLIN)
        self._online_text = text

    def check(self) -> None:
        """See that the instance is what it was set up to be.

        Raises TraceError with what is wrong, and OSError when that cannot be found out.
        """
        check(self.path)
        if read_file(self.path, PAGE_FORMAT) != self.formats.page:
            raise TraceError(f"{self.path}: its pages have another layout (buffer_subbuf_size_kb)")
        before, self._sizes = self._sizes, self._read_sizes()
        if before != self._sizes:
            raise TraceError(f"{self.path}: its buffers have another size")

    def _read_sizes(self) -> list[str]:
        sizes = []
        for file in SIZES:
            with contextlib.suppress(FileNotFoundError):  # an older kernel
                sizes.append(read_file(self.path, file))
        return sizes

    def repair(self) -> None:
        """Set the instance up again. Raises OSError, without privilege always."""
        write_settings(self.path)

    def fileno(self) -> int:
        """A descriptor that is readable when any CPU has records."""
        return self._readable.fileno()

    def drain(self) -> Drain:
        """Take out what is there. What a CPU that cannot be read holds comes with a later drain."""
        began, failure = boot_ns(), None
        whole = not any(cpu.pages for cpu in self._cpus.values())
        filled = {}
        try:
            self._open_cpus()
        except (OSError, ValueError) as error:
            failure = error
        for number, cpu in self._cpus.items():
            try:
                if not cpu.pages:
                    self._read(cpu)
                if cpu.pages:
                    filled[number] = cpu.read_statistics()
            except (OSError, ValueError) as error:
                failure = error
        lost, taken, pages = 0, {}, []
        for number, statistics in filled.items():
            cpu = self._cpus[number]
            lost += cpu.count_lost(statistics, self._layout)
            taken[number] = statistics["read events"]
            pages += [trim(page, self._layout) for page in cpu.pages]
            cpu.pages = []
        return Drain(began, pages, lost, taken, failure, whole and not failure)

    def _read(self, cpu: _Cpu) -> None:
        """An offline CPU is always reported as failing, which would spin: it is not waited for."""
        was_online = cpu.online
        cpu.read_pages(self._layout.size)
        if cpu.online and not was_online:
            self._readable.register(cpu.descriptor, select.EPOLLIN)
        elif was_online and not cpu.online:
            self._readable.unregister(cpu.descriptor)

    def count_taken(self) -> dict[int, int]:
        """How many records of each possible CPU were ever taken out, by whomever: the kernel's own count.

        Raises OSError and ValueError.
        """
        return {
            number: parse_statistics(read_file(self.path, f"per_cpu/cpu{number}/stats"))["read events"]
            for number in list_cpus(self.path)
        }

    def close(self) -> None:
        self._readable.close()
        for cpu in self._cpus.values():
            cpu.close()
        for descriptor in (self._lock, self._online):
            if descriptor >= 0:
                os.close(descriptor)
        self._cpus, self._lock, self._online = {}, -1, -1


class _Cpu:
    """The buffer of one CPU."""

    def __init__(self, path: str) -> None:
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
        dropped = statistics.get("dropped events", 0)
        lost += max(0, dropped - self._dropped)
        # The kernel counts from 0 again when somebody empties the buffer.
        self._overrun, self._dropped = min(self._overrun, statistics["overrun"]), dropped
        return lost

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
    names = (PAGE_FORMAT, "events/header_event", f"{EVENT}/format")
    return Formats(*(read_file(path, name) for name in names))
