"""Sets instances of tracefs up, with the event that tells most, and removes what was set up. As root."""

from __future__ import annotations

import contextlib
import os
import re
from typing import NamedTuple

from tcpwatchd.kernel.instance import (
    BUFFER_KB,
    CLOSE_SUFFIX,
    PROBES,
    RESETS,
    TOTAL_KB,
    TRACEPOINT,
    TraceError,
    can_tell_closing,
    check,
    explain,
    find_event,
    find_tracing,
    is_probe,
    lock,
    read_buffer_size,
    read_file,
    set_buffer_size,
    tells_closing,
    write_settings,
)
from tcpwatchd.kernel.probe import (
    ProbeError,
    define,
    describe_probe,
    list_probes,
    remove_closing_probe,
    remove_probe,
    remove_probes,
)
from tcpwatchd.kernel.proof import PROOF_INSTANCE, prove
from tcpwatchd.kernel.resets import tells_closed_ports

OWN_INSTANCE = "tcpwatchd-"
"""What begins the name of an instance that a process makes for itself; its PID follows."""
RESETS_SUFFIX = "-resets"
"""Ends the name of an instance for resets, after that of the one for connections."""
RESETS_KB, RESETS_TOTAL_KB = 256, 4096
"""What its buffers take a CPU, and at most of all. A record takes 92 bytes."""
OF_PROCESS = re.compile(
    f"{OWN_INSTANCE}([0-9]+)(?:{RESETS_SUFFIX})?|{PROOF_INSTANCE}([0-9]+)|tcpwatchd_([0-9]+)_[0-9a-f]{{8}}"
)
"""Names of instances and probes that are of one process, with its PID."""


class SetUp(NamedTuple):
    """An instance that was set up."""

    path: str
    made: bool
    """Whether there was none before."""
    no_owners: str | None
    """Why the kernel does not tell whose a socket is, if it does not."""


def set_up(name: str, buffer_kb: int | None, closing: bool = False) -> SetUp:
    """Make an instance, or repair one that stands. Raises TraceError.

    `closing`: it records when connections close, too, if it can; that can be changed while it stands.
    `buffer_kb` is for one CPU. Buffers that stand only grow: smaller ones could not hold what they have. An
    instance that was made and cannot be set up is removed.
    """
    tracing = find_tracing()
    if not os.path.isdir(f"{tracing}/instances"):
        raise TraceError("this kernel allows no instances of its tracing (is it locked down?)")
    path = f"{tracing}/instances/{name}"
    event, no_owners = choose_event(tracing, name)
    try:
        standing = find_standing_event(path)
        if standing not in (None, event):
            # It holds records that nobody could read with the other's format, as after an upgrade.
            try:
                size = read_buffer_size(path)
                os.rmdir(path)
                buffer_kb = size if buffer_kb is None else buffer_kb
            except OSError as error:  # somebody reads it
                event = str(standing)
                no_owners = None if is_probe(event) else f"{path} has another event: {error.strerror}"
        made = make(path, event, closing, buffer_kb)
    except (OSError, ValueError, TraceError) as error:
        remove_probes(tracing, name)
        raise error if isinstance(error, TraceError) else TraceError(explain(error)) from error
    remove_probes(tracing, name, but=os.path.basename(event))
    return SetUp(path, made, no_owners)


def make(
    path: str,
    event: str,
    closing: bool = False,
    buffer_kb: int | None = None,
    default_kb: int = BUFFER_KB,
    total_kb: int = TOTAL_KB,
) -> bool:
    """Whether there was none before. Raises OSError, ValueError and TraceError, and leaves none made then."""
    made = False
    try:
        with contextlib.suppress(FileExistsError):  # left by a crash, or the service's
            os.mkdir(path)
            made = True
        held = lock(path)
        try:
            write_settings(path, event, closing and can_tell_closing(path, event))
            if made or (buffer_kb or 0) > (read_buffer_size(path) or 0):
                set_buffer_size(path, default_kb if buffer_kb is None else buffer_kb, total_kb)
        finally:
            os.close(held)
    except (OSError, ValueError, TraceError):
        if made:
            with contextlib.suppress(OSError):  # what it could not be set up for is told
                os.rmdir(path)
        raise
    return made


