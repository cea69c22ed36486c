"""Text of the kernel's tables, as net/ipv4/tcp_ipv4.c and net/ipv6/tcp_ipv6.c print it."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

HEADER4 = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"
HEADER6 = (
    "  sl  local_address                         remote_address                        "
    "st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"
)


def endpoint4(address: str, port: int, order: str = "") -> str:
    (word,) = struct.unpack(f"{order or '='}I", socket.inet_pton(socket.AF_INET, address))
    return f"{word:08X}:{port:04X}"


def endpoint6(address: str, port: int, order: str = "") -> str:
    packed = socket.inet_pton(socket.AF_INET6, address if ":" in address else f"::ffff:{address}")
    words = struct.unpack(f"{order or '='}4I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"


def row(number: int, local: str, remote: str, state: int, inode: int, uid: int = 0, timeout: int = 0) -> str:
    """One unpadded line; the columns of a TIME_WAIT row end earlier."""
    tail = "3 0000000000000000" if state == 6 else "1 0000000000000000 20 4 30 10 -1"
    return (
        f"{number:4d}: {local} {remote} {state:02X} 00000000:00000000 00:00000000 00000000"
        f" {uid:5d} {timeout:8d} {inode} {tail}"
    )


def table4(rows: Iterable[str]) -> str:
    return "".join(line.ljust(149) + "\n" for line in (HEADER4, *rows))


def table6(rows: Iterable[str]) -> str:
    return "".join(line + "\n" for line in (HEADER6, *rows))


def write_tables(root: Path, rows4: Sequence[str], rows6: Sequence[str] | None) -> None:
    """Write both files; None for the rows of IPv6 means a kernel without it."""
    replace(root / "tcp", table4(rows4))
    if rows6 is None:
        (root / "tcp6").unlink(missing_ok=True)
    else:
        replace(root / "tcp6", table6(rows6))


def replace(path: Path, text: str) -> None:
    """In one step: a daemon may be reading."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def write_counters(root: Path, inbound: int = 0, outbound: int = 0, failed: int = 0) -> None:
    """What was accepted, what was opened here, and how many of these attempts failed."""
    counts = f"{outbound} {inbound} {failed}"
    replace(root / "snmp", f"Tcp: ActiveOpens PassiveOpens AttemptFails\nTcp: {counts}\n")
    replace(root / "netstat", "TcpExt: SyncookiesSent EmbryonicRsts\nTcpExt: 0 0\n")


def show(proc: Path, *ports: int) -> None:
    """Let the tables hold a connection from each of these ports."""
    remote = endpoint4("192.0.2.1", 443)
    rows = [row(i, endpoint4("10.0.0.5", port), remote, 1, 100 + port) for i, port in enumerate(ports)]
    write_tables(proc / "self" / "net", rows, [])
