"""Values of settings, as systemd writes them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tcpwatchd.config.values import (
    LONGEST,
    MOST_WORDS,
    count_from,
    one_of,
    parse_bool,
    parse_buffer,
    parse_fold,
    parse_instance,
    parse_interval,
    parse_networks,
    parse_port_ranges,
    parse_span,
    parse_window,
)
from tcpwatchd.policy.expression import quote
from tcpwatchd.policy.folding import Limit


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2", 2),
        ("2s", 2),
        ("2 sec", 2),
        ("2second", 2),
        ("2 seconds", 2),
        ("0.25", 0.25),
        (".5s", 0.5),
        ("1.", 1),
        ("250ms", 0.25),
        ("250msec", 0.25),
        ("7us", 7e-6),
        ("7 usec", 7e-6),
        ("7µs", 7e-6),
        ("7μs", 7e-6),
        ("3m", 180),
        ("3min", 180),
        ("1minute", 60),
        ("2 minutes", 120),
        ("1h", 3600),
        ("1hr", 3600),
        ("1hour 1hours", 7200),
        ("1d", 86400),
        ("2days 1day", 3 * 86400),
        ("1w", 604800),
        ("1week 1weeks", 2 * 604800),
        ("1min 30s", 90),
        ("1min30s", 90),
        (" 1h\t5min 2.5s ", 3902.5),
        ("5 10", 15),
        ("12.34 .56", 12.9),
        ("0", 0),
    ],
)
def test_spans(text: str, seconds: float) -> None:
    assert parse_span(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "s",
        "-1",
        "+1",
        "1e1",
        "1,5",
        ".",
        "1.5.5",
        "12.34.56",
        "1x",
        "1S",
        "1M",
        "1min-30s",
        "5s\n5s",
        "nan",
        "inf",
        "infinity",
        "٣",
        "1s;",
        "9" * (LONGEST + 1),
        "1\0",
    ],
)
def test_no_spans(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text.strip())}$"):
        parse_span(text)


@pytest.mark.parametrize("text", ["0.1", "100ms", "100000us", "50ms 50ms", "0.1s"])
def test_the_shortest_interval_however_it_is_written(text: str) -> None:
    assert parse_interval(text) == 0.1


@pytest.mark.parametrize("text", ["86400", "1d", "24h", "1440min", "23h 3600s"])
def test_the_longest_interval(text: str) -> None:
    assert parse_interval(text) == 86400


@pytest.mark.parametrize(
    ("text", "kib"),
    [
        ("16K", 16),
        ("16384", 16),
        ("17000", 16),
        ("64K", 64),
        ("4M", 4096),
        ("16M", 16384),
        ("16777216", 16384),
        ("0064K", 64),
    ],
)
def test_sizes(text: str, kib: int) -> None:
    assert parse_buffer(text) == kib


@pytest.mark.parametrize("text", ["1", "yes", "Y", "TRUE", "t", "On"])
def test_yes(text: str) -> None:
    assert parse_bool(text) is True


@pytest.mark.parametrize("text", ["0", "no", "N", "False", "f", "OFF"])
def test_no(text: str) -> None:
    assert parse_bool(text) is False
    assert parse_fold(text) is None


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("20/10s", Limit(20, 10_000_000_000)),
        ("1/1", Limit(1, 1_000_000_000)),
        ("1000000/1h", Limit(1_000_000, 3_600_000_000_000)),
        ("5/1min 30s", Limit(5, 90_000_000_000)),
        ("5/1.5s", Limit(5, 1_500_000_000)),
    ],
)
def test_folds(text: str, limit: Limit) -> None:
    assert parse_fold(text) == limit


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1", 1),
        ("1s", 1),
        ("1000ms", 1),
        ("1.5s", 1.5),
        ("1min 30s", 90),
        ("1h", 3600),
        ("1d", 86400),
        ("24h", 86400),
    ],
)
def test_windows(text: str, seconds: float) -> None:
    assert parse_window(text) == seconds * 1_000_000_000


def test_counts() -> None:
    parse, parse_or_no = count_from(1, 128), count_from(2, 65535, or_no=True)
    assert [parse(text) for text in ("1", "64", "128", "007")] == [1, 64, 128, 7]
    assert [parse_or_no(text) for text in ("2", "65535", "no", "NO", "off")] == [2, 65535, None, None, None]


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        ("", ()),
        ("192.0.2.7", (("c0000207", "c0000207"),)),
        (" 192.0.2.0/24\t10.0.0.0/8 ", (("c0000200", "c00002ff"), ("0a000000", "0affffff"))),
        ("0.0.0.0/0 ::/0", (("00000000", "ffffffff"), (32 * "0", 32 * "f"))),
        ("2001:db8::/32", (("20010db8" + 24 * "0", "20010db8" + 24 * "f"),)),
        ("::1", ((31 * "0" + "1",) * 2,)),
        ("::ffff:192.0.2.7 ::ffff:192.0.2.0/120", (("c0000207", "c0000207"), ("c0000200", "c00002ff"))),
    ],
)
def test_networks(text: str, networks: tuple[tuple[str, str], ...]) -> None:
    """What an address of IPv4 is in IPv6 is the same one."""
    expected = tuple((bytes.fromhex(first), bytes.fromhex(last)) for first, last in networks)
    assert parse_networks(text) == expected


def test_ranges_of_ports() -> None:
    assert parse_port_ranges("") == ()
    assert parse_port_ranges("50000-50100 6000\t1-65535 7-7") == (
        (50000, 50100),
        (6000, 6000),
        (1, 65535),
        (7, 7),
    )


@pytest.mark.parametrize(("parse", "word"), [(parse_networks, "::1 "), (parse_port_ranges, "9 ")])
def test_lists_are_bounded(parse: Any, word: str) -> None:
    assert len(parse(word * MOST_WORDS)) == MOST_WORDS
    with pytest.raises(ValueError, match=f"^more than {MOST_WORDS} words$"):
        parse(word * (MOST_WORDS + 1))


def test_names() -> None:
    for text in ("x", "tcpwatchd-2", "_a.b", "9" * 64):
        assert parse_instance(text) == text
    assert one_of("a", "b")("b") == "b"


@pytest.mark.parametrize(
    ("parse", "texts", "expected"),
    [
        (parse_interval, ["", "99ms", "0.0999", "1d 1ms", "2w", "ten", "-1"], "a time span from 100ms to 1d"),
        (
            parse_buffer,
            ["", "15K", "16383", "16385K", "17M", "1G", "-64K", "64k", "64 K", "64KB", "1.5M", "K", "64K\n"],
            "a size from 16K to 16M",
        ),
        (parse_bool, ["", "2", "maybe", "yes "], "yes or no"),
        (
            parse_fold,
            ["", "yes", "2", "2/", "/9s", "0/9s", "-1/9s", "1000001/9s", "2/0.9s", "2/3601s", "2/x", "1/2/3"],
            "N/SPAN from 1/1s to 1000000/1h, nor no",
        ),
        (
            parse_instance,
            ["", ".x", "-x", "../up", "a/b", "a b", "x\n", "x" * 65, "é"],
            "a name of letters, digits, dots, - and _",
        ),
        (one_of("auto", "no"), ["", "AUTO", "auto ", "yes"], "one of auto, no"),
        (parse_window, ["", "0.999", "999ms", "1d 1ms", "2w", "-1", "no"], "a time span from 1s to 1d"),
        (count_from(1, 9), ["", "0", "10", "-1", "+1", "1.0", "٣", "1\n", "no"], "a number from 1 to 9"),
        (count_from(1, 9, or_no=True), ["", "0", "10", "none", "yes"], "a number from 1 to 9, nor no"),
        (
            parse_port_ranges,
            ["0", "65536", "7-6", "0-9", "1-65536", "-9", "9-", "1-2-3", "http", "1,2", "000001", "٣"],
            "a port, nor a range such as 50000-50100",
        ),
    ],
)  # fmt: skip
def test_what_was_expected_is_said(parse: Any, texts: list[str], expected: str) -> None:
    for text in texts:
        with pytest.raises(ValueError, match="not ") as raised:
            parse(text)
        assert str(raised.value) == f"not {expected}: {quote(text)}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.256", "an address, found '192.0.2.256'"),
        ("10.0.0.0/8 all", "an address, since names are not looked up, found 'all'"),
        ("10.0.0.0/33", "a network such as 10.0.0.0/8, found '10.0.0.0/33'"),
        ("10.0.0.1/8", "no bits after the first 8, as in 10.0.0.0/8"),
        ("10.0.0.0/255.0.0.0", "a network such as 10.0.0.0/8, found '10.0.0.0/255.0.0.0'"),
        ("fe80::1%eth0", "an address, found 'fe80::1%eth0'"),
        ("10.0.0.0,10.0.0.1", "an address, found '10.0.0.0,10.0.0.1'"),
    ],
)
def test_what_is_no_network_is_said(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match="expected ") as raised:
        parse_networks(text)
    assert str(raised.value) == f"expected {expected}"


@pytest.mark.parametrize(
    "parse",
    [
        parse_window,
        count_from(1, 9),
        parse_networks,
        parse_port_ranges,
        parse_interval,
        parse_buffer,
        parse_bool,
        parse_fold,
        parse_instance,
        one_of("a"),
    ],
)
def test_a_long_value_is_not_said_in_full(parse: Any) -> None:
    with pytest.raises(ValueError, match=r"9\.\.\.'$") as raised:
        parse("9" * 1_000_000)
    assert len(str(raised.value)) < 150
