"""Who listens where, of what was heard and of what polls show."""

from __future__ import annotations

import pytest

from tcpwatchd.connection import End, Endpoint, Listener, Socket, TcpState, Transition
from tcpwatchd.owners.listeners import GONE, HELD, MOST_CLOSED, MOST_LISTENERS, Listeners
from tcpwatchd.owners.processes import Process
from tests.model import pack

HERE, ELSEWHERE = 4026531840, 4026532999
SSH, WEB = Socket(0, 7, HERE), Socket(33, 8, HERE)
SERVER = pack(("10.0.0.5", 80))
LATE = 2**62


def listen(
    listeners: Listeners, skaddr: int, where: str, socket: Socket | None, thread: int, when: int = 1
) -> None:
    """`where` is an address, and the port is 80. The thread was started when its number says."""
    local = pack((where, 80))
    end = End(local, Endpoint(bytes(len(local))))
    heard = Transition(when, skaddr, TcpState.CLOSE, TcpState.LISTEN, end, thread, b"server", socket)
    listeners.add(heard, make_process(thread))


def make_process(thread: int) -> Process:
    return Process(
        10 * thread, 10 * thread + 5, thread, b"server", 0, b"/", None, None, steady=10 * thread + 5
    )


def find(
    listeners: Listeners, socket: Socket = SSH, local: Endpoint = SERVER, when: int = LATE
) -> int | None:
    """The thread that had it listen then."""
    found = listeners.find(local, socket, when)
    return found.thread if found else None


def start() -> Listeners:
    """After a first poll, which showed that nobody listens."""
    listeners = Listeners(HERE)
    listeners.compare({}, 0)
    return listeners


def test_where_it_can_listen() -> None:
    """At the address itself, or at any; IPv6's takes IPv4 too, and not the other way round."""
    six = pack(("2001:db8::5", 80))
    for where, four_found, six_found in (
        ("10.0.0.5", 5, None),
        ("0.0.0.0", 5, None),
        ("::", 5, 5),
        ("2001:db8::5", None, 5),
        ("10.0.0.6", None, None),
    ):
        listeners = start()
        listen(listeners, 1, where, SSH, 5)
        assert (find(listeners), find(listeners, local=six)) == (four_found, six_found), where
        assert find(listeners, local=pack(("10.0.0.5", 81))) is None


def test_what_is_known_of_it() -> None:
    listeners = start()
    listen(listeners, 1, "10.0.0.5", SSH, 5, when=51)
    assert listeners.find(SERVER, SSH, LATE) == Listener(SERVER, SSH, 51, 5, 50)


def test_of_two_services_each_is_found() -> None:
    """An accepted socket has the user and the group of the one that listened."""
    listeners = start()
    listen(listeners, 1, "0.0.0.0", SSH, 5)
    listen(listeners, 2, "10.0.0.5", WEB, 6)
    assert (find(listeners, SSH), find(listeners, WEB)) == (5, 6)
    assert find(listeners, WEB._replace(group=9)) is None


def test_two_processes_of_a_service_share_a_port() -> None:
    """It is not known which of them a connection was given to."""
    listeners = start()
    listen(listeners, 1, "10.0.0.5", SSH, 5)
    listen(listeners, 2, "::", SSH, 6)
    assert find(listeners) is None
    listeners.remove(2, 5)
    assert find(listeners) == 5


def test_two_sockets_of_one_process() -> None:
    listeners = start()
    listen(listeners, 1, "0.0.0.0", SSH, 5)
    listen(listeners, 2, "::", SSH, 5)
    assert find(listeners) == 5
    listeners.remove(1, 5)
    assert find(listeners) == 5


def test_two_processes_that_had_the_same_number() -> None:
    listeners = start()
    listen(listeners, 1, "0.0.0.0", SSH, 5)
    listeners.restore({2: Listener(SERVER, SSH, 1, 5, 999)})
    assert find(listeners) is None


def test_one_that_no_longer_listens() -> None:
    listeners = start()
    listen(listeners, 1, "10.0.0.5", SSH, 5)
    listeners.remove(1, 5)
    listeners.remove(1, 6)
    assert find(listeners) is None
    assert listeners.heard == {}


def test_a_socket_whose_address_is_used_again() -> None:
    """The record of its end is not needed for that."""
    listeners = start()
    listen(listeners, 1, "10.0.0.5", SSH, 5)
    listen(listeners, 1, "10.0.0.6", WEB, 6, when=2)
    assert find(listeners) is None
    assert find(listeners, WEB, pack(("10.0.0.6", 80))) == 6


def test_one_whose_process_had_gone() -> None:
    """Another process of the service may have it: that one is not told either."""
    listeners = start()
    heard = Transition(1, 1, TcpState.CLOSE, TcpState.LISTEN, End(SERVER, SERVER), 5, b"x", SSH)
    listeners.add(heard, None)
    assert listeners.heard[1].started == GONE
    assert find(listeners) is None
    listen(listeners, 2, "0.0.0.0", SSH, 6)
    assert find(listeners) is None


def test_other_namespaces_are_left_out() -> None:
    """No table of ours shows who listens there beside those that were heard."""
    listeners = start()
    listen(listeners, 1, "10.0.0.5", SSH._replace(network=ELSEWHERE), 5)
    listen(listeners, 2, "10.0.0.5", None, 5)
    assert listeners.heard == {}
    listen(listeners, 3, "10.0.0.5", SSH, 5)
    assert find(listeners, SSH._replace(network=ELSEWHERE)) is None
    assert find(listeners) == 5


