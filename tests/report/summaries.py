"""Summaries with much in them, for what shows them."""

from __future__ import annotations

import random

from tcpwatchd.connection import Closed, Owner, PortScan
from tcpwatchd.output import event
from tcpwatchd.report.outline import FirstSeen, Outline, make_outline
from tcpwatchd.report.summary import Summary
from tests.report.journals import TRUSTED, list_fields, make_connection

SINCE = 1_795_000_000_000_000
UNTIL = SINCE + 3600 * 1_000_000
HOSTILE = [
    "<script>alert(1)</script>",
    "</title><img src=x onerror=alert(1)>",
    "\"' onload=alert(1) x='",
    "{{ 7 * 7 }}{% raw %}",
    "\u202egnp.exe",
    "a\nb\tc",
    "\x1b]0;title\x07\x1b[31m",
    "日本語のとても長い名前",
    "e\u0301\u0301\u0301\u0301",
    "javascript:alert(1)",
    "[bold red]x[/] :warning:",
    "x" * 300,
    "größe ☃",
]


def sum_up(number: int = 400, names: list[str] = HOSTILE, top: int = 10, seed: int = 1) -> Summary:
    """Of that many connections, with everything that a report can tell."""
    rng = random.Random(seed)
    summary = Summary(SINCE, UNTIL, "tcpwatchd.service", top)
    for index in range(number):
        name = rng.choice(names)
        owner = Owner(user=33, unit=rng.choice([None, name]), name=name)
        opened = SINCE + rng.randrange(UNTIL - SINCE)
        here, peer = "10.0.0.1", f"192.0.2.{int(1 + rng.paretovariate(1)) % 250}"
        direction = rng.choice(["ingress", "egress", "internal"])
        source, destination = (peer, here) if direction == "ingress" else (here, peer)
        made = make_connection(
            f"{source}:{index + 1}",
            f"{destination}:{rng.choice([22, 80, 443])}",
            direction,  # type: ignore[arg-type]
            owner,
            opened * 1000,
        )
        summary.add(opened, list_fields(event.connection_opened(made, opened)))
        closed = Closed(
            made, made.time + rng.randrange(10**12), rng.choice(["fin", "reset", None]), None,
            rng.choice([None, rng.randrange(10**10)]), rng.randrange(10**6), "trace",
        )  # fmt: skip
        if rng.random() < 0.8:
            summary.add(opened, list_fields(event.connection_closed(closed, opened, opened + 5)))
    say(summary, names)
    return summary


def say(summary: Summary, names: list[str]) -> None:
    scan = PortScan(bytes([192, 0, 2, 9]), None, 0, 1, [22, 80, 443], [1, 2], [bytes(4)], False, True, "")
    told = [
        event.port_scan(scan, SINCE, SINCE, SINCE),
        event.records_lost(7, SINCE),
        event.connections_missed(3, 4, SINCE),
        *(event.poll_failed(name, SINCE) for name in names),
    ]
    for what in told:
        summary.add(SINCE, list_fields(what))
    host = {**TRUSTED, "_HOSTNAME": names[0]}
    summary.add(SINCE, list_fields(event.reloaded([], SINCE), host))
    summary.add(SINCE, list_fields(told[0], {**TRUSTED, "_SYSTEMD_UNIT": names[-1]}))


def outline_of(summary: Summary, faults: list[str] | None = None, top: int = 10) -> Outline:
    peers = summary.peers.list_top(3)
    return make_outline(summary, FirstSeen(SINCE - 10, peers, 5), faults or [], top)
