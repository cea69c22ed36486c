"""Pages of the event probe, recorded on two kernels while a process connected to itself: see `proof.Made`."""

from __future__ import annotations

import base64
import errno
import json
import re
import struct
import sys
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpwatchd.connection import ControlGroup, Drain, Formats, Socket, TcpState, Transition
from tcpwatchd.kernel.instance import PROBES
from tcpwatchd.kernel.pages import (
    LONGEST_PATH,
    NOWHERE,
    WORD,
    Decoder,
    Layout,
    decode_page,
    find_records,
    read_layout,
)
from tcpwatchd.kernel.proof import Made, describe_transition, list_expected
from tcpwatchd.kernel.trace import read_formats
from tests.ring import page, word

pytestmark = pytest.mark.skipif(
    sys.byteorder != "little", reason="the pages are those of a little-endian kernel"
)
FIXTURES = Path(__file__).parents[1] / "fixtures"
KERNELS = ("linux-6.1", "linux-6.12")
HEAD = 16
"""Bytes of a page before its records."""
LATE = 2**62
CHANGES: dict[str, Any] = {"user": 65535, "network": 4026531840, "group": 1, "thread": 1, "name": "python2"}
"""What was not so."""
GROUP_EVENT = 436
"""The number of cgroup:cgroup_mkdir on the older kernel."""


class Recorded(NamedTuple):
    made: Made
    formats: Formats
    pages: list[bytes]

    @property
    def layout(self) -> Layout:
        return read_layout(self.formats)


@lru_cache
def read_recorded(kernel: str) -> Recorded:
    folder = FIXTURES / kernel
    text = json.loads((folder / "pages.json").read_text())
    ends = [tuple(six) for six in text["made"].pop("ends")]
    pages = [base64.b64decode(raw) for raw in text["pages"]]
    return Recorded(Made(ends, **text["made"]), read_formats(str(folder), f"{PROBES}/probe"), pages)


@pytest.fixture(params=KERNELS)
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return read_recorded(request.param)


def find_places(raw: bytes) -> list[int]:
    """Where in a page each record begins, of whatever event."""
    _, length = struct.unpack_from("<QQ", raw)
    return [HEAD + place + WORD.size for place in find_records(raw[HEAD : HEAD + length], 0)[1]]


def list_transitions(recorded: Recorded) -> list[Transition]:
    return [t for raw in recorded.pages for t in decode_page(raw, recorded.layout).transitions]


def describe_all(recorded: Recorded, made: Made) -> list[tuple[Any, ...]]:
    found = list_transitions(recorded)
    return [describe_transition(t, made) for t in found if t.old != TcpState.LISTEN]


def test_every_transition_is_told_as_it_was_made(recorded: Recorded) -> None:
    """Ends, states, user, control group and namespace; of who connects and listens also thread and name."""
    expected = set(list_expected(recorded.made))
    assert len(expected) == (2 + 2 * 4) * 3
    told = Counter(describe_all(recorded, recorded.made))
    assert told.keys() == expected
    assert {what: sum(n for one, n in told.items() if one[0] == what) for what, *_ in told} == {
        "listens": 3,
        "connects": 6,
        "opened": 6,
        "accepted": 6,
        "closed": 12,
    }


def test_a_socket_that_closes_has_its_owner_and_no_ends(recorded: Recorded) -> None:
    found = list_transitions(recorded)
    closed = [t for t in found if t.old == TcpState.LISTEN]
    owner = Socket(recorded.made.user, recorded.made.group or 0, recorded.made.network)
    assert [(t.old, t.end, t.name, t.socket) for t in closed] == [(TcpState.LISTEN, NOWHERE, None, owner)] * 3
    assert {t.socket for t in found} == {owner, None}


def test_a_connection_that_closes_has_its_counts_and_no_owner(recorded: Recorded) -> None:
    """One of each address is closed in order, by its server; of the other the client has not read all."""
    closed = [t for t in list_transitions(recorded) if t.closing]
    assert [t.socket for t in closed] == [None] * 12
    told = Counter((t.old.name, *t.closing[1:2], *t.closing[3:]) for t in closed if t.closing)
    assert told == {
        ("FIN_WAIT2", 0, 9, 9, 8, 0): 3,
        ("LAST_ACK", 0, 8, 8 + 1, 9, 0): 3,
        ("ESTABLISHED", 0, 8, 8 + 1, 9, 7): 3,
        ("ESTABLISHED", errno.ECONNRESET, 9, 9, 8, 0): 3,
    }


