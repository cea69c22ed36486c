"""What waits, and what was written before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcpwatchd.connection import Connection, Written
from tcpwatchd.output.event import poll_failed, records_lost
from tcpwatchd.output.outbox import BATCH, Outbox, split_written
from tests.kept import CONNECTION
from tests.state.test_recovery import Reader

if TYPE_CHECKING:
    from tcpwatchd.connection import Closed, Folded
    from tcpwatchd.output.event import Event

LOST, OTHER = records_lost(7, 0), poll_failed("x", 0)


def make(*items: Connection | Event) -> Outbox:
    outbox = Outbox(Reader())
    outbox.add(items)
    return outbox


def test_a_stuck_sink_loses_nothing_and_keeps_the_order() -> None:
    reader = Reader()
    outbox = Outbox(reader)
    outbox.add([OTHER, CONNECTION, LOST])
    reader.stuck = True
    outbox.send()
    assert (outbox.total, outbox.stuck, len(outbox.waiting)) == ((0, 0, 0), True, 3)
    reader.stuck = False
    outbox.send()
    assert (outbox.total, outbox.stuck, len(outbox.waiting)) == ((3, 1, 7), False, 0)
    assert [new.fields["MESSAGE"][:7] for new in reader.events] == ["Cannot ", "New con", "The ker"]
    assert outbox.written == {"trace": 1, "poll": 0, "startup": 0}


def test_a_batch_is_bounded() -> None:
    outbox = make(*[CONNECTION] * (BATCH + 1))
    outbox.send()
    assert (outbox.total.entries, len(outbox.waiting)) == (BATCH, 1)


def test_what_was_written_is_dropped() -> None:
    outbox = make(OTHER, CONNECTION, LOST, CONNECTION, LOST, CONNECTION)
    assert outbox.drop(2, 14) == 0
    assert list(outbox.waiting) == [CONNECTION]


def test_what_waited_is_written_first() -> None:
    waited: list[Connection | Closed | Folded | Event] = [OTHER, CONNECTION, LOST, CONNECTION]
    assert split_written(waited, Written(0, 0, 0)) == (waited, (0, 0, 0))
    assert split_written(waited, Written(3, 1, 7)) == ([CONNECTION], (0, 0, 0))
    assert split_written(waited, Written(9, 6, 8)) == ([], (5, 4, 1))


def test_losses_told_elsewhere_are_left() -> None:
    outbox = make(CONNECTION, LOST, CONNECTION)
    assert outbox.drop(1, 9) == 2
    assert list(outbox.waiting) == [CONNECTION]
    assert make(LOST, CONNECTION).drop(0, 0) == 0


def test_over_a_restart_it_keeps_its_time_too() -> None:
    """A connection closes with the time at which it opened, though clocks are never read at one moment."""
    second, kept = 1_000_000_000, 1_700_000_000_000_000_000
    for offset, start in ((kept + 900, 25), (kept + 7200 * second, 25)):
        outbox = Outbox(Reader(), lambda offset=offset: offset)  # type: ignore[misc]
        outbox.restore(kept, [CONNECTION._replace(time=5 * second)])
        (item,) = outbox.waiting
        assert isinstance(item, Connection)
        assert item.time + outbox.offset == kept + 5 * second, start


def test_what_waits_keeps_its_time_when_the_clock_is_set() -> None:
    """By the administrator, or after a suspend."""
    second, offsets = 1_000_000_000, [1_700_000_000_000_000_000]
    reader = Reader()
    outbox = Outbox(reader, lambda: offsets[-1])
    outbox.add([CONNECTION._replace(time=5 * second), OTHER])
    for step in (7200, -3600):
        offsets.append(offsets[0] + step * second)
        outbox.add([])
    outbox.add([CONNECTION._replace(time=6 * second)])
    outbox.send()
    starts = [new.fields["EVENT_START"] for new in reader.events if "EVENT_START" in new.fields]
    assert starts == ["2023-11-14T22:13:25.000000Z", "2023-11-14T21:13:26.000000Z"]
