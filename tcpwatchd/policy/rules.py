"""Which connections are reported, and how loud: the first rule that matches. No I/O."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any, NamedTuple

from tcpwatchd.connection import make
from tcpwatchd.policy.expression import Facts, compile_expression

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tcpwatchd.connection import Connection, Endpoint, Owner, Priority, Socket
    from tcpwatchd.policy.expression import Addresses, Expression, FindPort

    Name = Callable[[Connection], Connection]
    """Gives a connection its owners."""

PRIORITIES: dict[str, Priority | None] = {"Ignore": None, "Report": "6", "Notice": "5", "Warning": "4"}
"""What a rule can say, and what that does: the priority of the entry, or that there is none."""
from_bytes = int.from_bytes
MOST_REMEMBERED = 1_000_000
"""Numbers of rules that are remembered for kinds of connections."""
MOST_KINDS = 10_000


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

    Connections between whose addresses and ports no rule makes a difference are of one kind. What rules say
    of a kind is remembered: so their number costs little.
    """

    def __init__(self, rules: Iterable[Rule] = (), network: int = 0) -> None:
        self.rules = tuple(rules)
        self._network = network
        expressions = [rule.expression for rule in self.rules]
        addresses = [one for expression in expressions for one in expression.addresses]
        self._addresses = {size: find_bounds(addresses, size) for size in (4, 16)}
        self._ports = sorted(
            {0, *(end for one in expressions for low, high in one.ports for end in (low, high + 1))}
        )
        """Where kinds of addresses, by their length, and of ports begin."""
        self._most = min(MOST_KINDS, MOST_REMEMBERED // (len(self.rules) or 1))
        self._asks_here = any("here" in rule.text for rule in self.rules)
        self._remembered: dict[Facts, Possible] = {}
        """What was found out without owners."""
        self._remembered_owned: dict[tuple[Any, ...], int | None] = {}
        """The same with owners, and the rule that is."""
        self._reported: dict[Facts, bool] = {}
        """Of what is about to be opened."""

    def choose(self, connection: Connection, name: Name) -> tuple[int | None, Connection | None]:
        """The number of the rule for it, and the connection with its owners if those had to be found."""
        source, destination, direction = connection[:3]
        here = self._is_here(connection) if self._asks_here else None
        facts = self._make_facts(source[:-2], source[-2:], destination, direction, here)
        possible = self._remembered.get(facts) or self._find_possible(facts)
        if not possible.asking:
            return possible.number, None
        named = name(connection)
        owned = facts, list_names(named.owner), list_names(named.listener)
        if owned not in self._remembered_owned:
            full = facts._replace(owners=(named.owner, named.listener))
            matching = (number for number in possible.asking if self.rules[number].expression.test(full))
            self._remember(self._remembered_owned, owned, next(matching, possible.number))
        return self._remembered_owned[owned], named

    def _make_facts(
        self, source: bytes, port: bytes | None, to: Endpoint, direction: str | None, here: bool | None
    ) -> Facts:
        """Of its kind, without owners: of addresses and ports the least that are of the same kind."""
        destination, ports = to[:-2], self._ports
        sources, destinations = self._addresses[len(source)], self._addresses[len(destination)]
        known = (
            sources[bisect_right(sources, source) - 1],
            None if port is None else ports[bisect_right(ports, from_bytes(port, "big")) - 1],
            destinations[bisect_right(destinations, destination) - 1],
            ports[bisect_right(ports, from_bytes(to[-2:], "big")) - 1],
            direction,
            here,
            None,
        )
        return make(Facts, known)

    def may_report(self, local: bytes, remote: Endpoint, socket: Socket | None) -> bool:
        """Whether what is about to be opened here can be reported, as far as that is known at its SYN.

        `local` is its address, packed.
        """
        here = True if self._asks_here and socket and socket.network == self._network else None
        facts = self._make_facts(local, None, remote, None, here)
        may = self._reported.get(facts)
        if may is None:
            may = self._may_report(facts)
            self._remember(self._reported, facts, may)
        return may

    def _may_report(self, facts: Facts) -> bool:
        for rule in self.rules:
            found = rule.expression.test(facts)
            if found is None and (PRIORITIES[rule.action] or rule.expression.asks_owner):
                return True
            if found:
                return PRIORITIES[rule.action] is not None
        return True

    def _find_possible(self, facts: Facts) -> Possible:
        asking = []
        for number, rule in enumerate(self.rules):
            found = rule.expression.test(facts)
            if found:
                break
            if found is None and rule.expression.asks_owner:
                asking.append(number)
        else:
            number = None
        possible = Possible(number, asking)
        self._remember(self._remembered, facts, possible)
        return possible

    def _remember(self, known: dict[Any, Any], key: Any, value: Any) -> None:
        if len(known) >= self._most:
            known.clear()
        known[key] = value

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


def find_bounds(ranges: Iterable[Addresses], size: int) -> list[bytes]:
    """Where kinds of addresses of this length begin."""
    bounds = {bytes(size)}
    for first, last in ranges:
        if len(first) == size:
            bounds.add(first)
            after = int.from_bytes(last, "big") + 1
            if after < 1 << 8 * size:
                bounds.add(after.to_bytes(size, "big"))
    return sorted(bounds)
