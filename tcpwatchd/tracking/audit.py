"""What the polls missed, by the kernel's own counters. No I/O."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from tcpwatchd.tracking.tracker import FOREVER

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tcpwatchd.connection import Connection

COUNTERS = 4
"""PassiveOpens, ActiveOpens, AttemptFails and EmbryonicRsts, always in this order."""


class Missed(NamedTuple):
    """Connections that opened and closed between two polls; `outbound` is an upper bound."""

    inbound: int
    outbound: int


class Audit:
    """Compares what opened with what was reported. One inside this machine counts as inbound and as outbound.

    An attempt that its program gives up is counted nowhere as failed, so what opened outbound is an upper
    bound. AttemptFails also counts inbound handshakes that were reset; EmbryonicRsts tells how many.
    """

    def __init__(self) -> None:
        self._last: list[int] = []
        self._inbound = self._outbound = 0
        self._connecting = 0
        """Handshakes that were under way and counted as opened: they may fail."""
        self._found_later: list[Connection] = []
        """What was found, and opened after the counters were read that are compared next."""
        self._suspected = 0
        """Inbound connections that the comparison before did not find though there was a trace."""
        self.opened = Missed(0, 0)
        """All that opened, reported or not."""

    @property
    def counters(self) -> list[int]:
        """For another audit to go on from."""
        return [self._inbound, self._outbound, *self._last, self._connecting]

    def start_anew(self) -> None:
        """What opened since the last comparison is not known."""
        self._last = []
        self._inbound = self._outbound = self._suspected = 0

    def restore(self, counters: Sequence[int]) -> None:
        if len(counters) >= 2 + COUNTERS:
            self._inbound, self._outbound, *rest = counters
            self._last, self._connecting = rest[:COUNTERS], sum(rest[COUNTERS:])

    def add_found(self, found: Iterable[Connection], until: int = FOREVER) -> None:
        """What was reported, and when it is counted was not missed.

        What opened after `until`, nanoseconds of CLOCK_BOOTTIME, is of the next comparison.
        """
        new = [connection for connection in found if connection.detected_by != "startup"]
        if until != FOREVER:
            self._found_later += [connection for connection in new if connection.time > until]
            new = [connection for connection in new if connection.time <= until]
        directions = Counter([connection.direction for connection in new])
        # A connection of a socket to itself is opened and never accepted.
        alone = directions["internal"] and sum(c.source == c.destination for c in new)
        self._inbound -= len(new) - directions["egress"] - alone
        self._outbound -= len(new) - directions["ingress"]

    def compare(
        self, counters: list[int], found: Iterable[Connection], connecting: int, traced: bool = False
    ) -> Missed:
        """What opened until the counters were read and was not found until the snapshot that followed.

        What is found before it is counted is settled at the next comparison. `connecting` handshakes are
        counted as opened and may yet fail. Where it is `traced`, a record can come a moment after its count:
        what is missed at two comparisons was missed.
        """
        missed = self._compare(counters, found, connecting)
        if traced:
            missed = self._confirm(missed)
        else:
            self._suspected = 0
        later, self._found_later = self._found_later, []
        self.add_found(later)
        return missed

    def _confirm(self, missed: Missed) -> Missed:
        """Only what came in is exact enough to contradict the trace, which tells of other networks too."""
        # Counted just before, and told just after.
        just_found = sum(connection.direction != "egress" for connection in self._found_later)
        suspected = max(0, missed.inbound - just_found)
        confirmed = min(self._suspected, suspected)
        self._suspected = suspected - confirmed
        self._inbound, self._outbound = missed.inbound - confirmed, 0
        return Missed(confirmed, 0)

    def _compare(self, counters: list[int], found: Iterable[Connection], connecting: int) -> Missed:
        changes = [now - last for now, last in zip(counters, self._last)]
        self._last = counters
        if not changes or min(changes) < 0:  # the first ones, or of another network namespace
            self._connecting = 0
            return Missed(0, 0)
        passive, active, failed, reset = changes
        # A Fast Open child that is reset counts as failed too: no more can fail than was begun here.
        active -= min(max(0, failed - reset), active + self._connecting)
        self._connecting = connecting
        self.opened = Missed(self.opened.inbound + passive, max(0, self.opened.outbound + active))
        self._inbound += passive
        self._outbound += active
        self.add_found(found)
        missed = Missed(max(0, self._inbound), max(0, self._outbound - connecting))
        self._inbound -= missed.inbound
        self._outbound -= missed.outbound
        return missed
