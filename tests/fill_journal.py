"""Fills a journald that stands still through the daemon's own sink, then offers it what no datagram holds.

It prints how many entries were taken, whether the large one was, each time, and how long the slowest offer
took; when its stdin has a line, the large one is offered until it is taken.
"""

from __future__ import annotations

import json
import sys
import time

from tcpwatchd.output.event import Event, poll_failed
from tcpwatchd.output.sinks import JournalSink

LARGE = "x" * 300_000
OFFERS = 5


def offer(sink: JournalSink, new: Event) -> tuple[bool, float]:
    began = time.monotonic()
    taken = sink.reach() and sink.is_ready() and sink.write(new)
    return taken, time.monotonic() - began


def main() -> None:
    sink = JournalSink()
    offers: list[tuple[bool, float]] = []
    while not offers or offers[-1][0]:
        offers.append(offer(sink, poll_failed(str(len(offers)), 0)))
    large = [offer(sink, poll_failed(LARGE, 0)) for _ in range(OFFERS)]
    slowest = max(seconds for _, seconds in offers + large)
    print(json.dumps([len(offers) - 1, [taken for taken, _ in large], slowest]), flush=True)
    sys.stdin.readline()
    while not offer(sink, poll_failed(LARGE, 0))[0]:
        time.sleep(0.01)


if __name__ == "__main__":
    main()
