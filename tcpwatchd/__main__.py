"""Arguments, environment, wiring and exit status."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, NamedTuple

from tcpwatchd.clock import now
from tcpwatchd.config.files import MOST_FAULTS, ConfigError, find_hidden, list_files
from tcpwatchd.config.flags import format_settings, load, parse_arguments
from tcpwatchd.config.settings import SETTINGS
from tcpwatchd.failure import Failure, UsageError, describe
from tcpwatchd.kernel.instance import (
    BUFFER_KB,
    PAGE_KB,
    RESETS,
    TOTAL_KB,
    TraceError,
    find_event,
    open_to_all,
    read_buffer_size,
)
from tcpwatchd.kernel.resets import Resets
from tcpwatchd.kernel.setup import (
    OWN_INSTANCE,
    find_fault,
    remove,
    remove_resets,
    remove_stale,
    set_up,
    set_up_resets,
)
from tcpwatchd.kernel.trace import Trace
from tcpwatchd.output.event import ERROR, INFO, NOTICE, WARNING, closings_untold, count, watch_failed
from tcpwatchd.output.sinks import SINKS, STDERR, STDOUT, JournalSink, Stream
from tcpwatchd.owners.owners import Owners
from tcpwatchd.owners.processes import Processes, read_network
from tcpwatchd.pipeline import Pipeline
from tcpwatchd.service.notify import open_notifier
from tcpwatchd.service.signals import Signals
from tcpwatchd.state.store import Store
from tcpwatchd.watch import Reloaded, Watch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tcpwatchd.config.flags import Settings
    from tcpwatchd.output.sinks import Sink

SERVICE_INSTANCE = "tcpwatchd"
SERVICE_TRACE = "/run/tcpwatchd-trace"
"""Where the service's unit binds its instance."""
SERVICE_RESETS = "/run/tcpwatchd-resets"
"""Likewise, the one for resets."""
NOT_SET_UP = (
    'tcpwatchd-trace.service has not set the trace up; "systemctl status tcpwatchd-trace" says why, '
    'and "systemctl restart tcpwatchd" tries again'
)
COLLECT_AFTER = 50_000
"""Objects that are made before the garbage collector looks: here they go with their last reference anyway."""


