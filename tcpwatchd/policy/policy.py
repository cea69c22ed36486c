"""What is reported of the connections that were found, and the count of the rest. No I/O."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from tcpwatchd.connection import Closed, Folded, Ignored, make
from tcpwatchd.policy.folding import Folding
from tcpwatchd.policy.rules import PRIORITIES, Rules

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tcpwatchd.connection import Connection, MayReport
    from tcpwatchd.policy.folding import GroupKnown, Limit
    from tcpwatchd.policy.rules import Name, Rule
    from tcpwatchd.policy.scans import ScanLimits


class Selection(NamedTuple):
    """What is reported, as in the configuration."""

    rules: Sequence[Rule] = ()
    limit: Limit | None = None
    """None: nothing is folded."""
    scan: ScanLimits | None = None
    """None: port scans are not looked for."""


class Tally(NamedTuple):
    """What was not written one by one since a time: nanoseconds of CLOCK_BOOTTIME."""

    since: int
    ignored: list[tuple[Rule, int]]
    """By rule, the most frequent first."""
    folded: int
    folded_closed: int
    """Connections in entries of many: when they opened, and when they closed."""

    @property
    def is_empty(self) -> bool:
        return not any(self[1:])


class PolicyKnown(NamedTuple):
    """All of a policy, for another process to go on from."""

    rules: tuple[Rule, ...]
    limit: Limit | None
    groups: list[GroupKnown]
    since: int
    ignored: list[tuple[int, int]]
    """Numbers of rules, and how often each had a connection ignored."""
    folded: list[int]
    """When they opened, and when they closed."""


class Policy:
    """`network` and `by_owner` are as in `Rules` and `Folding`; `now`: nanoseconds of CLOCK_BOOTTIME."""

    def __init__(
        self,
        rules: Sequence[Rule] = (),
        limit: Limit | None = None,
        now: int = 0,
        network: int = 0,
        by_owner: bool = False,
    ) -> None:
        self._network = network
        self._by_owner = by_owner
        self._since = now
        self._rules = Rules(rules, network)
        self._folding = Folding(limit, by_owner)
        self._ignored: Counter[int] = Counter()
        """By the number of the rule."""
        self._folded = [0, 0]
        """When they opened, and when they closed."""
        self.ignored = self.ignored_startup = 0
        """Connections that were ignored since the start of this process; those that had been open before."""

    def choose(self, connection: Connection, name: Name) -> Connection | Ignored:
        """With its owners and its priority, or that it is ignored, mostly without owners."""
        if not self._rules.rules:
            return name(connection)
        number, named = self._rules.choose(connection, name)
        if number is None:
            return named or name(connection)
        priority = PRIORITIES[self._rules.rules[number].action]
        if priority is None:
            self._ignored[number] += 1
            self.ignored += 1
            self.ignored_startup += connection.detected_by == "startup"
            return make(Ignored, (connection,))
        return (named or name(connection))._replace(priority=priority)

    @property
    def may_report(self) -> MayReport | None:
        """As in `Rules`; None if all is reported."""
        return self._rules.may_report if self._rules.rules else None

    def fold(self, items: Iterable[Connection | Closed]) -> list[Connection | Closed | Folded]:
        """What is to be written now, in order."""
        return self._count(self._folding.follow(items))

    def settle(self, until: int, everything: bool = False) -> list[Connection | Closed | Folded]:
        """As in `Folding`."""
        return self._count(self._folding.settle(until, everything))

    def _count(self, items: list[Connection | Closed | Folded]) -> list[Connection | Closed | Folded]:
        for item in items:
            if isinstance(item, Folded):
                self._folded[isinstance(item.first, Closed)] += item.number
        return items

    def count_held(self) -> int:
        """Connections that wait to be folded."""
        return self._folding.count_held()

    @property
    def since(self) -> int:
        """When the tally was last taken, or was begun."""
        return self._since

    def take_tally(self, now: int) -> Tally:
        """Of the time since the last one."""
        ignored = [(self._rules.rules[number], times) for number, times in self._ignored.most_common()]
        tally = Tally(self._since, ignored, *self._folded)
        self._since, self._ignored, self._folded = now, Counter(), [0, 0]
        return tally

    def is_of(self, rules: Sequence[Rule], limit: Limit | None) -> bool:
        """Whether it is made of these."""
        return self._rules.rules == tuple(rules) and self._folding.limit == limit

    @property
    def known(self) -> PolicyKnown:
        folding = self._folding
        tally = self._since, sorted(self._ignored.items()), self._folded.copy()
        return PolicyKnown(self._rules.rules, folding.limit, folding.known, *tally)

    def restore(self, known: PolicyKnown) -> None:
        """Go on as another process did."""
        self._rules = Rules(known.rules, self._network)
        self._folding = Folding(known.limit, self._by_owner)
        self._folding.restore(known.groups)
        self._since, self._folded = known.since, known.folded.copy()
        self._ignored = Counter(dict(known.ignored))

    def switch(self, rules: Sequence[Rule], limit: Limit | None) -> None:
        """Of what was settled and told."""
        self._rules = Rules(rules, self._network)
        self._folding = Folding(limit, self._by_owner)
