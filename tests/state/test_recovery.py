"""Random histories through the whole line, with a process that ends at any point and another that goes on."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpwatchd.clock import boot_ns
from tcpwatchd.connection import End, TcpState, Transition
from tcpwatchd.kernel.trace import Trace
from tcpwatchd.output import event
from tcpwatchd.owners.owners import Owners
from tcpwatchd.pipeline import Pipeline
from tcpwatchd.policy.folding import Limit
from tcpwatchd.policy.policy import Selection
from tcpwatchd.policy.rules import Rule, compile_rule
from tcpwatchd.policy.scans import HOLD, ScanLimits
from tcpwatchd.state.store import Store
from tests.model import TICK, Kernel, Step, pack
from tests.ring import Ring
from tests.table import write_counters
from tests.tracking.test_histories import histories

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tcpwatchd.connection import Report
    from tcpwatchd.output.event import Event

HELD = 0.06
REPORTS: tuple[Report, ...] = ("opened", "closed", "both")


def make_rules(*lines: str) -> list[Rule]:
    split = [line.partition("=") for line in lines]
    return [compile_rule(action, text, "/etc/x", n, int) for n, (action, _, text) in enumerate(split, 1)]


ALL = Selection()
POLICIES: tuple[Selection, ...] = (
    ALL,
    Selection([], Limit(1, 2 * TICK)),
    Selection(make_rules("Ignore=port 80", "Notice=port 40001")),
    Selection(make_rules("Warning=port 80", "Ignore=ip6"), Limit(2, 1000 * TICK)),
    Selection(scan=ScanLimits(1, 2 * TICK, None, 2, 1000 * TICK, (), (), 64)),
)
Ends = tuple[tuple[str, str], tuple[str, str]]


class Killed(BaseException):
    """The process ended here."""


class Reader:
    """A sink that keeps what it is given. It can be stuck, and it can be the place where the process ends."""

    fileno: int | None = None

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.stuck = False
        self.deadly_after: int | None = None

    def reach(self) -> bool:
        return True

    def is_ready(self) -> bool:
        return not self.stuck

    def write(self, new: Event) -> bool:
        self.events.append(new)
        if self.deadly_after is not None:
            self.deadly_after -= 1
            if self.deadly_after < 0:
                raise Killed
        return True


class Machine:
    """The model of a kernel, its trace in a pipe, and one process after another that watches it."""

    def __init__(self, folder: Path, report: Report = "opened", policy: Selection = ALL) -> None:
        for name in ("net", "trace", "run"):
            (folder / name).mkdir()
        write_counters(folder / "net")
        self._folder = folder
        self.report: Report = report
        self.policy = policy
        closing = report != "opened"
        self.kernel = Kernel(folder / "net", closing=closing)
        self._ring = Ring(folder / "trace", closing)
        self.reader = Reader()
        self.again = 0
        """Connections that can have been written twice."""
        self.slipped = 0
        """Records that were taken out and not put aside."""
        self._start()

    def _start(self) -> None:
        self._ring.count(read=False)
        self._trace = Trace(str(self._folder / "trace"))
        self._store = Store(str(self._folder / "run"))
        self.pipeline = Pipeline(
            self.reader,
            self._store,
            self._trace,
            Owners(0),
            root=str(self._folder / "net"),
            report=self.report,
            selection=self.policy,
        )
        self.pipeline.resume()
        self._ring.count(read=True)
        self._poll(0, 0)

    def crash(self) -> None:
        self.close()
        self._start()

    def close(self) -> None:
        """What the end of a process closes."""
        self._trace.close()
        self._store.close()

    def take(self, step: Step) -> None:
        name, which, what = step
        if name in ("poll", "drain", "crash", "die", "slip", "restart", "stick", "switch", "reload"):
            self._pass_records()
            getattr(self, f"_{name}")(which, what)
        else:
            self.kernel.clock = boot_ns() - TICK
            self.kernel.take(step)

    def _pass_records(self) -> None:
        self._ring.write(self.kernel.drain())
        self._ring.count(read=True)

    def tell(self, *transitions: Transition, lost: int = 0) -> None:
        """Records that the model did not make, and how many were lost before them."""
        self._ring.write(transitions, lost)
        self._ring.count(read=True)

    def _poll(self, _which: int, _what: int) -> None:
        self.kernel.poll(iter(()), 0)
        self.pipeline.poll()

    def _drain(self, _which: int, _what: int) -> None:
        self.pipeline.drain()
        self.pipeline.send()

    def _stick(self, _which: int, what: int) -> None:
        self.reader.stuck = bool(what)

    def _crash(self, _which: int, _what: int) -> None:
        self.crash()

    def _die(self, which: int, _what: int) -> None:
        """In the middle of writing: what was written was not marked yet."""
        self.reader.deadly_after = which
        before = len(self.reader.events)
        try:
            self._drain(0, 0)
        except Killed:
            again = self.reader.events[before:]
            self.again += sum(int(fields.get("EVENT_COUNT", 1)) for _, fields in again)
        self.reader.deadly_after = None
        self.crash()

    def _slip(self, _which: int, _what: int) -> None:
        """Between taking out and putting aside."""
        before = self._ring.count_unread()
        self._ring.steal()
        self.slipped += before
        self.crash()

    def _restart(self, _which: int, _what: int) -> None:
        assert self.pipeline.finish(lambda _totals: event.poll_recovered(1, 0), time.monotonic() + 0.01) == 0
        self.crash()

    def _switch(self, which: int, what: int) -> None:
        """To another way to report, by a restart or after a kill."""
        self.report = REPORTS[which % 3]
        if what:
            self._restart(0, 0)
        else:
            self.crash()

    def _reload(self, which: int, what: int) -> None:
        """Another policy: without a restart, or found by the next process."""
        self.policy = POLICIES[which % len(POLICIES)]
        if what:
            self.pipeline.switch(self.policy)
        else:
            self.crash()

    def run(self, steps: list[Step]) -> None:
        for step in steps:
            self.take(step)
        self.reader.stuck = False
        self.take(("drain", 0, 0))
        time.sleep(HELD)
        self.take(("drain", 0, 0))
        while self.pipeline.outbox.waiting:
            self.pipeline.send()
        self.close()
        self._ring.close()

    def count(self) -> tuple[Counter[Ends], Counter[Ends]]:
        """What opened, and what was written."""
        truth = Counter(
            tuple((end[0], str(end[1])) for end in (link.client, link.server)) for link in self.kernel.links
        )
        written: Counter[Ends] = Counter()
        for _, fields in self.reader.events:
            if fields["MESSAGE_ID"] == event.CONNECTION_OPENED:
                source, destination = (
                    (fields[f"{end}_IP"], fields[f"{end}_PORT"]) for end in ("SOURCE", "DESTINATION")
                )
                # Where a poll could only guess, it can be the other way round.
                turned = fields["TCPWATCHD_DIRECTION"] == "guessed" and (source, destination) not in truth
                written[(destination, source) if turned else (source, destination)] += 1
        return truth, written  # type: ignore[return-value]

    def count_closed(self) -> tuple[Counter[Ends], Counter[Ends]]:
        """What closed, and of what it was written."""
        truth = Counter(
            tuple((end[0], str(end[1])) for end in (link.client, link.server))
            for link in self.kernel.links
            if all(socket.closed_at for socket in link.sockets if socket.network)
        )
        written = Counter(
            tuple((fields[f"{end}_IP"], fields[f"{end}_PORT"]) for end in ("SOURCE", "DESTINATION"))
            for _, fields in self.reader.events
            if fields["MESSAGE_ID"] == event.CONNECTION_CLOSED
        )
        return truth, written  # type: ignore[return-value]

    def sum_up(self) -> tuple[int, int]:
        """How many were folded, and how many ignored, as far as it was told."""
        folded = ignored = 0
        for _, fields in self.reader.events:
            if fields["MESSAGE_ID"] == event.CONNECTIONS_OPENED:
                folded += int(fields["EVENT_COUNT"])
            elif fields["MESSAGE_ID"] == event.CONNECTIONS_COUNTED:
                by_rule = fields["TCPWATCHD_IGNORED_BY"].split(", ")
                ignored += sum(int(text.split()[0]) for text in by_rule if text)
        return folded, ignored

    def count_lost(self) -> int:
        told = [fields for _, fields in self.reader.events if fields["MESSAGE_ID"] == event.RECORDS_LOST]
        return sum(int(fields["TCPWATCHD_RECORDS_LOST"]) for fields in told)


def play(steps: list[Step], report: Report = "opened", policy: Selection = ALL) -> Machine:
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Path(folder), report, policy)
        machine.run(steps)
        return machine


def test_what_it_said_is_not_said_again(tmp_path: Path) -> None:
    """Though it waited when the baseline was saved."""
    machine = Machine(tmp_path)
    machine.pipeline.report(event.poll_failed("gone", 0))
    machine.take(("poll", 0, 0))
    machine.take(("drain", 0, 0))
    machine.crash()
    machine.run([])
    assert [fields["MESSAGE_ID"] for _, fields in machine.reader.events] == [event.POLL_FAILED]


def test_what_is_held_at_a_kill_waits_for_its_other_end(tmp_path: Path) -> None:
    """The record of the accepting end is still in the kernel when the next process goes on."""
    machine = Machine(tmp_path)
    end = End(pack(("10.0.0.1", 5000)), pack(("10.0.0.2", 80)))
    start = boot_ns()
    machine.tell(Transition(start, 7, TcpState.SYN_SENT, TcpState.ESTABLISHED, end, 1))
    machine.pipeline.drain()
    machine.tell(Transition(start + 10 * TICK, 8, TcpState.SYN_RECV, TcpState.ESTABLISHED, end.flipped, 1))
    time.sleep(HELD)
    machine.crash()
    machine.run([])
    found = [fields for _, fields in machine.reader.events if fields["MESSAGE_ID"] == event.CONNECTION_OPENED]
    assert [fields["NETWORK_DIRECTION"] for fields in found] == ["internal"]


def test_what_was_released_and_written_before_a_kill_is_not_repeated(tmp_path: Path) -> None:
    """Though the drain that released it took nothing out, and is not in the log."""
    machine = Machine(tmp_path)
    end = End(pack(("10.0.0.1", 5000)), pack(("198.51.100.7", 80)))
    start = boot_ns()
    machine.tell(Transition(start, 7, TcpState.SYN_SENT, TcpState.ESTABLISHED, end, 1))
    machine.take(("drain", 0, 0))
    time.sleep(HELD)
    machine.take(("drain", 0, 0))
    machine.crash()
    machine.run([])
    assert len(machine.reader.events) == 1


def test_what_a_loss_shows_to_be_over_is_told_as_before_a_kill(tmp_path: Path) -> None:
    """The record that the first one closed is lost; what comes after it is told once."""
    machine = Machine(tmp_path, "both")
    server = pack(("10.0.0.5", 80))

    def accept(port: int, skaddr: int) -> Transition:
        end = End(server, pack(("192.0.2.1", port)))
        return Transition(boot_ns(), skaddr, TcpState.SYN_RECV, TcpState.ESTABLISHED, end, 1)

    machine.tell(accept(1000, 7))
    machine.take(("drain", 0, 0))
    machine.tell(accept(1000, 9), lost=1)
    machine.take(("drain", 0, 0))
    machine.tell(accept(2000, 11))
    machine.pipeline.drain()
    machine.crash()
    machine.run([])
    kinds = {event.CONNECTION_OPENED: "opened", event.CONNECTION_CLOSED: "closed"}
    told = [
        (kinds[fields["MESSAGE_ID"]], fields["SOURCE_PORT"])
        for _, fields in machine.reader.events
        if fields["MESSAGE_ID"] in kinds
    ]
    assert told == [("opened", "1000"), ("closed", "1000"), ("opened", "1000"), ("opened", "2000")]


FEWER = settings(max_examples=max(10, settings().max_examples // 5))


@FEWER
@given(histories("drain", "crash", "restart", "stick"))
def test_whenever_it_ends_each_connection_is_written_once(steps: list[Step]) -> None:
    machine = play(steps)
    truth, written = machine.count()
    assert written == truth
    assert machine.count_lost() == 0


@FEWER
@given(histories("drain", "die", "stick"))
def test_killed_while_it_writes_it_repeats_that_batch_at_most(steps: list[Step]) -> None:
    machine = play(steps)
    truth, written = machine.count()
    assert not truth - written
    assert sum((written - truth).values()) <= machine.again


@FEWER
@given(histories("drain", "slip"))
def test_what_slips_between_reading_and_putting_aside_is_counted(steps: list[Step]) -> None:
    machine = play(steps)
    truth, written = machine.count()
    assert not written - truth
    assert machine.count_lost() == machine.slipped
    assert sum((truth - written).values()) <= machine.slipped


@FEWER
@given(histories("drain", "crash", "restart", "stick"))
def test_whenever_it_ends_each_connection_is_closed_once(steps: list[Step]) -> None:
    machine = play(steps, "both")
    (opened, written), (closed, written_closed) = machine.count(), machine.count_closed()
    assert (written, written_closed) == (opened, closed)
    assert machine.count_lost() == 0


@FEWER
@given(histories("drain", "die", "stick"))
def test_killed_while_it_writes_what_closes_it_repeats_that_batch_at_most(steps: list[Step]) -> None:
    machine = play(steps, "both")
    (opened, written), (closed, written_closed) = machine.count(), machine.count_closed()
    assert not opened - written
    assert not closed - written_closed
    assert sum((written - opened + written_closed - closed).values()) <= machine.again


@FEWER
@given(histories("drain", "crash", "restart", "stick", "switch"))
def test_however_the_report_is_switched_none_is_left_out_or_told_twice(steps: list[Step]) -> None:
    machine = play(steps, "closed")
    (opened, written), (closed, written_closed) = machine.count(), machine.count_closed()
    assert not written - opened
    assert not written_closed - closed
    assert not closed - written - written_closed
    if machine.report != "closed":
        assert not opened - written - written_closed


END_OF_ALL: list[Step] = [("stick", 0, 0), ("restart", 0, 0)]


@FEWER
@given(histories("drain", "crash", "restart", "stick", "reload"))
def test_whatever_is_ignored_and_folded_all_add_up(steps: list[Step]) -> None:
    """Over kills, restarts and changes of the rules."""
    machine = play([*steps, *END_OF_ALL])
    truth, written = machine.count()
    folded, ignored = machine.sum_up()
    assert not written - truth
    assert sum(written.values()) + folded + ignored == sum(truth.values())


@FEWER
@given(st.sampled_from(POLICIES), histories("drain", "crash", "restart", "stick"))
def test_just_what_the_rules_say_is_ignored(policy: Selection, steps: list[Step]) -> None:
    machine = play([*steps, *END_OF_ALL], policy=policy)
    truth, written = machine.count()
    folded, ignored = machine.sum_up()
    wanted = Counter({ends: n for ends, n in truth.items() if find_action(policy, ends) != "Ignore"})
    assert not written - wanted
    assert sum(written.values()) + folded == sum(wanted.values())
    assert ignored == sum(truth.values()) - sum(wanted.values())
    if policy[1] is None:
        assert written == wanted


def find_action(policy: Selection, ends: Ends) -> str:
    """Of the first rule that matches."""
    words = describe_ends(ends)
    return next((rule.action for rule in policy.rules if rule.text in words), "Report")


def describe_ends(ends: Ends) -> set[str]:
    """In the words of rules."""
    ports = {f"port {port}" for _, port in ends}
    return ports | ({"ip6"} if ":" in ends[0][0] else {"ip"})


class Crowd(Machine):
    """Many connections from few sources."""

    def __init__(self, folder: Path, policy: Selection, report: Report) -> None:
        super().__init__(folder, report, policy)
        self.told: Counter[str] = Counter()

    def _come(self, which: int, what: int) -> None:
        """So many from one source, a record apart."""
        source = f"192.0.2.{which}"
        for _ in range(1 + 3 * what):
            self.told[source] += 1
            skaddr = sum(self.told.values())
            end = End(pack(("10.0.0.5", 80)), pack((source, 1024 + skaddr)))
            opened = Transition(boot_ns(), skaddr, TcpState.SYN_RECV, TcpState.ESTABLISHED, end, 1)
            self.tell(opened)
            if self.report != "opened":
                self.tell(opened._replace(time=boot_ns(), old=TcpState.LAST_ACK, new=TcpState.CLOSE))

    def _pause(self, _which: int, _what: int) -> None:
        time.sleep(3 * TICK / 1e9)

    def _settle(self, _which: int, _what: int) -> None:
        self.pipeline.settle()

    def take(self, step: Step) -> None:
        name, which, what = step
        getattr(self, f"_{name}")(which, what)

    def count_by_source(self, one: str, many: str) -> Counter[str]:
        """What was written, one by one or many in one entry."""
        counted: Counter[str] = Counter()
        for _, fields in self.reader.events:
            if fields["MESSAGE_ID"] in (one, many):
                counted[fields["SOURCE_IP"]] += int(fields.get("EVENT_COUNT", 1))
        return counted


FOLDED = Selection([], Limit(1, 2 * TICK)), Selection([], Limit(2, 1000 * TICK))
COMING = "come", "come", "come", "drain", "drain", "pause", "poll", "settle", "stick"


def crowds(*names: str) -> st.SearchStrategy[list[Step]]:
    step = st.tuples(st.sampled_from([*COMING, *names]), st.integers(0, 2), st.integers(0, 1))
    return st.lists(step, min_size=10, max_size=60)


@FEWER
@given(
    st.sampled_from(FOLDED),
    st.sampled_from(["opened", "closed", "both"]),
    crowds("crash", "restart", "reload"),
)
def test_what_is_folded_adds_up(policy: Selection, report: Report, steps: list[Step]) -> None:
    """Over kills, restarts and changes of the rules, what opens as what closes."""
    with tempfile.TemporaryDirectory() as folder:
        machine = Crowd(Path(folder), policy, report)
        machine.run([*steps, *END_OF_ALL])
        ignored = machine.sum_up()[1]
        opened = machine.count_by_source(event.CONNECTION_OPENED, event.CONNECTIONS_OPENED)
        closed = machine.count_by_source(event.CONNECTION_CLOSED, event.CONNECTIONS_CLOSED)
        for counted in [opened] * (report != "closed") + [closed] * (report != "opened"):
            assert not counted - machine.told
            assert sum(counted.values()) + ignored == sum(machine.told.values())


@FEWER
@given(st.sampled_from(FOLDED), crowds("die"))
def test_killed_while_it_writes_what_is_folded_it_repeats_that_batch_at_most(
    policy: Selection, steps: list[Step]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        machine = Crowd(Path(folder), policy, "opened")
        machine.run([*steps, *END_OF_ALL])
        counted = machine.count_by_source(event.CONNECTION_OPENED, event.CONNECTIONS_OPENED)
        assert not machine.told - counted
        assert sum((counted - machine.told).values()) <= machine.again


@pytest.mark.parametrize("poll", [False, True])
def test_what_was_folded_and_written_before_a_kill_is_not_repeated(tmp_path: Path, poll: bool) -> None:
    """Though it was written as its time was over, and nothing came that would tell so again."""
    machine = Crowd(tmp_path, Selection([], Limit(1, 200 * TICK)), "opened")
    for step in [("come", 0, 1), ("drain", 0, 0), *[("poll", 0, 0)] * 4 * poll]:
        machine.take(step)
    time.sleep(0.2)
    machine.run([("settle", 0, 0), ("drain", 0, 0), ("crash", 0, 0)])
    counted = machine.count_by_source(event.CONNECTION_OPENED, event.CONNECTIONS_OPENED)
    assert (counted, machine.sum_up()[0]) == (machine.told, 3)


FIRST_PORT = 1000
LIMITS = ScanLimits(3, 3600 * 1000 * TICK, None, None, 3600 * 1000 * TICK, (), (), 64)


class Scanned(Crowd):
    """Sources that try one port after the other, so long ago that a scan is told when it is found."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, Selection(scan=LIMITS), "opened")

    def _come(self, which: int, what: int) -> None:
        source = f"192.0.2.{which}"
        for _ in range(1 + what):
            end = End(pack(("10.0.0.5", FIRST_PORT + self.told[source])), pack((source, 40000)))
            self.told[source] += 1
            self.tell(Transition(boot_ns() - HOLD, id(end), TcpState.SYN_RECV, TcpState.ESTABLISHED, end, 1))

    def list_scans(self) -> dict[str, list[Mapping[str, str]]]:
        found: dict[str, list[Mapping[str, str]]] = {}
        for _, fields in self.reader.events:
            if fields["MESSAGE_ID"] == event.PORT_SCAN:
                found.setdefault(fields["SOURCE_IP"], []).append(fields)
        return found


