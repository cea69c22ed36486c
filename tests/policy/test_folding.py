"""Many connections in one entry."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpwatchd.connection import NOBODY, Closed, Connection, Endpoint, Folded, Owner, TcpState
from tcpwatchd.policy import folding as module
from tcpwatchd.policy.folding import Folding, Limit
from tcpwatchd.policy.policy import PolicyKnown
from tcpwatchd.state.baseline import format_baseline, parse_baseline
from tests.kept import make_baseline

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVER = Endpoint(b"\x0a\0\0\5\0\x50")


def come(time: int, source: int = 1, port: int = 5000, owner: Owner = NOBODY) -> Connection:
    """From 192.0.2.SOURCE."""
    end = Endpoint(bytes((192, 0, 2, source)) + port.to_bytes(2, "big"))
    return Connection(end, SERVER, "ingress", TcpState.ESTABLISHED, "trace", time, owner=owner)


def close(connection: Connection, time: int, sent: int | None, received: int | None) -> Closed:
    return Closed(connection, time, "fin", "source", sent, received, "trace")


def test_without_a_limit_nothing_is_folded() -> None:
    items = [come(1), come(2, port=5001)]
    folding = Folding()
    assert folding.follow(items) == items
    assert (folding.settle(9, everything=True), folding.count_held()) == ([], 0)


def test_after_so_many_the_rest_is_one_entry() -> None:
    folding = Folding(Limit(2, 100))
    items = [come(time, port=5000 + time) for time in (10, 20, 30, 40, 90)]
    assert folding.follow(items) == items[:2]
    assert folding.count_held() == 3
    assert folding.settle(109) == []
    assert folding.settle(110) == [Folded(items[2], 3, 90)]
    assert folding.count_held() == 0


def test_the_next_of_a_kind_ends_a_time_that_is_over() -> None:
    """Its entry is before that one; and the count begins anew."""
    folding = Folding(Limit(1, 100))
    first, *others, after, last = (come(time, port=time + 1) for time in (0, 1, 2, 100, 101))
    assert folding.follow([first, *others]) == [first]
    assert folding.follow([after, last]) == [Folded(others[0], 2, 2), after]
    assert folding.settle(0, everything=True) == [last]


def test_one_alone_stays_what_it_is() -> None:
    folding = Folding(Limit(1, 100))
    alone = come(5, port=7)
    folding.follow([come(0), alone])
    assert folding.settle(100) == [alone]


@pytest.mark.parametrize(
    "other",
    [
        come(0, source=2),
        come(0)._replace(destination=Endpoint(b"\x0a\0\0\5\0\x51")),
        come(0)._replace(direction="internal"),
        come(0)._replace(priority="4"),
        come(0)._replace(detected_by="poll"),
        come(0)._replace(guessed=True),
        come(0)._replace(state=TcpState.CLOSE_WAIT),
        come(0, owner=Owner(user=33)),
        come(0, owner=Owner(unit="a.service")),
        come(0)._replace(listener=Owner(container="box")),
        close(come(0), 0, None, None),
    ],
)
def test_what_differs_is_not_folded(other: Connection | Closed) -> None:
    folding = Folding(Limit(1, 100), by_owner=True)
    assert folding.follow([come(0), other]) == [come(0), other]


def test_what_closed_in_another_way_is_not_folded() -> None:
    folding = Folding(Limit(1, 100))
    items = [close(come(0), 5, 1, 2), close(come(0), 5, 1, 2)._replace(by="reset")]
    assert folding.follow(items) == items


def test_the_entry_has_what_all_have() -> None:
    """The process may differ; where owners are not the kernel's word, all of them may."""
    one, other = (Owner(user=33, unit="a.service", name="a", process=process) for process in (4, 5))
    for by_owner in (True, False):
        folding = Folding(Limit(1, 100), by_owner)
        folding.follow([come(0, owner=one), come(1, owner=one), come(2, owner=other)])
        (folded,) = folding.settle(100)
        assert isinstance(folded, Folded)
        assert isinstance(folded.first, Connection)
        assert folded.first.owner == one._replace(process=None)
    folding = Folding(Limit(1, 100))
    folding.follow([come(0), come(1, owner=one), come(2, owner=Owner(user=33))])
    (folded,) = folding.settle(100)
    assert isinstance(folded, Folded)
    assert isinstance(folded.first, Connection)
    assert folded.first.owner == Owner(user=33)


