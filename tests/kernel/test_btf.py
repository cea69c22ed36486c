"""Offsets of members, of descriptions made by hand and of the running kernel's own."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpwatchd.kernel.btf import LAST_KIND, Types
from tcpwatchd.kernel.probe import TYPES, list_fetched
from tests.btf import (
    CONST,
    FLAG,
    INTEGER,
    PATHS,
    POINTER,
    STRUCT,
    TYPEDEF,
    UNION,
    VOLATILE,
    Description,
    Member,
    make_description,
)

TEXT = make_description()
LENGTH = 24
"""Of the header."""
WORD = struct.pack("=I", 32)
BEHIND = {1: WORD, 3: bytes(12), 4: bytes(24), 5: bytes(24), 6: bytes(16), 13: bytes(16), 14: bytes(4)}
BEHIND |= {15: bytes(24), 17: bytes(4), 19: bytes(24)}
"""What stands behind a type of each kind that has two entries."""


def find_all(text: bytes) -> dict[str, int]:
    """The offsets that are found; a description or a member that makes no sense has none."""
    found = {}
    for path in PATHS:
        try:
            found[path] = Types(text).find_offset(path)
        except ValueError:
            continue
    return found


def test_members() -> None:
    types = Types(TEXT)
    offsets = {
        "common.port": 20,
        "common.first": 8,
        "common.high": 12,
        "common.low": 12,
        "sock.shared": 0,
        "sock.shared.port": 20,
        "sock.shared.low": 12,
        "sock.other": 40,
    }
    assert {path: types.find_offset(path) for path in offsets} == offsets
    assert types.find_offset("sock") == 0


def test_a_structure_with_bit_fields() -> None:
    """Its members tell their width above their place."""
    types = Types(TEXT)
    assert (types.find_offset("flags.plain"), types.find_offset("flags.after.port")) == (0, 28)
    with pytest.raises(ValueError, match=r"flags\.part is a bit field"):
        types.find_offset("flags.part")


@pytest.mark.parametrize(
    "path",
    [
        "task.pid",
        "sock.port",
        "sock.shared.shared",
        "sock.other.port",
        "sock.shared.port.low",
        "sock.",
        "sock..port",
        "sock.share",
        "sock.hared",
        "common_t.port",
        "unsigned int",
        "",
    ],
    ids=str,
)
def test_what_this_kernel_does_not_have(path: str) -> None:
    """A pointer leads into another structure, which is none of this one's."""
    with pytest.raises(ValueError, match="this kernel has no"):
        Types(TEXT).find_offset(path)


def test_a_name_that_ends_as_another() -> None:
    """Names stand once, and a part of one is none."""
    made = Description()
    word = made.add(INTEGER, "int", last=4, behind=WORD)
    made.add_structure("my_sock", Member("wrong", word, 0))
    made.add_structure("sock", Member("last_id", word, 0), Member("id", word, 64))
    assert Types(made.pack()).find_offset("sock.id") == 8
    with pytest.raises(ValueError, match=r"no sock\.wrong"):
        Types(made.pack()).find_offset("sock.wrong")


def test_a_union_or_a_typedef_of_the_same_name_is_no_structure() -> None:
    made = Description()
    word = made.add(INTEGER, "int", last=4, behind=WORD)
    made.add_structure("sock", Member("id", word, 8), kind=UNION)
    made.add(TYPEDEF, "sock", last=word)
    with pytest.raises(ValueError, match="no struct sock"):
        Types(made.pack()).find_offset("sock.id")
    made.add_structure("sock", Member("id", word, 64))
    assert Types(made.pack()).find_offset("sock.id") == 8


@pytest.mark.parametrize("kind", range(1, LAST_KIND + 1))
def test_what_stands_before_a_structure_is_passed_over(kind: int) -> None:
    made = Description()
    made.add(kind, "before", entries=2, behind=BEHIND.get(kind, b""))
    made.add_structure("sock", Member("id", 1, 64))
    assert Types(made.pack()).find_offset("sock.id") == 8


@pytest.mark.parametrize("kind", [0, LAST_KIND + 1, 31])
def test_a_kind_that_is_not_known_is_refused(kind: int) -> None:
    """How long it is, is not known either."""
    made = Description()
    made.add(kind, "new")
    with pytest.raises(ValueError, match=f"unknown kind {kind}"):
        Types(made.pack())


@pytest.mark.parametrize(
    "text",
    [b"", b"\x7fELF" + bytes(100), TEXT[:LENGTH].replace(b"\1", b"\2", 1), TEXT[1::-1] + TEXT[2:]],
    ids=["nothing", "another file", "a later version", "the other order of bytes"],
)
def test_what_is_no_description_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="not a description of types"):
        Types(text)


