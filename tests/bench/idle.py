"""The service when nothing happens: memory, wake-ups, the time until it is ready. A bare interpreter = 1."""

from __future__ import annotations

import time

from tests.bench.figures import print_head, print_row, summarize
from tests.bench.service import Service

SECONDS = 30
STARTS = 15


def main() -> None:
    with Service(traced=True) as service:
        service.run("systemctl", "start", "tcpwatchd")
        time.sleep(SECONDS / 3)
        switches = service.read_status("tcpwatchd", "ctxt_switches")
        time.sleep(SECONDS)
        wakeups = (service.read_status("tcpwatchd", "ctxt_switches") - switches) / SECONDS
        resident = service.read_status("tcpwatchd", "VmRSS")
        ratios = [resident / service.run_script("start", "resident") for _ in range(STARTS // 3)]
        service.run("systemctl", "stop", "tcpwatchd")
        starts = service.run_script("start", "times", str(STARTS))
    print("\nThe service when nothing happens; the interpreter doing nothing = 1.")
    print_head("figure", "value")
    print_row("resident memory", f"{summarize(ratios)}, {resident / 1024:.1f} MiB")
    print_row("start until ready, without the trace", summarize(ours / bare for ours, bare in starts))
    print_row("wake-ups a second", f"{wakeups:.2f}")


if __name__ == "__main__":
    main()
