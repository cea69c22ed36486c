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

    from tcpwatchd.connection import Caller, Connection, ControlGroup, Endpoint, Socket, Transition
    from tcpwatchd.owners.processes import Process

SYN_SENT, LISTEN = TcpState.SYN_SENT, TcpState.LISTEN
REMEMBERED = 64_000_000_000
"""How long what was seen of a process is kept, in nanoseconds: a handshake can take so long."""
NO_USER = 0xFFFFFFFF
MOST_CACHED = 10_000


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
        self._described: dict[Socket, Owner] = {}

    @property
    def known(self) -> OwnersKnown:
        """What is remembered, for another process to go on from."""
        return OwnersKnown(self._groups.told, self._listeners.heard)

    def restore(self, known: OwnersKnown, trace_unbroken: bool) -> None:
        self._groups.restore(known.groups)
        if trace_unbroken:
            self._listeners.restore(known.listeners)

    def follow(self, groups: Iterable[ControlGroup], transitions: Iterable[Transition], lossy: bool) -> None:
        """Of a drain: groups that were made, who connects and who listens. `lossy`: records were lost."""
        self._groups.add(groups)
        if self._users.refresh():
            self._described.clear()
        if lossy:
            self._listeners.forget()
        processes = self._processes
        processes.start_drain()
        for transition in transitions:
            when, skaddr, old, new, _, thread, *_ = transition
            if new == SYN_SENT:
                processes.look(thread, when)
            elif new == LISTEN:
                self._listeners.add(transition, processes.look(thread, when))
            elif old == LISTEN:
                self._listeners.remove(skaddr)

    def compare_listeners(self, rows: Mapping[Endpoint, int], until: int) -> None:
        """With how many rows of a snapshot that was begun then listen at each endpoint, at each poll."""
        self._listeners.compare(rows, until)
        self._processes.forget(until - REMEMBERED)

    def name(self, connection: Connection) -> Connection:
        """The connection with the owners of its ends that are here."""
        opener, acceptor, caller = connection.opener, connection.acceptor, connection.caller
        if opener is None and acceptor is None and caller is None:
            return connection
        owner = listener = NOBODY
        if connection.direction != "ingress":
            owner = self._find_opening(opener, caller)
            listener = self._describe(acceptor) if acceptor else NOBODY
        elif acceptor:
            owner = self._find_listening(acceptor, connection.destination, connection.time)
        return connection._replace(opener=None, acceptor=None, caller=None, owner=owner, listener=listener)

    def _find_opening(self, opener: Socket | None, caller: Caller | None) -> Owner:
        process = self._processes.find(caller.thread, caller.time) if caller else None
        if opener:
            owner = self._describe(opener)
        elif process:
            owner = self._describe_process(process)
        else:
            owner = NOBODY
        if process:
            owner = add_process(owner, process)
        elif caller and caller.thread and self._processes.known:
            owner = owner._replace(thread=caller.thread)
        if caller and caller.name is not None:
            owner = owner._replace(name=make_printable(caller.name))
        return owner

    def _find_listening(self, acceptor: Socket, local: Endpoint, when: int) -> Owner:
        """The process is told if it still is the one that listened, where it then was."""
        owner = self._describe(acceptor)
        heard = self._listeners.find(local, acceptor)
        process = self._processes.look(heard.thread, when) if heard else None
        if not heard or not process or process.started != heard.started:
            return owner
        if process.group != self._groups.find_path(acceptor.group) and self._groups.known:
            return owner
        return add_process(owner, process)

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


def add_process(owner: Owner, process: Process) -> Owner:
    executable, command_line = process.executable, process.command_line
    return owner._replace(
        process=process.number,
        name=make_printable(process.name),
        executable=make_printable(executable) if executable else None,
        command_line=make_printable(command_line.replace(b"\0", b" ").rstrip()) if command_line else None,
    )
