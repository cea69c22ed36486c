"""Where the members of the kernel's structures are, by the kernel's own description of its types. No I/O.

The description is /sys/kernel/btf/vmlinux, readable by all; its form is in Documentation/bpf/btf.rst.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

HEADER = struct.Struct("=HBBIIIII")
"""Magic, version, flags, length of this header; then offset and length of the types and of the names."""
MAGIC, VERSION = 0xEB9F, 1
TYPE = struct.Struct("=III")
"""Offset of its name; number of entries, kind and a flag; its size in bytes, or the type it refers to."""
MEMBER = struct.Struct("=III")
"""Offset of its name, its type, and where it is in bits, with the width of a bit field above that."""
STRUCT, UNION = 4, 5
ALIASES = {8, 9, 10, 11, 18}
"""Kinds that stand for another type: typedef, volatile, const, restrict, and the tag of a type."""
BEHIND = {1: 4, 3: 12, 14: 4, 17: 4}
"""Bytes behind the head of a type: of integers, arrays, variables and tags of declarations."""
BEHIND_EACH = {STRUCT: 12, UNION: 12, 6: 8, 13: 8, 15: 12, 19: 12}
"""Bytes for each entry: of members, values, parameters, variables of a section, and long values."""
LAST_KIND = 19
DEEPEST = 16
"""Types in types, or names for names: what makes no sense can go in circles."""
MOST_MEMBERS = 100_000
"""Members that are looked at for one name."""


class Place(NamedTuple):
    """Where the members of a structure or union are described."""

    members: int
    """Offset of the first."""
    entries: int
    offset_mask: int
    """Which bits of a member's place are its offset."""


class Types:
    """A kernel's structures. Raises ValueError for what is no description of types."""

    def __init__(self, text: bytes) -> None:
        try:
            magic, version, _, length, types, types_length, names, names_length = HEADER.unpack_from(text)
        except struct.error as error:
            raise ValueError("not a description of types") from error
        if magic != MAGIC or version != VERSION:
            raise ValueError("not a description of types of a known version")
        self._names = text[length + names : length + names + names_length]
        self._text = text[length + types : length + types + types_length]
        self._places: dict[int, Place] = {}
        """Structures and unions by their number."""
        self._named: dict[int, int] = {}
        """The number of each structure by the offset of its name; of several the first."""
        self._aliases: dict[int, int] = {}
        """The number of the type that a type stands for."""
        self._looked_at = 0
        try:
            self._index()
        except struct.error as error:
            raise ValueError("a description of types that is cut") from error

    def _index(self) -> None:
        at, number, unpack, text = 0, 0, TYPE.unpack_from, self._text
        while at < len(text):
            name, word, refers_to = unpack(text, at)
            at += TYPE.size
            number += 1
            entries, kind = word & 0xFFFF, word >> 24 & 0x1F
            if not 0 < kind <= LAST_KIND:
                raise ValueError(f"a type of the unknown kind {kind}")
            if kind in (STRUCT, UNION):
                self._places[number] = Place(at, entries, 0xFFFFFF if word >> 31 else 0xFFFFFFFF)
                if kind == STRUCT and name:
                    self._named.setdefault(name, number)
            elif kind in ALIASES:
                self._aliases[number] = refers_to
            at += BEHIND.get(kind, 0) + BEHIND_EACH.get(kind, 0) * entries

    def find_offset(self, path: str) -> int:
        """In bytes, of a member in a structure: "sock.sk_cgrp_data.cgroup". Raises ValueError."""
        structure, *members = path.split(".")
        number, bits = self._find_structure(structure), 0
        for member in members:
            self._looked_at = 0
            found = self._find_member(number, member.encode(), DEEPEST)
            if found is None:
                raise ValueError(f"this kernel has no {path}")
            bits += found[0]
            number = found[1]
        if bits % 8:
            raise ValueError(f"{path} is a bit field in this kernel")
        return bits // 8

    def _find_structure(self, name: str) -> int:
        place = self._names.find(f"\0{name}\0".encode()) + 1
        if not place or place not in self._named:
            raise ValueError(f"this kernel has no struct {name}")
        return self._named[place]

    def _find_member(self, number: int, name: bytes, deepest: int) -> tuple[int, int] | None:
        """Its offset in bits and its type; members without a name are looked into."""
        for _ in range(DEEPEST):
            number = self._aliases.get(number, number)
        place = self._places.get(number)
        if place is None or not deepest:
            return None
        for at in range(place.members, place.members + place.entries * MEMBER.size, MEMBER.size):
            try:
                name_at, kind, where = MEMBER.unpack_from(self._text, at)
            except struct.error as error:
                raise ValueError("a description of types that is cut") from error
            bits = where & place.offset_mask
            self._looked_at += 1
            if self._looked_at > MOST_MEMBERS:
                raise ValueError("a description of types that makes no sense")
            if not name_at:
                inner = self._find_member(kind, name, deepest - 1)
                if inner:
                    return bits + inner[0], inner[1]
            elif self._names.startswith(name + b"\0", name_at):
                return bits, kind
        return None
