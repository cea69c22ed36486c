"""The configuration file and its drop-ins: which there are, and what they say (systemd.syntax(7))."""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING, NamedTuple

from tcpwatchd.failure import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAIN = "tcpwatchd/tcpwatchd.conf"
MAIN_FOLDER = "etc"
DROP_IN_FOLDERS = "usr/lib", "run", "etc"
"""A file in a later one replaces that of the same name in one before it."""
MOST_BYTES = 1 << 20
"""Of one file."""
LONGEST_QUOTE = 60
CONTROL = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f]")


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
        more = f" (and {len(faults) - 1} more: --check-config lists them)" if len(faults) > 1 else ""
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


def list_files(root: str = "/") -> list[str]:
    """The main file, if there is one, and the drop-ins by their names. Raises ConfigError."""
    main = os.path.join(root, MAIN_FOLDER, MAIN)
    found = {}
    for folder in DROP_IN_FOLDERS:
        path = os.path.join(root, folder, MAIN + ".d")
        try:
            names = os.listdir(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError([Fault(path, None, None, str(error.strerror))]) from error
        found.update({name: os.path.join(path, name) for name in names if name.endswith(".conf")})
    drop_ins = [path for _, path in sorted(found.items()) if os.path.realpath(path) != os.devnull]
    return [main] * os.path.lexists(main) + drop_ins


def read_file(path: str) -> str:
    """Raises ConfigError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode) and os.path.realpath(path) != os.devnull:
                raise ConfigError([Fault(path, None, None, "Not a regular file")])
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError([Fault(path, None, None, str(error.strerror))]) from error
    if len(content) > MOST_BYTES:
        raise ConfigError([Fault(path, None, None, f"larger than {MOST_BYTES >> 20} MiB")])
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


def split_assignments(path: str, text: str, faults: list[Fault]) -> Iterator[Assignment]:
    """What a file says; the lines that say nothing are added to the faults."""
    section = None
    for pieces in join_lines(text):
        number, line = pieces[0]
        if line.startswith("["):
            name = line.strip()
            section = name[1:-1] if name.endswith("]") else None
            if section is None or len(pieces) > 1:
                faults.append(Fault(path, number, None, f"expected [Section], found {quote(name)}"))
            continue
        key, equals, rest = line.partition("=")
        if not equals or not key.strip():
            faults.append(Fault(path, number, None, f"expected Setting=value, found {quote(line.strip())}"))
        elif section is None:
            faults.append(Fault(path, number, None, f"expected [Section] before {quote(key.strip() + '=')}"))
        else:
            value, places = "", []
            for at, (line_number, piece) in enumerate([(number, rest), *pieces[1:]]):
                lead = len(piece) - len(piece.lstrip())
                before = len(key) + 1 if at == 0 else 0
                value += " " * (at > 0)
                places.append((len(value), line_number, before + lead + 1))
                value += piece.strip()
            yield Assignment(path, section, key.strip(), value.strip(), places)


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


def quote(text: str) -> str:
    return repr(text if len(text) <= LONGEST_QUOTE else text[: LONGEST_QUOTE - 3] + "...")


def make_printable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode() if path.isprintable() else repr(path)[1:-1]
