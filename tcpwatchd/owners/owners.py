"""Who has the ends of a connection: from what the kernel keeps with a socket, and from /proc, to names.

What the kernel told with the record is right, also of a process that is gone. What only /proc shows is taken
where it must have been so at the time of the record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcpwatchd.connection import NOBODY, Owner, OwnersKnown, TcpState
from tcpwatchd.owners.groups import Groups
from tcpwatchd.owners.listeners import Listeners
from tcpwatchd.owners.processes import Processes
from tcpwatchd.owners.text import make_printable
from tcpwatchd.owners.units import NOWHERE, find_place
from tcpwatchd.owners.users import Users

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tcpwatchd.connection import Caller, Connection, ControlGroup, Endpoint, MayReport, Socket, Transition
    from tcpwatchd.owners.processes import Process

SYN_SENT, LISTEN = TcpState.SYN_SENT, TcpState.LISTEN
SOON = 10_000_000
"""Nanoseconds for which /proc is believed to show the user and the group that a process connected with."""
NO_USER = 0xFFFFFFFF
MOST_CACHED = 10_000
MOST_CALLERS = 100_000
"""Attempts to connect of which the process is remembered until they succeed."""
LONGEST_ATTEMPT = 64_000_000_000
"""Nanoseconds; the retries of a handshake end before."""


class Owners:
    """`network` is the inode of the network namespace that is polled."""

    def __init__(
        self,
        network: int,
        processes: Processes | None = None,
        groups: Groups | None = None,
        users: Users | None = None,
    ) -> None:
        self.network = network
        self._processes = processes or Processes()
        self._groups = groups or Groups()
        self._users = users or Users()
        self._users.refresh()
        self._listeners = Listeners(network)
        self._callers: dict[tuple[int, int], Process] = {}
        """By thread and time of the record, the oldest first."""
        self._described: dict[Socket, Owner] = {}
        self.failure: Exception | None = None
        """What went wrong since that was last taken: connections go on without their owners."""

    @property
    def known(self) -> OwnersKnown:
        """What is remembered, for another process to go on from."""
        return OwnersKnown(self._groups.told, self._listeners.heard)

    def restore(self, known: OwnersKnown) -> None:
        self._groups.restore(known.groups)
        self._listeners.restore(known.listeners)

    def forget_listeners(self) -> None:
        """Something may have been missed."""
        self._listeners.forget()

    def follow(
        self,
        groups: Iterable[ControlGroup],
        transitions: Iterable[Transition],
        lossy: bool,
        may_report: MayReport | None = None,
    ) -> None:
        """Of a drain: groups that were made, who connects and who listens. `lossy`: records were lost.

        Who opens a connection that is not reported in any case is not looked for.
        """
        try:
            self._follow(groups, transitions, lossy, may_report)
        except Exception as error:  # whatever it is, a connection without an owner is one
            self.failure = error
            self._listeners.forget()

    def take_failure(self) -> Exception | None:
        failure, self.failure = self.failure, None
        return failure

    def _follow(
        self,
        groups: Iterable[ControlGroup],
        transitions: Iterable[Transition],
        lossy: bool,
        may_report: MayReport | None,
    ) -> None:
        self._groups.add(groups)
        if self._users.refresh():
            self._described.clear()
        if lossy:
            self._listeners.forget()
        look = self._processes.look
        self._processes.start_drain()
        for transition in transitions:
            when, skaddr, old, new, end, thread, *_ = transition
            if new == SYN_SENT:
                if may_report and not may_report(end.local.address, end.remote, transition.socket):
                    continue
                process = look(thread, when)
                if process:
                    self._callers[thread, when] = process
            elif new == LISTEN and self._listeners.concerns(transition.socket):
                self._listeners.add(transition, look(thread, when))
            elif old == LISTEN:
                self._listeners.remove(skaddr, when)
        if len(self._callers) > MOST_CALLERS:
            self._callers = dict(list(self._callers.items())[-MOST_CALLERS // 2 :])

    def note_poll(self, rows: Mapping[Endpoint, int], began: int) -> None:
        """How many rows of the snapshot that was begun then listen at each endpoint."""
        try:
            self._note_poll(rows, began)
        except Exception as error:  # as above
            self.failure = error
            self._listeners.forget()

    def _note_poll(self, rows: Mapping[Endpoint, int], began: int) -> None:
        self._listeners.compare(rows, began)
        kept = ((key, process) for key, process in self._callers.items() if key[1] > began - LONGEST_ATTEMPT)
        self._callers = dict(kept)
        if self._groups.refresh() or self._users.refresh():
            self._described.clear()

    def name(self, connection: Connection) -> Connection:
        """The connection with the owners of its ends that are here."""
        if connection.opener is None and connection.acceptor is None and connection.caller is None:
            return connection
        owner = listener = NOBODY
        try:
            owner, listener = self._find(connection)
        except Exception as error:  # as above
            self.failure = error
        return connection._replace(opener=None, acceptor=None, caller=None, owner=owner, listener=listener)

    def _find(self, connection: Connection) -> tuple[Owner, Owner]:
        """The owner of the end that is here, or that opened it, and of the other if both are here."""
        opener, acceptor, caller = connection.opener, connection.acceptor, connection.caller
        if connection.direction != "ingress":
            return self._find_opening(opener, caller), self._describe(acceptor) if acceptor else NOBODY
        if acceptor is None:
            return NOBODY, NOBODY
        return self._find_listening(acceptor, connection.destination, connection.time), NOBODY

    def _find_opening(self, opener: Socket | None, caller: Caller | None) -> Owner:
        """The kernel's word, if there is one; of what /proc showed only what must have been so before."""
        process = self._callers.pop((caller.thread, caller.time), None) if caller else None
        owner = NOBODY
        if opener:
            owner = self._describe(opener)
        elif caller and process and (process.seen - caller.time <= SOON or process.steady <= caller.time):
            owner = self._describe_process(process)
        if caller and process:
            owner = add_process(owner, process, caller.name)
        elif caller and caller.thread and self._processes.known:
            owner = owner._replace(thread=caller.thread, name=make_name(caller.name))
        elif caller and caller.name:
            owner = owner._replace(name=make_name(caller.name))
        return owner

    def _find_listening(self, acceptor: Socket, local: Endpoint, when: int) -> Owner:
        """The process is told if it still is the one that listened, where it then was."""
        owner = self._describe(acceptor)
        heard = self._listeners.find(local, acceptor, when)
        process = self._processes.look(heard.thread, when) if heard else None
        if not heard or not process or process.started != heard.started:
            return owner
        if process.group != self._groups.find_path(acceptor.group) and self._groups.known:
            return owner
        return add_process(owner, process, process.name)

    def _describe(self, socket: Socket) -> Owner:
        """Without a process."""
        owner = self._described.get(socket)
        if owner is None:
            path = self._groups.find_path(socket.group)
            place = find_place(path) if path else NOWHERE
            user = None if socket.user == NO_USER else socket.user
            owner = Owner(
                user,
                None if user is None else self._users.find_name(user),
                *place,
                network=socket.network if socket.network not in (0, self.network) else None,
            )
            if path or not socket.group:
                if len(self._described) >= MOST_CACHED:
                    self._described.clear()
                self._described[socket] = owner
        return owner

    def _describe_process(self, process: Process) -> Owner:
        place = find_place(process.group) if process.group and self._groups.known else NOWHERE
        return Owner(process.user, self._users.find_name(process.user), *place)


def add_process(owner: Owner, process: Process, name: bytes | None) -> Owner:
    """`name` is the kernel's word, if there is one: whoever has another by now runs another program."""
    same = name is None or name == process.name
    executable, command_line = process.executable, process.command_line
    return owner._replace(
        process=process.number,
        name=make_name(process.name if name is None else name),
        executable=make_printable(executable) if executable and same else None,
        command_line=make_command_line(command_line) if command_line and same else None,
    )


def make_command_line(words: bytes) -> str | None:
    return make_printable(words.replace(b"\0", b" ").rstrip()) or None


def make_name(name: bytes | None) -> str | None:
    return make_printable(name) if name else None
