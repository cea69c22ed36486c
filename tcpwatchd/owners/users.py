"""From a user's number to the name, by /etc/passwd alone.

The system's own look-up can ask a directory service, and wait for it: such a user has a number only.
"""

from __future__ import annotations

import os

from tcpwatchd.owners.text import make_printable

USERS = "/etc/passwd"
MOST_BYTES = 4 * 1024 * 1024
MOST_DIGITS = 10
LONGEST_NAME = 64
"""Bytes of a name; a user of a longer one has a number only."""


class Users:
    """Names, read again when the file has changed. A file that cannot be read names nobody."""

    def __init__(self, path: str = USERS) -> None:
        self._path = path
        self._version: tuple[int, ...] | None = None
        self._names: dict[int, str] = {}

    def refresh(self) -> bool:
        """Whether anything may have changed."""
        try:
            status = os.stat(self._path)
            version = status.st_mtime_ns, status.st_ino, status.st_size
            if version == self._version:
                return False
            with open(self._path, "rb") as file:
                self._names = parse_passwd(file.read(MOST_BYTES))
            self._version = version
        except OSError:
            self._names, self._version = {}, None
        return True

    def find_name(self, number: int) -> str | None:
        return self._names.get(number)


def parse_passwd(text: bytes) -> dict[int, str]:
    """As in passwd(5); of several names of a number the first. A line that makes no sense names nobody."""
    names: dict[int, str] = {}
    for line in text.split(b"\n"):
        fields = line.split(b":")
        named = len(fields) == 7 and 0 < len(fields[0]) <= LONGEST_NAME
        if named and fields[2].isdigit() and len(fields[2]) <= MOST_DIGITS:
            names.setdefault(int(fields[2]), make_printable(fields[0]))
    return names
