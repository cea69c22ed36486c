"""Names that somebody chose to mislead are shown as what they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpwatchd.report.names import shorten, show


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"nginx.service", "nginx.service"),
        ("größe ☃".encode(), "größe ☃"),
        ("\u202egnp.exe".encode(), "\\u202egnp.exe"),
        ("a\u2066b\u2069\u200fc\u061c".encode(), "a\\u2066b\\u2069\\u200fc\\u061c"),
        ("zero\u200bwidth\ufeff".encode(), "zero\\u200bwidth\\ufeff"),
        (b"a\nb\tc\r\x00\x1b[31m\x7f", "a\\nb\\tc\\r\\x00\\x1b[31m\\x7f"),
        ("c1\x9b31m".encode(), "c1\\x9b31m"),
        ("\u2028line".encode(), "\\u2028line"),
        (b"cut \xe2\x82", "cut \\xe2\\x82"),
        (b"\xff\xfe", "\\xff\\xfe"),
        (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),
        ("a\u3164b\u115f\uffa0\u2800".encode(), "a\\u3164b\\u115f\\uffa0\\u2800"),
        ("a\ufe0f\U000e0100\u034f\u180b".encode(), "a\\ufe0f\\U000e0100\\u034f\\u180b"),
        (b"<script>", "<script>"),
        (b"", ""),
    ],
)
def test_what_is_shown(name: bytes, shown: str) -> None:
    assert show(name) == shown


@given(st.binary(max_size=40) | st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_all_that_is_shown_can_be_seen(name: bytes) -> None:
    shown = show(name)
    assert shown.isprintable()
    shown.encode()


@pytest.mark.parametrize(
    ("most", "shown"), [(10, "abcdefghij"), (9, "abcd…ghij"), (8, "abcd…hij"), (5, "ab…ij"), (3, "a…j")]
)
def test_of_a_long_name_the_middle_is_left_out(most: int, shown: str) -> None:
    assert shorten("abcdefghij", most) == shown
