"""Reads the ring buffers of an instance of tracefs, raw.

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
from tcpwatchd.connection import Drain
from tcpwatchd.failure import describe
from tcpwatchd.kernel.instance import (
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
    write_file,
    write_settings,
)
from tcpwatchd.kernel.pages import find_loss, read_page_layout, read_stamp, trim

if TYPE_CHECKING:
    from tcpwatchd.kernel.pages import PageLayout

PAGE_FORMAT, ENTRY_FORMAT = "events/header_page", "events/header_event"
NOTHING_NOW = {errno.EAGAIN, errno.ENODEV}
"""What a reader is told of an empty buffer, and of a CPU that is offline."""
MOST_PAGES = 4096
"""Pages that are taken out of a CPU at once: all that its buffer can hold."""


class Reader:
    """The only one of an instance: a second would steal its records.

    Raises TraceError when the instance is not there, not as it should be, or read by somebody else.
    """

    event: str
    """The event that it records, as a path in the instance."""
    tells_closing = False
    """As in `list_settings`."""
    wakes = True
    """Whether its descriptor is readable when there are records."""

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
            self._learn()
            check(path, self.event, self.tells_closing)
            self._page_format = read_file(path, PAGE_FORMAT)
            self.page = read_page_layout(self._page_format, read_file(path, ENTRY_FORMAT))
            self._sizes = self._read_sizes()
            self._sizes_wanted: dict[str, str] = {}
            """What they were before somebody changed them."""
            self.buffer_kb = read_buffer_size(path)
            """KiB of memory a CPU; None where CPUs differ."""
            with contextlib.suppress(OSError):  # then all that are possible are opened
                self._online = os.open(ONLINE, os.O_RDONLY | os.O_CLOEXEC)
            self._open_cpus()
            self._await_all()
            self.taken = self.count_taken()
            """How many records of each possible CPU were taken out before, by whomever."""
        except TraceError:
            self.close()
            raise
        except (OSError, ValueError) as error:
            self.close()
            text = explain(error) if isinstance(error, OSError) else f"{path}: {error}"
            raise TraceError(text) from error

    def _learn(self) -> None:
        """What it records. Raises OSError and ValueError."""
        raise NotImplementedError

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
                self._cpus[number] = _Cpu(os.path.join(self.path, f"per_cpu/cpu{number}"))
        self._online_text = text

    def _await_all(self) -> None:
        """Wait for each CPU but those that are offline, which are always reported as failing: it would spin.

        Raises OSError.
        """
        for cpu in self._cpus.values() if self.wakes else ():
            if cpu.online and not cpu.awaited:
                self._readable.register(cpu.descriptor, select.EPOLLIN)
            elif cpu.awaited and not cpu.online:
                self._readable.unregister(cpu.descriptor)
            cpu.awaited = cpu.online

    def check(self) -> None:
        """See that the instance is what it was set up to be.

        Raises TraceError with what is wrong, and OSError when that cannot be found out.
        """
        check(self.path, self.event, self.tells_closing)
        before, self._sizes = self._sizes, self._read_sizes()
        if before != self._sizes:
            self._sizes_wanted = self._sizes_wanted or before
            raise TraceError(f"{self.path}: its buffers have another size")
        if read_file(self.path, PAGE_FORMAT) != self._page_format:
            raise TraceError(f"{self.path}: its pages have another layout (buffer_subbuf_size_kb)")

    def _read_sizes(self) -> dict[str, str]:
        """Of the buffers, by file: of all CPUs, and of each one where that says that they differ ("X")."""
        sizes = {}
        for file in SIZES:
            with contextlib.suppress(FileNotFoundError):  # an older kernel
                sizes[file] = read_file(self.path, file)
        if sizes.get(SIZES[0]) == "X":
            files = [f"per_cpu/cpu{number}/{SIZES[0]}" for number in list_cpus(self.path)]
            sizes.update((file, read_file(self.path, file)) for file in files)
        return sizes

    def repair(self) -> None:
        """Set the instance up again, with buffers as large as they were.

        Raises OSError, without privilege always.
        """
        write_settings(self.path, self.event, self.tells_closing)
        wanted, self._sizes_wanted = self._sizes_wanted, {}
        for file, size in reversed(wanted.items()):
            if size.isdecimal() and self._sizes.get(file) != size:
                write_file(self.path, file, size)
        self._sizes = self._read_sizes()

    def fileno(self) -> int:
        """A descriptor that is readable when any CPU has records."""
        return self._readable.fileno()

    def drain(self) -> Drain:
        """Take out what is there. What a CPU that cannot be read holds comes with a later drain."""
        began, failure, whole = boot_ns(), None, True
        filled = {}
        try:
            self._open_cpus()
        except (OSError, ValueError) as error:
            failure = error
        for number, cpu in self._cpus.items():
            try:
                # What a drain that failed half-way had read goes first; there can be more behind it.
                whole = whole and not cpu.pages
                if not cpu.pages:
                    whole = cpu.read_pages(self.page, began) and whole
                if cpu.pages:
                    filled[number] = cpu.read_statistics()
            except (OSError, ValueError) as error:
                failure = error
        try:
            self._await_all()
        except OSError as error:
            failure = error
        lost, taken, pages = 0, {}, []
        for number, statistics in filled.items():
            cpu = self._cpus[number]
            lost += cpu.count_lost(statistics, self.page)
            taken[number] = statistics["read events"]
            pages += cpu.pages
            cpu.pages = []
        return Drain(began, pages, lost, taken, failure, whole and not failure)

    def count_taken(self) -> dict[int, int]:
        """How many records of each possible CPU were ever taken out, by whomever: the kernel's own count.

        Raises OSError and ValueError.
        """
        return {
            number: parse_statistics(read_file(self.path, f"per_cpu/cpu{number}/stats"))["read events"]
            for number in list_cpus(self.path)
        }

    def count_handed_over(self) -> dict[int, int]:
        """The same of each CPU that is open, but for those of which pages are still to be handed over.

        Raises OSError and ValueError.
        """
        return {
            number: cpu.read_statistics()["read events"]
            for number, cpu in self._cpus.items()
            if not cpu.pages
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
        self.awaited = False
        """Whether the trace's descriptor is readable when this CPU has records."""
        self.pages: list[bytes] = []
        """Taken out and not handed over yet: a drain can fail half-way."""
        try:
            self._statistics = os.open(os.path.join(path, "stats"), os.O_RDONLY | os.O_CLOEXEC)
            statistics = self.read_statistics()
        except (OSError, ValueError):
            self.close()
            raise
        self._overrun, self._dropped = statistics["overrun"], statistics.get("dropped events", 0)

    def read_pages(self, layout: PageLayout, began: int) -> bool:
        """Until nothing is left that is older than the drain; whether that is so.

        Other events can be traced here, and make records faster than anybody reads: what is newer waits.
        Raises OSError.
        """
        self.online = True
        try:
            while page := os.read(self.descriptor, layout.size):
                self.pages.append(trim(page, layout))
                if read_stamp(page, layout) > began:
                    break
                if len(self.pages) == MOST_PAGES:
                    return False
        except OSError as error:
            if error.errno not in NOTHING_NOW:
                raise
            self.online = error.errno != errno.ENODEV
        return True

    def count_lost(self, statistics: dict[str, int], layout: PageLayout) -> int:
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
