"""Where events go, one at a time, and only when they can go without waiting."""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import stat
import time
from typing import TYPE_CHECKING, Protocol

from tcpwatchd.failure import Failure
from tcpwatchd.output.event import (
    CONNECTION_CLOSED,
    CONNECTION_OPENED,
    CONNECTIONS_CLOSED,
    CONNECTIONS_OPENED,
    LISTENER_FIELDS,
    OWNER_FIELDS,
    Event,
    format_local,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

STDOUT, STDERR = 1, 2
NAMES = {STDOUT: "standard output", STDERR: "standard error"}
JOURNAL_SOCKET = "/run/systemd/journal/socket"
PATIENCE = 20
"""Milliseconds for a reader that is slow but not stuck."""
LULL = 0.005
"""Seconds in which journald takes a part of its full queue: a sender that waits is woken for each entry."""


class Sink(Protocol):
    """`fileno` is the descriptor whose reader may go away, if there is one."""

    fileno: int | None

    def reach(self) -> bool:
        """Whether there is a reader; to be asked before a batch."""
        ...

    def is_ready(self) -> bool:
        """Whether an event can be written now, or after a moment, without waiting."""
        ...

    def write(self, event: Event) -> bool:
        """False when it has to be tried again. Raises OSError when it is no use."""
        ...


class JournalSink:
    """The systemd journal, each event one entry with its fields.

    sendv(3) blocks while journald's queue or libsystemd's send buffer is full. So libsystemd's socket is made
    non-blocking as soon as the first entry has opened it: "full" is an error then. A second socket, connected
    to the same queue, shows when that has room again; libsystemd's own, which is not connected, shows its
    buffer only.

    Raises ImportError without python-systemd, and Failure where no journal runs: libsystemd would drop the
    entries and say nothing.
    """

    fileno: int | None = None

    def __init__(self) -> None:
        # systemd.journal passes it on, and brings logging and more: 3.6 MB.
        from systemd._journal import sendv

        if not os.path.exists(JOURNAL_SOCKET):
            raise Failure(f"no journal here: {JOURNAL_SOCKET} does not exist; is systemd-journald running?")
        self._sendv = sendv
        self._gate = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._polls = [watch_for_room(self._gate)]
        self._opened = False
        """Whether libsystemd has opened its socket."""
        self._sender: socket.socket | None = None
        """That socket, where it was found."""
        self._full = False
        """Whether the last entry was refused."""

    def reach(self) -> bool:
        """Connected anew: another socket may be there now."""
        try:
            self._gate.connect(JOURNAL_SOCKET)
        except OSError:  # journald's socket is down, or just made anew
            return False
        return True

    def is_ready(self) -> bool:
        """Not asked where "full" is an error and the last entry was taken: the next may simply be tried."""
        if self._full:
            return self._wait()
        return self._sender is not None or self._has_room(0) or self._wait()

    def write(self, event: Event) -> bool:
        """Tried twice: a queue that is full now and then is no queue that is stuck."""
        entry = list(map("=".join, event.fields.items()))
        return self._send(entry) or (self._wait() and self._send(entry))

    def _send(self, entry: list[str]) -> bool:
        try:
            if not self._opened:
                self._send_first(entry)
            else:
                self._sendv(*entry)
        except OSError:  # full, or journald's socket went down since it was reached
            taken = False
        else:  # to a socket that is not there libsystemd sends nothing, and says nothing
            taken = os.access(JOURNAL_SOCKET, os.F_OK)
        self._full = not taken
        return taken

    def _send_first(self, entry: list[str]) -> None:
        """It opens libsystemd's socket, as the lowest descriptor that is free. Raises OSError."""
        lowest = os.dup(self._gate.fileno())
        os.close(lowest)
        try:
            self._sendv(*entry)
            self._opened = True
        finally:
            self._sender = find_sender(lowest)
            if self._sender:
                self._opened = True
                self._sender.setblocking(False)
                self._polls.append(watch_for_room(self._sender))

    def _wait(self) -> bool:
        """Leave a full journald alone for a moment; whether there is room then."""
        time.sleep(LULL)
        self._full = not self._has_room(PATIENCE)
        return not self._full

    def _has_room(self, milliseconds: int) -> bool:
        return all(poll.poll(milliseconds) for poll in self._polls)


def watch_for_room(sender: socket.socket) -> select.poll:
    poll = select.poll()
    poll.register(sender, select.POLLOUT)
    return poll


def find_sender(descriptor: int) -> socket.socket | None:
    """A second descriptor of libsystemd's socket, if this one is what that must be: not connected, and a Unix
    socket for datagrams.
    """
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return None
    except OSError:  # nothing has this number
        return None
    found = socket.socket(fileno=os.dup(descriptor))
    try:
        found.getpeername()
    except OSError:
        if (found.family, found.type) == (socket.AF_UNIX, socket.SOCK_DGRAM):
            return found
    found.close()
    return None


OF_CONNECTIONS = CONNECTION_OPENED, CONNECTION_CLOSED, CONNECTIONS_OPENED, CONNECTIONS_CLOSED
LONGEST_LINE = 4096
"""What a pipe that is writable takes at once, with the newline (PIPE_BUF)."""
LONG_NAMES = {"PROCESS_COMMAND_LINE", "PROCESS_EXECUTABLE"}
DISPENSABLE = (LONG_NAMES, {*OWNER_FIELDS.values(), *LISTENER_FIELDS.values()})
"""What makes a line too long, if anything does; the second if the first is not enough."""
BY_RULE = "TCPWATCHD_IGNORED_BY"
"""What can be long too, and is cut: the message has its sum."""


class Stream:
    """A descriptor that lines are written to past any buffer, so that a reader has them now.

    A pipe that is writable takes PIPE_BUF (4096) bytes at once, and no line is longer. Raises OSError.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        try:
            os.fstat(descriptor)
        except OSError as error:
            raise self._name_file(error) from error
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._rest = b""

    def is_ready(self) -> bool:
        return bool(self._poll.poll(PATIENCE)) and self._flush()

    def write(self, line: str) -> bool:
        """Raises OSError: BrokenPipeError when the reader is gone."""
        self._rest = line.encode() + b"\n"
        whole = len(self._rest)
        if not self._flush() and len(self._rest) == whole:
            self._rest = b""
            return False
        return True

    def _flush(self) -> bool:
        try:
            while self._rest:
                self._rest = self._rest[os.write(self._descriptor, self._rest) :]
        except BlockingIOError:  # made non-blocking by whoever shares it; the rest goes first next time
            return False
        except OSError as error:
            raise self._name_file(error) from error
        return True

    def _name_file(self, error: OSError) -> OSError:
        """The error with the file that it is about, or which descriptor it was."""
        try:
            name = os.readlink(f"/proc/self/fd/{self._descriptor}")
        except OSError:
            name = ""
        file = name if name.startswith("/") else NAMES.get(self._descriptor, name)
        return OSError(error.errno, error.strerror, file)


class TextSink:
    """A line for each connection on stdout; what else is said goes to stderr. OSError without stdout.

    Connections do not wait for stderr: what it does not take is dropped.
    """

    fileno: int | None = STDOUT

    def __init__(self) -> None:
        self._out, self._err = Stream(STDOUT), Stream(STDERR)

    def reach(self) -> bool:
        return True

    def is_ready(self) -> bool:
        return self._out.is_ready()

    def write(self, event: Event) -> bool:
        moment, fields = event
        if fields["MESSAGE_ID"] in OF_CONNECTIONS:
            return self._out.write(f"{format_local(moment)}: {format_text(fields)}")
        with contextlib.suppress(OSError):  # nobody reads it
            if self._err.is_ready():
                self._err.write(f"tcpwatchd: {fields['MESSAGE']}")
        return True


def format_text(fields: Mapping[str, str]) -> str:
    """A connection for people, who have the message and no other field before them."""
    text = fields["MESSAGE"]
    if fields["TCPWATCHD_DETECTED_BY"] == "startup":
        text = re.sub("^New |^([0-9]+ )new ", lambda found: f"{found[1]}open " if found[1] else "Open ", text)
    return f"{text} (direction guessed)" if fields["TCPWATCHD_DIRECTION"] == "guessed" else text


class JsonSink:
    """One JSON object a line on stdout, for events of every kind. OSError without stdout."""

    fileno: int | None = STDOUT

    def __init__(self) -> None:
        from json import dumps

        self._dumps = dumps
        self._out = Stream(STDOUT)

    def reach(self) -> bool:
        return True

    def is_ready(self) -> bool:
        return self._out.is_ready()

    def write(self, event: Event) -> bool:
        line = self._dumps(event.fields)
        for names in DISPENSABLE:
            if len(line) >= LONGEST_LINE:
                line = self._dumps({n: value for n, value in event.fields.items() if n not in names})
        rules = event.fields.get(BY_RULE, "")
        while rules and len(line) >= LONGEST_LINE:
            rules = rules[: len(rules) // 2].rpartition(", ")[0]
            line = self._dumps({**event.fields, BY_RULE: f"{rules}, ..."})
        return self._out.write(line)


SINKS: dict[str, Callable[[], Sink]] = {"journal": JournalSink, "text": TextSink, "json": JsonSink}
