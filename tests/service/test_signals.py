"""Signals are told to whoever asks."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, select, signal
from tcpwatchd.service.signals import Signals
signals = Signals([signal.SIGTERM, signal.SIGHUP])
assert signals.take() == b""
os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGHUP)
assert select.select([signals], [], [], 5)[0] == [signals]
assert set(signals.take()) == {signal.SIGTERM, signal.SIGHUP}
assert signals.take() == b""
"""


def test_signals_are_kept_until_taken() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=10)
