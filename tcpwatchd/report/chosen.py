"""Which connections are wanted: an expression in the words of rules, asked of the fields of an entry."""

from __future__ import annotations

import ipaddress
import socket
from functools import lru_cache
from typing import TYPE_CHECKING

from tcpwatchd.connection import Owner
from tcpwatchd.failure import UsageError
from tcpwatchd.policy.expression import ExpressionError, Facts, compile_expression

if TYPE_CHECKING:
    from collections.abc import Callable

    from tcpwatchd.report.journals import Fields


def compile_filter(text: str) -> Callable[[Fields], bool]:
    """Raises UsageError. What is not known to be wanted is not."""
    try:
        test = compile_expression(text, find_port).test
    except ExpressionError as error:
        raise UsageError(f"filter, column {error.offset + 1}: {error}") from error
    return lambda fields: bool(test(list_facts(fields)))


def find_port(name: str) -> int:
    """Raises OSError."""
    return socket.getservbyname(name, "tcp")


def list_facts(fields: Fields) -> Facts:
    """Raises KeyError and ValueError for what the daemon does not write."""
    port = fields.get("SOURCE_PORT")
    owner = list_owner(fields, "PROCESS_", "CONTAINER_ID", "PROCESS_NAME", "TCPWATCHD_NETWORK_NAMESPACE")
    listener = list_owner(
        fields, "DESTINATION_", "DESTINATION_CONTAINER_ID", "", "TCPWATCHD_DESTINATION_NETWORK_NAMESPACE"
    )
    return Facts(
        pack(fields["SOURCE_IP"]),
        None if port is None else int(port),
        pack(fields["DESTINATION_IP"]),
        int(fields["DESTINATION_PORT"]),
        fields["NETWORK_DIRECTION"].decode(),
        is_here(fields, owner, listener),
        (owner, listener),
    )


@lru_cache(maxsize=10_000)
def pack(address: bytes) -> bytes:
    """Raises ValueError."""
    return ipaddress.ip_address(address.decode()).packed


def list_owner(fields: Fields, prefix: str, container: str, process: str, network: str) -> Owner:
    """As far as it is known. Raises ValueError."""
    texts = {name: value.decode() for name, value in fields.items() if name.startswith(prefix)}
    user = texts.get(f"{prefix}USER_ID")
    inode = fields.get(network)
    contained = fields.get(container)
    return Owner(
        None if user is None else int(user),
        texts.get(f"{prefix}USER_NAME"),
        texts.get(f"{prefix}SYSTEMD_UNIT"),
        texts.get(f"{prefix}SYSTEMD_USER_UNIT"),
        None if contained is None else contained.decode(),
        name=texts.get(process),
        network=None if inode is None else int(inode),
    )


def is_here(fields: Fields, owner: Owner, listener: Owner) -> bool | None:
    """Whether an end is in the daemon's own network namespace; where a user is known, others are told."""
    if fields.get("TCPWATCHD_DETECTED_BY") != b"trace":
        return True
    known = [end.network is None for end in (owner, listener) if end.user is not None]
    return any(known) if known else None
