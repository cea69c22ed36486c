"""What the pipeline asks the loop for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tcpwatchd.clock import boot_ns, now
from tcpwatchd.connection import End, TcpState, Transition
from tcpwatchd.kernel.trace import Trace
from tcpwatchd.output import event
from tcpwatchd.owners.owners import Owners
from tcpwatchd.owners.users import Users
from tcpwatchd.pipeline import TALLY_EVERY, Pipeline
from tcpwatchd.policy.folding import Limit
from tcpwatchd.policy.policy import Selection
from tcpwatchd.policy.rules import compile_rule
from tcpwatchd.service.notify import Notifier
from tcpwatchd.service.signals import Signals
from tcpwatchd.state.store import Store
from tcpwatchd.watch import Watch
from tests.kept import END, HERE
from tests.model import pack
from tests.ring import Ring
from tests.state.test_recovery import Reader
from tests.table import endpoint4, row, write_counters, write_tables

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OTHER = End(HERE, pack(("192.0.2.57", 5002)))


class Watched:
    """A pipeline over tables and an instance made of files, in one folder."""

    def __init__(self, folder: Path) -> None:
        for name in ("net", "trace", "run"):
            (folder / name).mkdir()
        self.net, self.instance, self._run = folder / "net", folder / "trace", str(folder / "run")
        self.statistics = self.instance / "per_cpu/cpu0/stats"
        write_counters(self.net)
        self.show()
        self.ring = Ring(self.instance)
        self.reader = Reader()
        self.start()

    def start(self) -> None:
        self.trace = Trace(str(self.instance))
        self.store = Store(self._run)
        self.users = Broken()
        owners = Owners(0, users=self.users)
        self.pipeline = Pipeline(self.reader, self.store, self.trace, owners, root=str(self.net))
        self.pipeline.resume()
        self.poll()

    def end(self) -> None:
        """As a process that is killed."""
        self.trace.close()
        self.store.close()

    def show(self, *ends: End) -> None:
        pairs = [[endpoint4(endpoint.ip, endpoint.port) for endpoint in end] for end in ends]
        rows = [row(number, here, there, 1, 100) for number, (here, there) in enumerate(pairs)]
        write_tables(self.net, rows, [])

    def tell(self, *ends: End) -> None:
        """That these were accepted just now."""
        for end in ends:
            opened = Transition(boot_ns(), id(end), TcpState.SYN_RECV, TcpState.ESTABLISHED, end, 1)
            self.ring.write([opened])
        self.ring.count(read=True)

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
    pipeline = Pipeline(Reader(), Store(None), None, Owners(0), root=str(watched.net),
                        selection=Selection([compile_rule("Ignore", "host 192.0.2.56", "/etc/x.conf", 7, int)]))  # fmt: skip
    pipeline.poll()
    pipeline.send()
    totals = pipeline.totals
    assert (totals["ignored"], totals["ignored_startup"], totals["reported_startup"]) == (1, 1, 1)
