"""Which connections are reported, and how loud: the first rule that matches. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tcpwatchd.connection import make
from tcpwatchd.policy.expression import Facts, compile_expression

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tcpwatchd.connection import Connection, Endpoint, Priority, Socket
    from tcpwatchd.policy.expression import Expression, FindPort

    Name = Callable[[Connection], Connection]
    """Gives a connection its owners."""

PRIORITIES: dict[str, Priority | None] = {"Ignore": None, "Report": "6", "Notice": "5", "Warning": "4"}
"""What a rule can say, and what that does: the priority of the entry, or that there is none."""
MOST_REMEMBERED = 10_000
"""Kinds of connections whose rules are remembered."""


class Rule(NamedTuple):
    """One line of the configuration. Two are equal if they say the same at the same place."""

    action: str
    text: str
    path: str
    line: int
    expression: Expression

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rule) and self[:4] == other[:4] and self._ports == other._ports

    def __ne__(self, other: object) -> bool:  # a tuple has one of its own
        return not self == other

    def __hash__(self) -> int:
        return hash((self.path, self.line))

    @property
    def _ports(self) -> tuple[tuple[str, int], ...]:
        return self.expression.named_ports


def compile_rule(action: str, text: str, path: str, line: int, find_port: FindPort) -> Rule:
    """Raises ExpressionError, and ValueError for another action."""
    if action not in PRIORITIES:
        raise ValueError(action)
    return Rule(action, text, path, line, compile_expression(text, find_port))


class Rules:
    """`network` is the inode of the network namespace that is polled; 0 where it is not known.

    What rules say without owners depends on few facts, and is remembered for each kind of connection: so
    their number costs little.
    """

    def __init__(self, rules: Iterable[Rule] = (), network: int = 0) -> None:
        self.rules = tuple(rules)
        self._network = network
        ranges = [ports for rule in self.rules for ports in rule.expression.source_ports]
        self._source_ports = frozenset(port for low, high in ranges for port in range(low, high + 1))
        self._asks_here = any("here" in rule.text for rule in self.rules)
        self._remembered: dict[Facts, list[Rule]] = {}

    def choose(self, connection: Connection, name: Name) -> tuple[Rule | None, Connection | None]:
        """The rule for it, and the connection with its owners if they had to be found for that."""
        if not self.rules:
            return None, None
        facts, named = self._find_facts(connection), None
        full = facts
        for rule in self._list_possible(facts):
            found = rule.expression.test(full)
            if found is None and rule.expression.asks_owner and named is None:
                named = name(connection)
                full = facts._replace(owners=(named.owner, named.listener))
                found = rule.expression.test(full)
            if found:
                return rule, named
        return None, named

    def may_report(self, local: bytes, remote: Endpoint, socket: Socket | None) -> bool:
        """Whether what is about to be opened here can be reported, as far as that is known at its SYN.

        `local` is its address, packed.
        """
        if not self.rules:
            return True
        here = True if self._asks_here and socket and socket.network == self._network else None
        facts = make(Facts, (local, None, remote[:-2], remote.port, None, here, None))
        possible = self._list_possible(facts)
        is_sure = bool(possible and possible[-1].expression.test(facts))
        return not is_sure or any(PRIORITIES[rule.action] for rule in possible)

    def _list_possible(self, facts: Facts) -> list[Rule]:
        """Those that can match, up to the first that does."""
        possible = self._remembered.get(facts)
        if possible is None:
            possible = []
            for rule in self.rules:
                found = rule.expression.test(facts)
                if found is not False:
                    possible.append(rule)
                if found:
                    break
            if len(self._remembered) >= MOST_REMEMBERED:
                self._remembered.clear()
            self._remembered[facts] = possible
        return possible

    def _find_facts(self, connection: Connection) -> Facts:
        """Without owners. A port at the source that no rule asks for is 0."""
        source, destination, direction = connection[:3]
        port = int.from_bytes(source[-2:], "big") if self._source_ports else 0
        port = port if port in self._source_ports else 0
        here = self._is_here(connection) if self._asks_here else None
        places = source[:-2], port, destination[:-2], int.from_bytes(destination[-2:], "big")
        return make(Facts, (*places, direction, here, None))

    def _is_here(self, connection: Connection) -> bool | None:
        """Polls show only what is; a record without the network of its socket tells nothing."""
        if connection.detected_by != "trace":
            return True
        sockets = [socket for socket in (connection.opener, connection.acceptor) if socket]
        if not sockets or not self._network:
            return None
        return any(socket.network in (0, self._network) for socket in sockets)
