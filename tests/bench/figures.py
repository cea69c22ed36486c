"""What the benchmarks share: processor time by the kernel's accounts, ratios, rows of a Markdown table."""

from __future__ import annotations

import os
import re
import resource
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

INTERPRETER = "/usr/bin/python3"
"""The service's, not that of the virtual environment."""
TICKS = os.sysconf("SC_CLK_TCK")
KIB, MIB = 1 << 10, 1 << 20


def read_cpu(pid: int) -> float:
    """User and system time of a process so far, in seconds (proc(5): stat)."""
    return parse_cpu(Path(f"/proc/{pid}/stat").read_text())


def parse_cpu(stat: str) -> float:
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def read_usage(who: int) -> float:
    """The same of this process, or of its children that ended, to the microsecond (getrusage(2))."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def read_resident(pid: int) -> int:
    """Bytes."""
    return KIB * int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0])


def summarize(values: Iterable[float], digits: int = 2) -> str:
    """Median, least and largest."""
    found = sorted(values)
    median, least, most = (f"{value:.{digits}f}" for value in (statistics.median(found), found[0], found[-1]))
    return f"{median} ({least} to {most})"


def compare_with(unit: str, name: str, turns: Sequence[Mapping[str, float]]) -> str:
    """Of a figure of each turn, divided by another; a peer that is missing has none."""
    if name not in turns[0]:
        return "not installed"
    return summarize(turn[name] / turn[unit] for turn in turns)


def print_row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def print_head(*cells: str) -> None:
    print()
    print_row(*cells)
    print(f"|{'---|' * len(cells)}", flush=True)
