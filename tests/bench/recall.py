"""How many of 800 connections of mixed length are reported. Run as root: make bench.

A server here, its clients in a network namespace of their own; the truth is what the clients' sockets saw.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.daemon import Daemon
from tests.holder import Traffic
from tests.namespace import Namespace, run

HERE, THERE = "10.78.1.1", "10.78.1.2"
CONNECTIONS, SECONDS, LONGEST = 800, 30, 15


def count_reported(interval: str, trace: str) -> tuple[int, int]:
    """Connections that were established, and those of them that were reported."""
    with Namespace() as here, Namespace() as there, tempfile.TemporaryFile() as output:
        there.join(THERE, here.pid, HERE)
        for namespace, link, address in ((here, "ve1", "fd00:78::1/64"), (there, "ve0", "fd00:78::2/64")):
            run(*namespace.prefix, "ip", "address", "add", address, "dev", link, "nodad")
        daemon = Daemon(
            "--output", "json", "--interval", interval, "--trace", trace, prefix=here.prefix, stdout=output
        )
        server = Traffic(here.pid, "server", script="mixed.py")
        server.truth()
        plan = (str(CONNECTIONS), str(SECONDS), str(LONGEST), "1")
        client = Traffic(there.pid, "client", HERE, "fd00:78::1", *plan, script="mixed.py")
        truth = Counter(map(tuple, client.truth()))
        time.sleep(float(interval) + 1)
        client.end()
        server.end()
        daemon.end(signal.SIGTERM)
        output.seek(0)
        events = [json.loads(line) for line in output]
    found = Counter(
        (e["SOURCE_IP"], int(e["SOURCE_PORT"]), e["DESTINATION_IP"], int(e["DESTINATION_PORT"]))
        for e in events
        if "SOURCE_IP" in e
    )
    assert not found - truth, f"reported, but never established: {found - truth}"
    return sum(truth.values()), sum(found.values())


def main() -> None:
    if os.geteuid() != 0:
        sys.exit("make bench: needs root for network namespaces of its own")
    print("| source | connections | reported | share |\n|---|---|---|---|", flush=True)
    for interval, trace in (("10", "no"), ("1", "no"), ("10", "require")):
        truth, found = count_reported(interval, trace)
        source = f"poll every {interval} s{', and the trace' if trace == 'require' else ''}"
        print(f"| {source} | {truth} | {found} | {found / truth:.0%} |", flush=True)


if __name__ == "__main__":
    main()