def main() -> int:
    """Returns 0 when stopped as asked, 1 after a fault, 2 for wrong usage."""
    gc.set_threshold(COLLECT_AFTER)
    sink = None
    try:
        open_stderr()
        flags = parse_arguments(sys.argv[1:])
        if flags.check_config:
            return check_configuration(flags)
        settings = load(flags)
        if settings.show_config:
            os.write(STDOUT, f"{format_settings(settings)}\n".encode())
            return 0
        if settings.trace_setup:
            set_up_for_service(settings)
            return 0
        sink = SINKS[choose_output(settings.output)]()
        signals = Signals({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
        with contextlib.ExitStack() as stack:
            hung_up = run(flags, settings, sink, signals, stack)
    except BrokenPipeError:
        return 0  # the reader has seen enough
    except (OSError, ImportError, Failure) as error:
        report_fault(error, sink)
        return 2 if isinstance(error, UsageError) else 1
    if hung_up:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGHUP)
    return 0


def check_configuration(flags: Settings) -> int:
    """Says all that is wrong with it, a line for each."""
    try:
        load(flags)
        faults = find_hidden(list_files("/", [])) if flags.config is None and os.geteuid() == 0 else []
    except ConfigError as error:
        faults = error.faults
    if faults:
        with contextlib.suppress(OSError):  # nobody reads it
            told = [str(fault) for fault in faults[:MOST_FAULTS]]
            told += ["there are more"] * (len(faults) > MOST_FAULTS)
            print(*(f"tcpwatchd: {line}" for line in told), sep="\n", file=sys.stderr, flush=True)
        return 2
    os.write(STDOUT, b"OK\n")
    return 0


def set_up_for_service(settings: Settings) -> None:
    """Raises TraceError, UsageError and OSError."""
    refuse_for_service(settings)
    name, buffer_kb = settings.trace_instance or SERVICE_INSTANCE, settings.wanted_buffer
    remove_stale()
    fault = find_fault(name)
    path, made, no_owners = set_up(name, buffer_kb, settings.report != "opened")
    open_to_all(path, find_event(path))
    set_up_resets_for_service(settings, name)
    if fault:
        print_error(f"{fault}: set up anew, connections before now may be missing", WARNING)
    if no_owners and made:
        print_error(f"the kernel does not tell who owns a connection: {no_owners}", NOTICE)
    used = read_buffer_size(path)
    if buffer_kb and used and used > buffer_kb + PAGE_KB:
        text = f"{used} KiB a CPU stand, and are made smaller by a restart of tcpwatchd-trace.service"
        print_error(f"TraceBuffer={buffer_kb}K: {text}", NOTICE)
    if buffer_kb and used and used + PAGE_KB < buffer_kb > BUFFER_KB:
        print_error(f"TraceBuffer={buffer_kb}K: all CPUs share {TOTAL_KB} KiB, {used} a CPU", WARNING)


def set_up_resets_for_service(settings: Settings, name: str) -> None:
    """Without them there is no fault: port scans are seen by open ports only."""
    try:
        if settings.scan_enabled:
            open_to_all(set_up_resets(name), RESETS)
        else:
            remove_resets(name)
    except (TraceError, OSError) as error:
        print_error(f"port scans are seen by open ports only: {describe(error)}", INFO)


def run(
    flags: Settings, settings: Settings, sink: Sink, signals: Signals, stack: contextlib.ExitStack
) -> bool:
    """Whether it was SIGHUP that ended it."""
    if settings.once:
        refuse_for_once(flags)
        settings.trace, settings.report = "no", "opened"
    notifier = open_notifier(os.environ)
    store = Store(None if settings.once else find_runtime_directory(os.environ))
    trace, resets, no_trace, no_resets = open_sources(settings, notifier.supervised, stack)
    processes = Processes(settings.command_lines)
    pipeline = Pipeline(
        sink,
        store,
        trace,
        Owners(read_network(), processes),
        settings.message_owner,
        notifier.feed_watchdog,
        report=settings.report if not trace or trace.tells_closing else "opened",
        selection=settings.selection,
        resets=resets,
    )
    if trace and trace.tells_closing != (settings.report != "opened"):
        pipeline.report(closings_untold(trace.tells_closing, now()))

    def reload() -> Reloaded:
        new = load(flags)
        changes = list_changes(settings, new)
        new.scan_enabled = settings.scan_enabled
        pipeline.switch(new.selection)
        pipeline.outbox.message_owner, processes.command_lines = new.message_owner, new.command_lines
        return Reloaded(new.interval, changes)

    reasons = no_trace, no_resets
    watch = Watch(pipeline, sink, notifier, signals, settings.interval, trace, *reasons, reload)
    try:
        watch.run_once() if settings.once else watch.run()
    finally:
        if watch.lost_at_end:
            print_error(f"{count(watch.lost_at_end, 'connection')} found and not written")
    return watch.hung_up


class Sources(NamedTuple):
    """What the kernel tells beside the tables, and why it does not, if it was asked to."""

    trace: Trace | None
    resets: Resets | None
    no_trace: str | None
    no_resets: str | None


def open_sources(settings: Settings, supervised: bool, stack: contextlib.ExitStack) -> Sources:
    """Raises UsageError if there is no trace, and one is required."""
    if settings.trace == "no":
        return Sources(None, None, None, None)
    try:
        trace = open_trace(settings, supervised, stack)
    except TraceError as error:
        if settings.trace == "require":
            raise UsageError(f"{settings.cite('trace')}: {error}") from error
        return Sources(None, None, str(error), None)
    resets, no_resets = None, None
    if settings.scan_enabled:
        try:
            resets = open_resets(trace.path, stack)
        except TraceError as error:
            no_resets = str(error)
    return Sources(trace, resets, None, no_resets)


def refuse_for_once(flags: Settings) -> None:
    """What the configuration says for the service is no mistake; a flag is. Raises UsageError."""
    asked = {name: given.value for name, given in flags.given.items()}
    if asked.get("trace") == "require":
        raise UsageError("--trace require: not with --once, which never traces")
    if asked.get("report", "opened") != "opened":
        raise UsageError(f"--report {asked['report']}: not with --once, which reports what is open")


def refuse_for_service(settings: Settings) -> None:
    """Its units bind one instance, by name. Raises UsageError."""
    given = settings.given.get("trace_instance")
    if given and not given.source.startswith("--"):
        raise UsageError(
            f"{settings.cite('trace_instance')}: the units of the service have an instance of their own"
        )


def list_changes(settings: Settings, new: Settings) -> list[str]:
    """Keys of settings that only a restart changes."""
    return [
        f"[{setting.section}] {setting.key}="
        for setting in SETTINGS
        if setting.needs_restart and getattr(new, setting.name) != getattr(settings, setting.name)
    ]


def open_trace(settings: Settings, supervised: bool, stack: contextlib.ExitStack) -> Trace:
    """The service's instance where it is bound, else one of our own, removed when the stack unwinds.

    Raises TraceError.
    """
    if supervised:
        refuse_for_service(settings)
    if settings.trace_instance is None and os.path.exists(f"{SERVICE_TRACE}/trace_clock"):
        trace = Trace(SERVICE_TRACE)
    elif os.geteuid() != 0 and supervised:
        raise TraceError(NOT_SET_UP)
    elif os.geteuid() != 0:
        raise TraceError("only root can set the trace up")
    else:
        remove_stale()
        raise_file_limit()
        name = settings.trace_instance or f"{OWN_INSTANCE}{os.getpid()}"
        path, _, no_owners = set_up(name, settings.wanted_buffer, settings.report != "opened")
        try:
            trace = Trace(path, no_owners)
        except TraceError:
            remove_if_free(path)
            raise
        stack.callback(remove_if_free, path)
    stack.callback(trace.close)
    return trace


def open_resets(trace_path: str, stack: contextlib.ExitStack) -> Resets:
    """The service's instance where it is bound, else one beside our own, removed when the stack unwinds.

    Raises TraceError.
    """
    if trace_path == SERVICE_TRACE:
        if not os.path.exists(f"{SERVICE_RESETS}/trace_clock"):
            raise TraceError('this kernel does not tell, or "systemctl status tcpwatchd-trace" says why')
        resets = Resets(SERVICE_RESETS)
    else:
        path = set_up_resets(os.path.basename(trace_path))
        stack.callback(remove_if_free, path)
        resets = Resets(path)
    stack.callback(resets.close)
    return resets


def raise_file_limit() -> None:
    """Two descriptors a CPU can be more than what a shell allows."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # then it must do with what there is
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def remove_if_free(path: str) -> None:
    """Somebody may look into the instance: no fault, and the next start removes it or takes it over."""
    try:
        remove(path)
    except OSError as error:
        print_error(f"{describe(error)}; the instance stays")


def find_runtime_directory(environment: Mapping[str, str]) -> str | None:
    """The first, if there are several (RUNTIME_DIRECTORY, systemd.exec(5))."""
    return environment.get("RUNTIME_DIRECTORY", "").partition(":")[0] or None


def open_stderr() -> None:
    """Were it closed, the next file to be opened would get its number, and our messages."""
    try:
        os.fstat(STDERR)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, STDERR)
        if null != STDERR:
            os.close(null)


def report_fault(error: Exception, sink: Sink | None) -> None:
    failure = watch_failed(describe(error), now())
    journal = isinstance(sink, JournalSink) and sink.reach() and sink.is_ready() and sink.write(failure)
    if not journal:
        print_error(describe(error))


def print_error(text: str, priority: str = ERROR) -> None:
    """One line on stderr, if anybody reads it; with its priority if that is the journal (sd-daemon(3))."""
    prefix = f"<{priority}>" if is_journal(STDERR) else ""
    with contextlib.suppress(OSError):  # closed: there is nowhere left to tell it
        stream = Stream(STDERR)
        if stream.is_ready():
            line = text.encode("ascii", "backslashreplace").decode().replace("\n", "\\n")
            stream.write(f"{prefix}tcpwatchd: {line}")


def choose_output(output: str) -> str:
    """`auto` is the journal when stdout or stderr is connected to it (JOURNAL_STREAM, systemd.exec(5))."""
    if output != "auto":
        return output
    return "journal" if is_journal(STDOUT) or is_journal(STDERR) else "text"


def is_journal(descriptor: int) -> bool:
    """Whether the descriptor leads to the journal: JOURNAL_STREAM is its device and inode then."""
    try:
        status = os.fstat(descriptor)
    except OSError:  # closed
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


if __name__ == "__main__":
    sys.exit(main())
