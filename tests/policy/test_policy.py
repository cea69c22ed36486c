"""Rules and folding together, and what is counted."""

from __future__ import annotations

from tcpwatchd.connection import Connection, Folded, Ignored, Owner
from tcpwatchd.policy.folding import Limit
from tcpwatchd.policy.policy import Policy, Tally
from tests.policy.test_folding import come
from tests.policy.test_rules import make_rule

RULES = [make_rule("Ignore=src host 192.0.2.1", 1), make_rule("Warning=src host 192.0.2.2", 2)]
RULES += [make_rule("Ignore=user 7", 3), make_rule("Notice=src host 192.0.2.4", 4)]


def name(connection: Connection) -> Connection:
    return connection._replace(owner=Owner(user=7 if connection.source.ip == "192.0.2.3" else 8))


def refuse(_connection: Connection) -> Connection:
    raise AssertionError("nobody asked who it is")


def test_what_is_ignored_is_not_named() -> None:
    policy = Policy(RULES)
    assert policy.choose(come(1), refuse) == Ignored(come(1))
    assert policy.ignored == 1


def test_what_is_written_has_its_owner_and_its_priority() -> None:
    policy = Policy(RULES)
    for source, priority in ((2, "4"), (4, "5"), (5, "6")):
        chosen = policy.choose(come(1, source), name)
        assert chosen == come(1, source, owner=Owner(user=8))._replace(priority=priority)  # type: ignore[arg-type]


def test_what_is_named_for_a_rule_is_named_once() -> None:
    asked = []

    def count(connection: Connection) -> Connection:
        asked.append(connection)
        return name(connection)

    policy = Policy(RULES)
    assert policy.choose(come(1, 3), count) == Ignored(come(1, 3))
    assert policy.choose(come(1, 5), count) == come(1, 5, owner=Owner(user=8))
    assert len(asked) == 2


def test_the_tally_tells_of_each_rule_since_the_last() -> None:
    policy = Policy(RULES, Limit(1, 100), now=40)
    for connection in (come(1), come(2), come(3, 3)):
        policy.choose(connection, name)
    policy.fold([come(time, 5) for time in range(4)])
    policy.fold([come(time, 6) for time in range(2)])
    assert len(policy.settle(500)) == 2
    assert policy.take_tally(90) == Tally(40, [(RULES[0], 2), (RULES[2], 1)], 3, 0)
    assert policy.take_tally(95) == Tally(90, [], 0, 0)
    assert (policy.since, policy.ignored) == (95, 3)
    assert policy.take_tally(96).is_empty


def test_another_process_goes_on_with_all_of_it() -> None:
    policy, other = Policy(RULES, Limit(1, 100), now=40), Policy()
    policy.choose(come(1), name)
    policy.fold([come(time, 5) for time in range(3)])
    other.restore(policy.known)
    assert other.known == policy.known
    assert other.settle(200) == [Folded(come(1, 5), 2, 2)]
    assert other.take_tally(50) == Tally(40, [(RULES[0], 1)], 2, 0)
    assert other.is_of(RULES, Limit(1, 100))


def test_it_can_be_switched() -> None:
    policy = Policy(RULES, Limit(1, 100))
    assert not policy.is_of(RULES, None)
    policy.switch([], None)
    assert policy.is_of([], None)
    assert policy.choose(come(1), name) == name(come(1))
    assert policy.fold([come(1), come(2)]) == [come(1), come(2)]
