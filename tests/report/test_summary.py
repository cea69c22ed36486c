"""The sums of any history of connections, against a plain count of the same; in bounded memory."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpwatchd.connection import Closed, Connection, Endpoint, Owner, TcpState
from tcpwatchd.output import event
from tcpwatchd.report import summary as module
from tcpwatchd.report.summary import SECOND, Summary
from tcpwatchd.report.tally import BYTES, RESETS, Tally, count
from tests.report.journals import TRUSTED, list_fields, make_connection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tcpwatchd.connection import ClosedBy, Direction

    Entry = tuple[int, dict[str, bytes]]

UNIT = "tcpwatchd.service"
BEGIN = 1_795_000_000_000_000
LENGTH = 60_000_000
"""Microseconds: the period begins a third of the history after its begin."""
SINCE = BEGIN + LENGTH // 3
DIRECTIONS: list[Direction] = ["ingress", "egress", "internal"]
OWNERS = [
    Owner(),
    Owner(user=33, unit="nginx.service", name="nginx"),
    Owner(user=1000, unit="user@1000.service", user_unit="app.service", name="app"),
    Owner(user=1000, unit="user@1000.service", name="ssh"),
    Owner(user=7, name="lone"),
]
SERVICES = [b"", b"nginx.service", b"user@1000.service/app.service", b"user@1000.service", b"process lone"]
TOP = 3


class Life(NamedTuple):
    """One connection, or with `number` many that are alike. Times are in microseconds from the begin."""

    peer: int
    port: int
    direction: int
    owner: int
    opened: int
    lasts: int
    """Longer than the history: it stays open."""
    number: int
    told: str
    by: ClosedBy | None
    sizes: tuple[int | None, int | None]


sizes = st.none() | st.integers(0, 10**9)
lives = st.builds(
    Life,
    st.integers(1, 5),
    st.sampled_from([22, 443]),
    st.integers(0, 2),
    st.integers(0, len(OWNERS) - 1),
    st.integers(0, LENGTH),
    st.integers(0, LENGTH),
    st.integers(2, 9),
    st.sampled_from(["single", "single", "startup", "folded when it opened", "folded"]),
    st.sampled_from(["fin", "reset", "timeout", None]),
    st.tuples(sizes, sizes),
)
histories = st.lists(lives, max_size=25)


def make(life: Life, index: int, source_port: int) -> Connection:
    """Each history has each pair of addresses and ports once."""
    peer, here = f"192.0.2.{life.peer}", f"10.0.{index}.1"
    source, destination = (peer, here) if life.direction == 0 else (here, peer)
    made = make_connection(
        f"{source}:{source_port}",
        f"{destination}:{life.port}",
        DIRECTIONS[life.direction],
        OWNERS[life.owner],
        (BEGIN + life.opened) * 1000,
    )
    made = made._replace(owner=OWNERS[life.owner])
    return made._replace(detected_by="startup") if life.told == "startup" else made


def close(life: Life, connection: Connection) -> Closed:
    ended = (BEGIN + life.opened + life.lasts) * 1000
    return Closed(connection, ended, life.by, None, *life.sizes, "trace")


def list_events(report: str, index: int, life: Life) -> Iterator[event.Event]:
    """What the daemon tells of it, with what it was told to report."""
    opened, ended = BEGIN + life.opened, BEGIN + life.opened + life.lasts
    is_many = life.told.startswith("folded")
    connections = [make(life, index, 40_000 + number) for number in range(life.number if is_many else 1)]
    first, number = connections[0], len(connections)
    if report != "closed":
        if is_many:
            yield event.connections_opened(first, number, opened, opened)
        else:
            yield event.connection_opened(first, opened)
    if report != "opened":
        if life.told == "folded":
            yield event.connections_closed(close(life, first), number, opened, ended)
        else:
            for one in connections:
                yield event.connection_closed(close(life, one), opened, ended)


def tell(report: str, history: list[Life]) -> list[Entry]:
    told = [
        (what.time, order, list_fields(what))
        for order, what in enumerate(
            what for index, life in enumerate(history) for what in list_events(report, index, life)
        )
    ]
    return [(time, fields) for time, _, fields in sorted(told, key=lambda entry: entry[:2])]


def sum_up(entries: list[Entry], report: str = "both", top: int = TOP) -> Summary:
    summary = Summary(SINCE, BEGIN + LENGTH, UNIT, top, was_telling=report != "closed")
    for written, fields in entries:
        if SINCE <= written <= BEGIN + LENGTH:
            summary.add(written, fields)
    assert summary.malformed == 0
    return summary


class Plain:
    """The same by a look at each connection, in no bounded memory."""

    def __init__(self, report: str, history: list[Life]) -> None:
        self.counted = Counter[int]()
        """How many of each life."""
        self.closed = Counter[int]()
        for index, life in enumerate(history):
            number = life.number if life.told.startswith("folded") else 1
            opens, ends = life.opened >= SINCE - BEGIN, life.opened + life.lasts
            closes = SINCE - BEGIN <= ends <= LENGTH
            if report != "opened" and closes:
                self.closed[index] = number
            if (opens and report != "closed") or (closes and report == "closed"):
                self.counted[index] = number

    def sum_by(
        self, find_key: Callable[[Life], object], history: list[Life], of: Counter[int]
    ) -> Counter[object]:
        found = Counter[object]()
        for index, number in of.items():
            found[find_key(history[index])] += number
        return found


@given(st.sampled_from(["opened", "closed", "both"]), histories)
def test_each_connection_counts_once(report: str, history: list[Life]) -> None:
    entries = tell(report, history)
    # A file that was copied tells all again.
    summary, plain = sum_up([*entries, *entries], report), Plain(report, history)
    assert summary.connections == sum(plain.counted.values())
    assert (summary.unpaired, summary.unknown_writers, dict(summary.others)) == (0, 0, {})
    by_direction = plain.sum_by(lambda life: life.direction, history, plain.counted)
    assert summary.directions == [by_direction[direction] for direction in range(3)]
    times = plain.sum_by(
        lambda life: (
            event.format_utc(max(SINCE, BEGIN + life.opened))[:SECOND].encode(),
            life.direction,
        ),
        history,
        plain.counted,
    )
    assert summary.times == times
    assert summary.closed == plain.sum_by(lambda life: (life.by or "").encode(), history, plain.closed)
    assert summary.folded == sum(
        number
        for index, number in plain.counted.items()
        if report != "closed" and history[index].told.startswith("folded")
    )
    assert summary.open_before == sum(
        report != "closed" and history[index].told == "startup" for index in plain.counted
    )


def test_a_connection_counts_in_one_of_two_periods_that_follow() -> None:
    """Wherever it closes, and however it is told."""
    lives = [
        Life(
            number % 5 + 1, 443, number % 3, 1, number * LENGTH // 60, LENGTH // 2, 2, "single", "fin", (1, 2)
        )
        for number in range(60)
    ]
    for report in ("opened", "closed", "both"):
        entries = tell(report, lives)
        counted = 0
        for begin, end in ((0, SINCE), (SINCE, BEGIN + 2 * LENGTH)):
            summary = Summary(begin, end, UNIT, TOP, was_telling=begin > 0 and report != "closed")
            for written, fields in entries:
                if begin <= written < end:
                    summary.add(written, fields)
            counted += summary.connections
        assert counted == 60


def test_hosts_that_tell_differently_do_not_disturb_each_other() -> None:
    folded = Life(1, 443, 0, 1, LENGTH // 2, 1000, 50, "folded", "fin", (1, 2))
    one = folded._replace(peer=2, told="single", opened=LENGTH // 2 - 100)
    closed = [(time, {**fields, "_HOSTNAME": b"web2"}) for time, fields in tell("closed", [folded])]
    opened = tell("opened", [one])
    for entries in ([*closed, *opened], [*opened, *closed]):
        assert sum_up(entries, "closed").connections == 51


def test_a_start_ends_what_was_told_before() -> None:
    """`Report=` can be another after it."""
    folded = Life(1, 443, 0, 1, LENGTH // 2, 1000, 50, "folded", "fin", (1, 2))
    start = SINCE + 1, list_fields(event.watch_started("1.0", 1.0, ipv6=True, now=SINCE + 1))
    assert sum_up([start, *tell("closed", [folded])], "both").connections == 50
    assert sum_up(tell("closed", [folded]), "both").connections == 0


def test_within_counts_for_the_services_at_both_ends() -> None:
    made = make_connection("127.0.0.1:5000", "127.0.0.1:5432", "internal", Owner(unit="app.service"))
    made = made._replace(listener=Owner(unit="db.service"), time=SINCE * 1000)
    summary = sum_up([(SINCE, list_fields(event.connection_opened(made, SINCE)))])
    assert {key: count(row) for key, row in summary.services.rows.items()} == {
        b"app.service": 1,
        b"db.service": 1,
    }
    assert list(summary.pairs.rows) == [(b"app.service", b"")]


def test_names_that_users_choose_are_no_services_of_the_machine() -> None:
    owners = [Owner(unit="ssh.service"), Owner(unit="user@7.service", user_unit="ssh.service"),
              Owner(name="ssh.service")]  # fmt: skip
    for number, owner in enumerate(owners, 1):
        made = make_connection(f"192.0.2.{number}:5000", "10.0.0.1:22", "ingress", owner, SINCE * 1000)
        entry = SINCE, list_fields(event.connection_opened(made, SINCE))
        assert list(sum_up([entry]).services.rows) == [
            [b"ssh.service", b"user@7.service/ssh.service", b"process ssh.service"][number - 1]
        ]


@given(st.sampled_from(["opened", "closed", "both"]), histories)
def test_rows_add_up(report: str, history: list[Life]) -> None:
    summary, plain = sum_up(tell(report, history), report), Plain(report, history)
    tallies: list[tuple[Tally, Callable[[Life], Any]]] = [
        (summary.services, lambda life: SERVICES[life.owner]),
        (summary.ports, lambda life: str(life.port).encode()),
        (summary.peers, lambda life: life.direction < 2 and find_peer(life)),
        (summary.pairs, lambda life: (SERVICES[life.owner], find_peer(life) if life.direction < 2 else b"")),
    ]
    for tally, find_key in tallies:
        counts, resets = Counter[Any](), Counter[Any]()
        for index, number in plain.counted.items():
            counts[find_key(history[index]), history[index].direction] += number
        for index, number in plain.closed.items():
            resets[find_key(history[index]), history[index].by == "reset"] += number
        sent = Counter[Any]()
        for index, number in plain.closed.items():
            life = history[index]
            times = number if life.told != "folded" else 1  # that has the sums
            sent[find_key(life)] += times * sum(size or 0 for size in life.sizes)
        keys = {key for key, _ in (*counts, *resets)} - {False}
        assert set(tally.rows) == keys
        for key, row in tally.rows.items():
            assert row[:3] == [counts[key, direction] for direction in range(3)]
            assert (row[RESETS], row[BYTES]) == (resets[key, True], sent[key])
        counted = {key for key, row in tally.rows.items() if any(row)}
        ranked = sorted(counted, key=lambda key: (-count(tally.rows[key]), -tally.rows[key][BYTES], key))
        assert [key for key, _ in tally.list_top(TOP)] == ranked[:TOP]


def find_peer(life: Life) -> bytes:
    return f"192.0.2.{life.peer}".encode()


@given(st.sampled_from(["closed", "both"]), histories)
def test_bytes_the_longest_and_the_largest(report: str, history: list[Life]) -> None:
    entries = tell(report, history)
    summary, plain = sum_up(entries, report), Plain(report, history)
    expected = [[0, 0], [0, 0], [0, 0]]
    durations, totals = [], []
    for index, number in plain.closed.items():
        life = history[index]
        times = number if life.told != "folded" else 1
        for side in range(2):
            expected[life.direction][side] += times * (life.sizes[side] or 0)
        if life.told == "folded":
            continue
        if life.told != "startup":
            durations += [life.lasts * 1000] * number
        if None not in life.sizes:
            totals += [sum(size or 0 for size in life.sizes)] * number
    assert summary.sizes == expected
    assert [value for value, _ in summary.longest.items] == sorted(durations, reverse=True)[:TOP]
    assert [value for value, _ in summary.largest.items] == sorted(totals, reverse=True)[:TOP]
    for value, flow in summary.longest.items:
        assert flow.duration == value
    for value, flow in summary.largest.items:
        assert flow.size == value
        closing = find_closing(entries, flow)
        assert int(closing["NETWORK_BYTES"]) == value


def find_closing(entries: list[Entry], flow: module.Flow) -> dict[str, bytes]:
    ends = *flow.source, *flow.destination
    names = "SOURCE_IP", "SOURCE_PORT", "DESTINATION_IP", "DESTINATION_PORT"
    (found,) = (
        fields
        for _, fields in entries
        if "EVENT_END" in fields and tuple(fields.get(name, b"") for name in names) == ends
    )
    assert found["EVENT_START"] == flow.start
    return found


def test_what_was_folded_when_it_opened_and_closes_one_by_one_counts_once() -> None:
    life = Life(1, 443, 1, 1, LENGTH // 2, 1_000_000, 5, "folded when it opened", "fin", (1, 2))
    summary = sum_up(tell("both", [life]))
    assert (summary.connections, summary.closed[b"fin"]) == (5, 5)


def test_a_period_with_a_service_that_reports_both_and_before_only_closed() -> None:
    """What opened when openings were not told counts as it closes, then too."""
    early = Life(1, 443, 0, 1, LENGTH // 2, LENGTH // 4, 2, "single", "fin", (1, 2))
    late = early._replace(opened=LENGTH // 2 + 1000, lasts=1000)
    entries = sorted(
        [*tell("closed", [early]), *tell("both", [late._replace(peer=2)])], key=lambda one: one[0]
    )
    assert sum_up(entries).connections == 2


# Bounded memory.


@settings(max_examples=40)
@given(st.lists(lives, min_size=15, max_size=40))
def test_with_too_many_names_none_has_more_than_is_told(history: list[Life]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_NAMES", 2)
        bounded = sum_up(tell("both", history))
    exact = sum_up(tell("both", history))
    for name in "services", "ports", "peers", "pairs":
        tally, known = getattr(bounded, name), getattr(exact, name)
        assert len(tally.rows) <= 4
        for key, row in known.rows.items():
            told = count(tally.rows[key]) if key in tally.rows else 0
            assert told <= count(row) <= told + tally.most_missed
    assert (bounded.connections, bounded.directions) == (exact.connections, exact.directions)


@settings(max_examples=40)
@given(st.lists(lives, min_size=15, max_size=40))
def test_with_too_many_open_what_may_count_twice_is_told(history: list[Life]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_OPEN", 3)
        bounded = sum_up(tell("both", history))
    exact = sum_up(tell("both", history)).connections
    assert exact <= bounded.connections <= exact + bounded.unpaired


def test_one_that_closes_after_it_was_forgotten_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_OPEN", 2)
    lives = [Life(number + 1, 443, 0, 1, LENGTH // 2 + number, LENGTH // 4, 2, "single", "fin", (1, 2))
             for number in range(7)]  # fmt: skip
    summary = sum_up(tell("both", lives))
    # Two at a time: the first four of seven.
    assert summary.connections == 7 + summary.unpaired
    assert summary.unpaired == 4


def test_what_others_can_write_takes_no_memory_without_bound() -> None:
    summary = Summary(SINCE, BEGIN + LENGTH, UNIT, TOP)
    fields = list_fields(event.trace_recovered(SINCE))
    for number in range(2000):
        summary.add(SINCE, {**fields, "_SYSTEMD_UNIT": b"other-%d.scope" % number})
        summary.add(SINCE, {**fields, "MESSAGE_ID": b"%032x" % number, "MESSAGE": b"x" * 100_000})
    assert sum(summary.others.values()) == 2000
    assert len(summary.others) <= module.MOST_SAID + 1
    assert len(summary.said) == module.MOST_SAID
    assert all(len(said.message) <= module.LONGEST_SAID for said in summary.said.values())


def test_times_that_are_not_of_the_period_take_no_memory() -> None:
    summary = Summary(SINCE, SINCE + 5_000_000, UNIT, TOP)
    for number in range(5000):
        opened = SINCE + (number - 2500) * 1_000_000
        made = make_connection(f"192.0.2.1:{number + 1}", "10.0.0.1:80", time=opened * 1000)
        summary.add(SINCE, list_fields(event.connection_opened(made, opened)))
    assert summary.connections == 5000
    assert len(summary.times) <= 7


# What is not as the daemon writes it.


def list_good() -> list[dict[str, bytes]]:
    made = make_connection("192.0.2.1:1024", "10.0.0.1:80", time=(SINCE + 1) * 1000)
    ended = Closed(made, (SINCE + 2) * 1000, "reset", "source", 3, 4, "trace")
    return [
        list_fields(what)
        for what in (
            event.connection_opened(made, SINCE + 1),
            event.connection_closed(ended, SINCE + 1, SINCE + 2),
            event.connections_opened(made, 5, SINCE + 1, SINCE + 2),
            event.connections_closed(ended, 5, SINCE + 1, SINCE + 2),
            event.records_lost(3, SINCE),
        )
    ]


def list_state(summary: Summary) -> dict[str, Any]:
    state: dict[str, Any] = {
        name: value
        for name, value in vars(summary).items()
        if name not in ("_moment", "_second", "_told", "_over", "_users", "malformed")
    }
    for name in "services", "ports", "peers", "pairs":
        state[name] = state[name].rows
    for name in "longest", "largest":
        state[name] = state[name].items
    return {**state, "entries": 0, "hosts": 0}


BAD: list[object] = [
    b"", b"x", b"-1", b"1_0", b" 1", b"9" * 400, b"2026-13-41T99:99:99.000000Z", b"2026-11-18T11", b"\xff\n",
    [b"a", b"b"],
]  # fmt: skip
NUMBERS = "SOURCE_BYTES", "DESTINATION_BYTES", "EVENT_COUNT", "TCPWATCHD_RECORDS_LOST", "DESTINATION_PORT"
CHECKED = {
    *NUMBERS, "EVENT_START", "NETWORK_DIRECTION", "EVENT_DURATION", "NETWORK_BYTES", "SOURCE_PORT",
    "TCPWATCHD_CLOSED_BY",
}  # fmt: skip


@pytest.mark.parametrize("good", range(5))
@pytest.mark.parametrize("bad", range(len(BAD)))
def test_an_entry_that_makes_no_sense_counts_nothing_and_breaks_nothing(good: int, bad: int) -> None:
    for name in list_good()[good]:
        if name in ("_SYSTEMD_UNIT", "_UID", *(TRUSTED if isinstance(BAD[bad], list) else ())):
            continue
        summary = Summary(SINCE, BEGIN + LENGTH, UNIT, TOP)
        before = list_state(summary)
        fields: dict[str, object] = {**list_good()[good], name: BAD[bad]}
        summary.add(SINCE, fields)  # type: ignore[arg-type]
        assert summary.entries == 1
        if summary.malformed:
            assert list_state(summary) == before, name
        elif name in CHECKED:
            assert list_state(summary) != before, name


@pytest.mark.parametrize("good", range(5))
def test_what_is_missing_is_told(good: int) -> None:
    needed = {"EVENT_START", "NETWORK_DIRECTION", "SOURCE_IP", "DESTINATION_IP", "DESTINATION_PORT"}
    for name in needed & set(list_good()[good]):
        summary = Summary(SINCE, BEGIN + LENGTH, UNIT, TOP)
        fields = list_good()[good]
        del fields[name]
        summary.add(SINCE, fields)
        assert (summary.malformed, summary.connections, len(summary.services.rows)) == (1, 0, 0)


# What the daemon says of itself.


def test_what_is_said_is_summed_up_by_kind() -> None:
    summary = Summary(SINCE, BEGIN + LENGTH, UNIT, TOP)
    totals = dict.fromkeys(
        ("reported", "reported_closed", "folded", "folded_closed", "ignored", "unreported", "unwritten"), 0
    )
    said = [
        event.records_lost(3, SINCE + 1),
        event.records_lost(4, SINCE + 2),
        event.connections_missed(5, 6, SINCE + 3),
        event.connections_untold(7, SINCE + 4),
        event.watch_started("1.0", 1.0, ipv6=True, now=SINCE + 5),
        event.connections_counted(SINCE, [("/etc/a, 9 by b.conf:3", 8), ("b:1", 9)], 0, 0, totals, SINCE + 6),
    ]
    for what in said:
        summary.add(what.time, list_fields(what))
    assert summary.sums == {
        "TCPWATCHD_RECORDS_LOST": 7,
        "TCPWATCHD_MISSED_INBOUND": 12,
        "TCPWATCHD_MISSED_OUTBOUND": 6,
    }
    lost = summary.said[event.RECORDS_LOST.encode()]
    assert (lost.times, lost.last) == (2, SINCE + 2)
    assert lost.message.startswith(b"The kernel's trace lost 4 records")
    assert event.WATCH_STARTED.encode() not in summary.said
    assert summary.connections == summary.malformed == 0


def test_what_another_unit_writes_does_not_count() -> None:
    summary = Summary(SINCE, BEGIN + LENGTH, UNIT, TOP)
    forged = list_good()[0]
    summary.add(SINCE, {**forged, "_SYSTEMD_UNIT": b"evil.service"})
    assert (summary.connections, summary.others) == (0, {b"evil.service": 1})
    del forged["_SYSTEMD_UNIT"]
    summary.add(SINCE, forged)
    assert (summary.connections, summary.others[b""]) == (0, 1)


def test_what_journald_knows_the_user_of_alone_counts_if_the_unit_ran_as_that() -> None:
    summary = Summary(SINCE, BEGIN + LENGTH, UNIT, TOP)
    summary.add(SINCE, list_good()[4])
    last_words = list_good()[0]
    del last_words["_SYSTEMD_UNIT"]
    summary.add(SINCE, {**last_words, "_UID": b"1000"})
    assert (summary.connections, summary.unknown_writers) == (0, 0)
    summary.add(SINCE, last_words)
    assert (summary.connections, summary.unknown_writers) == (1, 1)


@pytest.mark.parametrize(
    "name", ["_SYSTEMD_UNIT", "_UID", "_HOSTNAME", "PROCESS_NAME", "SOURCE_IP", "MESSAGE_ID"]
)
def test_a_field_given_twice_counts_nothing(name: str) -> None:
    """As journald itself never has it of these; another host's journal can."""
    made = make_connection("192.0.2.1:1024", "10.0.0.1:80", "ingress", Owner(name="x"), (SINCE + 1) * 1000)
    fields: dict[str, Any] = list_fields(event.connection_opened(made, SINCE + 1))
    summary = Summary(SINCE, BEGIN + LENGTH, UNIT, TOP)
    twice: dict[str, Any] = {**fields, name: [b"a", b"b"]}
    summary.add(SINCE, twice)
    assert (summary.connections, summary.malformed) == (0, 1)
    assert not summary.times


