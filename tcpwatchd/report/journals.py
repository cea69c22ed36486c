"""The files of the journal: which there are, what of them can be read, and their entries.

Each is read by itself, the older first. Then one that is damaged is noticed, which libsystemd leaves without
a word when it reads many at once, and little of them is mapped into memory at a time.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from tcpwatchd.failure import Failure, describe
from tcpwatchd.output.event import CONNECTION_OPENED as OPENED
from tcpwatchd.output.event import WATCH_STARTED as STARTED
from tcpwatchd.report.names import show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from systemd.journal import Reader

    Fields = dict[str, bytes]

ROOTS = ("/var/log/journal", "/run/log/journal")
NAME = re.compile(r".+\.journal~?").fullmatch
IDENTIFIER = "SYSLOG_IDENTIFIER=tcpwatchd"
MAY_READ = "only root and members of the groups adm and systemd-journal may"
UNIT = "_SYSTEMD_UNIT"
ADDRESSES = "SOURCE_IP", "DESTINATION_IP"


class Place(NamedTuple):
    """Where journals are: below a directory, or of this machine, of a namespace of it, or of all hosts."""

    directory: str | None = None
    namespace: str | None = None
    merge: bool = False


class Journal(NamedTuple):
    """A file with entries of tcpwatchd, and when the first and the last of them were written.

    If the clock was set back, which journald begins another file for, the last can be the older one.
    Times are in microseconds since the epoch. The descriptor stays the file's when journald renames it.
    """

    path: str
    descriptor: int
    first: int
    last: int


class Journals:
    """All that are to be read, the older first, and why others cannot be."""

    def __init__(self, place: Place) -> None:
        """Raises Failure if there is none that can be read."""
        self.files: list[Journal] = []
        self.faults: list[str] = []
        self._refused: list[str] = []
        raise_file_limit()
        readable = [self._look_at(path) for path in self._find_files(place)].count(True)
        if self._refused:
            where = (
                name_path(self._refused[0])
                if len(self._refused) == 1
                else f"{len(self._refused)} files or folders"
            )
            self.faults.insert(0, f"{where}: {os.strerror(13)}, {MAY_READ}")
        if not readable:
            raise Failure(
                self.faults[0] if self.faults else f"there is no journal in {describe_place(place)}"
            )
        self.files.sort(key=lambda file: (file.first, file.path))

    def _find_files(self, place: Place) -> Iterator[str]:
        """Raises Failure for a directory that was asked for."""
        if place.directory is not None:
            try:
                folders = [
                    place.directory,
                    *(entry.path for entry in scan(place.directory) if entry.is_dir()),
                ]
            except OSError as error:
                who = f", {MAY_READ}" if isinstance(error, PermissionError) else ""
                raise Failure(describe(error) + who) from error
        elif place.merge:
            folders = [entry.path for root in ROOTS for entry in self._scan(root) if entry.is_dir()]
        else:
            with open("/etc/machine-id") as file:
                name = file.read().strip() + (f".{place.namespace}" if place.namespace else "")
            folders = [f"{root}/{name}" for root in ROOTS]
        for folder in folders:
            yield from (entry.path for entry in self._scan(folder) if NAME(entry.name))

    def _scan(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            return scan(folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            self._note(folder, error)
            return []

    def _look_at(self, path: str) -> bool:
        """Whether it can be read."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:  # it was too old to be kept
            return False
        except OSError as error:
            self._note(path, error)
            return False
        try:
            ends = find_ends(descriptor)
        except OSError as error:
            self._note(path, error)
            ends = None
            readable = False
        else:
            readable = True
        if ends:
            self.files.append(Journal(path, descriptor, *ends))
        else:
            os.close(descriptor)
        return readable

    def _note(self, path: str, error: OSError) -> None:
        if isinstance(error, PermissionError):
            self._refused.append(path)
        else:
            self.faults.append(f"{name_path(path)}: {error.strerror or error}")

    @property
    def begins(self) -> int | None:
        """When the oldest entry was written, microseconds since the epoch."""
        return min(min(file.first, file.last) for file in self.files) if self.files else None

    def find_period(self, boot: str | None) -> tuple[int, int] | None:
        """When the first and the last entry were written, of one boot if it is given."""
        ends = [self._find_ends(file, boot) for file in self.files]
        found = [pair for pair in ends if pair]
        return (min(map(min, found)), max(map(max, found))) if found else None

    def _find_ends(self, file: Journal, boot: str | None) -> tuple[int, int] | None:
        return (file.first, file.last) if boot is None else find_ends(file.descriptor, boot)

    def read(self, since: int, until: int, boot: str | None) -> Iterator[tuple[int, Fields]]:
        """When each entry was written, and its fields. What is found to be damaged is added to the faults."""
        for file in self.files:
            if file.first > file.last or (file.first <= until and file.last >= since):
                yield from self._read_file(file, since, until, boot)

    def _read_file(
        self, file: Journal, since: int, until: int, boot: str | None
    ) -> Iterator[tuple[int, Fields]]:
        broken, is_whole = 0, False
        try:
            ends = self._find_ends(file, boot)
            if not ends:
                return
            last = ends[1]  # of those that were there: journald can go on writing
            with open_reader(file.descriptor, boot) as reader:
                if file.first <= file.last:
                    reader.seek_realtime(max(since, file.first) / 1e6)
                else:
                    reader.seek_head()
                following, find_time, find_fields = reader._next, reader._get_realtime, reader._get_all
                while following():
                    written = find_time()
                    if written == last:
                        is_whole = True
                    if since <= written <= until:  # the clock can have been set back
                        try:
                            fields = find_fields()
                        except ValueError:  # what should be the name of a field is none
                            broken += 1
                            continue
                        yield written, fields
        except OSError as error:
            self._note_damage(file, error.strerror or str(error))
            return
        if broken or not is_whole:
            self._note_damage(file, "it is damaged")

    def _note_damage(self, file: Journal, reason: str) -> None:
        self.faults.append(f"{name_path(file.path)}: {reason}: read in part")

    def tells_openings(self, before: int, unit: str) -> bool:
        """Whether connections were reported when they opened at that time, by what was written until then."""
        for file in reversed(self.files):
            if file.first < before:
                with contextlib.suppress(OSError), open_reader(file.descriptor) as reader:
                    opened, started = (find_last(reader, before, unit, kind) for kind in (OPENED, STARTED))
                    if opened or started:
                        return opened > started
        return False

    def find_known(self, addresses: set[bytes], before: int, unit: str) -> set[bytes]:
        """Those that the unit's entries from before that time name: microseconds since the epoch."""
        known: set[bytes] = set()
        for file in reversed(self.files):
            missing = addresses - known
            if missing and (file.first < before or file.last < before):
                try:
                    known |= find_named(file, missing, before, unit)
                except OSError as error:
                    self._note_damage(file, error.strerror or str(error))
        return known


