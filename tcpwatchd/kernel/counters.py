"""The kernel's counters of TCP (proc(5): /proc/net/snmp, /proc/net/netstat; RFC 4022 names them)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tcpwatchd.failure import Failure

if TYPE_CHECKING:
    from collections.abc import Sequence

FILES = (
    ("snmp", "Tcp:", ("PassiveOpens", "ActiveOpens", "AttemptFails")),
    ("netstat", "TcpExt:", ("EmbryonicRsts",)),
)


class CountersError(Failure):
    """A file does not hold the counters of TCP."""


def read_counters(root: str = "/proc/self/net") -> list[int]:
    """PassiveOpens, ActiveOpens, AttemptFails, EmbryonicRsts of a network namespace, since it was made.

    Raises OSError and CountersError.
    """
    counters = []
    for file, prefix, names in FILES:
        counters += _read(os.path.join(root, file), prefix, names)
    return counters


def _read(path: str, prefix: str, names: Sequence[str]) -> list[int]:
    with open(path) as file:
        lines = [line.split() for line in file if line.startswith(prefix)]
    try:
        named = dict(zip(*lines))
        return [int(named[name]) for name in names]
    except (TypeError, KeyError, ValueError) as error:
        raise CountersError(f"{path}: no counters of TCP") from error