@FEWER
@given(crowds("crash", "restart"))
def test_a_scan_is_told_once_whenever_it_ends(steps: list[Step]) -> None:
    """In the window; and with all that it had tried."""
    with tempfile.TemporaryDirectory() as folder:
        machine = Scanned(Path(folder))
        machine.run([*steps, ("stick", 0, 0), ("drain", 0, 0), ("settle", 0, 0), ("drain", 0, 0)])
        scans = machine.list_scans()
        assert scans.keys() == {source for source, tried in machine.told.items() if tried > LIMITS.ports}
        for source, entries in scans.items():
            (told,) = entries
            number = int(told["EVENT_COUNT"])
            assert LIMITS.ports < number <= machine.told[source]
            assert told["TCPWATCHD_OPEN_PORTS"] == f"{FIRST_PORT}-{FIRST_PORT + number - 1}"
        opened = machine.count_by_source(event.CONNECTION_OPENED, event.CONNECTIONS_OPENED)
        assert opened == machine.told


@FEWER
@given(crowds("die"))
def test_killed_while_it_writes_a_scan_it_repeats_that_at_most(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        machine = Scanned(Path(folder))
        machine.run([*steps, ("stick", 0, 0), ("drain", 0, 0), ("settle", 0, 0), ("drain", 0, 0)])
        scans = machine.list_scans()
        assert scans.keys() == {source for source, tried in machine.told.items() if tried > LIMITS.ports}
        for entries in scans.values():
            assert all(entry == entries[0] for entry in entries)
        assert sum(map(len, scans.values())) - len(scans) <= machine.again
