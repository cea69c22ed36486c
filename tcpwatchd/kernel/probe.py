"""Event probes: the kernel's tracepoint of sockets' states, with more of the socket in each record.

One tells of what opens, with its owner, and a second one, which can be off, of what closes, with its counts.

Root attaches it to the tracepoint (Documentation/trace/eprobetrace.rst), and the kernel stores what it names.
Where in a socket that is, the kernel's own description of its types says. Probes are one list for the whole
machine, and each instance of tracefs has all of them; the name says whose one is and what it fetches.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import struct
from binascii import crc32

from tcpwatchd.failure import Failure, describe
from tcpwatchd.kernel.btf import Types
from tcpwatchd.kernel.instance import CLOSE_SUFFIX, CLOSING, FILTER, PROBES

TYPES = "/sys/kernel/btf/vmlinux"
MOST_BYTES = 64 * 1024 * 1024
"""The descriptions of today's kernels have 4 to 10 MiB."""
OLDEST = (6, 1)
"""Event probes are in 5.15, and test before they fetch since 6.0; until 6.1 switching one on could crash."""
GROUP_NAME = PROBES.rpartition("/")[2]
LIST = "dynamic_events"


class ProbeError(Failure):
    """The owners of sockets are not to be had from the kernel; the text says why."""


def describe_probe(instance: str) -> tuple[str, str, str]:
    """The name and the definition of the probe of an instance, and the definition of the one for what closes.

    That is empty where the kernel does not have what it fetches. Raises ProbeError.
    """
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if release is None or tuple(map(int, release.groups())) < OLDEST:
        raise ProbeError("this needs Linux 6.1")
    try:
        with open(TYPES, "rb") as file:
            types = Types(file.read(MOST_BYTES))
        opening, closing = list_fetched(types), list[str]()
        with contextlib.suppress(ValueError):
            closing = list_fetched_closing(types)
    except FileNotFoundError as error:
        raise ProbeError(f"this kernel has no {TYPES}") from error
    except (OSError, ValueError) as error:
        raise ProbeError(f"{TYPES}: {describe(error)}") from error
    first = f"sock/inet_sock_set_state {' '.join(opening)} if {FILTER}"
    second = f"sock/inet_sock_set_state {' '.join(closing)} if protocol==6 && {CLOSING}"
    name = f"{begin_name(instance)}{crc32((first + second).encode()):08x}"
    return name, first, second if closing else ""


def begin_name(instance: str) -> str:
    """The kernel takes 63 letters, digits and "_", a digit not at first."""
    name = re.sub("[^A-Za-z0-9]", "_", instance)[:40]
    return f"{'_' if name[0].isdigit() else ''}{name}_"


def list_fetched(types: Types) -> list[str]:
    """What the kernel stores. Raises ValueError for a kernel that has none of it."""
    find = types.find_offset
    listening, user = find("sock.__sk_common.skc_rcv_saddr"), find("sock.sk_uid")
    group = find("kernfs_node.id"), find("cgroup.kn"), find("sock.sk_cgrp_data.cgroup")
    return [
        *list_fetched_always(types),
        "family=$family:u16",
        f"saddr=+{listening}($skaddr):u32",
        f"uid=+{user}($skaddr):u32",
        "cgroup=+{}(+{}(+{}($skaddr))):u64".format(*group),
        "comm=$comm:string",
    ]


def list_fetched_closing(types: Types) -> list[str]:
    """The same of a socket that closes (struct tcp_sock in include/linux/tcp.h)."""
    find = types.find_offset
    return [
        *list_fetched_always(types),
        f"error=+{find('sock.sk_err')}($skaddr):s32",
        f"flags=+{find('sock.__sk_common.skc_flags')}($skaddr):u{8 * struct.calcsize('P')}",
        f"sent=+{find('tcp_sock.bytes_sent')}($skaddr):u64",
        f"sent_again=+{find('tcp_sock.bytes_retrans')}($skaddr):u64",
        f"acknowledged=+{find('tcp_sock.bytes_acked')}($skaddr):u64",
        f"acknowledged_until=+{find('tcp_sock.snd_una')}($skaddr):u32",
        f"sent_until=+{find('tcp_sock.snd_nxt')}($skaddr):u32",
        f"written_until=+{find('tcp_sock.write_seq')}($skaddr):u32",
        f"received=+{find('tcp_sock.bytes_received')}($skaddr):u64",
        f"received_until=+{find('tcp_sock.rcv_nxt')}($skaddr):u32",
        f"read_until=+{find('tcp_sock.copied_seq')}($skaddr):u32",
    ]


def list_fetched_always(types: Types) -> list[str]:
    """Addresses are read from the socket, mapped where it is of IPv4.

    Arrays of the event come out wrong before 6.17, and a probe fetches 8 bytes at once.
    """
    find = types.find_offset
    local, remote = find("sock.__sk_common.skc_v6_rcv_saddr"), find("sock.__sk_common.skc_v6_daddr")
    network = find("net.ns.inum"), find("sock.__sk_common.skc_net.net")
    return [
        "skaddr=$skaddr:x64",
        "oldstate=$oldstate:u8",
        "newstate=$newstate:u8",
        "sport=$sport:u16",
        "dport=$dport:u16",
        f"saddr_v6=+{local}($skaddr):x64",
        f"saddr_v6_low=+{local + 8}($skaddr):x64",
        f"daddr_v6=+{remote}($skaddr):x64",
        f"daddr_v6_low=+{remote + 8}($skaddr):x64",
        "netns=+{}(+{}($skaddr)):u32".format(*network),
    ]


def define(tracing: str, name: str, definition: str) -> None:
    """Raises ProbeError."""
    try:
        append(tracing, f"e:{GROUP_NAME}/{name} {definition}")
    except OSError as error:
        if error.errno == errno.EEXIST:
            return
        reason = "this kernel has no event probes" if error.errno == errno.EINVAL else describe(error)
        raise ProbeError(reason) from error


def remove_probes(tracing: str, instance: str, but: str = "") -> None:
    """Those of an instance, but for one; a probe that is switched on anywhere stays."""
    for name in list_probes(tracing):
        if re.fullmatch(f"{re.escape(begin_name(instance))}[0-9a-f]{{8}}", name) and name != but:
            remove_probe(tracing, name)


def remove_probe(tracing: str, name: str) -> None:
    """And the one for what closes, unless an instance has the first one on: it has the second, on or off."""
    with contextlib.suppress(OSError):
        with contextlib.suppress(FileNotFoundError):  # it was removed before
            append(tracing, f"-:{GROUP_NAME}/{name}")
        remove_closing_probe(tracing, name)


def remove_closing_probe(tracing: str, name: str) -> None:
    with contextlib.suppress(OSError):  # there is none
        append(tracing, f"-:{GROUP_NAME}/{name}{CLOSE_SUFFIX}")


def list_probes(tracing: str) -> list[str]:
    """Without those for what closes; a process that was killed can leave one without the other."""
    try:
        return sorted({name.removesuffix(CLOSE_SUFFIX) for name in os.listdir(f"{tracing}/{PROBES}")})
    except OSError:
        return []


def append(tracing: str, line: str) -> None:
    """A whole line, to the list of the machine's dynamic events. Raises OSError that names the file."""
    path = f"{tracing}/{LIST}"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(descriptor, f"{line}\n".encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(descriptor)