def test_names_without_end_take_no_memory() -> None:
    summary = Summary(SINCE, BEGIN + LENGTH, UNIT, TOP)
    for number in range(1000):
        made = make_connection(f"192.0.2.1:{number + 1}", "10.0.0.1:80", time=(SINCE + 1) * 1000)
        fields = list_fields(event.connection_opened(made, SINCE + 1))
        summary.add(SINCE, {**fields, "_HOSTNAME": b"host%d" % number})
        another = {**fields, "SOURCE_PORT": b"%d" % (20_000 + number)}
        summary.add(SINCE, {**another, "PROCESS_SYSTEMD_UNIT": b"%d" % number + b"x" * 60_000})
    assert len(summary.hosts) <= module.MOST_SAID + 1
    assert len(summary.services.rows) == 1
    assert (summary.connections, summary.malformed) == (1000, 1000)


def test_ipv6_and_endpoints_of_the_model() -> None:
    end = Endpoint(bytes(15) + b"\x09" + (443).to_bytes(2, "big"))
    made = Connection(end, end, "egress", TcpState.ESTABLISHED, "poll", SINCE * 1000)
    summary = sum_up([(SINCE, list_fields(event.connection_opened(made, SINCE)))])
    assert list(summary.peers.rows) == [b"::9"]