def test_a_control_group_is_told_with_its_path(recorded: Recorded) -> None:
    groups = [group for raw in recorded.pages for group in decode_page(raw, recorded.layout).groups]
    assert [group.path for group in groups] == [b"/fixture.slice"]
    assert groups[0].number > 1


def test_nothing_is_lost(recorded: Recorded) -> None:
    """What the kernel counts, of both events, is what was decoded; the groups are taken out once."""
    decoder = Decoder(recorded.formats, {})
    records = sum(len(find_places(raw)) for raw in recorded.pages)
    drain = Drain(LATE, recorded.pages, 0, {0: records})
    transitions, lost = decoder.decode(drain)
    assert (len(transitions), lost, decoder.counted_anew) == (36, 0, False)
    assert [t.time for t in transitions] == sorted(t.time for t in transitions)
    assert [group.path for group in decoder.take_groups()] == [b"/fixture.slice"]
    assert decoder.take_groups() == []
    assert decoder.decode(drain._replace(pages=[], taken={0: records + 1})) == ([], 1)


@pytest.mark.parametrize("field", [*CHANGES, "ends"])
def test_what_was_not_made_is_found_missing(recorded: Recorded, field: str) -> None:
    """So an offset that does not fit is found out, whichever it is of."""
    ip, port, *rest = recorded.made.ends[0]
    ends = [(ip, port + 1, *rest), *recorded.made.ends[1:]]
    wrong = recorded.made._replace(**{field: CHANGES.get(field, ends)})
    missing = set(list_expected(wrong)) - set(describe_all(recorded, wrong))
    assert len(missing) == {"ends": 4, "thread": 6, "name": 6, "network": 30}.get(field, 18)


def test_without_the_probes_fields_there_is_no_owner(recorded: Recorded) -> None:
    """The kernel's own tracepoint proves nothing."""
    for transition in list_transitions(recorded):
        assert describe_transition(transition._replace(socket=None, closing=None), recorded.made) == ()


def test_in_an_interrupt_nobody_asked(recorded: Recorded) -> None:
    """The thread and the name of such a record are of whoever was interrupted."""
    pages = list(map(bytearray, recorded.pages))
    for raw in pages:
        for place in find_places(bytes(raw)):
            raw[place + 2] |= 0x08  # common_flags: in a soft interrupt
    found = list_transitions(recorded._replace(pages=list(map(bytes, pages))))
    assert {(t.thread, t.name) for t in found} == {(0, None)}


def test_fields_in_another_order_are_read_by_their_offsets(recorded: Recorded) -> None:
    text = recorded.formats.record
    swapped = text.replace("oldstate;", "x;").replace("newstate;", "oldstate;").replace(" x;", " newstate;")
    before = list_transitions(recorded)
    after = list_transitions(recorded._replace(formats=recorded.formats._replace(record=swapped)))
    before, after = ([t for t in found if not t.closing] for found in (before, after))
    assert [(t.new, t.old, t.socket) for t in after] == [(t.old, t.new, t.socket) for t in before]


def test_every_cut_ends_in_a_stated_error_or_in_what_stands_before_it(recorded: Recorded) -> None:
    for raw in recorded.pages:
        whole = decode_page(raw, recorded.layout)
        for length in range(len(raw)):
            try:
                cut = decode_page(raw[:length], recorded.layout)
            except (KeyError, struct.error):
                continue
            kept = sorted(cut.transitions)[:-1]
            assert kept == sorted(whole.transitions)[: len(kept)]
            assert len(cut.groups) <= len(whole.groups)


