"""Decoding and tracking of real transitions, without their reading and writing.

It prints the processor time of each round, in seconds a transition.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tcpwatchd.__main__ import COLLECT_AFTER
from tcpwatchd.kernel.pages import Decoder
from tcpwatchd.kernel.setup import remove, set_up
from tcpwatchd.kernel.trace import Trace
from tcpwatchd.tracking.tracker import Tracker
from tcpwatchd.watch import DRAIN_EVERY
from tests.holder import Traffic
from tests.namespace import Namespace

RATE, SECONDS, ROUNDS = "10000", "2", 7


def main() -> None:
    gc.set_threshold(COLLECT_AFTER)
    path = set_up("tcpwatchd-bench", 8192).path
    trace, drains = Trace(path), []
    with Namespace() as host:
        traffic = Traffic(host.pid, "churn", RATE, SECONDS)
        for _ in range(int(int(SECONDS) / DRAIN_EVERY)):
            time.sleep(DRAIN_EVERY)
            drains.append(trace.drain())
        traffic.end()
    trace.close()
    remove(path)
    times = []
    for _ in range(ROUNDS):
        decoder, tracker, heard = Decoder(trace.formats, {}), Tracker(), 0
        began = time.process_time()
        for drain in drains:
            transitions, _ = decoder.decode(drain)
            tracker.follow(transitions, False, lambda _end: False)
            tracker.release(drain.began)
            heard += len(transitions)
        times.append((time.process_time() - began) / heard)
    print(json.dumps(times))


if __name__ == "__main__":
    main()