def test_before_a_poll_has_shown_who_listens_nobody_is_known() -> None:
    """There may be others, which are older than the trace."""
    listeners = Listeners(HERE)
    listen(listeners, 1, "10.0.0.5", SSH, 5)
    assert find(listeners) is None
    listeners.compare({SERVER: 1}, LATE)
    assert find(listeners) == 5


@pytest.mark.parametrize(
    "rows",
    [
        {SERVER: 2},
        {SERVER: 1, pack(("::", 80)): 1},
        {SERVER: 1, pack(("0.0.0.0", 80)): 1},
    ],
    ids=["at the same address", "at any", "at any of IPv4"],
)
def test_one_that_a_poll_saw_and_nobody_heard(rows: dict[Endpoint, int]) -> None:
    """As with SO_REUSEPORT, when it is older than the trace. A row can be skipped once by a later poll."""
    listeners = start()
    listen(listeners, 1, "10.0.0.5", SSH, 5)
    listeners.compare(rows, LATE)
    assert find(listeners) is None
    listeners.compare({SERVER: 1}, LATE)
    assert find(listeners) is None
    listeners.compare({SERVER: 1}, LATE)
    assert find(listeners) == 5


def test_one_that_cannot_have_accepted_it() -> None:
    """At another port, or another address."""
    listeners = start()
    listen(listeners, 1, "10.0.0.5", SSH, 5)
    listeners.compare({SERVER: 1, pack(("10.0.0.5", 81)): 1, pack(("10.0.0.6", 80)): 1}, LATE)
    assert find(listeners) == 5


def test_a_row_that_a_poll_skipped() -> None:
    listeners = start()
    listen(listeners, 1, "10.0.0.5", SSH, 5)
    listeners.compare({}, LATE)
    assert find(listeners) == 5


def test_one_that_was_heard_after_the_snapshot_is_none_of_its_rows() -> None:
    listeners = start()
    listen(listeners, 1, "10.0.0.5", SSH, 5, when=51)
    listeners.compare({SERVER: 1}, 51)
    assert find(listeners) is None
    for until in (52, 53):
        listeners.compare({SERVER: 1}, until)
    assert find(listeners) == 5


def test_a_connection_is_of_who_listened_then() -> None:
    """It is named a moment later, when that one may have closed, and another may listen in its place."""
    listeners = start()
    listen(listeners, 1, "10.0.0.5", SSH, 5, when=10)
    listeners.remove(1, 20)
    listen(listeners, 2, "10.0.0.5", SSH, 6, when=30)
    assert [find(listeners, when=when) for when in (9, 10, 15, 20, 25, 30, 35)] == [
        None, 5, 5, 5, None, 6, 6,
    ]  # fmt: skip


def test_two_that_listened_then() -> None:
    listeners = start()
    listen(listeners, 1, "10.0.0.5", SSH, 5, when=10)
    listen(listeners, 2, "10.0.0.5", SSH, 6, when=20)
    listeners.remove(1, 30)
    assert [find(listeners, when=when) for when in (15, 25, 35)] == [5, None, 6]


def test_one_that_has_closed_is_forgotten_a_moment_after_a_poll() -> None:
    """What it accepted can wait for its other end, and be named after the poll."""
    listeners = start()
    listen(listeners, 1, "10.0.0.5", SSH, 5, when=10)
    listeners.remove(1, 20)
    listeners.compare({}, 20 + HELD)
    assert find(listeners, when=15) == 5
    listeners.compare({}, 21 + HELD)
    assert find(listeners, when=15) is None


def test_after_very_many_that_closed_nothing_is_known_until_a_poll() -> None:
    listeners = start()
    listen(listeners, 1, "10.0.0.5", SSH, 5, when=10)
    for skaddr in range(2, MOST_CLOSED + 3):
        listen(listeners, skaddr, "10.0.0.6", SSH, 6, when=10)
        listeners.remove(skaddr, 20)
    assert find(listeners, when=15) is None
    listeners.compare({}, 30)
    assert find(listeners, when=35) is None


def test_when_records_were_lost_nothing_heard_is_relied_on() -> None:
    """Until a poll shows that no other listens there."""
    listeners = start()
    listen(listeners, 1, "10.0.0.5", SSH, 5)
    listen(listeners, 2, "10.0.0.6", SSH, 5)
    listeners.remove(2, 5)
    listeners.forget()
    assert find(listeners) is None
    assert find(listeners, local=pack(("10.0.0.6", 80)), when=1) is None
    listen(listeners, 2, "10.0.0.5", SSH, 6)
    assert find(listeners) is None
    listeners.compare({SERVER: 2}, LATE)
    assert find(listeners) is None
    for _ in range(2):
        listeners.compare({SERVER: 1}, LATE)
    assert find(listeners) == 6


def test_what_another_process_heard() -> None:
    """It is relied on when a poll of this one has shown that no other listens there."""
    before, after = start(), Listeners(HERE)
    listen(before, 1, "10.0.0.5", SSH, 5)
    after.restore(before.heard)
    assert find(after) is None
    after.compare({SERVER: 1}, LATE)
    assert find(after) == 5
    after.remove(1, 5)
    assert find(after) is None


def test_what_is_heard_is_bounded() -> None:
    """Where more listen it is not known who does."""
    listeners = start()
    for number in range(MOST_LISTENERS):
        listen(listeners, number, "192.0.2.1", SSH, 5)
    listen(listeners, MOST_LISTENERS, "10.0.0.5", SSH, 5)
    assert len(listeners.heard) == MOST_LISTENERS
    assert find(listeners) is None
    listeners.remove(0, 5)
    listen(listeners, MOST_LISTENERS + 1, "10.0.0.5", SSH, 6)
    assert find(listeners) is None
