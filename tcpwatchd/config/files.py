"""The configuration file and its drop-ins: which there are, and what they say (systemd.syntax(7))."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from typing import TYPE_CHECKING, NamedTuple

from tcpwatchd.failure import UsageError
from tcpwatchd.policy.expression import quote

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

MAIN = "tcpwatchd/tcpwatchd.conf"
MAIN_FOLDER = "etc"
DROP_IN_FOLDERS = "usr/lib", "run", "etc"
"""A file in a later one replaces that of the same name in one before it."""
MOST_BYTES = 1 << 20
"""Of all files."""
MOST_FAULTS = 100
"""After which no more are looked for."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
CONTROL = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)")


class Fault(NamedTuple):
    """What is wrong, and where; lines and columns count from 1."""

    path: str
    line: int | None
    column: int | None
    text: str

    def __str__(self) -> str:
        place = [str(number) for number in (self.line, self.column) if number is not None]
        return ":".join([make_printable(self.path), *place]) + f": {self.text}"


class ConfigError(UsageError):
    """All that is wrong, as one line: the first fault, and how many more there are."""

    def __init__(self, faults: list[Fault]) -> None:
        number = f"{len(faults) - 1}" if len(faults) <= MOST_FAULTS else f"more than {MOST_FAULTS - 1}"
        more = f" (and {number} more: --check-config lists them)" if len(faults) > 1 else ""
        super().__init__(f"{faults[0]}{more}")
        self.faults = faults


class Assignment(NamedTuple):
    """One setting in a file. Its value may be of several lines."""

    path: str
    section: str
    key: str
    value: str
    places: list[tuple[int, int, int]]
    """Where in the value each of its lines begins, and that line and column in the file."""

    @property
    def line(self) -> int:
        return self.places[0][1]

    def find(self, offset: int) -> tuple[int, int]:
        """The line and column of a character of the value."""
        start, line, column = max(place for place in self.places if place[0] <= offset)
        return line, column + offset - start


def list_files(root: str, faults: list[Fault]) -> list[str]:
    """The main file, if there is one, and the drop-ins by their names; faults are added to those given.

    Names that begin with a dot are none: editors make such files.
    """
    main = os.path.join(root, MAIN_FOLDER, MAIN)
    found = {}
    for folder in DROP_IN_FOLDERS:
        path = os.path.join(root, folder, MAIN + ".d")
        if os.path.islink(os.path.dirname(path)):
            continue  # an older version had the service's own runtime directory there
        try:
            names = os.listdir(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            faults.append(Fault(path, None, None, str(error.strerror)))
            continue
        shown = [name for name in names if name.endswith(".conf") and not name.startswith(".")]
        found.update({name: os.path.join(path, name) for name in shown})
    drop_ins = [path for _, path in sorted(found.items()) if os.path.realpath(path) != os.devnull]
    return [main] * os.path.lexists(main) + drop_ins


def find_hidden(paths: Iterable[str]) -> list[Fault]:
    """Which of these files, or their folders, others than root may not read, as the service must."""
    places = dict.fromkeys(place for path in paths for place in (os.path.dirname(path), path))
    faults = []
    for place in places:
        with contextlib.suppress(OSError):  # that is told as it is read
            mode = os.stat(place).st_mode
            needed = 0o005 if stat.S_ISDIR(mode) else 0o004
            if mode & needed != needed:
                faults.append(Fault(place, None, None, "the service may not read it: chmod a+rX"))
    return faults


def read_file(path: str, most: int) -> str:
    """At most so many bytes. Raises ConfigError."""
    try:
        with open(path, "rb", opener=open_now) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode) and os.path.realpath(path) != os.devnull:
                raise ConfigError([Fault(path, None, None, "Not a regular file")])
            content = file.read(most + 1)
    except OSError as error:
        raise ConfigError([Fault(path, None, None, str(error.strerror))]) from error
    if len(content) > most:
        others = "with the files before it " * (most < MOST_BYTES)
        raise ConfigError([Fault(path, None, None, f"{others}larger than {MOST_BYTES >> 20} MiB")])
    content = content.removeprefix(BYTE_ORDER_MARK)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError([Fault(path, line, None, "no text: not UTF-8")]) from error
    control = CONTROL.search(text)
    if control:
        line = text.count("\n", 0, control.start()) + 1
        raise ConfigError([Fault(path, line, None, f"no text: it has the character {control[0]!r}")])
    return text


def open_now(path: str, flags: int) -> int:
    """A FIFO too, which would wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def split_assignments(
    path: str, text: str, sections: Collection[str], faults: list[Fault]
) -> Iterator[Assignment]:
    """What a file says; the lines that say nothing are added to the faults.

    Of a section that there is not, that is told once, and the rest of it is passed over.
    """
    section, is_known = None, True
    for pieces in join_lines(text):
        if len(faults) > MOST_FAULTS:
            return
        number, line = pieces[0]
        key, equals, rest = line.partition("=")
        fault = None
        if line.lstrip().startswith("["):
            name = line.strip()
            section = name[1:-1] if name.endswith("]") and len(pieces) == 1 else ""
            is_known = section in sections
            if not section:
                fault = f"expected [Section], found {quote(name)}"
            elif not is_known:
                fault = f"no section {quote(name)}; there are {', '.join(f'[{one}]' for one in sections)}"
        elif not is_known:
            pass
        elif not equals or not key.strip():
            fault = f"expected Setting=value, found {quote(line.strip())}"
        elif section is None:
            fault = f"expected [Section] before {quote(key.strip() + '=')}"
        else:
            value, places = join_value(len(key) + 1, [(number, rest), *pieces[1:]])
            yield Assignment(path, section, key.strip(), value, places)
        if fault:
            faults.append(Fault(path, number, None, fault))


def join_value(before: int, pieces: list[tuple[int, str]]) -> tuple[str, list[tuple[int, int, int]]]:
    """A value, and its places. `before` is how much of its first line is not of it."""
    value, places = "", []
    for number, piece in pieces:
        value += " " if value else ""
        lead = len(piece) - len(piece.lstrip())
        places.append((len(value), number, before + lead + 1))
        value += piece.strip()
        before = 0
    return value.rstrip(), places


def join_lines(text: str) -> Iterator[list[tuple[int, str]]]:
    """Lines that say something, each with those that it goes on with, and their numbers.

    A line goes on with the next if it ends with a backslash; comments between are none of it.
    """
    pieces: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        plain = line.strip()
        if plain.startswith(("#", ";")) or (not plain and not pieces):
            continue
        goes_on = plain.endswith("\\")
        pieces.append((number, line.rstrip()[:-1] if goes_on else line.rstrip()))
        if not goes_on:
            yield pieces
            pieces = []
    if pieces:
        yield pieces


def make_printable(path: str) -> str:
    return path if path.isprintable() else repr(path)[1:-1]
