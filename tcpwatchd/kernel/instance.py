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
DEBUG_TRACING = "/sys/kernel/debug/tracing"
"""Where systemd before 246 has it."""
TRACEPOINT = "events/sock/inet_sock_set_state"
"""The kernel's own event, which does not tell whose a socket is."""
PROBES = "events/tcpwatchd"
"""Where the event probes are that tell more: see kernel/probe.py."""
CLOSE_SUFFIX = "_close"
"""Ends the name of a second probe beside one, which tells of connections' sockets that close."""
GROUPS = "events/cgroup/cgroup_mkdir"
RESETS = "events/tcp/tcp_send_reset"
"""Of resets that this machine sends."""
RESETS_FILTER = "skaddr==0"
"""Of no socket: what came was for a closed port."""
CLOSING = (
    "newstate==7 && (oldstate==1 || oldstate==4 || oldstate==5 || oldstate==8 || oldstate==9 || oldstate==11)"
)
"""What a socket of a connection that closes does: it enters CLOSE from a state that is connected."""
FILTER = (
    "protocol==6 && (newstate==1 || newstate==2 || newstate==10 "
    "|| oldstate==3 && (newstate==4 || newstate==8) "
    "|| newstate==7 && (oldstate==2 || oldstate==3 || oldstate==10))"
)
"""Into ESTABLISHED, SYN_SENT and LISTEN, and into CLOSE what never was established.

A server's Fast Open child that exchanged data in SYN_RECV may go on to FIN_WAIT1 or CLOSE_WAIT without
ever being ESTABLISHED. From SYN_RECV to CLOSE goes such a child that is reset, and any handshake that fails:
a plain tracepoint does not tell them apart, and neither is a connection here.
"""
FILTER_WITH_CLOSING = f"{FILTER.removesuffix(')')} || {CLOSING})"
"""Of the tracepoint, where it tells of connections that close too."""
BUFFER_KB = 512
"""What the buffer of a CPU takes by default."""
PAGE_KB = 4
"""What a buffer is made of: the least, and how far the kernel rounds."""
TOTAL_KB = 16 * 1024
"""The most that the buffers of all CPUs may take."""
SETTINGS = {
    "tracing_on": "1",
    "trace_clock": "boot",
    "set_event_pid": "",
    "set_event_notrace_pid": "",
    "tracing_cpumask": "all",
    "options/pause-on-trace": "0",
}
"""What an instance must be, or it records less or other than it should."""
OPTIONAL = {
    "set_event_pid",
    "set_event_notrace_pid",
    "tracing_cpumask",
    "options/pause-on-trace",
    f"{GROUPS}/filter",
    f"{GROUPS}/enable",
}
"""What older or smaller kernels do not have."""
NO_FILTER = "0"
"""Takes a filter away; then it reads as "none"."""
OPTIONS = {
    "buffer_percent": "0",
    "options/overwrite": "1",
    "options/stacktrace": "0",
    "options/userstacktrace": "0",
}
"""What is set so because records come sooner and fewer are lost; none of it is in all kernels."""
SIZES = ("buffer_size_kb", "buffer_subbuf_size_kb")
"""What empties the buffers when it changes."""
READ_FILES = (*SIZES, "events/header_page", "events/header_event")
"""What a reader without privilege reads beside settings, formats of events and files of CPUs."""
CPU_FILES = ("trace_pipe_raw", "stats", "buffer_size_kb")
ONLINE = "/sys/devices/system/cpu/online"


class TraceError(Failure):
    """The trace is not to be had; the text says why."""


