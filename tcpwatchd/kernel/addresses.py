"""The addresses of this machine, of one network namespace (/proc/net/fib_trie, /proc/net/if_inet6)."""

from __future__ import annotations

import os
import re
import socket

MOST_TEXT = 1 << 20
"""Bytes that are read of a file: a router can have a million routes, and they stand among the addresses."""
LOCAL = re.compile(rb"\|-- ([0-9.]+)\n\s+/32 host LOCAL\n")
"""An address of IPv4. Networks that a route makes local have fewer bits: their addresses are others'."""
IPV6 = re.compile(rb"^([0-9a-f]{32}) ", re.MULTILINE)


def read_addresses(root: str = "/proc/self/net") -> frozenset[bytes]:
    """Packed; none of a family of which the kernel does not tell."""
    found = {bytes.fromhex(digits.decode()) for digits in IPV6.findall(_read(root, "if_inet6"))}
    for text in set(LOCAL.findall(_read(root, "fib_trie"))):
        try:
            found.add(socket.inet_aton(text.decode()))
        except OSError:
            continue
    return frozenset(found)


def _read(root: str, name: str) -> bytes:
    try:
        with open(os.path.join(root, name), "rb") as file:
            return file.read(MOST_TEXT)
    except OSError:
        return b""
