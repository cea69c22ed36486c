"""The addresses of a network namespace."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from tcpwatchd.kernel.addresses import MOST_TEXT, read_addresses
from tests.namespace import Namespace, run

if TYPE_CHECKING:
    from pathlib import Path


def pack(*addresses: str) -> set[bytes]:
    return {
        socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
        for address in addresses
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a network namespace")
def test_those_of_a_real_kernel() -> None:
    """A route that makes a network local, as for a transparent proxy, makes no address of this machine."""
    with Namespace() as host:
        for address in ("10.81.0.1/24", "fd00:81::1/64"):
            run(*host.prefix, "ip", "address", "add", address, "dev", "lo")
        run(*host.prefix, "ip", "route", "add", "local", "0.0.0.0/0", "dev", "lo", "table", "100")
        run(*host.prefix, "ip", "route", "add", "local", "198.51.100.0/24", "dev", "lo")
        found = read_addresses(f"/proc/{host.pid}/net")
    assert found == pack("127.0.0.1", "10.81.0.1", "::1", "fd00:81::1")


def test_a_kernel_that_does_not_tell(tmp_path: Path) -> None:
    assert read_addresses(str(tmp_path)) == frozenset()
    (tmp_path / "if_inet6").write_bytes(b"garbage\n\xff 01\n0123 01\n")
    (tmp_path / "fib_trie").write_bytes(b"|-- 10.0.0.999\n/32 host LOCAL\n|-- \xff\n/32 host LOCAL\n")
    assert read_addresses(str(tmp_path)) == frozenset()


def test_a_router_with_very_many_routes(tmp_path: Path) -> None:
    """No poll reads them all; what stands within the bound is taken."""
    first = b"Main:\n           |-- 192.0.2.2\n              /32 host LOCAL\n"
    (tmp_path / "fib_trie").write_bytes(first + b"x" * MOST_TEXT + first.replace(b"2.2", b"2.3"))
    assert read_addresses(str(tmp_path)) == pack("192.0.2.2")
