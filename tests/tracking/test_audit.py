"""What polls missed, by the kernel's counters."""

from __future__ import annotations

from tcpwatchd.tracking.audit import Audit, Missed
from tests.kept import CONNECTION, HERE

IN, OUT, WITHIN = (
    CONNECTION._replace(detected_by="poll", direction=d) for d in ("ingress", "egress", "internal")
)
AT_START = CONNECTION._replace(detected_by="startup")
ITSELF = WITHIN._replace(source=HERE, destination=HERE)


def started(*counters: int) -> Audit:
    audit = Audit()
    assert audit.compare(list(counters), [AT_START], 3) == (0, 0)
    return audit


def test_what_was_not_found_is_missed() -> None:
    audit = started(10, 20, 2, 0)
    assert audit.compare([15, 24, 3, 0], [IN, IN, OUT], 0) == Missed(inbound=3, outbound=2)
    assert audit.compare([15, 24, 3, 0], [], 0) == (0, 0)
    assert audit.opened == (5, 3)


def test_a_connection_within_the_machine_is_of_both_kinds() -> None:
    assert started(0, 0, 0, 0).compare([2, 2, 0, 0], [WITHIN], 0) == (1, 1)


def test_what_is_found_before_it_is_counted_is_settled_later() -> None:
    audit = started(0, 0, 0, 0)
    assert audit.compare([1, 0, 0, 0], [IN, IN], 0) == (0, 0)
    assert audit.compare([2, 0, 0, 0], [], 0) == (0, 0)
    assert audit.compare([4, 0, 0, 0], [IN], 0) == (1, 0)


def test_a_handshake_under_way_is_not_missed_yet() -> None:
    audit = started(0, 0, 0, 0)
    assert audit.compare([0, 2, 0, 0], [], 2) == (0, 0)
    assert audit.compare([0, 2, 1, 0], [], 0) == (0, 1)


def test_a_connection_to_itself_was_opened_and_never_accepted() -> None:
    assert started(0, 0, 0, 0).compare([1, 1, 0, 0], [ITSELF], 0) == (1, 0)


def test_another_audit_goes_on() -> None:
    first, second = started(10, 0, 0, 0), Audit()
    first.compare([11, 0, 0, 0], [IN, IN], 0)
    second.restore(first.counters)
    assert second.compare([14, 0, 0, 0], [], 0) == (2, 0)
    third = Audit()
    third.restore([])
    assert third.compare([50, 0, 0, 0], [], 0) == (0, 0)


def test_counters_of_another_namespace_start_anew() -> None:
    audit = started(10, 10, 10, 10)
    assert audit.compare([1, 50, 50, 50], [], 0) == (0, 0)
    assert audit.compare([2, 50, 50, 50], [], 0) == (1, 0)


def test_an_inbound_handshake_that_was_reset_is_no_failed_attempt() -> None:
    audit = started(0, 0, 0, 0)
    assert audit.compare([0, 3, 2, 1], [], 0) == (0, 2)
    assert audit.compare([0, 3, 2, 5], [], 0) == (0, 0)


def test_no_total_is_ever_negative() -> None:
    """An attempt begun before the watch fails in it; so does a Fast Open child, as if it were one."""
    audit = started(0, 5, 0, 0)
    assert audit.compare([0, 5, 2, 0], [], 0) == (0, 0)
    assert audit.opened == (0, 0)
    assert audit.compare([0, 7, 2, 0], [OUT], 0) == (0, 1)
    assert audit.opened == (0, 2)


def test_what_did_not_open_hides_nothing_that_was_missed() -> None:
    """More failed than was ever opened: these are Fast Open children that were reset."""
    audit = started(0, 0, 0, 0)
    assert audit.compare([9, 0, 9, 0], [IN] * 9, 0) == (0, 0)
    assert audit.compare([9, 2, 9, 0], [], 0) == (0, 2)


def test_under_the_trace_what_two_comparisons_miss_was_missed() -> None:
    """A record can come a moment after its count. Of what was opened here the counters know too little."""
    audit = started(0, 0, 0, 0)
    assert audit.compare([5, 5, 0, 0], [], 0, traced=True) == (0, 0)
    audit.add_found([IN, IN])
    assert audit.compare([5, 6, 0, 0], [], 0, traced=True) == (3, 0)
    assert audit.compare([5, 6, 0, 0], [], 0, traced=True) == (0, 0)


def test_under_the_trace_other_networks_hide_nothing_that_comes_later() -> None:
    audit = started(0, 0, 0, 0)
    audit.add_found([IN] * 50)
    assert audit.compare([5, 0, 0, 0], [], 0, traced=True) == (0, 0)
    assert audit.compare([9, 0, 0, 0], [], 0, traced=True) == (0, 0)
    assert audit.compare([9, 0, 0, 0], [], 0, traced=True) == (4, 0)


def test_what_opened_after_the_counters_were_read_is_counted_with_the_next() -> None:
    audit = started(0, 0, 0, 0)
    audit.add_found([IN._replace(time=10), IN._replace(time=11)], until=10)
    assert audit.compare([2, 0, 0, 0], [], 0, traced=True) == (0, 0)
    audit.add_found([IN._replace(time=20), IN._replace(time=21)], until=20)
    assert audit.compare([4, 0, 0, 0], [], 0, traced=True) == (0, 0)
    assert audit.compare([4, 0, 0, 0], [], 0, traced=True) == (0, 0)
