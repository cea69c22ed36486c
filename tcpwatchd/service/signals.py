"""Signals, read by the loop when it has time rather than handled in the middle of its work."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Signals:
    """Takes over signals for the life of the process; its descriptor is readable when one came.

    One that was ignored before stays so: nohup, and a shell for what a script runs in the background, ask for
    that.
    """

    def __init__(self, numbers: Iterable[int]) -> None:
        self._reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in numbers:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda _number, _frame: None)

    def fileno(self) -> int:
        return self._reader

    def take(self) -> bytes:
        """The numbers of the signals that came since the last call."""
        try:
            return os.read(self._reader, 512)
        except BlockingIOError:
            return b""  # none came
