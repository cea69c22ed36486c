"""The shipped examples, as they stand: what is ignored, reported and warned of."""

from __future__ import annotations

import ipaddress
from configparser import ConfigParser
from typing import NamedTuple

import pytest

from tcpwatchd.config.flags import load, parse_arguments
from tcpwatchd.connection import NOBODY, Connection, Direction, Endpoint, Owner, TcpState, unmap
from tcpwatchd.policy.rules import Rules
from tests.daemon import PROJECT, run_program

FOLDER = PROJECT / "packaging/examples"
OF_THE_UNIT = "journal-namespace.conf"
NGINX = Owner(user=33, user_name="www-data", unit="nginx.service", name="nginx")
UPDATES = Owner(user=42, user_name="_apt", unit="apt-daily-upgrade.service", name="https")
MONITORING = Owner(user=998, user_name="monitoring", unit="agent.service", name="agent")
ALICE = Owner(user=1000, user_name="alice", unit="session-4.scope", name="curl")
USER_ONLY = Owner(user=1000, user_name="alice")
"""As polls have it: nothing else is known."""


class Sample(NamedTuple):
    """A connection, and what is to become of it."""

    decision: str
    direction: Direction
    source: str
    destination: str
    port: int
    owner: Owner = NOBODY
    listener: Owner = NOBODY


CASES = {
    "ignore-health-checks.conf": [
        Sample("Ignore", "ingress", "192.0.2.10", "10.0.0.5", 8080),
        Sample("Ignore", "ingress", "192.0.2.11", "10.0.0.5", 8080, NGINX),
        Sample("Ignore", "ingress", "::ffff:192.0.2.11", "::ffff:10.0.0.5", 8080),
        Sample("Report", "ingress", "192.0.2.12", "10.0.0.5", 8080),
        Sample("Report", "ingress", "192.0.2.10", "10.0.0.5", 443),
        Sample("Report", "egress", "192.0.2.10", "10.0.0.5", 8080),
        Sample("Report", "ingress", "10.0.0.5", "192.0.2.10", 8080),
    ],
    "ignore-loopback.conf": [
        Sample("Ignore", "internal", "127.0.0.1", "127.0.0.53", 53),
        Sample("Ignore", "internal", "::1", "::1", 631, ALICE, MONITORING),
        Sample("Report", "internal", "10.0.0.5", "10.0.0.5", 80),
        Sample("Report", "egress", "10.0.0.5", "192.0.2.1", 80),
        Sample("Report", "ingress", "2001:db8::1", "2001:db8::2", 80),
    ],
    "ignore-monitoring.conf": [
        Sample("Ignore", "egress", "10.0.0.5", "192.0.2.1", 443, MONITORING),
        Sample("Ignore", "ingress", "192.0.2.1", "10.0.0.5", 10050, MONITORING),
        Sample("Ignore", "internal", "127.0.0.1", "127.0.0.1", 80, MONITORING, NGINX),
        Sample("Ignore", "internal", "127.0.0.1", "127.0.0.1", 10050, ALICE, MONITORING),
        Sample("Report", "egress", "10.0.0.5", "192.0.2.1", 443, ALICE),
        Sample("Report", "egress", "10.0.0.5", "192.0.2.1", 443),
        Sample("Report", "internal", "127.0.0.1", "127.0.0.1", 80, ALICE),
    ],
    "only-leaving.conf": [
        Sample("Report", "egress", "10.0.0.5", "192.0.2.1", 443),
        Sample("Report", "egress", "2001:db8::1", "2001:db8::2", 25, ALICE),
        Sample("Ignore", "ingress", "192.0.2.1", "10.0.0.5", 443),
        Sample("Ignore", "internal", "127.0.0.1", "127.0.0.1", 443, ALICE, NGINX),
    ],
    "only-a-unit.conf": [
        Sample("Report", "ingress", "192.0.2.1", "10.0.0.5", 443, NGINX),
        Sample("Report", "egress", "10.0.0.5", "192.0.2.1", 443, NGINX),
        Sample("Report", "internal", "127.0.0.1", "127.0.0.1", 443, ALICE, NGINX),
        Sample("Report", "egress", "10.0.0.5", "192.0.2.1", 443, USER_ONLY),
        Sample("Report", "egress", "10.0.0.5", "192.0.2.1", 443),
        Sample("Ignore", "egress", "10.0.0.5", "192.0.2.1", 443, ALICE),
        Sample("Ignore", "internal", "127.0.0.1", "127.0.0.1", 443, ALICE, MONITORING),
    ],
    "warn-of-others.conf": [
        Sample("Report", "egress", "10.0.0.5", "10.200.0.1", 22),
        Sample("Report", "egress", "10.0.0.5", "192.0.2.53", 53, ALICE),
        Sample("Report", "egress", "10.0.0.5", "198.51.100.7", 443, UPDATES),
        Sample("Report", "ingress", "198.51.100.7", "10.0.0.5", 443, NGINX),
        Sample("Report", "internal", "127.0.0.1", "127.0.0.1", 443, ALICE, NGINX),
        Sample("Warning", "egress", "10.0.0.5", "198.51.100.7", 443, ALICE),
        Sample("Warning", "egress", "10.0.0.5", "198.51.100.7", 443, USER_ONLY),
        Sample("Warning", "egress", "10.0.0.5", "198.51.100.7", 443),
        Sample("Warning", "egress", "10.0.0.5", "198.51.100.7", 25, UPDATES),
        Sample("Warning", "egress", "10.0.0.5", "192.0.2.53", 443),
        Sample("Warning", "egress", "2001:db8::1", "2001:db8::2", 443, NGINX),
    ],
}


def pack(address: str, port: int) -> Endpoint:
    return unmap(ipaddress.ip_address(address).packed + port.to_bytes(2, "big"))


def test_each_example_is_tried() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {*CASES, OF_THE_UNIT}


@pytest.mark.parametrize(
    ("name", "sample"), [(name, sample) for name, samples in CASES.items() for sample in samples]
)
def test_what_becomes_of_connections(name: str, sample: Sample) -> None:
    settings = load(parse_arguments(["--config", str(FOLDER / name)]))
    assert settings.given == {}, "it goes with any other drop-in"
    source, destination = pack(sample.source, 40000), pack(sample.destination, sample.port)
    found = Connection(source, destination, sample.direction, TcpState.ESTABLISHED, "trace", 1)
    named = found._replace(owner=sample.owner, listener=sample.listener)
    number, _ = Rules(settings.rules).choose(found, lambda _: named)
    assert ("Report" if number is None else settings.rules[number].action) == sample.decision


@pytest.mark.parametrize("name", CASES)
def test_they_are_accepted_as_they_stand(name: str) -> None:
    result = run_program("--check-config", str(FOLDER / name))
    assert (result.returncode, result.stdout, result.stderr) == (0, "OK\n", "")


def test_the_one_of_the_unit_sets_the_namespace_alone() -> None:
    unit = ConfigParser()
    unit.read(FOLDER / OF_THE_UNIT)
    assert {name: dict(unit[name]) for name in unit.sections()} == {"Service": {"lognamespace": "tcpwatchd"}}