def set_up_resets(name: str) -> str:
    """Make the instance for resets beside that of this name, or repair it; its path. Raises TraceError."""
    tracing = find_tracing()
    path = f"{tracing}/instances/{name}{RESETS_SUFFIX}"
    try:
        if not os.path.isdir(f"{tracing}/{RESETS}") or not tells_closed_ports(
            read_file(tracing, f"{RESETS}/format")
        ):
            raise TraceError("this kernel does not tell of closed ports")
        make(path, RESETS, default_kb=RESETS_KB, total_kb=RESETS_TOTAL_KB)
    except (OSError, ValueError) as error:
        raise TraceError(explain(error)) from error
    return path


def remove_resets(name: str) -> None:
    """The instance for resets beside that of this name, if there is one. Raises TraceError and OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(f"{find_tracing()}/instances/{name}{RESETS_SUFFIX}")


def choose_event(tracing: str, instance: str) -> tuple[str, str | None]:
    """An event for this instance, defined and proved, and why it is only the tracepoint, if it is."""
    standing = find_standing_event(f"{tracing}/instances/{instance}")
    try:
        probe, definition, closing = describe_probe(instance)
        event = f"{PROBES}/{probe}"
        if standing != event or not os.path.isdir(f"{tracing}/{event}{CLOSE_SUFFIX}"):
            define_proved(tracing, probe, definition, closing)
    except ProbeError as error:
        # One that is in use was proved; what it was made from may not be readable at the moment.
        return (standing, None) if standing and is_probe(standing) else (TRACEPOINT, str(error))
    return event, None


def define_proved(tracing: str, probe: str, definition: str, closing: str) -> None:
    """Without the one for what closes, if only that does not tell what it should. Raises ProbeError."""
    try:
        define(tracing, probe, definition)
        try:
            define(tracing, probe + CLOSE_SUFFIX, closing)
            prove(tracing, probe, closing=True)
        except ProbeError:
            remove_closing_probe(tracing, probe)
            prove(tracing, probe, closing=False)
    except ProbeError:
        remove_probe(tracing, probe)
        raise


def find_standing_event(path: str) -> str | None:
    """The event that is switched on in an instance; None if there is none, or no instance."""
    event = find_event(path)
    try:
        return None if read_file(path, f"{event}/enable") == "0" else event
    except OSError:
        return None


def find_fault(name: str) -> str | None:
    """Why an instance that stands does not record what it should; None if it does, or none stands.

    Raises TraceError where there is no tracing.
    """
    path = f"{find_tracing()}/instances/{name}"
    try:
        event = find_event(path)
        check(path, event, tells_closing(path, event))
    except TraceError as error:
        return str(error)
    except OSError:
        pass  # what cannot be read is told when it is set up
    return None


def remove(path: str) -> None:
    """Remove an instance, its buffers and its event. Raises OSError: EBUSY while anybody reads it."""
    os.rmdir(path)
    folder, name = os.path.split(path)
    remove_probes(os.path.dirname(folder), name)


def remove_stale() -> None:
    """Remove what processes that are no more made for themselves. Raises TraceError."""
    tracing = find_tracing()
    try:
        names = os.listdir(f"{tracing}/instances") if os.path.isdir(f"{tracing}/instances") else []
    except OSError as error:
        raise TraceError(explain(error)) from error
    for name in filter(is_stale, names):
        with contextlib.suppress(OSError):  # somebody reads it, or removed it just now
            remove(f"{tracing}/instances/{name}")
    for name in filter(is_stale, list_probes(tracing)):
        remove_probe(tracing, name)


def is_stale(name: str) -> bool:
    match = OF_PROCESS.fullmatch(name)
    return match is not None and not os.path.exists(f"/proc/{next(filter(None, match.groups()))}")
