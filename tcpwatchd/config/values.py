"""Values of settings, as systemd writes them (systemd.time(7), systemd.syntax(7)). ValueError for others."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tcpwatchd.policy.expression import MOST_PORT, PORT_RANGE, Token, parse_host, parse_net, quote
from tcpwatchd.policy.folding import Limit

if TYPE_CHECKING:
    from collections.abc import Callable

SPAN_UNITS = {
    1e-6: "usec us µs μs",
    1e-3: "msec ms",
    1: "seconds second sec s",
    60: "minutes minute min m",
    3600: "hours hour hr h",
    86400: "days day d",
    604800: "weeks week w",
}
SECONDS = {
    name: seconds for seconds, names in SPAN_UNITS.items() for name in ["", *names.split()][seconds != 1 :]
}
SPAN_PART = re.compile(r"[ \t]*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?![0-9.])[ \t]*([a-zµμ]*)")
KIB = {"K": 1, "M": 1024, "G": 1024 * 1024}
YES, NO = ("1", "yes", "y", "true", "t", "on"), ("0", "no", "n", "false", "f", "off")
LONGEST = 100
"""Characters of any of these values."""
INTERVAL_RANGE = (0.1, 86400.0)
BUFFER_RANGE = (16, 16384)
WINDOW_RANGE = (1.0, 86400.0)
MOST_WORDS = 1000
"""Networks, and ranges of ports."""
FOLD_ENTRIES = (1, 1_000_000)
FOLD_RANGE = (1.0, 3600.0)
NANOSECONDS = 1_000_000_000


def parse_span(text: str) -> float:
    """Seconds, of a number with or without unit, or several as in "1min 30s"."""
    at, seconds = 0, 0.0
    text = text.strip()
    if not text or len(text) > LONGEST:
        raise ValueError(text)
    while at < len(text):
        part = SPAN_PART.match(text, at)
        if not part or part[2] not in SECONDS:
            raise ValueError(text)
        seconds += float(part[1]) * SECONDS[part[2]]
        at = part.end()
    return round(seconds, 9)  # 100000us are 100ms


def parse_interval(text: str) -> float:
    return parse_span_within(text, INTERVAL_RANGE, "100ms to 1d")


def parse_window(text: str) -> int:
    """Nanoseconds."""
    return round(parse_span_within(text, WINDOW_RANGE, "1s to 1d") * NANOSECONDS)


def parse_span_within(text: str, limits: tuple[float, float], named: str) -> float:
    """Seconds; `limits` are too."""
    try:
        seconds = parse_span(text)
    except ValueError:
        seconds = -1
    if not limits[0] <= seconds <= limits[1]:
        raise ValueError(f"not a time span from {named}: {quote(text)}")
    return seconds


def parse_buffer(text: str) -> int:
    """KiB, of a number of bytes or of K, M or G, which go by 1024."""
    smallest, largest = BUFFER_RANGE
    found = re.fullmatch("([0-9]{1,12})([KMG]?)", text)
    kib = 0
    if found:
        kib = int(found[1]) * KIB[found[2]] if found[2] else int(found[1]) // 1024
    if not smallest <= kib <= largest:
        raise ValueError(f"not a size from {smallest}K to {largest // 1024}M: {quote(text)}")
    return kib


def parse_bool(text: str) -> bool:
    if text.lower() not in (*YES, *NO):
        raise ValueError(f"not yes or no: {quote(text)}")
    return text.lower() in YES


def parse_fold(text: str) -> Limit | None:
    """None for no."""
    if text.lower() in NO:
        return None
    entries, _, span = text.partition("/")
    number = int(entries) if re.fullmatch("[0-9]{1,7}", entries) else 0
    try:
        seconds = parse_span(span)
    except ValueError:
        seconds = 0
    (fewest, most), (shortest, longest) = FOLD_ENTRIES, FOLD_RANGE
    if not fewest <= number <= most or not shortest <= seconds <= longest:
        raise ValueError(f"not N/SPAN from 1/1s to 1000000/1h, nor no: {quote(text)}")
    return Limit(number, round(seconds * NANOSECONDS))


def count_from(fewest: int, most: int, or_no: bool = False) -> Callable[[str], int | None]:
    """`or_no`: it can be no, for None."""

    def parse(text: str) -> int | None:
        if or_no and text.lower() in NO[1:]:
            return None
        number = int(text) if re.fullmatch("[0-9]{1,9}", text) else fewest - 1
        if not fewest <= number <= most:
            raise ValueError(f"not a number from {fewest} to {most}{', nor no' * or_no}: {quote(text)}")
        return number

    return parse


def parse_networks(text: str) -> tuple[tuple[bytes, bytes], ...]:
    """The first and the last address of each, packed; an address alone is one."""
    tokens = [Token(0, word, quoted=True) for word in split_words(text)]
    return tuple(parse_net(token) if "/" in token.text else parse_host(token) for token in tokens)


def parse_port_ranges(text: str) -> tuple[tuple[int, int], ...]:
    return tuple(parse_port_range(word) for word in split_words(text))


def parse_port_range(word: str) -> tuple[int, int]:
    found = PORT_RANGE.fullmatch(word)
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= low <= high <= MOST_PORT:
        raise ValueError(f"not a port, nor a range such as 50000-50100: {quote(word)}")
    return low, high


def split_words(text: str) -> list[str]:
    words = text.split()
    if len(words) > MOST_WORDS:
        raise ValueError(f"more than {MOST_WORDS} words")
    return words


def parse_instance(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", text):
        raise ValueError(f"not a name of letters, digits, dots, - and _: {quote(text)}")
    return text


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"not one of {', '.join(choices)}: {quote(text)}")
        return text

    return parse
