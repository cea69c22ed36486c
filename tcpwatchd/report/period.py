"""Times and boots, as people give them to journalctl: systemd's own programs know what they mean."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

from tcpwatchd.failure import Failure, UsageError

if TYPE_CHECKING:
    from tcpwatchd.report.journals import Place

FOREVER = 1 << 62
LATEST = 253_370_764_800
"""Seconds since the epoch: the year 9999, after which Python has no dates."""
BOOT_ID = re.compile("[0-9a-fA-F]{32}").fullmatch
OFFSET = re.compile("[+-]?[0-9]{1,9}").fullmatch
LISTED = re.compile("^ *-?[0-9]+ ([0-9a-f]{32}) ", re.MULTILINE)
UNIX = re.compile(r"UNIX seconds: @([0-9]+)(?:\.([0-9]+))?")
MICROSECOND_DIGITS = 6


def parse_time(flag: str, text: str) -> int:
    """Microseconds since the epoch, of a time as in systemd.time(7). Raises UsageError."""
    found = UNIX.search(run("systemd-analyze", "timestamp", "--", text))
    if not found or int(found[1]) > LATEST:
        expected = 'expected a time as in systemd.time(7), such as yesterday, -1h or "2026-11-24 03:00"'
        raise UsageError(f"argument {flag}: {expected}, found {text!r}")
    return int(found[1] + (found[2] or "").ljust(MICROSECOND_DIGITS, "0")[:MICROSECOND_DIGITS])


def is_boot(text: str) -> bool:
    """Whether it names a boot, by its id or by its place in their order."""
    return bool(BOOT_ID(text) or OFFSET(text))


def find_boot(text: str, place: Place) -> str:
    """Its id. As for journalctl, 0 is the last boot, -1 the one before, 1 the first. Raises UsageError."""
    where = ["--merge"] * place.merge
    if place.directory is not None:
        where.append(f"--directory={place.directory}")
    if place.namespace:
        where.append(f"--namespace={place.namespace}")
    boots = LISTED.findall(run("journalctl", "--list-boots", "--quiet", "--no-pager", *where))
    if BOOT_ID(text):
        if text.lower() not in boots:
            raise UsageError(f"argument -b: the journal has no boot {text}")
        return text.lower()
    number = int(text)
    index = number - 1 if number > 0 else len(boots) - 1 + number
    if not 0 <= index < len(boots):
        raise UsageError(f"argument -b: the journal has {len(boots)} boots, and none that is {text}")
    return str(boots[index])


def run(*command: str) -> str:
    """What it prints; nothing if it fails, for what it is asked comes from a person. Raises Failure."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603, no shell
    except (OSError, ValueError) as error:  # it is not there, or a NUL was asked for
        raise Failure(f"cannot run {command[0]}: {error}") from error