def test_bytes_are_summed_up_where_they_are_known_of_all() -> None:
    folding = Folding(Limit(1, 100))
    closed = [close(come(time), time + 10, 100, None if time == 2 else 7) for time in range(4)]
    folding.follow(closed)
    assert folding.settle(200) == [
        Folded(closed[1]._replace(source_bytes=300, destination_bytes=None), 3, 13)
    ]


def test_groups_are_bounded_and_what_has_none_is_written() -> None:
    folding = Folding(Limit(1, 1000))
    many = [make_from(number) for number in range(module.MOST_GROUPS + 5)]
    assert folding.follow(many) == many
    assert len(folding._groups) == module.MOST_GROUPS
    late = make_from(module.MOST_GROUPS + 5)._replace(time=2000)
    assert folding.follow([late]) == [late]
    assert len(folding._groups) == 1


def make_from(number: int) -> Connection:
    source = Endpoint(b"\x0a" + number.to_bytes(3, "big") + b"\0\1")
    return come(0)._replace(source=source)


def test_what_it_knows_goes_on_in_another() -> None:
    folding, other = (Folding(Limit(2, 100), by_owner=True) for _ in range(2))
    items = [come(time, owner=Owner(user=time)) for time in (1, 2)] + [come(time) for time in (3, 4, 5, 6)]
    folding.follow(items)
    other.restore(folding.known)
    assert other.known == folding.known
    for one in (folding, other):
        assert one.follow([come(7)]) == []
        assert one.settle(200) == [Folded(come(5), 3, 7)]


def test_groups_that_are_one_now_are_both_told() -> None:
    """Of a process that told owners apart, by one that does not."""
    apart, together = Folding(Limit(1, 100), by_owner=True), Folding(Limit(1, 100))
    for user in (1, 2):
        apart.follow([come(time, owner=Owner(user=user)) for time in (0, 1, 2)])
    together.restore(apart.known)
    assert [folded.number for folded in together.settle(100) if isinstance(folded, Folded)] == [2, 2]


COMING = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 3), st.booleans()), max_size=80)


@given(COMING, st.integers(1, 3), st.integers(1, 100))
def test_all_add_up_and_no_more_than_the_limit_is_written_one_by_one(
    steps: list[tuple[int, int, bool]], entries: int, span: int
) -> None:
    """However late they are settled, and also with clocks that go back a little."""
    folding, now = Folding(Limit(entries, span)), 1000
    told: Counter[bytes] = Counter()
    written: list[Connection | Closed | Folded] = []
    for number, (pause, source, settles) in enumerate(steps):
        now += pause - 5
        item = come(now, source, port=1000 + number)
        told[item.source.address] += 1
        written += folding.follow([item])
        if settles:
            written += folding.settle(now)
    written += folding.settle(now, everything=True)
    counted: Counter[bytes] = Counter()
    for one in written:
        first, number = (one.first, one.number) if isinstance(one, Folded) else (one, 1)
        assert isinstance(first, Connection)
        assert number > 1 or not isinstance(one, Folded)
        assert not isinstance(one, Folded) or one.last - first.time < span + 5 * len(steps)
        counted[first.source.address] += number
    assert counted == told
    assert folding.known == []


def test_a_full_folding_does_not_look_at_all_groups_each_time() -> None:
    """Whoever has many addresses must not make each connection dear."""
    folding, looked = Folding(Limit(1, 10**12)), 0

    class Counting(dict):  # type: ignore[type-arg]
        def items(self) -> Iterator[Any]:  # type: ignore[override]
            nonlocal looked
            for item in super().items():
                looked += 1
                yield item

    folding._groups = Counting()
    many = [make_from(number)._replace(time=number) for number in range(module.MOST_GROUPS + 1000)]
    assert folding.follow(many) == many
    assert looked <= 2 * 1000


def test_groups_are_the_same_after_they_were_kept_as_text() -> None:
    """With owners of every kind: what comes next is of the group that it was of."""
    owners = NOBODY, Owner(), Owner(user=0), Owner(unit="a.service", process=5), Owner(thread=7, name="x")
    for by_owner in (True, False):
        for owner in owners:
            folding, other = (Folding(Limit(1, 100), by_owner) for _ in range(2))
            items = [come(time, owner=owner)._replace(listener=owner) for time in range(4)]
            folding.follow(items[:3])
            policy = PolicyKnown((), folding.limit, folding.known, 0, [], [0, 0])
            kept = parse_baseline(format_baseline(make_baseline()._replace(policy=policy))).policy
            assert kept
            other.restore(kept.groups)
            assert list(other._groups) == list(folding._groups)
            assert folding.follow(items[3:]) == other.follow(items[3:]) == []
