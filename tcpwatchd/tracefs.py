"""The trace source: the kernel's tracepoint sock:inet_sock_set_state, read raw from an instance of tracefs.

An instance is a directory with ring buffers of its own, one a CPU (Documentation/trace/ftrace.rst). They fill
whether or not somebody reads, and whoever reads takes out. The layout of pages and records is the kernel's to
tell, in events/header_page, events/header_event and the event's format.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import operator
import os
import re
import stat
import struct
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from tcpwatchd.connection import End, Endpoint, TcpState, Transition

if TYPE_CHECKING:
    from collections.abc import Callable

TRACING = "/sys/kernel/tracing"
EVENT = "events/sock/inet_sock_set_state"
FILTER = "protocol==6 && (newstate==1 || newstate==2 || newstate==7 || newstate==10)"
OWN_INSTANCE = "tcpwatchd-"
"""What begins the name of an instance that a process makes for itself; its PID follows."""
TOTAL_KB = 16 * 1024
"""The most that the buffers of all CPUs may take."""
SETTINGS = {
    "trace_clock": "mono",
    "buffer_percent": "0",
    f"{EVENT}/filter": FILTER,
    f"{EVENT}/enable": "1",
    "tracing_on": "1",
}
READ_FILES = (
    "trace_clock",
    "tracing_on",
    "events/header_page",
    "events/header_event",
    f"{EVENT}/format",
    f"{EVENT}/filter",
    f"{EVENT}/enable",
)
"""What a reader without privilege must be able to read, beside the files of each CPU."""
CPU_FILES = ("trace_pipe_raw", "stats")

LONGEST_SHORT, PADDING, TIME_EXTEND, TIME_STAMP = 28, 29, 30, 31
WITH_WORD = {0, PADDING, TIME_EXTEND, TIME_STAMP}
"""Types of an entry whose first word is followed by a length or the upper bits of a time."""
WORD = struct.Struct("=I")
LITTLE = sys.byteorder == "little"
MISSED, COUNTED, LENGTH = 1 << 31, 1 << 30, (1 << 30) - 1
"""Parts of a commit word; its upper half may be the sign of the lower one."""
NOTHING_NOW = {errno.EAGAIN, errno.ENODEV}


class TraceError(Exception):
    """The trace is not to be had; the text says why."""


class Layout(NamedTuple):
    """Where things stand in a page and in a record."""

    size: int
    """Bytes of a page."""
    data: int
    """Where its records begin."""
    header: struct.Struct
    """Time stamp and commit word of a page."""
    unpack: Callable[[bytes, int], tuple[Any, ...]]
    """The fields of a record that begins at an offset, in the order of FIELDS."""


class Drained(NamedTuple):
    """What one drain brought: transitions in the order of time, and how many records were lost."""

    transitions: list[Transition]
    lost: int


ENTRY = r"type_len\s*:\s*5 bits\s+time_delta\s*:\s*27 bits\s+array\s*:\s*32 bits"
FIELDS = ("common_pid", "skaddr", "oldstate", "newstate", "sport", "dport", "saddr_v6", "daddr_v6")
"""In the order of known kernels."""
CODES = {2: "H", 4: "i", 8: "Q", 16: "16s"}
STATES = {state.value: state for state in TcpState}
NOWHERE = End(Endpoint(), Endpoint())
"""Stands for the end of a socket that closes: nobody asks for it."""


def set_up(name: str, buffer_kb: int) -> str:
    """Make an instance, or repair one that stands, and return its directory. Raises TraceError.

    Only what differs is written: writing even the same clock empties the buffers.
    """
    path = f"{TRACING}/instances/{name}"
    try:
        with contextlib.suppress(FileExistsError):  # left by a crash, or the service's
            os.mkdir(path)
        held = lock(path)
    except OSError as error:
        raise TraceError(explain(error)) from error
    try:
        cpus = len(list_cpus(path))
        kilobytes = max(4, min(buffer_kb, TOTAL_KB // cpus))
        if abs(int(read_file(path, "buffer_size_kb").split()[0]) - kilobytes) > 4:
            write_file(path, "buffer_size_kb", str(kilobytes))
        for file, value in SETTINGS.items():
            if not is_set(path, file, value):
                write_file(path, file, value)
    except OSError as error:
        raise TraceError(explain(error)) from error
    finally:
        os.close(held)
    return path


def lock(path: str) -> int:
    """A descriptor that keeps others out while it is open. Raises OSError, and TraceError when one is in."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise TraceError(f"{path} is read by another process") from error
    return descriptor