def test_names_for_names_that_go_in_circles() -> None:
    made = Description()
    made.add(TYPEDEF, "one", last=2)
    made.add(VOLATILE, last=1)
    made.add_structure("sock", Member("id", 1, 0), Member("itself", 3, 8), Member("", 4, 64))
    made.add_structure("", Member("", 4, 64))
    types = Types(made.pack())
    for path in ("sock.id.more", "sock.nothing"):
        with pytest.raises(ValueError, match="this kernel has no"):
            types.find_offset(path)
    assert types.find_offset("sock.itself.itself.itself.id") == 3


@pytest.mark.parametrize("members", [2, 3, 16, 1000])
def test_structures_without_names_that_go_in_circles(members: int) -> None:
    """Each member is looked into, and in there again: it ends all the same."""
    made = Description()
    made.add_structure("sock", *[Member("", 1, 0)] * members)
    types = Types(made.pack())
    with pytest.raises(ValueError, match=r"no sense|no sock\.id"):
        types.find_offset("sock.id")


def test_many_names_for_one_type() -> None:
    made = Description()
    number = made.add_structure("", Member("id", 1, 64))
    for kind in (CONST, VOLATILE, TYPEDEF) * 3:
        number = made.add(kind, "alias" if kind == TYPEDEF else "", last=number)
    made.add_structure("sock", Member("inner", number, 32))
    assert Types(made.pack()).find_offset("sock.inner.id") == 12


def test_a_number_that_no_type_has() -> None:
    made = Description()
    made.add_structure("sock", Member("", 99, 0), Member("id", 98, 32))
    types = Types(made.pack())
    assert types.find_offset("sock.id") == 4
    with pytest.raises(ValueError, match=r"no sock\.id\.more"):
        types.find_offset("sock.id.more")


def test_every_cut_ends_in_a_stated_error_or_in_the_right_offset() -> None:
    whole = find_all(TEXT)
    assert len(whole) == len(PATHS) - 1
    for length in range(len(TEXT)):
        assert find_all(TEXT[:length]).items() <= whole.items()


def test_a_structure_whose_members_are_cut() -> None:
    made = Description()
    made.add(STRUCT, "sock", entries=2, last=8, behind=struct.pack("=III", 0, 1, 0))
    with pytest.raises(ValueError, match="cut"):
        Types(made.pack()).find_offset("sock.id")


@given(st.lists(st.tuples(st.integers(0, len(TEXT) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_damage_ends_in_a_stated_error_or_in_a_number(damage: list[tuple[int, int]]) -> None:
    text = bytearray(TEXT)
    for at, value in damage:
        text[at] = value
    assert all(offset >= 0 for offset in find_all(bytes(text)).values())


@given(st.binary(max_size=400), st.integers(0, 400))
def test_random_types_end_in_a_stated_error_or_in_a_number(types: bytes, cut: int) -> None:
    """Behind a header that fits."""
    names = TEXT[-100:]
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, LENGTH, 0, len(types), len(types), len(names))
    for text in (types, header + types + names, (header + types + names)[: LENGTH + cut]):
        assert all(offset >= 0 for offset in find_all(text).values())


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2**32 - 1)), max_size=20))
def test_random_references_end_in_a_stated_error_or_in_a_number(members: list[tuple[int, int]]) -> None:
    """Members with names, of any type: none of them is looked into but the one that is asked for."""
    made = Description()
    for number in range(6):
        made.add((CONST, POINTER)[number % 2], last=members[number][0] if number < len(members) else 0)
    made.add_structure("sock", *(Member("shared", kind, bits) for kind, bits in members), flag=FLAG)
    assert all(offset >= 0 for offset in find_all(made.pack()).values())


@pytest.mark.skipif(not Path(TYPES).exists(), reason="this kernel does not describe its types")
def test_the_running_kernel() -> None:
    """What its sockets begin with has been so for many years: it is what connections are looked up by."""
    types = Types(Path(TYPES).read_bytes())
    members = ("daddr", "rcv_saddr", "dport", "num", "family", "state")
    offsets = [types.find_offset(f"sock.__sk_common.skc_{member}") for member in members]
    assert offsets == [0, 4, 12, 14, 16, 18]
    remote, local = (
        types.find_offset(f"sock.__sk_common.skc_v6_{member}") for member in ("daddr", "rcv_saddr")
    )
    assert local - remote == 16
    fetched = list_fetched(types)
    assert f"saddr_v6=+{local}($skaddr):x64" in fetched
    assert all(word.isascii() and word.isprintable() and " " not in word for word in fetched)
    with pytest.raises(ValueError, match="this kernel has no"):
        types.find_offset("sock.no_such_member")
