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
    from tcpwatchd.config import files, flags
    from tcpwatchd.kernel import btf, pages, resets, tables
    from tcpwatchd.kernel.rows import SKIPPED, Format
    from tcpwatchd.policy import expression
    from tcpwatchd.state import baseline, store

from tcpwatchd.config.settings import SECTIONS, SETTINGS
from tcpwatchd.connection import NOBODY, Drain, Formats, Owner
from tcpwatchd.kernel.instance import RESETS
from tcpwatchd.output import event
from tcpwatchd.policy.policy import Policy
from tcpwatchd.policy.scans import ScanLimits, Scans
from tests.btf import PATHS, make_description
from tests.kept import END, END6, make_full, spread
from tests.ring import SIZE, make_settings, pack_reset, page, record, word
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
        pages.find_loss(raw, decoder.layout.page)
        trimmed = pages.trim(raw, decoder.layout.page)
    except struct.error:
        return
    try:
        page = pages.decode_page(raw, decoder.layout)
        assert len(page.transitions) + page.others <= SIZE // 4
    except (KeyError, struct.error):
        found, lost = decoder.decode(Drain(2**64, [trimmed], 0, {0: 5}))
        assert (found, lost) == ([], 5)


def fuzz_resets(text: bytes) -> None:
    raw = text[:SIZE].ljust(SIZE, b"\0")
    found, lost = resets.decode_resets(Drain(2**64, [raw], 0, {}), PAGE_LAYOUT, RESET_LAYOUT)
    assert lost == 0 or (found, lost) == ([], 1)
    assert found == sorted(found)
    for _, ends in found:
        for end in ends:
            assert len(end) in (6, 18)
            assert end[-2:] in raw
            assert end[:-2] in raw


def fuzz_baseline(body: bytes) -> None:
    """With a checksum that fits, as no accident makes it."""
    text = baseline.MAGIC + b"%08x\n" % crc32(body) + body
    try:
        kept = baseline.parse_baseline(text)
    except baseline.BaselineError:
        return
    again = baseline.parse_baseline(baseline.format_baseline(kept))
    # The tables may hold empty slices, which separate blocks.
    assert spread(again._replace(blocks=[])) == spread(kept._replace(blocks=[]))
    if kept.policy:
        Policy().restore(kept.policy)
    scans = Scans(SCAN_LIMITS)
    scans.restore(kept.scans)
    for scan in scans.settle(2**64):
        event.port_scan(scan, 0, 0, 0)


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


def fuzz_config(text: bytes) -> None:
    """As they are, and as what is set under the headings of sections."""
    scan = b"[Scan]\nAllow=" + text + b"\nIgnorePorts=" + text
    for content in (text, b"[Watch]\nInterval=" + text, b"[Rules]\nIgnore=" + text, scan):
        try:
            settings = load_config(content)
        except files.ConfigError as error:
            lines = content.count(b"\n") + 1
            for fault in error.faults:
                assert str(fault).isprintable(), fault
                assert 1 <= (fault.line or 1) <= lines, fault
                assert 1 <= (fault.column or 1) <= len(content) + 1, fault
            continue
        shown = load_config(flags.format_settings(settings).encode())
        for setting in SETTINGS:
            assert getattr(shown, setting.name) == getattr(settings, setting.name), setting.key
        assert [rule[:2] for rule in shown.rules] == [rule[:2] for rule in settings.rules]


def load_config(content: bytes) -> flags.Settings:
    CONFIG.write_bytes(content)
    return flags.load(CONFIG_FLAGS)


def fuzz_expression(raw: bytes) -> None:
    """And with a "not" before it, which turns what is known about."""
    text = raw.decode("utf-8", "ignore")
    fault = None
    try:
        compiled = expression.compile_expression(text, flags.find_port)
    except expression.ExpressionError as error:
        fault = error
    if fault:
        assert 0 <= fault.offset <= len(text)
        assert str(fault).isprintable()
        return
    if text.count("(") + text.count("not") + text.count("!") >= expression.DEEPEST - 1:
        return
    opposite = expression.compile_expression(f"not ({text})", flags.find_port)
    assert opposite[1:] == compiled[1:]
    for facts in FACTS:
        found = compiled.test(facts)
        assert opposite.test(facts) is (None if found is None else not found)
        assert found is not None or facts is not ALL_KNOWN


