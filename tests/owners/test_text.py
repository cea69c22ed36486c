"""Names that others chose."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpwatchd.owners.text import LONGEST, make_printable


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"curl", "curl"),
        (b"", ""),
        (b"Web Content", "Web Content"),
        ("häßlich 日本".encode(), "häßlich 日本"),
        (b"x\n1 sshd", r"x\n1 sshd"),
        (b"a\\nb", r"a\\nb"),
        (b"\\", r"\\"),
        (b"\x1b[31mred", r"\x1b[31mred"),
        (b"\0\x7f\t\r", r"\x00\x7f\t\r"),
        (b"\xff\xfe", r"\xff\xfe"),
        (b"caf\xc3", r"caf\xc3"),
        (b"\xed\xa0\x80", r"\xed\xa0\x80"),
        ("\u2028\u202e\ufeff".encode(), r"\u2028\u202e\ufeff"),
        ("\U000e0001".encode(), r"\U000e0001"),
    ],
)
def test_a_name(name: bytes, text: str) -> None:
    assert make_printable(name) == text


@pytest.mark.parametrize(
    "name", [b"x", b"\xff", b"\\", b'"', "é".encode(), "日".encode(), "😀".encode(), b"x\n"]
)
def test_a_long_name_is_cut(name: bytes) -> None:
    """So that it has a bounded length as JSON too, in which other than ASCII takes up to 12 bytes."""
    text = make_printable(5000 * name)
    assert LONGEST - 12 <= len(json.dumps(text)) - 2 <= LONGEST
    whole = make_printable(40 * name)
    assert whole == 40 * make_printable(name)
    assert text.startswith(whole)


@given(st.binary(max_size=600))
def test_it_is_one_printable_line(name: bytes) -> None:
    text = make_printable(name)
    assert text.isprintable()
    assert len(json.dumps(text)) - 2 <= LONGEST


@given(st.text(max_size=8), st.text(max_size=8))
def test_two_names_are_two_texts(one: str, other: str) -> None:
    assert (make_printable(one.encode()) == make_printable(other.encode())) == (one == other)