def scan(folder: str) -> list[os.DirEntry[str]]:
    """In the order of names. Raises OSError."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def open_reader(descriptor: int, boot: str | None = None) -> Reader:
    """Of tcpwatchd's entries, of one boot if it is given.

    Its public methods convert each field of each entry, which takes five times as long as all else. So those
    of the C type below it are used.
    """
    from systemd.journal import Reader

    reader = Reader(files=[f"/proc/self/fd/{descriptor}"])
    reader.add_match(IDENTIFIER)
    if boot:
        reader.add_match(f"_BOOT_ID={boot}")
    return reader


def find_ends(descriptor: int, boot: str | None = None) -> tuple[int, int] | None:
    """When the first and the last entry were written; None without any. Raises OSError."""
    with open_reader(descriptor, boot) as reader:
        reader.seek_head()
        if not reader._next():
            return None
        first = reader._get_realtime()
        reader.seek_tail()
        return first, reader._get_realtime() if reader._previous() else first


def find_named(file: Journal, addresses: set[bytes], before: int, unit: str) -> set[bytes]:
    """Those of them that the unit's entries name, from before that time. Raises OSError."""
    with open_reader(file.descriptor) as reader:
        reader.add_match(f"{UNIT}={unit}")
        if max(file.first, file.last) >= before:
            return addresses.intersection(list_addresses(reader, before))
        # The index of the file has them without its entries, but also those that others wrote there.
        named = {str(value).encode() for name in ADDRESSES for value in reader.query_unique(name)}
        return {address for address in addresses & named if is_named(reader, address.decode(), unit)}


def list_addresses(reader: Reader, before: int) -> Iterator[bytes]:
    reader.seek_head()
    while reader._next():
        if reader._get_realtime() < before:
            for name in ADDRESSES:
                with contextlib.suppress(KeyError):
                    yield reader._get(name)


def is_named(reader: Reader, address: str, unit: str) -> bool:
    for name in ADDRESSES:
        match_only(reader, unit, f"{name}={address}")
        reader.seek_head()
        if reader._next():
            return True
    return False


def find_last(reader: Reader, before: int, unit: str, kind: str) -> int:
    """When the unit wrote the last entry of this kind before that time; 0 if it did not. Raises OSError."""
    match_only(reader, unit, f"MESSAGE_ID={kind}")
    reader.seek_realtime(before / 1e6)
    return int(reader._get_realtime()) if reader._previous() else 0


def match_only(reader: Reader, unit: str, field: str) -> None:
    """Entries of the unit that have this field."""
    reader.flush_matches()
    for match in (IDENTIFIER, f"{UNIT}={unit}", field):
        reader.add_match(match)


def name_path(path: str) -> str:
    """What files are called can be hostile too."""
    return show(os.fsencode(path))


def describe_place(place: Place) -> str:
    if place.directory is not None:
        return place.directory
    return " or ".join(ROOTS) + (f" of the namespace {place.namespace}" if place.namespace else "")


def raise_file_limit() -> None:
    """Each file is held open."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
