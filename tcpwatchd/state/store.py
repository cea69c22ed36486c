"""The runtime directory: a baseline, replaced in one step, and a log of what came since.

The log is of frames: the kernel's formats, the raw pages of each drain, written before anything in them
is reported, and marks of what the sink took. A baseline and the log of its generation give what was known and
not yet written, at whatever point a process ended.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from binascii import crc32
from typing import TYPE_CHECKING, NamedTuple

from tcpwatchd.connection import Drain, Formats, Written
from tcpwatchd.state.baseline import BaselineError, format_baseline, parse_baseline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tcpwatchd.state.baseline import Baseline

FORMATS, DRAIN, MARK = b"F", b"D", b"W"
HEAD = struct.Struct("=cII")
"""Kind, length and checksum of a frame."""
DRAIN_HEAD = struct.Struct("=QQII")
"""When it began, records lost, and how many CPUs and pages follow."""
CPU = struct.Struct("=IQ")
LENGTH = struct.Struct("=I")
MARK_BODY = struct.Struct("=QQQ")
MOST_LOG = 64 << 20
"""Bytes of a log after which nothing more is logged until the next baseline."""
MICROSECOND = 1000
METRICS_FOLDER, METRICS = "metrics", "metrics/tcpwatchd.prom"
"""In a folder of its own, into which others may look though not into the one around it."""


class Log(NamedTuple):
    """What came since the baseline."""

    formats: Formats | None
    drains: list[Drain]
    written: Written
    until: int
    """When it was last touched, in microseconds since the epoch."""
    damage: str | None
    """What is wrong from some point on, where it was cut off."""


class Store:
    """Without a directory nothing is kept.

    Writing raises OSError; after that nothing more is logged until the next baseline, which has all.
    """

    def __init__(self, directory: str | None) -> None:
        self.enabled = directory is not None
        self._folder = directory or ""
        self._log = -1
        self._generation = 0
        self._size = 0

    def load(self) -> tuple[Baseline, Log] | None:
        """What the process before kept, None at a first start; its log is the one to go on with.

        Raises OSError, and BaselineError for what cannot be used.
        """
        if not self.enabled:
            return None
        try:
            with open(self._path("baseline"), "rb") as file:
                baseline = parse_baseline(file.read())
        except FileNotFoundError:
            return None
        self._generation = baseline.generation
        self._log = os.open(self._path(f"log.{baseline.generation}"), os.O_RDWR | os.O_CLOEXEC)
        with open(self._log, "rb", closefd=False) as file:
            text = file.read()
        log, self._size = parse_log(text, os.fstat(self._log).st_mtime_ns // MICROSECOND)
        os.ftruncate(self._log, self._size)
        os.lseek(self._log, self._size, os.SEEK_SET)
        return baseline, log

    def save(self, baseline: Baseline, formats: Formats | None) -> None:
        """Replace the baseline in one step, and begin its log."""
        if not self.enabled:
            return
        generation = self._generation + 1
        head = frame(FORMATS, b"\0".join(text.encode() for text in formats)) if formats else b""
        log = self._write_new(f"log.{generation}", head)
        try:
            text = format_baseline(baseline._replace(generation=generation))
            os.close(self._write_new("baseline.new", text))
            os.replace(self._path("baseline.new"), self._path("baseline"))
        except OSError:
            os.close(log)
            self._remove(f"log.{generation}")
            self._remove("baseline.new")
            raise
        self.close()
        self._log, self._size, self._generation = log, len(head), generation
        self._remove_old_logs()

    def write_metrics(self, text: bytes) -> None:
        """Replace the file of metrics in one step; anybody who gets to it may read it."""
        if not self.enabled:
            return
        folder, new, path = self._path(METRICS_FOLDER), f"{METRICS}.new", self._path(METRICS)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        os.chmod(folder, 0o755)  # noqa: S103, there is nothing in it that is not for all
        descriptor = self._write_new(new, text)
        try:
            os.fchmod(descriptor, 0o644)
            os.replace(self._path(new), path)
        except OSError as error:  # of neither it names the file that is in the way
            self._remove(new)
            raise OSError(error.errno, error.strerror, path) from error
        finally:
            os.close(descriptor)

    def _write_new(self, name: str, text: bytes) -> int:
        """A new file with this text, open. Raises OSError with the file's name, and leaves none then."""
        path = self._path(name)
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        try:
            write_all(descriptor, text, path)
        except OSError:
            os.close(descriptor)
            self._remove(name)
            raise
        return descriptor

    def _remove_old_logs(self) -> None:
        """One that stays does no harm: the baseline says which is its own."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self._folder):
                if name.startswith("log.") and name != f"log.{self._generation}":
                    self._remove(name)

    def _remove(self, name: str) -> None:
        """If that can be done."""
        with contextlib.suppress(OSError):
            os.unlink(self._path(name))

    @property
    def baseline_path(self) -> str:
        return self._path("baseline")

    @property
    def full(self) -> bool:
        """Whether the log is so long that a baseline should not wait."""
        return self._size >= MOST_LOG // 2

    def append_drain(self, drain: Drain) -> None:
        if drain.pages or drain.lost:
            self._append(frame(DRAIN, pack_drain(drain)))

    def mark_written(self, written: Written) -> None:
        """So much was written since the baseline."""
        self._append(frame(MARK, MARK_BODY.pack(*written)))

    def touch(self) -> None:
        """Note that the trace was drained until now."""
        if self._log >= 0:
            os.utime(self._log)

    def _append(self, text: bytes) -> None:
        if self._log < 0:
            return
        if self._size + len(text) > MOST_LOG:
            self.close()
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), self._path(f"log.{self._generation}"))
        try:
            write_all(self._log, text, self._path(f"log.{self._generation}"))
        except OSError:
            self.close()
            raise
        self._size += len(text)

    def close(self) -> None:
        """Nothing more is logged until the next baseline."""
        if self._log >= 0:
            os.close(self._log)
        self._log = -1

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)


def write_all(descriptor: int, text: bytes, path: str) -> None:
    """Raises OSError with the path: a failed write(2) does not know it."""
    rest = memoryview(text)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def frame(kind: bytes, body: bytes) -> bytes:
    return HEAD.pack(kind, len(body), crc32(body)) + body


def pack_drain(drain: Drain) -> bytes:
    parts = [DRAIN_HEAD.pack(drain.began, drain.lost, len(drain.taken), len(drain.pages))]
    parts += [CPU.pack(*item) for item in drain.taken.items()]
    for page in drain.pages:
        parts += [LENGTH.pack(len(page)), page]
    return b"".join(parts)


def parse_log(text: bytes, until: int) -> tuple[Log, int]:
    """What is in a log, and the length of what is sound of it.

    A frame that is cut short was being written when the process ended: no damage, the kernel's count of what
    was taken tells what it held.
    """
    formats, drains, written, sound, damage = None, [], Written(0, 0, 0), 0, None
    try:
        for kind, body, end in split_frames(text):
            if kind == FORMATS:
                formats = Formats(*body.decode().split("\0"))
            elif kind == DRAIN:
                drains.append(parse_drain(body))
            elif kind == MARK:
                written = Written(*MARK_BODY.unpack(body))
            else:
                raise BaselineError(f"a frame of unknown kind {kind!r}")
            sound = end
    except (ValueError, TypeError, struct.error) as error:
        damage = f"the log is damaged after {sound} bytes: {error}"
    return Log(formats, drains, written, until, damage), sound


def split_frames(text: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """Kind, body and end of each frame that is whole. Raises BaselineError."""
    at = 0
    while at + HEAD.size <= len(text):
        kind, length, checksum = HEAD.unpack_from(text, at)
        at += HEAD.size
        body = text[at : at + length]
        if len(body) < length:
            return
        if crc32(body) != checksum:
            raise BaselineError("its checksum is another")
        at += length
        yield kind, body, at


def parse_drain(body: bytes) -> Drain:
    """Raises struct.error, and BaselineError."""
    began, lost, cpus, pages = DRAIN_HEAD.unpack_from(body)
    at = DRAIN_HEAD.size
    taken = dict(CPU.iter_unpack(body[at : at + cpus * CPU.size]))
    at += cpus * CPU.size
    found = []
    for _ in range(pages):
        (length,) = LENGTH.unpack_from(body, at)
        at += LENGTH.size + length
        found.append(body[at - length : at])
    if at != len(body):
        raise BaselineError("a drain of another length")
    return Drain(began, found, lost, taken)