def open_to_all(path: str) -> None:
    """Let any user who gets to the instance read what a reader needs, and nothing else."""
    for file in (*READ_FILES, *(f"per_cpu/{cpu}/{file}" for cpu in list_cpus(path) for file in CPU_FILES)):
        parts = file.split("/")
        for depth in range(len(parts)):
            allow(os.path.join(path, *parts[:depth]), stat.S_IROTH | stat.S_IXOTH)
        allow(os.path.join(path, file), stat.S_IROTH)


def allow(path: str, bits: int) -> None:
    os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) | bits)


def remove_stale() -> None:
    """Remove instances that processes which are no more made for themselves."""
    for name in os.listdir(f"{TRACING}/instances") if os.path.isdir(f"{TRACING}/instances") else ():
        pid = name[len(OWN_INSTANCE) :]
        if name.startswith(OWN_INSTANCE) and pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
            with contextlib.suppress(OSError):  # somebody reads it, or removed it just now
                remove(f"{TRACING}/instances/{name}")


def remove(path: str) -> None:
    """Remove an instance and its buffers. Raises OSError: EBUSY while anybody reads it."""
    os.rmdir(path)


def explain(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return f"no tracing here: {error.filename} does not exist"
    return f"{error.filename}: {error.strerror}"


def list_cpus(path: str) -> list[str]:
    return sorted(os.listdir(os.path.join(path, "per_cpu")), key=lambda name: int(name[3:]))


def read_file(path: str, file: str) -> str:
    with open(os.path.join(path, file)) as text:
        return text.read().strip()


def write_file(path: str, file: str, value: str) -> None:
    with open(os.path.join(path, file), "w") as text:
        text.write(value)


def is_set(path: str, file: str, value: str) -> bool:
    text = read_file(path, file)
    return f"[{value}]" in text.split() if file == "trace_clock" else text == value


class Trace:
    """A reader of an instance, and the only one: a second would steal its records.

    Raises TraceError when the instance is not there, not as it should be, or read by somebody else.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.instance = 0
        """The inode of its directory: another instance has another."""
        self._lock = -1
        self._cpus: list[_Cpu] = []
        self._early: list[Transition] = []
        try:
            self._lock = lock(path)
            self.instance = os.fstat(self._lock).st_ino
            check(path)
            self._layout = read_layout(path)
            for cpu in list_cpus(path):
                self._cpus.append(_Cpu(os.path.join(path, "per_cpu", cpu)))
        except TraceError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise TraceError(explain(error)) from error

    @property
    def descriptors(self) -> list[int]:
        """One a CPU, readable when it has records; an offline CPU has none until a drain finds it up."""
        return [cpu.descriptor for cpu in self._cpus if cpu.online]

    def drain(self) -> Drained:
        """Take out what is there. Records newer than the start of the drain are kept for the next one.

        A pair of transitions on two CPUs could come out of order otherwise. Raises TraceError.
        """
        began = time.monotonic_ns()
        transitions, lost = self._early, 0
        for cpu in self._cpus:
            for page in cpu.read_pages(self._layout.size):
                lost += cpu.count_lost(page, self._layout)
                try:
                    transitions += decode_page(page, self._layout)
                except (KeyError, struct.error) as error:
                    raise TraceError(f"{self.path}: a page that cannot be decoded: {error!r}") from error
        transitions.sort(key=lambda transition: transition.time)
        self._early = [transition for transition in transitions if transition.time > began]
        return Drained(transitions[: len(transitions) - len(self._early)], lost)

    def take_rest(self) -> list[Transition]:
        """What the last drain kept for the next one, when there will be none."""
        rest, self._early = self._early, []
        return rest

    def close(self) -> None:
        for cpu in self._cpus:
            os.close(cpu.descriptor)
        if self._lock >= 0:
            os.close(self._lock)
        self._cpus, self._lock = [], -1


class _Cpu:
    """The buffer of one CPU."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.descriptor = os.open(
            os.path.join(path, "trace_pipe_raw"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        )
        self.online = True
        self._overrun = self._read_overrun()

    def read_pages(self, size: int) -> list[bytes]:
        """All there is. Nothing, EAGAIN and ENODEV (an offline CPU) all mean nothing now, never the end."""
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
        _, commit = layout.header.unpack_from(page)
        if not commit & MISSED:
            return 0
        if commit & COUNTED:
            end = layout.data + (commit & LENGTH)
            (lost,) = struct.unpack_from("=Q", page, end)
        else:
            lost = max(1, self._read_overrun() - self._overrun)
        self._overrun += lost
        return int(lost)

    def _read_overrun(self) -> int:
        """Records overwritten since the instance was made."""
        return int(re.findall(r"^overrun: (\d+)$", read_file(self._path, "stats"), re.MULTILINE)[0])


def check(path: str) -> None:
    """Raises TraceError when the instance does not record what it should, OSError when it cannot be read."""
    for file in ("trace_clock", "tracing_on", f"{EVENT}/filter", f"{EVENT}/enable"):
        if not is_set(path, file, SETTINGS[file]):
            raise TraceError(f"{path}/{file} is {read_file(path, file)!r}, not {SETTINGS[file]!r}")


def read_layout(path: str) -> Layout:
    """Raises TraceError for a kernel whose layout is not understood."""
    page = parse_fields(read_file(path, "events/header_page"))
    record = parse_fields(read_file(path, f"{EVENT}/format"))
    header = read_file(path, "events/header_event")
    if (
        not re.search(ENTRY, header)
        or not {"timestamp", "commit", "data"} <= page.keys()
        or not set(FIELDS) <= record.keys()
    ):
        raise TraceError(f"{path}: this kernel's trace records have an unknown layout")
    data, capacity = page["data"]
    commit = struct.Struct(f"=Q{CODES[page['commit'][1]].upper()}")
    return Layout(data + capacity, data, commit, make_unpack(record))


def make_unpack(fields: dict[str, tuple[int, int]]) -> Callable[[bytes, int], tuple[Any, ...]]:
    ordered = sorted(FIELDS, key=fields.__getitem__)
    codes, end = "=", 0
    for offset, size in map(fields.__getitem__, ordered):
        codes += f"{offset - end}x{CODES[size]}"
        end = offset + size
    unpack = struct.Struct(codes).unpack_from
    if ordered == list(FIELDS):
        return unpack
    pick = operator.itemgetter(*map(ordered.index, FIELDS))
    return lambda page, at: pick(unpack(page, at))


def decode_page(page: bytes, layout: Layout) -> list[Transition]:
    """The transitions of a page, in its order. Raises KeyError and struct.error for what no kernel writes."""
    now, commit = layout.header.unpack_from(page)
    at, end = layout.data, layout.data + (commit & LENGTH)
    found = []
    while at + 4 <= end:
        (word,) = WORD.unpack_from(page, at)
        kind, delta = (word & 31, word >> 5) if LITTLE else (word >> 27, word & 0x07FFFFFF)
        at += 4
        if kind == PADDING and not delta:
            break
        extra = WORD.unpack_from(page, at)[0] if kind in WITH_WORD else 0
        now = (extra << 27) + delta if kind == TIME_STAMP else now + delta
        if kind == TIME_EXTEND:
            now += extra << 27
        if kind <= LONGEST_SHORT:
            start = at + 4 if kind == 0 else at
            found.append(decode_record(page, start, now, layout))
        at += extra if kind in (0, PADDING) else 4 if kind in WITH_WORD else 4 * kind
    return found


def decode_record(page: bytes, start: int, when: int, layout: Layout) -> Transition:
    pid, skaddr, old, new, sport, dport, source, destination = layout.unpack(page, start)
    if new == TcpState.CLOSE:
        return Transition(when, skaddr, STATES[old], STATES[new], NOWHERE, pid)
    local = Endpoint.unmap(source + sport.to_bytes(2, "big"))
    remote = Endpoint.unmap(destination + dport.to_bytes(2, "big"))
    return Transition(when, skaddr, STATES[old], STATES[new], End(local, remote), pid)


def parse_fields(text: str) -> dict[str, tuple[int, int]]:
    """Name → offset and size, of the lines of a format file."""
    found = re.findall(r"field:[^;]*?(\w+)(?:\[\d+\])?;\s*offset:(\d+);\s*size:(\d+);", text)
    return {name: (int(offset), int(size)) for name, offset, size in found}
