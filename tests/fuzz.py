"""Coverage-guided fuzzing of whatever reads bytes that this program did not make.

    fuzz.py TARGET [libFuzzer's flags, such as -runs=1000000]

Each target stops at an exception that is not stated, and at a result that a simple reading of the same bytes
contradicts.
"""

from __future__ import annotations

import re
import struct
import sys
import tempfile
from binascii import crc32
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports():
    from tcpwatchd.kernel import btf, pages, tables
    from tcpwatchd.kernel.rows import SKIPPED, Format
    from tcpwatchd.state import baseline, store

from tcpwatchd.connection import Drain, Formats
from tests.btf import PATHS, make_description
from tests.kept import make_full
from tests.ring import SIZE, make_settings, page, record, word
from tests.table import HEADER4, endpoint4, endpoint6, row

FOLDER = Path(tempfile.mkdtemp(prefix="tcpwatchd-fuzz-"))
LINE = re.compile(
    rb" *[0-9]{1,10}: (([0-9A-F]{8}):([0-9A-F]{4}) ([0-9A-F]{8}):([0-9A-F]{4}) (0[1-9A-C])) "
    rb"[0-9A-F]{8}:[0-9A-F]{8} [0-9A-F]{2}:[0-9A-F]{8} [0-9A-F]{8} +[0-9]{1,10} +0 ([0-9]{1,10}) .*"
)
HEAD = 13 + 1 + 13 + 1 + 2
HEAD_OF_TYPES = btf.HEADER.size


def fuzz_table(text: bytes) -> None:
    path = FOLDER / "tcp"
    path.write_bytes(HEADER4.encode().ljust(149) + b"\n" + text)
    table = tables.Table(str(path), Format(1, "little"))
    try:
        change = table.read_change()
    except tables.TableError:
        return  # no end of line anywhere
    lines = text.split(b"\n")
    malformed: list[bytes] = []
    rows = table.parse(change.fresh, malformed)
    skipped = [text for text in change.fresh if text[HEAD - 2 : HEAD] in SKIPPED]
    assert len(rows) + len(malformed) + len(skipped) == len(change.fresh) <= len(lines)
    for parsed, kept in zip(rows, (t for t in change.fresh if t not in {*malformed, *skipped})):
        assert any(kept[:HEAD] in line for line in lines)
        assert f"{parsed.state:02X}".encode() == kept[HEAD - 2 : HEAD]
    found = {(f"{r.end.local.port:04X}{r.end.remote.port:04X}", r.state) for r in rows}
    for match in filter(None, map(LINE.fullmatch, lines)):
        state = int(match[6], 16)
        ports = (match[3] + match[5]).decode()
        # A row whose number has another width than its neighbours' is counted as malformed.
        assert match[6] in SKIPPED or (ports, state) in found or malformed, match[0]


def fuzz_page(text: bytes) -> None:
    decoder = pages.Decoder(FORMATS, {})
    raw = text[:SIZE].ljust(SIZE, b"\0")
    try:
        pages.find_loss(raw, decoder.layout)
        trimmed = pages.trim(raw, decoder.layout)
    except struct.error:
        return
    try:
        page = pages.decode_page(raw, decoder.layout)
        assert len(page.transitions) + page.others <= SIZE // 4
    except (KeyError, struct.error):
        found, lost = decoder.decode(Drain(2**64, [trimmed], 0, {0: 5}))
        assert (found, lost) == ([], 5)


def fuzz_baseline(body: bytes) -> None:
    """With a checksum that fits, as no accident makes it."""
    text = baseline.MAGIC + b"%08x\n" % crc32(body) + body
    try:
        kept = baseline.parse_baseline(text)
    except baseline.BaselineError:
        return
    again = baseline.parse_baseline(baseline.format_baseline(kept))
    assert again[:-1] == kept[:-1]  # the tables may hold empty slices, which separate blocks


def fuzz_log(body: bytes) -> None:
    """A frame with a checksum that fits, and the same bytes as frames."""
    text = store.frame(body[:1] or b"D", body[1:]) + body
    log, sound = store.parse_log(text, 0)
    again, whole = store.parse_log(text[:sound], 0)
    assert whole == sound <= len(text)
    assert again == log._replace(damage=None)


def fuzz_types(text: bytes) -> None:
    """As they are, and behind the head of a description that is sound."""
    whole = make_description()
    for described in (text, whole[:HEAD_OF_TYPES] + text + whole[HEAD_OF_TYPES + len(text) :]):
        try:
            types = btf.Types(described)
        except ValueError:
            continue
        for path in PATHS:
            try:
                offset = types.find_offset(path)
            except ValueError:
                continue
            assert 0 <= offset <= len(path.split(".")) * btf.DEEPEST * 2**29
            assert all(name.encode() + b"\0" in described for name in path.split(".")), path


def read_formats() -> Formats:
    make_settings(FOLDER)
    events = FOLDER / "events"
    names = ("header_page", "header_event", "sock/inet_sock_set_state/format")
    return Formats(*((events / name).read_text() for name in names))


def make_seeds(target: str) -> list[bytes]:
    line = row(0, endpoint4("10.0.0.5", 80), endpoint4("192.0.2.1", 443), 1, 7)
    wide = row(12345, endpoint6("2001:db8::1", 80), endpoint6("::1", 443), 6, 7, 100000)
    full = baseline.format_baseline(make_full())
    drain = store.DRAIN + store.pack_drain(Drain(1, [b"page"], 3, {0: 4}))
    mark = store.MARK + store.MARK_BODY.pack(1, 2, 3)
    return {
        "table": [line.ljust(149).encode() + b"\n", (line + "\n").encode() * 3, wide.encode()],
        "page": [page(9, record(1), word(29, 0)), page(9, word(30, 1) + bytes(4), record(2))],
        "baseline": [full.partition(b"\n")[2]],
        "log": [drain, mark, store.FORMATS + b"a\0b\0c", store.frame(drain[:1], drain[1:])],
        "types": [make_description(), make_description()[HEAD_OF_TYPES:]],
    }[target]


FORMATS = read_formats()
TARGETS = {"table": fuzz_table, "page": fuzz_page, "baseline": fuzz_baseline, "log": fuzz_log}
TARGETS["types"] = fuzz_types

if __name__ == "__main__":
    name = sys.argv.pop(1)
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(make_seeds(name)):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup([*sys.argv, str(corpus)], TARGETS[name])
    atheris.Fuzz()