def read_reset_layouts() -> tuple[pages.PageLayout, resets.ResetLayout]:
    formats = read_formats()
    layout = resets.read_reset_layout((FOLDER / RESETS / "format").read_text())
    return pages.read_page_layout(formats.page, formats.entry), layout


def read_formats() -> Formats:
    make_settings(FOLDER)
    events = FOLDER / "events"
    names = ("header_page", "header_event", "sock/inet_sock_set_state/format")
    return Formats(*((events / name).read_text() for name in names))


def make_seeds(target: str) -> list[bytes]:
    line = row(0, endpoint4("10.0.0.5", 80), endpoint4("192.0.2.1", 443), 1, 7)
    wide = row(12345, endpoint6("2001:db8::1", 80), endpoint6("::1", 443), 6, 7, 100000)
    full = baseline.format_baseline(make_full())
    reset, reset6 = (pack_reset(end.local, end.remote) for end in (END, END6))
    drain = store.DRAIN + store.pack_drain(Drain(1, [b"page"], 3, {0: 4}))
    mark = store.MARK + store.MARK_BODY.pack(1, 2, 3)
    return {
        "table": [line.ljust(149).encode() + b"\n", (line + "\n").encode() * 3, wide.encode()],
        "page": [page(9, record(1), word(29, 0)), page(9, word(30, 1) + bytes(4), record(2))],
        "resets": [page(9, reset, word(29, 0)), page(9, word(30, 1) + bytes(4), reset6, record(2))],
        "baseline": [full.partition(b"\n")[2]],
        "log": [drain, mark, store.FORMATS + b"a\0b\0c", store.frame(drain[:1], drain[1:])],
        "types": [make_description(), make_description()[HEAD_OF_TYPES:]],
        "config": [
            b"".join(map(make_section, SECTIONS)),
            b"1min 30s \\\n 5ms",
            *map(str.encode, OF_SCANS.values()),
        ],
        "expression": [*EXPRESSIONS],
    }[target]


def make_section(name: str) -> bytes:
    """With each setting, or with rules."""
    settings = [one for one in SETTINGS if one.section == name]
    lines = [f"{one.key} = {one.default or OF_SCANS.get(one.key, 'x')} \\\n" for one in settings]
    rules = [b"Ignore=" + one + b"\n" for one in EXPRESSIONS if name == "Rules"]
    return f"[{name}]\n# A comment\n".encode() + "\n".join(lines).encode() + b"\n" + b"".join(rules)


FORMATS = read_formats()
PAGE_LAYOUT, RESET_LAYOUT = read_reset_layouts()
CONFIG = FOLDER / "config"
OF_SCANS = {"Allow": "10.0.0.0/8 ::1", "IgnorePorts": "6000 7000-7010"}
CONFIG_FLAGS = flags.parse_arguments(["--config", str(CONFIG)])
EXPRESSIONS = (
    b"ingress and src net 10.0.0.0/8 or (ip6 && not dst port 8000-8999)",
    b'egress || !(host 2001:db8::1 or net ::ffff:10.0.0.0/104) || process "a [b-c]*"',
    b"internal and here and port https and (user root or unit *.service or container ?x)",
)
FACTS = [
    expression.Facts(address, port, address[::-1], 443, direction, here, owners)
    for address, port, direction, here, owners in (
        (b"\n\0\0\5", 8000, "ingress", True, (NOBODY, NOBODY)),
        (b"\1\0\0\x7f", None, None, None, (Owner(0, "root", "a.service", None, "x", name="a b"), NOBODY)),
        (bytes(15) + b"\1", 65535, "internal", False, 2 * (Owner(1, "b", "b.scope", "c", "x", name="c"),)),
    )
]
ALL_KNOWN = FACTS[-1]
SCAN_LIMITS = ScanLimits(3, 100, 20, 10, 1000, (), (), 64)
TARGETS = {"table": fuzz_table, "page": fuzz_page, "baseline": fuzz_baseline, "log": fuzz_log}
TARGETS |= {"resets": fuzz_resets, "types": fuzz_types, "config": fuzz_config, "expression": fuzz_expression}

if __name__ == "__main__":
    name = sys.argv.pop(1)
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(make_seeds(name)):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup([*sys.argv, str(corpus)], TARGETS[name])
    atheris.Fuzz()
