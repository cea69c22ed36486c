"""Arguments, environment, wiring and exit status."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

from tcpwatchd.baseline import Baseline
from tcpwatchd.config import parse_arguments
from tcpwatchd.event import watch_failed
from tcpwatchd.notify import open_notifier
from tcpwatchd.procnet import TableError, Tables
from tcpwatchd.signals import Signals
from tcpwatchd.sinks import SINKS, STDERR, STDOUT, JournalSink
from tcpwatchd.tracefs import OWN_INSTANCE, Trace, TraceError, open_to_all, remove, remove_stale, set_up
from tcpwatchd.tracker import Tracker
from tcpwatchd.watch import Watch, describe, now

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tcpwatchd.config import Settings
    from tcpwatchd.sinks import Sink

SERVICE_INSTANCE = "tcpwatchd"
SERVICE_TRACE = "/run/tcpwatchd-trace"
"""Where the service's unit binds its instance."""


def main() -> int:
    """Returns 0 when stopped as asked, 1 after a fault; wrong usage raises SystemExit with status 2."""
    settings = parse_arguments(sys.argv[1:])
    sink = None
    try:
        if settings.trace_setup:
            open_to_all(set_up(settings.trace_instance or SERVICE_INSTANCE, settings.trace_buffer))
            return 0
        sink = SINKS[choose_output(settings.output, os.environ)]()
        signals = Signals({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
        with contextlib.ExitStack() as stack:
            hung_up = run(settings, sink, signals, stack)
    except BrokenPipeError:
        return 0  # the reader has seen enough
    except (OSError, ImportError, TableError, TraceError) as error:
        report_fault(error, sink)
        return 1
    if hung_up:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGHUP)
    return 0


def run(settings: Settings, sink: Sink, signals: Signals, stack: contextlib.ExitStack) -> bool:
    """Whether it was SIGHUP that ended it."""
    notifier = open_notifier(os.environ)
    baseline = Baseline(os.environ.get("RUNTIME_DIRECTORY"))
    trace, untraced = None, None
    if settings.trace != "no" and not settings.once:
        try:
            trace = open_trace(settings, stack)
        except TraceError as error:
            if settings.trace == "require":
                raise
            untraced = str(error)
    watch = Watch(Tables(), Tracker(), sink, notifier, signals, settings.interval, baseline, trace, untraced)
    watch.run_once() if settings.once else watch.run()
    return watch.hung_up


def open_trace(settings: Settings, stack: contextlib.ExitStack) -> Trace:
    """The service's instance where it is bound, else one of our own, removed when the stack unwinds.

    Raises TraceError.
    """
    if settings.trace_instance is None and os.path.isdir(SERVICE_TRACE):
        trace = Trace(SERVICE_TRACE)
    elif os.geteuid() != 0:
        raise TraceError(f"no instance at {SERVICE_TRACE}, and only root can make one")
    else:
        remove_stale()
        path = set_up(settings.trace_instance or f"{OWN_INSTANCE}{os.getpid()}", settings.trace_buffer)
        trace = Trace(path)
        stack.callback(remove, path)
    stack.callback(trace.close)
    return trace


def report_fault(error: Exception, sink: Sink | None) -> None:
    try:
        if isinstance(sink, JournalSink):
            sink.send([watch_failed(describe(error), now())])
            return
    except OSError:
        pass  # the journal is the fault
    print(f"tcpwatchd: {describe(error)}", file=sys.stderr)


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
