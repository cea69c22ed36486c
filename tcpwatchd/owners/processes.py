"""Which process a thread belongs to, as /proc shows it while it is there.

Numbers of threads are given again, so what is seen of one holds for a moment that is known: from the start of
the thread until it was looked at. All that is read of a thread is read through one descriptor of its
directory, which is never another's.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple, TypedDict

from tcpwatchd.clock import NAMESPACE_OFFSET, boot_ns

INITIAL_PIDS = "pid:[4026531836]"
"""The initial PID namespace, whose numbers the kernel's records have (include/linux/proc_ns.h)."""
TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
"""Nanoseconds of the unit in which /proc tells when a thread started."""
MOST_LOOKS = 100
"""Threads that are looked at for one drain: it should not take longer than its records."""
MOST_REMEMBERED = 10_000
MOST_BYTES = 4096
LONGEST_COMMAND_LINE = 256


def read_network() -> int:
    """The inode of the network namespace that we are in; 0 where it is not to be had."""
    try:
        return os.stat("/proc/self/ns/net").st_ino
    except OSError:
        return 0


class Process(NamedTuple):
    """What was seen of a thread and its process."""

    started: int
    """Nanoseconds of CLOCK_BOOTTIME, in the steps of a TICK; of the thread."""
    seen: int
    """When it was looked at."""
    number: int
    """Of the process; `thread` in other places is that of one of its threads."""
    name: bytes
    """The thread's."""
    user: int
    """For its access to files, which a socket that it makes has (fsuid, credentials(7))."""
    group: bytes | None
    """The path of its control group of version 2."""
    executable: bytes | None
    command_line: bytes | None
    steady: int
    """Since when each look, if there were several, found the same user and control group."""


class Processes:
    """`command_lines`: whether they are read too. `proc` is where procfs is mounted."""

    def __init__(self, command_lines: bool = False, proc: str = "/proc") -> None:
        self.command_lines = command_lines
        self._proc = proc
        self._seen: dict[int, Process] = {}
        """By thread, for this drain."""
        self._gone: set[int] = set()
        """Threads that this drain looked for in vain."""
        self._before: dict[int, Process] = {}
        """What was last seen of threads, in any drain."""
        self._looks = 0
        try:
            self.known = os.readlink(f"{proc}/self/ns/pid") == INITIAL_PIDS
        except OSError:
            self.known = False
        """Whether numbers of threads mean the same here as in the kernel's records."""

    def start_drain(self) -> None:
        """What was seen before is looked at anew, and what was looked for in vain."""
        self._looks = 0
        self._seen.clear()
        self._gone.clear()

    def look(self, thread: int, when: int) -> Process | None:
        """What it was at that time, in nanoseconds of CLOCK_BOOTTIME; None where that cannot be known now."""
        if not thread or not self.known:
            return None
        process = self._seen.get(thread)
        if (process is None or process.seen < when) and thread not in self._gone and self._looks < MOST_LOOKS:
            self._looks += 1
            process = self._read(thread)
            if process:
                process = self._remember(thread, process)
            else:
                self._gone.add(thread)
        # A record and the start of its thread can be in the same tick.
        return process if process and process.started <= when <= process.seen else None

    def _remember(self, thread: int, process: Process) -> Process:
        """With what the look before showed."""
        before = self._before.get(thread)
        if before and find_identity(before) == find_identity(process):
            process = process._replace(steady=before.steady)
        elif len(self._before) >= MOST_REMEMBERED:
            self._before.clear()
        self._seen[thread] = self._before[thread] = process
        return process

    def _read(self, thread: int) -> Process | None:
        """None where it is gone, or hidden from us."""
        seen = boot_ns()
        try:
            folder = os.open(f"{self._proc}/{thread}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            command_line = read(folder, "cmdline", LONGEST_COMMAND_LINE) if self.command_lines else None
            return Process(
                started=parse_start(read(folder, "stat")),
                seen=seen,
                **parse_status(read(folder, "status")),
                group=parse_group(read(folder, "cgroup")),
                executable=read_executable(folder),
                command_line=command_line,
                steady=seen,
            )
        except (OSError, ValueError):  # it ended meanwhile
            return None
        finally:
            os.close(folder)


def find_identity(process: Process) -> tuple[int, int, bytes | None]:
    """What must be the same for it to be the same thread, as the same user in the same control group."""
    return process.started, process.user, process.group


def read(folder: int, name: str, most: int = MOST_BYTES) -> bytes:
    """Of a file in the folder that is open, so many bytes. Raises OSError."""
    file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return os.read(file, most)
    finally:
        os.close(file)


def read_executable(folder: int) -> bytes | None:
    """None where it may not be read, and of a thread of the kernel."""
    try:
        return os.fsencode(os.readlink("exe", dir_fd=folder))
    except OSError:
        return None


def parse_start(stat: bytes) -> int:
    """Nanoseconds of the kernel's CLOCK_BOOTTIME, of /proc/PID/stat (proc(5)). Raises ValueError."""
    fields = stat.rpartition(b")")[2].split()
    if len(fields) < 20:
        raise ValueError(stat)
    return int(fields[19]) * TICK - NAMESPACE_OFFSET


class Status(TypedDict):
    number: int
    name: bytes
    user: int


def parse_status(text: bytes) -> Status:
    """Of /proc/PID/status (proc(5)). Raises ValueError."""
    name = re.match(rb"Name:\t(.*)\n", text)
    process = re.search(rb"^Tgid:\t(\d+)$", text, re.MULTILINE)
    users = re.search(rb"^Uid:\t\d+\t\d+\t\d+\t(\d+)$", text, re.MULTILINE)
    if not name or not process or not users:
        raise ValueError(text)
    # A newline in a name, and the backslash, are escaped here, and nothing else.
    plain = re.sub(rb"\\(n|\\)", lambda found: b"\n" if found[1] == b"n" else b"\\", name[1])
    return {"number": int(process[1]), "name": plain, "user": int(users[1])}


def parse_group(text: bytes) -> bytes | None:
    """The path in the hierarchy of version 2, of /proc/PID/cgroup (cgroups(7))."""
    found = re.search(rb"^0::(/.*)$", text, re.MULTILINE)
    return found[1] if found else None
