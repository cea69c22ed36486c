"""Connections and the names of who has their ends, with this machine's own processes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tcpwatchd.clock import boot_ns
from tcpwatchd.connection import (
    NOBODY,
    Caller,
    Connection,
    ControlGroup,
    End,
    Endpoint,
    Owner,
    OwnersKnown,
    Socket,
    TcpState,
    Transition,
)
from tcpwatchd.owners.groups import Groups
from tcpwatchd.owners.owners import NO_USER, SOON, Owners
from tcpwatchd.owners.processes import Processes, read_network
from tcpwatchd.owners.users import Users
from tests.model import pack
from tests.owners.children import NAMED, end_one, needs_initial_pids, start

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tcpwatchd.connection import Direction

OWN_GROUP = next(
    (line[3:] for line in Path("/proc/self/cgroup").read_bytes().splitlines() if line.startswith(b"0::")),
    b"",
)
pytestmark = [
    needs_initial_pids,
    pytest.mark.skipif(not OWN_GROUP, reason="needs a control group of version 2 to be in"),
]
HERE, ELSEWHERE = read_network(), 4026532999
OURS, WEB, SHELL, UNKNOWN = 71, 72, 73, 74
"""Numbers of control groups: the one of this process, two others, and one of which nothing is known."""
GROUPS = [
    ControlGroup(OURS, OWN_GROUP),
    ControlGroup(WEB, b"/system.slice/web.service"),
    ControlGroup(SHELL, b"/user.slice/user-1000.slice/user@1000.service/app.slice/shell.scope"),
]
NAMES = "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\nwww-data:x:33:33::/:/bin/sh\n"
CLIENT, SERVER, AWAY = pack(("10.0.0.5", 5000)), pack(("10.0.0.5", 80)), pack(("192.0.2.1", 443))
ALICE, SERVICE = Socket(1000, SHELL, HERE), Socket(33, WEB, HERE)
LISTENING = Socket(33, OURS, HERE)
"""A socket that this process had listen."""
LATE = 2**62


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "cgroup" / "cgroup.controllers").write_text("cpu io memory pids\n")
    (tmp_path / "passwd").write_text(NAMES)
    return tmp_path


def make(root: Path, command_lines: bool = False) -> Owners:
    groups, users = Groups(str(root / "cgroup")), Users(str(root / "passwd"))
    owners = Owners(HERE, Processes(command_lines), groups, users)
    owners.follow(GROUPS, [], lossy=False)
    owners.note_poll({}, boot_ns())
    return owners


@pytest.fixture
def owners(root: Path) -> Owners:
    return make(root)


@pytest.fixture
def other() -> Iterator[int]:
    """The PID of another process, in the control group of this one."""
    with start(NAMED, b"other".hex()) as number:
        yield number


def follow(owners: Owners, *transitions: Transition, lossy: bool = False) -> None:
    owners.follow([], transitions, lossy)


def connect(owners: Owners, thread: int, name: bytes | None = b"curl") -> Caller:
    """The caller of a connection whose →SYN_SENT was heard just now."""
    when = boot_ns()
    end = End(Endpoint(CLIENT[:-2] + bytes(2)), AWAY)
    follow(owners, Transition(when, 5, TcpState.CLOSE, TcpState.SYN_SENT, end, thread, name, ALICE))
    return Caller(when, thread, name)


def listen(thread: int, skaddr: int = 9, socket: Socket = LISTENING, local: Endpoint = SERVER) -> Transition:
    end = End(local, Endpoint(bytes(len(local))))
    return Transition(boot_ns(), skaddr, TcpState.CLOSE, TcpState.LISTEN, end, thread, b"nginx", socket)


def close(skaddr: int) -> Transition:
    nowhere = End(Endpoint(), Endpoint())
    return Transition(boot_ns(), skaddr, TcpState.LISTEN, TcpState.CLOSE, nowhere, 0, None, LISTENING)


def make_connection(
    direction: Direction,
    opener: Socket | None = None,
    acceptor: Socket | None = None,
    caller: Caller | None = None,
) -> Connection:
    source, destination = {
        "egress": (CLIENT, AWAY),
        "ingress": (AWAY, SERVER),
        "internal": (CLIENT, SERVER),
    }[direction]
    fields = source, destination, direction, TcpState.ESTABLISHED, "trace", boot_ns()
    return Connection(*fields, opener=opener, acceptor=acceptor, caller=caller)  # type: ignore[arg-type]


def accept(owners: Owners, acceptor: Socket = LISTENING) -> Owner:
    """Who is told to listen, of a connection that was accepted just now."""
    return owners.name(make_connection("ingress", acceptor=acceptor)).owner


OWN_NAME = Path(f"/proc/self/task/{os.getpid()}/comm").read_bytes()[:-1]
EXECUTABLE = os.readlink("/proc/self/exe")
BY_ALICE = Owner(1000, "alice", "user@1000.service", "shell.scope")
BY_SERVICE = Owner(33, "www-data", "web.service")
IN_OURS = Owner(33, "www-data")
"""Of the socket that listens; its unit is of wherever the tests run."""


def leave_out_unit(owner: Owner) -> Owner:
    return owner._replace(unit=None, user_unit=None, container=None)


def test_egress(owners: Owners) -> None:
    caller = connect(owners, os.getpid(), OWN_NAME)
    named = owners.name(make_connection("egress", ALICE, caller=caller))
    expected = BY_ALICE._replace(process=os.getpid(), name=OWN_NAME.decode(), executable=EXECUTABLE)
    assert (named.owner, named.listener) == (expected, NOBODY)
    assert (named.opener, named.acceptor, named.caller) == (None, None, None)


def test_a_process_that_has_another_name_by_now(owners: Owners) -> None:
    """It is called as it was; the program that it runs now is not what connected."""
    caller = connect(owners, os.getpid(), b"curl")
    owner = owners.name(make_connection("egress", ALICE, caller=caller)).owner
    assert owner == BY_ALICE._replace(process=os.getpid(), name="curl")


def test_ingress(owners: Owners) -> None:
    follow(owners, listen(os.getpid()))
    named = owners.name(make_connection("ingress", acceptor=LISTENING))
    expected = IN_OURS._replace(process=os.getpid(), name=OWN_NAME.decode(), executable=EXECUTABLE)
    assert (leave_out_unit(named.owner), named.listener) == (expected, NOBODY)
    assert (named.opener, named.acceptor, named.caller) == (None, None, None)


def test_internal(owners: Owners) -> None:
    """Of who listens its user, unit and container are told."""
    follow(owners, listen(os.getpid(), socket=SERVICE))
    caller = connect(owners, os.getpid(), OWN_NAME)
    named = owners.name(make_connection("internal", ALICE, SERVICE, caller))
    expected = BY_ALICE._replace(process=os.getpid(), name=OWN_NAME.decode(), executable=EXECUTABLE)
    assert (named.owner, named.listener) == (expected, BY_SERVICE)


def test_internal_of_which_one_end_was_heard(owners: Owners) -> None:
    named = owners.name(make_connection("internal", acceptor=SERVICE))
    assert (named.owner, named.listener) == (NOBODY, BY_SERVICE)
    named = owners.name(make_connection("internal", ALICE))
    assert (named.owner, named.listener) == (BY_ALICE, NOBODY)


@pytest.mark.parametrize("direction", ["egress", "ingress", "internal"])
def test_of_whom_nothing_is_known_nothing_is_told(owners: Owners, direction: Direction) -> None:
    connection = make_connection(direction)
    assert owners.name(connection) is connection


@pytest.mark.parametrize(
    ("socket", "owner"),
    [
        (Socket(1000, UNKNOWN, HERE), Owner(1000, "alice")),
        (Socket(1000, 0, 0), Owner(1000, "alice")),
        (Socket(4242, WEB, HERE), Owner(4242, unit="web.service")),
        (Socket(NO_USER, WEB, HERE), Owner(unit="web.service")),
        (Socket(0, WEB, ELSEWHERE), Owner(0, "root", "web.service", network=ELSEWHERE)),
    ],
    ids=["group", "a row", "name of the user", "user", "another namespace"],
)
def test_what_is_not_known_is_absent(owners: Owners, socket: Socket, owner: Owner) -> None:
    """And the namespace where it is our own."""
    assert owners.name(make_connection("egress", socket)).owner == owner
    assert owners.name(make_connection("ingress", acceptor=socket)).owner == owner
    assert owners.name(make_connection("internal", acceptor=socket)).listener == owner


def test_a_group_that_is_told_late_is_named(owners: Owners) -> None:
    socket = Socket(1000, UNKNOWN, HERE)
    assert owners.name(make_connection("egress", socket)).owner.unit is None
    owners.follow([ControlGroup(UNKNOWN, b"/system.slice/late.service")], [], lossy=False)
    assert owners.name(make_connection("egress", socket)).owner.unit == "late.service"


def test_a_process_that_was_gone_leaves_its_thread_and_name(owners: Owners) -> None:
    gone = end_one()
    named = owners.name(make_connection("egress", ALICE, caller=connect(owners, gone)))
    assert named.owner == BY_ALICE._replace(thread=gone, name="curl")


def test_a_process_that_ended_after_it_was_seen(owners: Owners) -> None:
    with start() as number:
        caller = connect(owners, number)
    owner = owners.name(make_connection("egress", ALICE, caller=caller)).owner
    assert (owner.process, owner.thread, owner.name) == (number, None, "curl")


def test_without_the_event_a_process_may_have_become_another_user(owners: Owners) -> None:
    """What it is some time after it connected, it need not have been then, unless it was before."""
    assert connect_and_wait(owners) == (os.getpid(), None)
    assert connect_and_wait(owners) == (os.getpid(), os.geteuid())
    caller = connect(owners, os.getpid(), None)
    soon = owners.name(make_connection("egress", caller=caller)).owner
    assert (soon.process, soon.user) == (os.getpid(), os.geteuid())


def connect_and_wait(owners: Owners) -> tuple[int | None, int | None]:
    """The process and the user that are told of a record that is read late."""
    when = boot_ns()
    time.sleep(SOON / 1e9 + 0.02)
    end = End(Endpoint(CLIENT[:-2] + bytes(2)), AWAY)
    follow(owners, Transition(when, 5, TcpState.CLOSE, TcpState.SYN_SENT, end, os.getpid()))
    late = owners.name(make_connection("egress", caller=Caller(when, os.getpid(), None))).owner
    return late.process, late.user


def test_in_an_interrupt_there_is_neither_process_nor_thread(owners: Owners) -> None:
    caller = connect(owners, 0, None)
    assert owners.name(make_connection("egress", ALICE, caller=caller)).owner == BY_ALICE


def test_without_the_event_a_process_is_described_by_itself(owners: Owners, other: int) -> None:
    owner = owners.name(make_connection("egress", caller=connect(owners, other, None))).owner
    assert (owner.process, owner.user, owner.name) == (other, os.geteuid(), "other")
    assert owner.executable == EXECUTABLE
    assert owners.name(make_connection("egress", caller=connect(owners, end_one(), None))).owner.user is None


@pytest.mark.parametrize(
    ("name", "told"), [(b"x\n1 sshd", r"x\n1 sshd"), (b"\x1b[2J\xff", r"\x1b[2J\xff"), (b"a\\n", r"a\\n")]
)
def test_hostile_names_are_one_line(owners: Owners, name: bytes, told: str) -> None:
    """As the record has them."""
    for thread in (os.getpid(), end_one()):
        caller = connect(owners, thread, name)
        assert owners.name(make_connection("egress", ALICE, caller=caller)).owner.name == told


def test_command_lines_are_told_if_they_are_asked_for(root: Path, owners: Owners) -> None:
    """And if the program is still the one that connected."""
    with start(NAMED.replace("sys.argv[1]", f"'{b'same'.hex()}'"), "two words", "\n\x1b", "\\") as number:
        for some in (owners, make(root, command_lines=True)):
            caller = connect(some, number, b"same")
            line = some.name(make_connection("egress", ALICE, caller=caller)).owner.command_line
            assert line is None or line.endswith(r" two words \n\x1b \\"), line
            assert (line is None) == (some is owners)


def test_users_whose_names_change(root: Path, owners: Owners) -> None:
    connection = make_connection("egress", ALICE)
    assert owners.name(connection).owner.user_name == "alice"
    (root / "passwd").write_text("bruce:x:1000:1000::/home/bruce:/bin/sh\n")
    follow(owners)
    assert owners.name(connection).owner.user_name == "bruce"


def test_a_listener_whose_process_now_lives_in_another_group(owners: Owners) -> None:
    """As when its manager moved it: what the kernel keeps with the socket holds, and all else does not."""
    follow(owners, listen(os.getpid(), socket=SERVICE))
    assert accept(owners, SERVICE) == BY_SERVICE


def test_a_listener_of_whose_group_nothing_is_known(owners: Owners) -> None:
    follow(owners, listen(os.getpid(), socket=Socket(33, UNKNOWN, HERE)))
    assert accept(owners, Socket(33, UNKNOWN, HERE)) == Owner(33, "www-data")


def test_a_listener_that_has_ended(owners: Owners) -> None:
    """Whoever accepts in its place is not known."""
    with start() as number:
        follow(owners, listen(number))
        assert accept(owners).process == number
    assert leave_out_unit(accept(owners)) == IN_OURS


def test_a_listener_that_had_ended_before_it_was_asked(owners: Owners) -> None:
    follow(owners, listen(end_one()))
    assert leave_out_unit(accept(owners)) == IN_OURS


def test_two_listeners_on_one_endpoint(owners: Owners, other: int) -> None:
    follow(owners, listen(os.getpid(), 9), listen(other, 10))
    assert leave_out_unit(accept(owners)) == IN_OURS
    follow(owners, close(9))
    assert (accept(owners).process, accept(owners).name) == (other, "other")


def test_one_at_the_address_and_one_at_any(owners: Owners, other: int) -> None:
    anywhere = Endpoint(bytes(16) + SERVER[-2:])
    follow(owners, listen(os.getpid(), 9), listen(other, 10, local=anywhere))
    assert accept(owners).process is None


def test_a_listener_that_a_poll_saw_and_nobody_heard(owners: Owners) -> None:
    follow(owners, listen(os.getpid()))
    owners.note_poll({SERVER: 2}, boot_ns())
    assert leave_out_unit(accept(owners)) == IN_OURS
    for _ in range(2):  # a row can be skipped once
        assert accept(owners).process is None
        owners.note_poll({SERVER: 1}, boot_ns())
    assert accept(owners).process == os.getpid()


def test_a_listener_that_nobody_heard_at_all(owners: Owners) -> None:
    owners.note_poll({SERVER: 1}, boot_ns())
    assert leave_out_unit(accept(owners)) == IN_OURS


def test_when_records_were_lost_no_listener_is_named_until_polls_agree(owners: Owners) -> None:
    follow(owners, listen(os.getpid()))
    follow(owners, lossy=True)
    assert accept(owners).process is None
    follow(owners, listen(os.getpid()))
    assert accept(owners).process is None
    owners.note_poll({SERVER: 1}, boot_ns())
    assert accept(owners).process == os.getpid()


def test_a_listener_in_another_namespace(owners: Owners) -> None:
    socket = LISTENING._replace(network=ELSEWHERE)
    follow(owners, listen(os.getpid(), socket=socket))
    assert leave_out_unit(accept(owners, socket)) == IN_OURS._replace(network=ELSEWHERE)


def test_what_outlives_a_restart(root: Path, owners: Owners) -> None:
    """Listeners do, unless something was missed meanwhile, and the paths of groups."""
    follow(owners, listen(os.getpid()))
    for unbroken in (True, False):
        fresh = Owners(HERE, Processes(), Groups(str(root / "cgroup")), Users(str(root / "passwd")))
        fresh.restore(OwnersKnown(dict(owners.known.groups), dict(owners.known.listeners)))
        if not unbroken:
            fresh.forget_listeners()
        assert accept(fresh).process is None, "no poll has shown who else listens"
        fresh.note_poll({SERVER: 1}, boot_ns())
        assert accept(fresh).process == (os.getpid() if unbroken else None)
        assert accept(fresh, SERVICE) == BY_SERVICE
        assert fresh.known.groups == dict(GROUPS)


def test_without_groups_of_version_2_no_unit_is_told(tmp_path: Path) -> None:
    """The numbers in the records, and the paths in /proc, may be of something else."""
    (tmp_path / "passwd").write_text(NAMES)
    owners = make(tmp_path)
    assert owners.name(make_connection("egress", ALICE)).owner == Owner(1000, "alice")
    for caller in (connect(owners, os.getpid()), connect(owners, os.getpid(), None)):
        owner = owners.name(make_connection("egress", caller=caller)).owner
        assert (owner.process, owner.unit, owner.container) == (os.getpid(), None, None)


def test_very_many_sockets(owners: Owners) -> None:
    """More than are remembered."""
    for user in range(25_000):
        owner = owners.name(make_connection("egress", Socket(user, WEB, HERE))).owner
        assert (owner.user, owner.unit) == (user, "web.service")