@given(
    st.sampled_from(KERNELS),
    st.integers(0, 1),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damage_ends_in_a_stated_error(kernel: str, number: int, damage: list[tuple[int, int]]) -> None:
    recorded = read_recorded(kernel)
    raw = bytearray(recorded.pages[number])
    for at, value in damage:
        raw[at % len(raw)] = value
    try:
        decode_page(bytes(raw), recorded.layout)
    except (KeyError, struct.error):
        return


@given(st.sampled_from(KERNELS), st.binary(max_size=300))
def test_random_bytes_end_in_a_stated_error(kernel: str, data: bytes) -> None:
    for raw in (data, struct.pack("<QQ", 1, len(data)) + data):
        try:
            decode_page(raw, read_recorded(kernel).layout)
        except (KeyError, struct.error):
            continue


def pack_group(path: bytes, root: int = 0, number: int = 7) -> bytes:
    """The record of a control group that is made; its length stands in a word of its own."""
    text = path + b"\0"
    place = 28 | len(text) << 16
    body = struct.pack("<HBBiiiQI", GROUP_EVENT, 0, 0, 1, root, 1, number, place) + text
    body += bytes(-len(body) % 4)
    return word(0, 1) + struct.pack("<I", len(body) + 4) + body


@pytest.mark.parametrize(
    ("path", "root", "told"),
    [
        (b"/a.slice", 0, True),
        (b"/a\nb\xff", 0, True),
        (b"/".ljust(LONGEST_PATH - 1, b"x"), 0, True),
        (b"/".ljust(LONGEST_PATH, b"x"), 0, False),
        (b"/".ljust(LONGEST_PATH + 1, b"x"), 0, False),
        (b"", 0, False),
        (b"/a.slice", 1, False),
        (b"/a.slice", -1, False),
    ],
    ids=["short", "hostile", "the longest", "cut", "longer", "empty", "an older hierarchy", "no hierarchy"],
)
def test_which_groups_are_told(path: bytes, root: int, told: bool) -> None:
    """A path that fills the kernel's room for it may have been cut, and is no path then."""
    found = decode_page(page(1000, pack_group(path, root)), read_recorded("linux-6.1").layout)
    assert found.groups == ([ControlGroup(7, path)] if told else [])
    assert (found.transitions, found.others) == ([], 1)


def test_records_of_foreign_events_are_counted(recorded: Recorded) -> None:
    """Anybody can trace more into our instance."""
    foreign = word(2, 1) + struct.pack("<HBBi", 9, 0, 0, 1)
    found = decode_page(page(1000, foreign, foreign), recorded.layout)
    assert (found.transitions, found.groups, found.others) == ([], [], 2)


@pytest.mark.parametrize(
    ("which", "pattern", "other"),
    [
        ("record", r" skaddr;", " address;"),
        ("record", r"^ID: .*$", ""),
        ("record", r"(common_type;\toffset:0;\tsize:)2", r"\g<1>4"),
        ("record", r"(sport;\toffset:18;\tsize:)2", r"\g<1>3"),
        ("record", r"(netns;\toffset:)54", r"\g<1>50"),
        ("group", r" path;", " name;"),
        ("group", r"(id;\toffset:16;\tsize:)8", r"\g<1>4"),
        ("group", r"^ID: .*$", ""),
        ("closing", r" sent_again;", " again;"),
        ("closing", r"(received;\toffset:106;\tsize:)8", r"\g<1>7"),
        ("closing", r"^ID: .*$", ""),
        ("entry", r"27 bits", "28 bits"),
        ("page", r" commit;", " length;"),
    ],
)
def test_a_layout_that_is_not_known_is_refused(
    recorded: Recorded, which: str, pattern: str, other: str
) -> None:
    text = getattr(recorded.formats, which)
    changed, times = re.subn(pattern, other, text, count=1, flags=re.MULTILINE)
    assert times == 1
    with pytest.raises(ValueError, match="unknown layout"):
        read_layout(recorded.formats._replace(**{which: changed}))


def test_without_the_event_of_groups_none_are_told(recorded: Recorded) -> None:
    layout = read_layout(recorded.formats._replace(group=""))
    found = [decode_page(raw, layout) for raw in recorded.pages]
    assert sorted((some.groups, some.others) for some in found) == [([], 0), ([], 1)]
