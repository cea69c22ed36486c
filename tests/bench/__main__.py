"""All benchmarks, or those that are named, as Markdown. Run as root: make bench."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from tests.bench import (
    burst,
    capture,
    closings,
    idle,
    journal,
    owners,
    poll,
    recall,
    report,
    rules,
    scans,
    tracing,
)
from tests.bench.figures import INTERPRETER
from tests.namespace import mount_tracefs, run

BENCHES = {
    "recall": recall.main,
    "poll": poll.main,
    "capture": capture.main,
    "tracing": tracing.main,
    "owners": owners.main,
    "closings": closings.main,
    "rules": rules.main,
    "scans": scans.main,
    "burst": burst.main,
    "idle": idle.main,
    "journal": journal.main,
    "report": report.main,
}


def describe_machine() -> str:
    """In one line."""
    (processor,) = set(re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    python = run(INTERPRETER, "--version").stdout.strip()
    return f"{os.cpu_count()} cores ({processor}), Linux {os.uname().release}, {python}"


def main() -> None:
    if os.geteuid() != 0:
        sys.exit("make bench: needs root for containers and network namespaces of its own")
    unknown = set(sys.argv[1:]) - BENCHES.keys()
    if unknown:
        sys.exit(f"make bench: no benchmark of this name: {' '.join(sorted(unknown))}")
    mount_tracefs()
    print(describe_machine(), flush=True)
    for name in sys.argv[1:] or BENCHES:
        BENCHES[name]()


main()
