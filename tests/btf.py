"""Descriptions of types, built by hand as Documentation/bpf/btf.rst has them."""

from __future__ import annotations

import struct
from typing import NamedTuple

INTEGER, POINTER, ARRAY, STRUCT, UNION, TYPEDEF, VOLATILE, CONST = 1, 2, 3, 4, 5, 8, 9, 10
FLAG = 1 << 31
"""Of a structure that has bit fields: its members tell their width too."""


class Member(NamedTuple):
    name: str
    kind: int
    """The number of its type."""
    bits: int
    """Where it is."""
    width: int = 0
    """Bits of a bit field."""


class Description:
    """Types in the order in which they are added; the first has the number 1."""

    def __init__(self) -> None:
        self._names = bytearray(b"\0")
        self._types = bytearray()
        self._count = 0

    def add(
        self, kind: int, name: str = "", entries: int = 0, last: int = 0, behind: bytes = b"", flag: int = 0
    ) -> int:
        """The number of the type; `last` is its size, or the type that it refers to."""
        self._types += struct.pack("=III", self._find(name), entries | kind << 24 | flag, last) + behind
        self._count += 1
        return self._count

    def add_structure(self, name: str, *members: Member, kind: int = STRUCT, flag: int = 0) -> int:
        behind = b"".join(
            struct.pack("=III", self._find(one.name), one.kind, one.bits | one.width << 24) for one in members
        )
        return self.add(kind, name, len(members), 64, behind, flag)

    def _find(self, name: str) -> int:
        """Where the name is; each is there once."""
        text = name.encode() + b"\0"
        at = bytes(self._names).find(b"\0" + text) + 1 if name else 0
        if name and not at:
            at = len(self._names)
            self._names += text
        return at

    def pack(self) -> bytes:
        types, names = bytes(self._types), bytes(self._names)
        header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names))
        return header + types + names


def make_description() -> bytes:
    """Something of each form that the kernel's own structures have."""
    made = Description()
    word = made.add(INTEGER, "unsigned int", last=4, behind=struct.pack("=I", 32))
    address = made.add_structure("", Member("low", word, 0), Member("high", word, 0), kind=UNION)
    inner = made.add_structure("", Member("first", word, 0), Member("", address, 32))
    common = made.add_structure("common", Member("", inner, 64), Member("port", word, 160))
    alias = made.add(TYPEDEF, "common_t", last=common)
    constant = made.add(CONST, last=alias)
    pointer = made.add(POINTER, last=constant)
    made.add_structure("sock", Member("shared", constant, 0), Member("other", pointer, 320))
    made.add_structure(
        "flags",
        Member("plain", word, 0),
        Member("part", word, 35, width=3),
        Member("after", alias, 64),
        flag=FLAG,
    )
    return made.pack()


PATHS = (
    "sock.shared.port",
    "sock.shared.high",
    "sock.other",
    "flags.after.first",
    "flags.part",
    "common.low",
)
"""Some of its members, and a bit field."""
