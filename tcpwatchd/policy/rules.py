"""Which connections are reported, and how loud: the first rule that matches. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tcpwatchd.connection import make
from tcpwatchd.policy.expression import Facts, compile_expression

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tcpwatchd.connection import Connection, Endpoint, Owner, Priority, Socket
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


class Possible(NamedTuple):
    """What rules say of a kind of connection, as long as nobody looked for its owners."""

    number: int | None
    """Of the first rule that does match."""
    asking: list[int]
    """Numbers of those before it that ask for owners."""


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
        self._remembered: dict[tuple[Any, ...], Possible] = {}
        """What was found out without owners."""
        self._remembered_owned: dict[tuple[Any, ...], int | None] = {}
        """The same with owners, and the rule that is."""
        self._reported: dict[tuple[Any, ...], bool] = {}
        """Of what is about to be opened."""

    def choose(self, connection: Connection, name: Name) -> tuple[int | None, Connection | None]:
        """The number of the rule for it, and the connection with its owners if those had to be found."""
        source, destination, direction, *_ = connection
        port = source.port if self._source_ports and source.port in self._source_ports else 0
        here = self._is_here(connection) if self._asks_here else None
        key = source[:-2], port, destination, direction, here
        possible = self._remembered.get(key) or self._find_possible(key)
        if not possible.asking:
            return possible.number, None
        named = name(connection)
        owned = (*key, list_names(named.owner), list_names(named.listener))
        if owned not in self._remembered_owned:
            facts = make_facts(*key)._replace(owners=(named.owner, named.listener))
            matching = (number for number in possible.asking if self.rules[number].expression.test(facts))
            remember(self._remembered_owned, owned, next(matching, possible.number))
        return self._remembered_owned[owned], named

    def may_report(self, local: bytes, remote: Endpoint, socket: Socket | None) -> bool:
        """Whether what is about to be opened here can be reported, as far as that is known at its SYN.

        `local` is its address, packed.
        """
        here = True if self._asks_here and socket and socket.network == self._network else None
        key = local, remote, here
        may = self._reported.get(key)
        if may is None:
            facts = make(Facts, (local, None, remote.address, remote.port, None, here, None))
            may = self._may_report(facts)
            remember(self._reported, key, may)
        return may

    def _may_report(self, facts: Facts) -> bool:
        for rule in self.rules:
            found = rule.expression.test(facts)
            if found is not False and PRIORITIES[rule.action]:
                return True
            if found:
                return False
        return True

    def _find_possible(self, key: tuple[Any, ...]) -> Possible:
        facts, asking = make_facts(*key), []
        for number, rule in enumerate(self.rules):
            found = rule.expression.test(facts)
            if found:
                break
            if found is None and rule.expression.asks_owner:
                asking.append(number)
        else:
            number = None
        possible = Possible(number, asking)
        remember(self._remembered, key, possible)
        return possible

    def _is_here(self, connection: Connection) -> bool | None:
        """Polls show only what is; a record without the network of its socket tells nothing."""
        if connection.detected_by != "trace":
            return True
        sockets = [socket for socket in (connection.opener, connection.acceptor) if socket]
        if not sockets or not self._network:
            return None
        return any(socket.network in (0, self._network) for socket in sockets)


def list_names(owner: Owner) -> tuple[Any, ...]:
    """What rules can ask of it."""
    user, user_name, unit, user_unit, container, _, _, name, *_ = owner
    return user, user_name, unit, user_unit, container, name


def make_facts(
    source: bytes, port: int | None, destination: Endpoint, direction: str, here: bool | None
) -> Facts:
    """Without owners. A port at the source that no rule asks for may be any, such as 0."""
    return Facts(source, port, destination.address, destination.port, direction, here)


def remember(known: dict[Any, Any], key: Any, value: Any) -> None:
    if len(known) >= MOST_REMEMBERED:
        known.clear()
    known[key] = value
