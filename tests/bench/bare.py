"""A bare loop of sendv, to be run where the service runs: entries with the fields of a connection's.

    bare.py COUNT

It prints when the loop began, in microseconds since the epoch, and its processor time an entry, in seconds.
"""

from __future__ import annotations

import json
import sys
import time

from tcpwatchd.connection import Connection, Endpoint, TcpState
from tcpwatchd.output.event import connection_opened

HERE = Endpoint(b"\x0a\x4e\x05\x01\x1b\xbc")
IDENTIFIER = "tcpwatchd-bench"


def make_entry(number: int) -> list[str]:
    client = Endpoint(b"\x0a\x4e" + number.to_bytes(4, "big"))
    connection = Connection(client, HERE, "ingress", TcpState.ESTABLISHED, "poll", 0)
    fields = {**connection_opened(connection, time.time_ns() // 1000).fields, "SYSLOG_IDENTIFIER": IDENTIFIER}
    return list(map("=".join, fields.items()))


def main() -> None:
    from systemd.journal import sendv

    entries = list(map(make_entry, range(int(sys.argv[1]))))
    began, before = time.time_ns() // 1000, time.process_time()
    for entry in entries:
        sendv(*entry)
    print(json.dumps([began, (time.process_time() - before) / len(entries)]))


if __name__ == "__main__":
    main()