def find_tracing() -> str:
    """The directory where tracefs is mounted; as root it is mounted if it is not. Raises TraceError."""
    for path in (TRACING, DEBUG_TRACING):
        if os.path.isdir(f"{path}/events"):
            return path
    if os.path.isdir(TRACING) and not os.access(TRACING, os.R_OK | os.X_OK):
        raise TraceError(f"{TRACING}: {os.strerror(errno.EACCES)}")
    if os.path.isdir(TRACING) and os.geteuid() == 0:
        import subprocess

        with contextlib.suppress(OSError):  # without mount(8) the user is told what to do
            mount = ["mount", "-t", "tracefs", "tracefs", TRACING]
            subprocess.run(mount, check=False, capture_output=True)  # noqa: S603, the words are ours
    if os.path.isdir(f"{TRACING}/events"):
        return TRACING
    if os.path.isdir(TRACING):
        raise TraceError(f"tracefs is not mounted: mount -t tracefs tracefs {TRACING}")
    raise TraceError(f"this kernel has no tracing: there is no {TRACING}")


def find_event(path: str) -> str:
    """The event of sockets' states that an instance has: a probe that is on, else the tracepoint."""
    with contextlib.suppress(OSError):  # there are none
        for name in sorted(os.listdir(os.path.join(path, PROBES))):
            with contextlib.suppress(OSError):  # another instance's, which is not open to us, or a file
                if not name.endswith(CLOSE_SUFFIX) and read_file(path, f"{PROBES}/{name}/enable") != "0":
                    return f"{PROBES}/{name}"
    return TRACEPOINT


def is_probe(event: str) -> bool:
    return event.startswith(f"{PROBES}/")


def can_tell_closing(path: str, event: str) -> bool:
    return not is_probe(event) or os.path.isdir(os.path.join(path, event + CLOSE_SUFFIX))


def tells_closing(path: str, event: str) -> bool:
    """Whether an instance that has this event records when connections close. Raises OSError."""
    if is_probe(event):
        with contextlib.suppress(FileNotFoundError):
            return read_file(path, f"{event}{CLOSE_SUFFIX}/enable").startswith("1")
        return False
    return read_file(path, f"{event}/filter") == FILTER_WITH_CLOSING


def list_settings(event: str, closing: bool = False) -> dict[str, str]:
    """What an instance must be that has this event; a probe has its filter in its definition.

    `closing`: it records when connections close, too.
    """
    settings = {**SETTINGS}
    if event == RESETS:
        settings[f"{event}/filter"] = RESETS_FILTER
    elif is_probe(event):
        settings[f"{event}/filter"] = "none"
        settings |= {f"{GROUPS}/filter": "root==0", f"{GROUPS}/enable": "1"}
        if closing:
            close = f"{event}{CLOSE_SUFFIX}"
            settings |= {f"{close}/filter": "none", f"{close}/enable": "1"}
    else:
        settings[f"{event}/filter"] = FILTER_WITH_CLOSING if closing else FILTER
    settings[f"{event}/enable"] = "1"
    return settings


def list_formats(event: str) -> list[str]:
    """The files that say how records are laid out: of states, of groups that are made, of what closes."""
    events = (event, GROUPS, f"{event}{CLOSE_SUFFIX}") if is_probe(event) else (event,)
    return [f"{name}/format" for name in events]


def write_settings(path: str, event: str, closing: bool = False) -> None:
    """Only what differs is written: writing even the same clock empties the buffers. Raises OSError."""
    for file, value in OPTIONS.items():
        with contextlib.suppress(FileNotFoundError):  # an older kernel
            if read_file(path, file) != value:
                write_file(path, file, value)
    for file, value in list_settings(event, closing).items():
        if not is_set(path, file, value):
            write_file(path, file, format_value(path, value))
    if not closing and is_probe(event) and tells_closing(path, event):
        write_file(path, f"{event}{CLOSE_SUFFIX}/enable", "0")


def format_value(path: str, value: str) -> str:
    """What is written so that this is read. Raises OSError."""
    if value == "all":
        return format_mask(1 + list_cpus(path)[-1])
    return NO_FILTER if value == "none" else value


