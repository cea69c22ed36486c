"""Journals made of entries as the daemon writes them, by systemd's own program for those of other hosts."""

from __future__ import annotations

import ipaddress
import subprocess
from typing import TYPE_CHECKING

from tcpwatchd.connection import Connection, Endpoint, Owner, TcpState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from tcpwatchd.connection import Direction
    from tcpwatchd.output.event import Event

REMOTE = "/usr/lib/systemd/systemd-journal-remote"
BOOT, MACHINE = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
TRUSTED = {
    "_TRANSPORT": "journal",
    "_PID": "412",
    "_UID": "61234",
    "_COMM": "tcpwatchd",
    "_SYSTEMD_UNIT": "tcpwatchd.service",
    "_BOOT_ID": BOOT,
    "_MACHINE_ID": MACHINE,
    "_HOSTNAME": "web1",
}
"""What journald adds."""


def export(event: Event, more: Mapping[str, str] = TRUSTED, written: int | None = None) -> bytes:
    """In the export format of the journal; `written` is when, microseconds since the epoch."""
    moment = event.time if written is None else written
    parts = [f"__REALTIME_TIMESTAMP={moment}\n__MONOTONIC_TIMESTAMP={moment % 10**12}\n".encode()]
    for name, text in {**event.fields, **more}.items():
        value = text.encode()
        head = f"{name}\n".encode() + len(value).to_bytes(8, "little")
        parts.append(head + value + b"\n" if b"\n" in value else f"{name}={text}\n".encode())
    return b"".join([*parts, b"\n"])


def write_journal(path: Path, entries: Iterable[bytes]) -> Path:
    """`path` ends with .journal; there are more files beside it if one cannot hold them all."""
    command = [REMOTE, f"--output={path}", "--split-mode=none", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin
        for entry in entries:
            process.stdin.write(entry)
        _, told = process.communicate()
        assert process.returncode == 0, told
    return path


def make_connection(
    source: str, destination: str, direction: Direction = "ingress", owner: Owner | None = None, time: int = 0
) -> Connection:
    who = owner or Owner(user=33, unit="nginx.service", name="nginx")
    ends = make_endpoint(source), make_endpoint(destination)
    return Connection(ends[0], ends[1], direction, TcpState.ESTABLISHED, "trace", time, owner=who)


def make_endpoint(text: str) -> Endpoint:
    """Of "192.0.2.1:80" or "[2001:db8::1]:80"."""
    address, _, port = text.rpartition(":")
    return Endpoint(ipaddress.ip_address(address.strip("[]")).packed + int(port).to_bytes(2, "big"))


def list_fields(event: Event, more: Mapping[str, str] = TRUSTED) -> dict[str, bytes]:
    """As a reader of the journal has them."""
    return {name: text.encode() for name, text in {**event.fields, **more}.items()}
