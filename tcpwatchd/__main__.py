"""Arguments, environment, wiring and exit status."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

from tcpwatchd.config import parse_arguments
from tcpwatchd.event import watch_failed
from tcpwatchd.notify import open_notifier
from tcpwatchd.procnet import TableError, Tables
from tcpwatchd.signals import Signals
from tcpwatchd.sinks import SINKS, STDERR, STDOUT, JournalSink
from tcpwatchd.tracker import Tracker
from tcpwatchd.watch import Watch, describe, now

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tcpwatchd.sinks import Sink


def main() -> int:
    """Returns 0 when stopped as asked, 1 after a fault; wrong usage raises SystemExit with status 2."""
    settings = parse_arguments(sys.argv[1:])
    signals = Signals(chosen_signals(os.environ))
    sink = None
    try:
        sink = SINKS[choose_output(settings.output, os.environ)]()
        notifier = open_notifier(os.environ)
        watch = Watch(Tables(), Tracker(), sink, notifier, signals, settings.interval)
        watch.run_once() if settings.once else watch.run()
    except BrokenPipeError:
        return 0  # the reader has seen enough
    except (OSError, ImportError, TableError) as error:
        report_fault(error, sink)
        return 1
    return 0


def report_fault(error: Exception, sink: Sink | None) -> None:
    try:
        if isinstance(sink, JournalSink):
            sink.send([watch_failed(describe(error), now())])
            return
    except OSError:
        pass  # the journal is the fault
    print(f"tcpwatchd: {describe(error)}", file=sys.stderr)


def chosen_signals(environment: Mapping[str, str]) -> set[int]:
    """SIGHUP ends the program as usual, unless it is a service: then it means reload."""
    ends = {signal.SIGTERM, signal.SIGINT}
    return {*ends, signal.SIGHUP} if "NOTIFY_SOCKET" in environment else {*ends}


def choose_output(output: str, environment: Mapping[str, str]) -> str:
    """`auto` is the journal when stdout or stderr is connected to it (JOURNAL_STREAM, systemd.exec(5))."""
    if output != "auto":
        return output
    stream = environment.get("JOURNAL_STREAM", "")
    return "journal" if stream in map(identify, (STDOUT, STDERR)) else "text"


def identify(descriptor: int) -> str:
    """Device and inode, as in JOURNAL_STREAM."""
    status = os.fstat(descriptor)
    return f"{status.st_dev}:{status.st_ino}"


if __name__ == "__main__":
    sys.exit(main())