def set_buffer_size(path: str, buffer_kb: int, total_kb: int = TOTAL_KB) -> None:
    """`buffer_kb` is for one CPU, `total_kb` the most of all. Raises OSError."""
    cpus = len(read_online_cpus()) or len(list_cpus(path))
    kilobytes = max(PAGE_KB, min(buffer_kb, total_kb // cpus))
    size = read_buffer_size(path)
    if size is None or abs(size - kilobytes) > PAGE_KB:  # the kernel rounds
        write_file(path, "buffer_size_kb", str(kilobytes))


def read_buffer_size(path: str) -> int | None:
    """KiB a CPU; None where CPUs differ. Raises OSError."""
    size = read_file(path, "buffer_size_kb").split()[0]
    return int(size) if size.isdecimal() else None


def format_mask(cpus: int) -> str:
    """A mask of so many CPUs, as the kernel reads it: words of 32 bits."""
    words = [(1 << min(32, cpus - first)) - 1 for first in range(0, cpus, 32)]
    return ",".join(f"{word:08x}" for word in reversed(words))


def lock(path: str) -> int:
    """A descriptor that keeps others out while it is open. Raises OSError, and TraceError when one is in."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise TraceError(f"{path} is read by another process") from error
    return descriptor


def open_to_all(path: str, event: str) -> None:
    """Let any user who gets to the instance read what a reader of the event needs, and nothing else."""
    files = [f"per_cpu/cpu{n}/{file}" for n in list_cpus(path) for file in CPU_FILES]
    closing = is_probe(event)
    for file in (*list_settings(event, closing), *READ_FILES, *list_formats(event), *files):
        parts = file.split("/")
        with contextlib.suppress(FileNotFoundError):  # an older kernel
            allow(os.path.join(path, file), stat.S_IROTH)
            for depth in range(len(parts)):
                allow(os.path.join(path, *parts[:depth]), stat.S_IROTH | stat.S_IXOTH)


def allow(path: str, bits: int) -> None:
    os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) | bits)


def explain(error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):
        return str(error)
    if error.errno == errno.ENOENT:
        return f"no tracing here: {error.filename} does not exist"
    return f"{error.filename}: {error.strerror}"


def list_cpus(path: str) -> list[int]:
    """The numbers of all CPUs that are possible, in order. Raises OSError."""
    return sorted(int(name[3:]) for name in os.listdir(os.path.join(path, "per_cpu")))


def read_online_cpus() -> set[int]:
    """Empty where it is not to be had."""
    try:
        with open(ONLINE) as text:
            return parse_cpus(text.read())
    except (OSError, ValueError):
        return set()


def parse_cpus(text: str) -> set[int]:
    """From a list of ranges (Documentation/admin-guide/cputopology.rst). Raises ValueError."""
    ranges = [part.split("-") for part in text.strip().split(",")]
    return {cpu for ends in ranges for cpu in range(int(ends[0]), int(ends[-1]) + 1)}


def read_file(path: str, file: str) -> str:
    with open(os.path.join(path, file)) as text:
        return text.read().strip()


def write_file(path: str, file: str, value: str) -> None:
    """An empty value takes all out of a list (O_TRUNC). Raises OSError that names the file."""
    name = os.path.join(path, file)
    try:
        with open(name, "w") as text:
            text.write(value)
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from error


def is_set(path: str, file: str, value: str) -> bool:
    """Raises OSError. What a kernel does not have leaves nothing out."""
    try:
        text = read_file(path, file)
    except FileNotFoundError:
        if file in OPTIONAL:
            return True
        raise
    if file == "trace_clock":
        return f"[{value}]" in text.split()
    if file == "tracing_cpumask":
        mask = int(text.replace(",", ""), 16)
        return all(mask >> cpu & 1 for cpu in read_online_cpus())
    if file.endswith("/enable"):
        text = text.removesuffix("*")  # somebody's trigger refers to the event
    return text == value


def check(path: str, event: str, closing: bool) -> None:
    """Raises TraceError when the instance does not record what it should, OSError when it cannot be read."""
    for file, value in list_settings(event, closing).items():
        if not is_set(path, file, value):
            raise TraceError(f"{path}/{file} is {read_file(path, file)!r}, not {value!r}")
