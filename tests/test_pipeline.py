"""What the pipeline asks the loop for."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from tcpwatchd.clock import boot_ns, now
from tcpwatchd.connection import End, TcpState, Transition
from tcpwatchd.kernel.instance import RESETS
from tcpwatchd.kernel.resets import Resets
from tcpwatchd.kernel.trace import Trace
from tcpwatchd.output import event
from tcpwatchd.output.metrics import PREFIX
from tcpwatchd.owners.owners import Owners
from tcpwatchd.owners.users import Users
from tcpwatchd.pipeline import REPORT_ALL, TALLY_EVERY, Pipeline
from tcpwatchd.policy.folding import Limit
from tcpwatchd.policy.policy import Selection
from tcpwatchd.policy.rules import compile_rule
from tcpwatchd.policy.scans import HOLD, MOST_SCANS, ScanLimits
from tcpwatchd.service.notify import Notifier
from tcpwatchd.service.signals import Signals
from tcpwatchd.state.store import Store
from tcpwatchd.watch import Reloaded, Watch
from tests.kept import END, HERE
from tests.model import pack
from tests.output.test_metrics import parse
from tests.ring import COUNTED, MISSED, Ring, make_instance, pack_reset, page
from tests.state.test_recovery import Reader
from tests.table import endpoint4, row, write_counters, write_tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

OTHER = End(HERE, pack(("192.0.2.57", 5002)))


class Watched:
    """A pipeline over tables and instances made of files, in one folder."""

    def __init__(self, folder: Path, selection: Selection = REPORT_ALL) -> None:
        for name in ("net", "trace", "run", "resets"):
            (folder / name).mkdir()
        self.net, self.instance, self.run = folder / "net", folder / "trace", folder / "run"
        self.selection, self.of_resets = selection, folder / "resets"
        make_instance(self.of_resets, b"", event=RESETS)
        self.statistics = self.instance / "per_cpu/cpu0/stats"
        write_counters(self.net)
        self.show()
        self.ring = Ring(self.instance)
        self.reader = Reader()
        self.start()

    def start(self) -> None:
        self.trace = Trace(str(self.instance))
        self.store = Store(str(self.run))
        self.users = Broken()
        owners = Owners(0, users=self.users)
        self.resets = Resets(str(self.of_resets))
        self.pipeline = Pipeline(self.reader, self.store, self.trace, owners, root=str(self.net),
                                 selection=self.selection, resets=self.resets)  # fmt: skip
        self.pipeline.resume()
        self.poll()

    def end(self) -> None:
        """As a process that is killed."""
        self.trace.close()
        self.resets.close()
        self.store.close()

    def show(self, *ends: End) -> None:
        pairs = [[endpoint4(endpoint.ip, endpoint.port) for endpoint in end] for end in ends]
        rows = [row(number, here, there, 1, 100) for number, (here, there) in enumerate(pairs)]
        write_tables(self.net, rows, [])

    def tell(self, *ends: End, ago: int = 0) -> None:
        """That these were accepted just now, or so many nanoseconds ago."""
        for end in ends:
            opened = Transition(boot_ns() - ago, id(end), TcpState.SYN_RECV, TcpState.ESTABLISHED, end, 1)
            self.ring.write([opened])
        self.ring.count(read=True)

    def refuse(self, *ports: int, ago: int = 0, source: str = "192.0.2.56", lost: int = 0) -> None:
        """That these were closed."""
        entries = [pack_reset(pack((HERE.ip, port)), pack((source, 40000)), delta=0) for port in ports]
        flags = {"flags": MISSED | COUNTED, "lost": lost} if lost else {}
        pipe = os.open(self.of_resets / "per_cpu/cpu0/trace_pipe_raw", os.O_WRONLY | os.O_NONBLOCK)
        os.write(pipe, page(boot_ns() - ago, *entries, **flags))
        os.close(pipe)

    def list_told(self, message_id: str) -> list[Mapping[str, str]]:
        return [new.fields for new in self.reader.events if new.fields["MESSAGE_ID"] == message_id]

    def poll(self) -> None:
        self.pipeline.poll()
        self.pipeline.send()

    def drain(self) -> None:
        self.pipeline.drain()
        self.pipeline.send()

    def count(self, message_id: str) -> int:
        return sum(new.fields["MESSAGE_ID"] == message_id for new in self.reader.events)


class Broken(Users):
    """Names of users, which something unheard of keeps from being found."""

    broken = False

    def refresh(self) -> bool:
        if self.broken:
            raise MemoryError("no memory for names")
        return super().refresh()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    made = Watched(tmp_path)
    yield made
    made.end()
    made.ring.close()


def test_what_a_poll_finds_before_records_that_were_left_behind(watched: Watched) -> None:
    """A drain that goes on after one that failed half-way does not take out what came since."""
    watched.tell(END)
    good = watched.statistics.read_text()
    watched.statistics.write_text("nothing that is known")
    watched.drain()
    assert watched.count(event.TRACE_FAILED) == 1
    watched.statistics.write_text(good)
    watched.tell(OTHER)
    watched.show(END, OTHER)
    watched.poll()
    watched.drain()
    watched.drain()
    assert watched.count(event.CONNECTION_OPENED) == 2
    assert watched.count(event.TRACE_RECOVERED) == 1


def test_buffers_that_were_emptied_are_noticed_without_a_record(watched: Watched) -> None:
    watched.tell(END)
    watched.drain()
    watched.statistics.write_text("entries: 0\noverrun: 0\nread events: 0\n")
    write_counters(watched.net, inbound=50)
    before = now()
    watched.poll()
    assert (watched.count(event.TRACE_CHANGED), watched.count(event.TRACE_GAP)) == (1, 1)
    assert watched.pipeline.totals["missed_inbound"] == 49
    (gap,) = (new for new in watched.reader.events if new.fields["MESSAGE_ID"] == event.TRACE_GAP)
    assert gap.fields["EVENT_START"] < event.format_utc(before)
    watched.poll()
    assert watched.count(event.TRACE_CHANGED) == 1


def test_records_that_somebody_else_took_are_missed_by_the_kernels_counters(watched: Watched) -> None:
    """Told when the next poll finds them missing too: a record can come a moment after its count."""
    write_counters(watched.net, inbound=40)
    watched.poll()
    assert watched.count(event.CONNECTIONS_UNTOLD) == 0
    watched.tell(END)
    watched.drain()
    watched.poll()
    assert watched.pipeline.totals["missed_inbound"] == 39
    watched.poll()
    assert watched.count(event.CONNECTIONS_UNTOLD) == 1
    write_counters(watched.net, inbound=41)
    watched.tell(OTHER)
    watched.poll()
    watched.poll()
    assert watched.count(event.CONNECTIONS_UNTOLD) == 1


def test_a_poll_that_fails_does_not_forget_that_the_trace_was_not_sound(watched: Watched) -> None:
    (watched.instance / "tracing_on").write_text("0\n")
    write_counters(watched.net, inbound=50)
    table = watched.net / "tcp"
    table.rename(watched.net / "hidden")
    with pytest.raises(FileNotFoundError):
        watched.poll()
    (watched.net / "hidden").rename(table)
    watched.poll()
    assert watched.pipeline.totals["missed_inbound"] == 50
    assert watched.count(event.TRACE_GAP) == 1


def test_a_gap_is_told_by_the_next_process_though_the_instance_is_right_then(watched: Watched) -> None:
    """Also on a machine where nothing else changed since the last save."""
    watched.poll()
    clock = watched.instance / "trace_clock"
    clock.unlink()
    clock.mkdir()
    watched.poll()
    assert (watched.count(event.TRACE_CHANGED), watched.count(event.TRACE_GAP)) == (1, 0)
    watched.end()
    clock.rmdir()
    clock.write_text("local [boot]\n")
    watched.start()
    assert watched.count(event.TRACE_GAP) == 1


def test_a_deferred_record_wants_another_drain(watched: Watched) -> None:
    """It is out of the kernel, whose buffers wake nobody for it any more."""
    pipeline = watched.pipeline
    assert pipeline.next_release is None
    soon = boot_ns() + 100_000_000
    watched.ring.write([Transition(soon, 7, TcpState.SYN_RECV, TcpState.ESTABLISHED, END, 1)])
    pipeline.drain()
    assert pipeline.next_release == soon
    assert not pipeline.outbox.waiting
    while boot_ns() <= soon:
        pass
    pipeline.drain()
    assert pipeline.next_release is None
    assert len(pipeline.outbox.waiting) == 1


def test_owners_that_cannot_be_found_cost_no_connection(watched: Watched) -> None:
    """Told once, at a drain or at a poll, and that it is over when none failed from one poll to the next."""
    watched.users.broken = True
    watched.tell(END)
    watched.drain()
    watched.drain()
    watched.show(END, OTHER)
    watched.poll()
    assert watched.count(event.CONNECTION_OPENED) == 2
    assert watched.count(event.OWNERS_FAILED) == 1
    watched.users.broken = False
    watched.drain()
    assert watched.count(event.OWNERS_RECOVERED) == 0
    watched.poll()
    watched.poll()
    assert watched.count(event.OWNERS_RECOVERED) == 1
    assert watched.count(event.OWNERS_FAILED) == 1


def test_each_hour_it_is_told_what_was_ignored_and_by_which_rule(tmp_path: Path) -> None:
    """With the totals, which add up; and nothing if nothing was ignored."""
    watched = Watched(tmp_path)
    rules = [compile_rule("Ignore", "src host 192.0.2.56", "/etc/x.conf", 7, int)]
    watched.pipeline.switch(Selection(rules, Limit(1, 3_600_000_000_000)))
    watched.tell(END, OTHER, OTHER)
    watched.drain()
    policy = watched.pipeline._policy
    for _ in range(2):
        policy._since -= TALLY_EVERY
        watched.poll()
    (told,) = [
        new.fields for new in watched.reader.events if new.fields["MESSAGE_ID"] == event.CONNECTIONS_COUNTED
    ]
    assert told["TCPWATCHD_IGNORED_BY"] == "1 by /etc/x.conf:7"
    names = "REPORTED", "IGNORED", "FOLDED", "UNWRITTEN"
    assert [told[f"TCPWATCHD_{name}"] for name in names] == ["1", "1", "0", "1"]


def test_polls_that_fail_keep_nothing_from_being_settled(tmp_path: Path) -> None:
    """A poll that succeeds does it; one that fails leaves it to the loop."""
    watched = Watched(tmp_path)
    watch = Watch(watched.pipeline, watched.reader, Notifier(None), Signals(()), interval=5)
    due = watch._check_at
    (watched.net / "tcp").rename(tmp_path / "away")
    watch._poll()
    assert watch._check_at == due
    (tmp_path / "away").rename(watched.net / "tcp")
    watch._poll()
    assert watch._check_at > due


def test_what_was_open_before_is_counted_apart(tmp_path: Path) -> None:
    """So that what opened since is the sum of the others."""
    watched = Watched(tmp_path)
    watched.end()
    watched.show(END, OTHER)
    selection = Selection([compile_rule("Ignore", "host 192.0.2.56", "/etc/x.conf", 7, int)])
    pipeline = Pipeline(Reader(), Store(None), None, Owners(0), root=str(watched.net), selection=selection)
    pipeline.poll()
    pipeline.send()
    totals = pipeline.totals
    assert (totals["ignored"], totals["ignored_startup"], totals["reported_startup"]) == (1, 1, 1)


def read_metrics(watched: Watched) -> dict[str, float]:
    """Names with the values of their labels."""
    text = (watched.run / "metrics/tcpwatchd.prom").read_text()
    return {
        " ".join([name[len(PREFIX) :], *(value for label, value in labels)]): number
        for family in parse(text).values()
        for (name, labels), number in family.samples.items()
    }


def write_metrics(watched: Watched, failed_polls: int = 0) -> dict[str, float]:
    watched.pipeline.write_metrics({"poll_interval_seconds": {"": 5}}, failed_polls)
    return read_metrics(watched)


def test_metrics_say_what_the_totals_say(watched: Watched) -> None:
    watched.tell(END, OTHER)
    watched.show(END, OTHER)
    watched.poll()
    (watched.instance / "tracing_on").write_text("0\n")
    metrics = write_metrics(watched, failed_polls=3)
    assert metrics["connections_reported_total ingress"] == watched.pipeline.totals["reported"] == 2
    assert (metrics["open_sockets"], metrics["entries_waiting"], metrics["trace_up"]) == (2, 0, 1)
    assert (metrics["polls_failed_total"], metrics["poll_interval_seconds"]) == (3, 5)
    assert not [name for name in metrics if "closed_total" in name or "scan" in name or "duration" in name]
    clock = watched.instance / "trace_clock"
    clock.unlink()
    clock.mkdir()
    watched.pipeline.poll()
    metrics = write_metrics(watched)
    assert (metrics["entries_waiting"], metrics["trace_up"]) == (1, 0), "what it says of that waits"


def test_ends_have_metrics_where_they_are_reported(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.end()
    args = watched.reader, Store(str(watched.run)), None, Owners(0)
    watched.pipeline = Pipeline(*args, root=str(watched.net), report="both")
    watched.pipeline.resume()
    assert write_metrics(watched)["connections_closed_total reset"] == 0


def test_what_readers_take_for_a_counter_never_falls(watched: Watched) -> None:
    """Attempts that fail are taken back from what opened."""
    write_counters(watched.net, outbound=50)
    watched.poll()
    assert write_metrics(watched)["connections_opened_total outbound"] == 50
    watched.pipeline._audit._connecting = 20
    write_counters(watched.net, outbound=50, failed=20)
    watched.poll()
    assert watched.pipeline.totals["opened_outbound"] == 30
    assert write_metrics(watched)["connections_opened_total outbound"] == 50


def test_metrics_that_cannot_be_written_are_told_once_and_when_that_is_over(watched: Watched) -> None:
    """What is known is kept all the same."""
    watch = Watch(watched.pipeline, watched.reader, Notifier(None), Signals(()), interval=5)
    (watched.run / "metrics").write_text("in the way")
    for port in range(3):
        before = (watched.run / "baseline").read_bytes()
        watched.show(End(HERE, pack(("192.0.2.58", 6000 + port))))
        watch._poll()
        watched.pipeline.send()
        assert (watched.run / "baseline").read_bytes() != before
    assert (watched.count(event.METRICS_FAILED), watched.count(event.METRICS_RECOVERED)) == (1, 0)
    (told,) = watched.list_told(event.METRICS_FAILED)
    assert told["ERROR_MESSAGE"] == f"{watched.run}/metrics/tcpwatchd.prom.new: Not a directory"
    assert watched.count(event.KEEPING_FAILED) == 0
    (watched.run / "metrics").unlink()
    for _ in range(2):
        watch._poll()
        watched.pipeline.send()
    assert (watched.count(event.METRICS_FAILED), watched.count(event.METRICS_RECOVERED)) == (1, 1)
    metrics = read_metrics(watched)
    assert sum(metrics[f"connections_reported_total {way}"] for way in ("ingress", "egress")) == 3


def test_metrics_are_written_at_each_poll_also_at_one_that_failed(watched: Watched) -> None:
    watch = Watch(watched.pipeline, watched.reader, Notifier(None), Signals(()), interval=5)
    watch._poll()
    good = read_metrics(watched)
    (watched.net / "tcp").rename(watched.run / "away")
    watch._poll()
    bad = read_metrics(watched)
    assert (good["polls_failed_total"], bad["polls_failed_total"]) == (0, 1)
    assert good["last_poll_timestamp_seconds"] == bad["last_poll_timestamp_seconds"]
    assert good["start_time_seconds"] <= good["last_poll_timestamp_seconds"] <= time.time()
    (watched.run / "away").rename(watched.net / "tcp")
    watch._poll()
    again = read_metrics(watched)
    assert again["polls_failed_total"] == 1
    assert again["last_poll_timestamp_seconds"] > good["last_poll_timestamp_seconds"]


def test_a_reload_changes_the_interval_that_metrics_tell(watched: Watched) -> None:
    watch = Watch(watched.pipeline, watched.reader, Notifier(None), Signals(()), interval=5,
                  reload=lambda: Reloaded(0.5, []))  # fmt: skip
    watch._poll()
    assert read_metrics(watched)["poll_interval_seconds"] == 5
    watch._read_configuration()
    watch._poll()
    assert read_metrics(watched)["poll_interval_seconds"] == 0.5


SECOND = 1_000_000_000
SCANS = Selection(scan=ScanLimits(3, 60 * SECOND, None, None, 60 * SECOND, (), (), 64))
LONG_AGO = HOLD + SECOND
"""What was found then is told at once."""


@pytest.fixture
def scanned(tmp_path: Path) -> Iterator[Watched]:
    """Where port scans are looked for."""
    made = Watched(tmp_path, SCANS)
    yield made
    made.end()
    made.ring.close()


def accepted(*ports: int) -> list[End]:
    return [End(pack((HERE.ip, port)), pack(("192.0.2.56", 40000 + port))) for port in ports]


def test_a_scan_is_told_by_what_was_accepted_and_what_was_refused(scanned: Watched) -> None:
    began = now()
    scanned.tell(*accepted(80, 443), ago=LONG_AGO)
    scanned.refuse(8, 9, ago=LONG_AGO)
    scanned.poll()
    (told,) = scanned.list_told(event.PORT_SCAN)
    assert told["MESSAGE"] == "Port scan: 192.0.2.56 tried 4 ports of this host"
    ports = told["TCPWATCHD_OPEN_PORTS"], told["TCPWATCHD_CLOSED_PORTS"], told["TCPWATCHD_SEEN_BY"]
    assert ports == ("80,443", "8-9", "accept,reset")
    assert told["DESTINATION_IP"] == HERE.ip
    before = [event.format_utc(began + seconds * 1_000_000 - LONG_AGO // 1000) for seconds in (-1, 2)]
    assert before[0] < told["EVENT_START"] <= told["EVENT_END"] < before[1]
    assert scanned.count(event.CONNECTION_OPENED) == 2
    assert scanned.pipeline.totals["port_scans"] == 1
    metrics = write_metrics(scanned)
    names = "port_scans_total", "port_scan_sources", "resets_lost_total", "scan_sources_forgotten_total"
    assert [metrics[name] for name in names] == [1, 1, 0, 0]


def test_resets_are_read_as_connections_come_and_as_they_are_due(scanned: Watched) -> None:
    """Not at each drain: whoever scans would decide how often."""
    pipeline = scanned.pipeline
    assert pipeline.next_settling is None
    pipeline._read_resets_at = 0
    scanned.refuse(1, 2, 3)
    scanned.drain()
    assert pipeline._scans.known.places == []
    scanned.tell(*accepted(80))
    began = boot_ns()
    scanned.drain()
    assert pipeline.next_settling is not None
    assert began - SECOND < pipeline.next_settling - HOLD <= boot_ns()
    scanned.refuse(4, 5)
    scanned.tell(*accepted(443))
    scanned.drain()
    ((_, scan),) = pipeline._scans.known.scans
    assert list(scan.ports) == [1, 2, 3, 80, 443]
    pipeline.settle()
    assert scanned.count(event.PORT_SCAN) == 0
    assert list(scan.ports) == [1, 2, 3, 4, 5, 80, 443]


def test_what_was_told_of_a_scan_is_not_told_by_the_next_process(scanned: Watched) -> None:
    """Though this one is killed before it is written; and what it holds is told."""
    scanned.refuse(1, 2, 3, 4, ago=LONG_AGO)
    scanned.refuse(1, 2, 3, 4, source="192.0.2.57", ago=HOLD - SECOND // 3)
    scanned.pipeline.poll()
    scanned.end()
    scanned.start()
    assert [told["SOURCE_IP"] for told in scanned.list_told(event.PORT_SCAN)] == ["192.0.2.56"]
    scanned.end()
    scanned.start()
    assert scanned.count(event.PORT_SCAN) == 1
    assert scanned.pipeline.next_settling
    time.sleep((scanned.pipeline.next_settling - boot_ns()) / SECOND)
    scanned.pipeline.settle()
    scanned.pipeline.send()
    assert [told["SOURCE_IP"][-1] for told in scanned.list_told(event.PORT_SCAN)] == ["6", "7"]


def test_resets_that_cannot_be_read_are_told_once_and_when_that_is_over(scanned: Watched) -> None:
    """Connections are reported meanwhile."""
    clock = scanned.of_resets / "trace_clock"
    clock.unlink()
    clock.mkdir()
    for _ in range(2):
        scanned.poll()
    scanned.tell(END)
    scanned.poll()
    scanned.pipeline.settle()
    assert (scanned.count(event.RESETS_FAILED), scanned.count(event.RESETS_RECOVERED)) == (1, 0)
    assert "trace_clock" in scanned.list_told(event.RESETS_FAILED)[0]["ERROR_MESSAGE"]
    assert scanned.count(event.CONNECTION_OPENED) == 1
    clock.rmdir()
    clock.write_text("local [boot]\n")
    for _ in range(2):
        scanned.poll()
    assert (scanned.count(event.RESETS_FAILED), scanned.count(event.RESETS_RECOVERED)) == (1, 1)
    told = event.TRACE_FAILED, event.TRACE_CHANGED, event.TRACE_GAP
    assert [scanned.count(message_id) for message_id in told] == [0, 0, 0]


def test_a_cpu_whose_resets_cannot_be_read_is_told_too(scanned: Watched) -> None:
    statistics = scanned.of_resets / "per_cpu/cpu0/stats"
    good = statistics.read_text()
    statistics.write_text("nothing that is known\n")
    scanned.refuse(1, 2, 3, 4, ago=LONG_AGO)
    for _ in range(2):
        scanned.poll()
    assert (scanned.count(event.RESETS_FAILED), scanned.count(event.PORT_SCAN)) == (1, 0)
    statistics.write_text(good)
    scanned.pipeline.settle()
    scanned.poll()
    assert (scanned.count(event.RESETS_FAILED), scanned.count(event.RESETS_RECOVERED)) == (1, 1)
    assert scanned.count(event.PORT_SCAN) == 1


def test_an_instance_of_resets_that_was_changed_is_repaired_and_told(scanned: Watched) -> None:
    """What was tried meanwhile is the least."""
    (scanned.of_resets / "tracing_on").write_text("0\n")
    scanned.refuse(1, 2, 3, 4, ago=LONG_AGO)
    scanned.poll()
    assert (scanned.of_resets / "tracing_on").read_text() == "1"
    assert (scanned.count(event.RESETS_FAILED), scanned.count(event.RESETS_RECOVERED)) == (1, 0)
    (told,) = scanned.list_told(event.PORT_SCAN)
    assert told["MESSAGE"] == "Port scan: 192.0.2.56 tried at least 4 ports of this host"
    scanned.poll()
    scanned.poll()
    assert (scanned.count(event.RESETS_FAILED), scanned.count(event.RESETS_RECOVERED)) == (1, 1)


def test_resets_that_were_lost_are_counted_and_make_a_scan_the_least(scanned: Watched) -> None:
    scanned.refuse(1, 2, 3, 4, ago=LONG_AGO, lost=41)
    scanned.poll()
    (told,) = scanned.list_told(event.PORT_SCAN)
    assert told["MESSAGE"] == "Port scan: 192.0.2.56 tried at least 4 ports of this host"
    assert scanned.pipeline.totals["resets_lost"] == 41


def test_other_limits_begin_anew_and_what_was_found_by_those_before_is_told(scanned: Watched) -> None:
    """But rules alone do not."""
    scanned.refuse(1, 2, 3, 4)
    scanned.poll()
    rules = [compile_rule("Ignore", "src host 192.0.2.56", "/etc/x.conf", 7, int)]
    scanned.pipeline.switch(SCANS._replace(rules=rules))
    scanned.pipeline.send()
    assert scanned.count(event.PORT_SCAN) == 0
    assert SCANS.scan
    scanned.pipeline.switch(Selection(scan=SCANS.scan._replace(ports=4)))
    scanned.pipeline.send()
    assert scanned.count(event.PORT_SCAN) == 1
    scanned.refuse(5, 6, 7, 8, ago=LONG_AGO)
    scanned.poll()
    assert scanned.count(event.PORT_SCAN) == 1
    scanned.refuse(9, ago=LONG_AGO)
    scanned.poll()
    assert [told["EVENT_COUNT"] for told in scanned.list_told(event.PORT_SCAN)] == ["4", "5"]


def test_what_is_ignored_is_a_scan_too(scanned: Watched) -> None:
    scanned.pipeline.switch(SCANS._replace(rules=[compile_rule("Ignore", "ip", "/etc/x.conf", 7, int)]))
    scanned.tell(*accepted(1, 2, 3, 4), ago=LONG_AGO)
    scanned.poll()
    assert (scanned.count(event.CONNECTION_OPENED), scanned.count(event.PORT_SCAN)) == (0, 1)


def test_where_nothing_is_kept_the_end_tells_of_scans(tmp_path: Path) -> None:
    """Else the next process does."""
    for kept, entries in ((False, 1), (True, 0)):
        folder = tmp_path / f"{entries}"
        folder.mkdir()
        watched = Watched(folder)
        watched.end()
        reader, trace = Reader(), Trace(str(watched.instance))
        pipeline = Pipeline(
            reader,
            Store(str(folder) if kept else None),
            trace,
            Owners(0),
            root=str(watched.net),
            selection=SCANS,
        )
        pipeline.resume()
        watched.tell(*accepted(1, 2, 3, 4))
        pipeline.finish(lambda _totals: event.poll_recovered(1, 0), 0)
        pipeline.send()
        trace.close()
        assert sum(new.fields["MESSAGE_ID"] == event.PORT_SCAN for new in reader.events) == entries


def test_scans_that_are_too_many_are_told_by_their_number(scanned: Watched) -> None:
    for number in range(MOST_SCANS + 5):
        source = f"198.51.{number // 250}.{number % 250}"
        scanned.refuse(1, 2, 3, 4, ago=LONG_AGO, source=source)
        if number % 10 == 9:
            scanned.pipeline.settle()
    for _ in range(2):
        scanned.poll()
    assert scanned.count(event.PORT_SCAN) == MOST_SCANS
    assert [told["EVENT_COUNT"] for told in scanned.list_told(event.SCANS_UNFOLLOWED)] == ["5"]
