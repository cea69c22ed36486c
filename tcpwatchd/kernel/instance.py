"""Instances of tracefs: directories with ring buffers of their own, one a CPU.

They are made and removed here, as root, and opened for a reader without privilege. They fill whether or not
somebody reads (Documentation/trace/ftrace.rst).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

from tcpwatchd.failure import Failure

TRACING = "/sys/kernel/tracing"
EVENT = "events/sock/inet_sock_set_state"
FILTER = (
    "protocol==6 && (newstate==1 || newstate==2 || newstate==10 "
    "|| newstate==7 && (oldstate==2 || oldstate==3 || oldstate==10) "
    "|| oldstate==3 && (newstate==4 || newstate==8))"
)
"""Into ESTABLISHED, SYN_SENT and LISTEN; into CLOSE what never was established; and from SYN_RECV into
FIN_WAIT1 and CLOSE_WAIT, as a Fast Open child goes that ends before its handshake does."""
OWN_INSTANCE = "tcpwatchd-"
"""What begins the name of an instance that a process makes for itself; its PID follows."""
TOTAL_KB = 16 * 1024
"""The most that the buffers of all CPUs may take."""
SETTINGS = {
    "trace_clock": "mono",
    "buffer_percent": "0",
    f"{EVENT}/filter": FILTER,
    f"{EVENT}/enable": "1",
    "tracing_on": "1",
}
READ_FILES = (
    "trace_clock",
    "tracing_on",
    "events/header_page",
    "events/header_event",
    f"{EVENT}/format",
    f"{EVENT}/filter",
    f"{EVENT}/enable",
)
"""What a reader without privilege must be able to read, beside the files of each CPU."""
CPU_FILES = ("trace_pipe_raw", "stats")


class TraceError(Failure):
    """The trace is not to be had; the text says why."""


def set_up(name: str, buffer_kb: int) -> str:
    """Make an instance, or repair one that stands, and return its directory. Raises TraceError.

    Only what differs is written: writing even the same clock empties the buffers.
    """
    path = f"{TRACING}/instances/{name}"
    try:
        with contextlib.suppress(FileExistsError):  # left by a crash, or the service's
            os.mkdir(path)
        held = lock(path)
    except OSError as error:
        raise TraceError(explain(error)) from error
    try:
        cpus = len(list_cpus(path))
        kilobytes = max(4, min(buffer_kb, TOTAL_KB // cpus))
        if abs(int(read_file(path, "buffer_size_kb").split()[0]) - kilobytes) > 4:
            write_file(path, "buffer_size_kb", str(kilobytes))
        for file, value in SETTINGS.items():
            if not is_set(path, file, value):
                write_file(path, file, value)
    except OSError as error:
        raise TraceError(explain(error)) from error
    finally:
        os.close(held)
    return path


def lock(path: str) -> int:
    """A descriptor that keeps others out while it is open. Raises OSError, and TraceError when one is in."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise TraceError(f"{path} is read by another process") from error
    return descriptor


def open_to_all(path: str) -> None:
    """Let any user who gets to the instance read what a reader needs, and nothing else."""
    for file in (*READ_FILES, *(f"per_cpu/{cpu}/{file}" for cpu in list_cpus(path) for file in CPU_FILES)):
        parts = file.split("/")
        for depth in range(len(parts)):
            allow(os.path.join(path, *parts[:depth]), stat.S_IROTH | stat.S_IXOTH)
        allow(os.path.join(path, file), stat.S_IROTH)


def allow(path: str, bits: int) -> None:
    os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) | bits)


def remove_stale() -> None:
    """Remove instances that processes which are no more made for themselves."""
    for name in os.listdir(f"{TRACING}/instances") if os.path.isdir(f"{TRACING}/instances") else ():
        pid = name[len(OWN_INSTANCE) :]
        if name.startswith(OWN_INSTANCE) and pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
            with contextlib.suppress(OSError):  # somebody reads it, or removed it just now
                remove(f"{TRACING}/instances/{name}")


def remove(path: str) -> None:
    """Remove an instance and its buffers. Raises OSError: EBUSY while anybody reads it."""
    os.rmdir(path)


def explain(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return f"no tracing here: {error.filename} does not exist"
    return f"{error.filename}: {error.strerror}"


def list_cpus(path: str) -> list[str]:
    return sorted(os.listdir(os.path.join(path, "per_cpu")), key=lambda name: int(name[3:]))


def read_file(path: str, file: str) -> str:
    with open(os.path.join(path, file)) as text:
        return text.read().strip()


def write_file(path: str, file: str, value: str) -> None:
    with open(os.path.join(path, file), "w") as text:
        text.write(value)


def is_set(path: str, file: str, value: str) -> bool:
    text = read_file(path, file)
    return f"[{value}]" in text.split() if file == "trace_clock" else text == value


def check(path: str) -> None:
    """Raises TraceError when the instance does not record what it should, OSError when it cannot be read."""
    for file in ("trace_clock", "tracing_on", f"{EVENT}/filter", f"{EVENT}/enable"):
        if not is_set(path, file, SETTINGS[file]):
            raise TraceError(f"{path}/{file} is {read_file(path, file)!r}, not {SETTINGS[file]!r}")
