"""What is known, as text and back."""

from __future__ import annotations

import json
from binascii import crc32

import pytest

from tcpwatchd.connection import Caller
from tcpwatchd.policy.scans import NOTHING_SCANNED, ScanLimits, Scans
from tcpwatchd.state.baseline import MAGIC, NOTHING_OPEN, BaselineError, format_baseline, parse_baseline
from tests.kept import END, make_baseline, make_full, spread

UNKNOWN = Caller(0, 0, None)
FULL = format_baseline(make_full())
SCANS = 15
"""Where they stand."""
LIMITS = ScanLimits(3, 100, None, None, 100, (), (), 64)


def test_everything_comes_back() -> None:
    assert spread(parse_baseline(FULL)) == spread(make_full())
    assert parse_baseline(format_baseline(make_baseline())) == make_baseline()


@pytest.mark.parametrize("text", [b"", b"\n", b"drained 1", FULL.replace(MAGIC, b"tcpwatchd-baseline 2 ")])
def test_a_foreign_text_is_refused(text: bytes) -> None:
    with pytest.raises(BaselineError, match="not a baseline of this version"):
        parse_baseline(text)


def test_damage_anywhere_is_found() -> None:
    for at in range(FULL.index(b"\n") + 1, len(FULL)):
        for damaged in (FULL[:at], FULL[:at] + bytes([FULL[at] ^ 1]) + FULL[at + 1 :]):
            with pytest.raises(BaselineError, match="checksum"):
                parse_baseline(damaged)


@pytest.mark.parametrize("later", [0, 1, 3])
def test_what_an_older_version_kept(later: int) -> None:
    """It did not count what the trace told of an end, nor note when a handshake began, nor older prints."""
    header, line, *rows = FULL.split(b"\n", 2)
    fields = json.loads(line)
    known = fields[6]
    known[3] = [text.rpartition(" ")[0] for text in known[3]]
    known[6] = [handshake[:2] for handshake in known[6]]
    del known[8:]
    known[7] = [[words.rpartition(" ")[0], held] for words, held in known[7] if isinstance(words, str)]
    del fields[9 + later : -1]
    del fields[-1][2:]
    body = b"\n".join([json.dumps(fields).encode(), *rows])
    found = parse_baseline(b"%b%08x\n%b" % (header[: len(MAGIC)], crc32(body), body))
    assert found.unsound_since == (98 if later else None)
    assert found.owners == (make_full().owners if later == 3 else ({}, {}))
    assert (found.open, found.offset) == (NOTHING_OPEN, None)
    assert found.known == make_full().known._replace(
        awaiting_row={END: (7, 1)},
        handshakes={skaddr: (to, UNKNOWN) for skaddr, (to, _) in make_full().known.handshakes.items()},
        older_prints=frozenset(),
        polled_ahead={},
        absent_since=(0, 0),
        reports=make_full().known.reports[:1],
    )


def test_an_older_version_looked_for_no_scans() -> None:
    header, line, *rows = FULL.split(b"\n", 2)
    fields = json.loads(line)
    del fields[SCANS]
    body = b"\n".join([json.dumps(fields).encode(), *rows])
    found = parse_baseline(b"%b%08x\n%b" % (header[: len(MAGIC)], crc32(body), body))
    assert found == make_full()._replace(scans=NOTHING_SCANNED)


def test_scans_of_which_nothing_is_known() -> None:
    assert Scans(LIMITS).known == NOTHING_SCANNED._replace(prefix6=64)
    assert Scans(None).known == NOTHING_SCANNED


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        ((7, 3, 3), "nonsense"),
        ((7, 3, 4), "nobody"),
        ((7, 3, -1), 5),
        ((12, 0), "never"),
        ((12, 3, 0, 2), 2),
        ((12, 3, 0, 3, 0), None),
        ((12, 3, 0, 3, 1), "nonsense"),
        ((12, 3, 0, 3, 3), "5"),
        ((12, 2), []),
        ((SCANS,), []),
        ((SCANS, 0), 5),
        ((SCANS, 0, 0), "c0000238 0a0000050050 5 1"),
        ((SCANS, 0, 0), "c00002 0a0000050050 5 1 c0000238"),
        ((SCANS, 0, 0), "c0000238 0a00000500 5 1 c0000238"),
        ((SCANS, 0, 0), "c0000238 0a0000050050 never 1 c0000238"),
        ((SCANS, 0, 0), "c0000238 0a0000050050 5 maybe c0000238"),
        ((SCANS, 0, 0), "c0000238 0a0000050050 5 1 c000"),
        ((SCANS, 1, 0), []),
        ((SCANS, 1, 0, 0), "c00002"),
        ((SCANS, 1, 0, 1), "nowhere"),
        ((SCANS, 1, 0, 2, 0, 0), [256, 1]),
        ((SCANS, 1, 0, 2, 1), [[-1, 1]]),
        ((SCANS, 1, 0, 2, 1), [[0, 1 << 256]]),
        ((SCANS, 1, 0, 2, 1), [[0, -1]]),
        ((SCANS, 1, 0, 2), [[], []]),
        ((SCANS, 1, 0, 3, 0), "0a0000"),
        ((SCANS, 1, 0, 4), ["0a0000050050 5"]),
        ((SCANS, 1, 0, 4), ["0a0000050050 -5 1"]),
        ((SCANS, 1, 0, 5), [1, 2, 3]),
        ((SCANS, 1, 0, 5, 0), "soon"),
        ((SCANS, 1, 0, 5, 3), 1 << 62),
        ((SCANS, 2), "c0000238"),
        ((SCANS, 2), 7),
        ((SCANS, 3), "c00002"),
        ((SCANS, 4), "never"),
        ((SCANS, 5), None),
        ((SCANS, 6), [1]),
    ],
)
def test_what_has_a_right_checksum_and_makes_no_sense_is_refused(
    place: tuple[int, ...], wrong: object
) -> None:
    """Rather than crash at each start, when it is used."""
    header, line, *rows = FULL.split(b"\n", 2)
    fields = json.loads(line)
    *path, last = place
    changed = fields
    for step in path:
        changed = changed[step]
    changed[last] = wrong
    body = b"\n".join([json.dumps(fields).encode(), *rows])
    with pytest.raises(BaselineError, match="makes no sense"):
        parse_baseline(b"%b%08x\n%b" % (header[: len(MAGIC)], crc32(body), body))


def test_what_a_policy_cannot_be_is_told() -> None:
    text = format_baseline(make_full())
    named = b'["web", 80]'
    for good, bad in ((named, b'["web", "x"]'), (named, b'["web", 70000]'), (b"or port web", b"or prot web")):
        body = text.partition(b"\n")[2]
        changed = body.replace(good, bad)
        assert changed != body
        with pytest.raises(BaselineError):
            parse_baseline(MAGIC + b"%08x\n" % crc32(changed) + changed)
