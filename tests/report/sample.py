"""A day of a web server, made up, for pictures of the report and for looking at it.

python -m tests.report.sample FILE.journal [CONNECTIONS]
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tcpwatchd.connection import Closed, Owner, PortScan
from tcpwatchd.output import event
from tests.report.journals import TRUSTED, export, make_connection, make_endpoint, write_journal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tcpwatchd.connection import ClosedBy, Direction

BEGIN = 1_795_561_200_000_000
"""Midnight in the zone of the pictures, microseconds since the epoch."""
DAY = 86_400
HERE = "10.0.0.5"
SCANNERS = "198.51.100.23", "198.51.100.77"


class Service(NamedTuple):
    unit: str
    direction: Direction
    port: int
    share: int
    """Of a hundred connections."""
    peers: int
    """How many there are; few of them have most connections."""


SERVICES = (
    Service("nginx.service", "ingress", 443, 52, 220),
    Service("php8.2-fpm.service", "internal", 5432, 22, 1),
    Service("php8.2-fpm.service", "egress", 443, 14, 12),
    Service("postfix@-.service", "egress", 25, 5, 60),
    Service("ssh.service", "ingress", 22, 3, 30),
    Service("backup.service", "egress", 8443, 2, 2),
    Service("docker-4f9d0a7c.scope", "egress", 6379, 2, 3),
)
CLOSED: tuple[ClosedBy, ...] = ("fin", "reset", "timeout")


def list_entries(number: int, seed: int = 1) -> Iterator[bytes]:
    """Of so many connections, in the order of time; with less at night, and a night of backups."""
    chance = random.Random(seed)
    yield export(event.watch_started("0.1.0", 10, True, BEGIN))
    moments = sorted(BEGIN + int(1e6 * draw_second(chance)) for _ in range(number))
    entries = [entry for moment in moments for entry in list_connection(chance, moment)]
    for index, source in enumerate(SCANNERS):
        scan = PortScan(make_endpoint(f"{source}:1")[:-2], None, 0, 0, [22, 443], list(range(1, 98 + index)),
                        [make_endpoint(f"{HERE}:1")[:-2]], bool(index), False, "")  # fmt: skip
        moment = BEGIN + int(1e6 * DAY * (0.3 + index / 5))
        entries.append((moment, export(event.port_scan(scan, moment - 9_000_000, moment, moment))))
    moment = BEGIN + int(1e6 * DAY * 0.85)
    entries.append((moment, export(event.records_lost(1908, moment))))
    yield from (entry for _, entry in sorted(entries))


def draw_second(chance: random.Random) -> float:
    """Of the day."""
    if chance.random() < 0.04:
        return chance.gauss(2.5 * 3600, 600)
    while True:
        second = chance.gauss(14 * 3600, 5 * 3600)
        if 0 <= second < DAY:
            return second


def list_connection(chance: random.Random, moment: int) -> list[tuple[int, bytes]]:
    """When each of its two entries is written, and the entry."""
    (service,) = chance.choices(SERVICES, [service.share for service in SERVICES])
    peer = f"203.0.113.{min(int(chance.paretovariate(0.8)), service.peers)}"
    ends = (peer, HERE) if service.direction == "ingress" else (HERE, peer)
    if service.direction == "internal":
        ends = "127.0.0.1", "127.0.0.1"
    owner = Owner(user=33, unit=service.unit, name=service.unit.partition(".")[0][:15])
    source = f"{ends[0]}:{chance.randrange(32768, 60999)}"
    opened = make_connection(source, f"{ends[1]}:{service.port}", service.direction, owner)
    if service.direction == "internal":
        opened = opened._replace(listener=Owner(user=113, unit="postgresql@15-main.service"))
    (how,) = chance.choices(CLOSED, [94, 5, 1])
    sent, received = (int(chance.lognormvariate(size, 2)) for size in (6, 9))
    closed = Closed(opened, int(1e9 * chance.lognormvariate(-1, 2)), how, "source", sent, received, "trace")
    ended = moment + closed.time // 1000
    entries = event.connection_opened(opened, moment), event.connection_closed(closed, moment, ended)
    return [(entry.time, export(entry, TRUSTED)) for entry in entries]


if __name__ == "__main__":
    began = time.monotonic()
    write_journal(Path(sys.argv[1]), list_entries(int(sys.argv[2]) if len(sys.argv) > 2 else 20_000))
    print(f"made in {time.monotonic() - began:.1f} s")
