"""Which connections are wanted: an expression in the words of rules, asked of the fields of an entry."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from tcpwatchd.connection import Owner
from tcpwatchd.failure import UsageError
from tcpwatchd.policy.expression import ExpressionError, Facts, compile_expression

if TYPE_CHECKING:
    from collections.abc import Callable

    from tcpwatchd.report.journals import Fields


OWNER_FIELDS = "PROCESS_", "CONTAINER_ID", "PROCESS_NAME", "TCPWATCHD_NETWORK_NAMESPACE"
LISTENER_FIELDS = "DESTINATION_", "DESTINATION_CONTAINER_ID", "", "TCPWATCHD_DESTINATION_NETWORK_NAMESPACE"
"""What names of fields begin with, and those that begin otherwise, as `list_owner` takes them."""


def compile_filter(text: str) -> Callable[[Fields], bool]:
    """Raises UsageError. What is not known to be wanted is not."""
    try:
        expression = compile_expression(text, find_port)
    except ExpressionError as error:
        raise UsageError(f"filter, column {error.offset + 1}: {error}") from error
    test, asks_owner = expression.test, expression.asks_owner or "here" in text
    return lambda fields: bool(test(list_facts(fields, asks_owner)))


def find_port(name: str) -> int:
    """Raises OSError."""
    return socket.getservbyname(name, "tcp")


def list_facts(fields: Fields, asks_owner: bool = True) -> Facts:
    """Raises KeyError and ValueError for what the daemon does not write."""
    port = fields.get("SOURCE_PORT")
    owners, here = None, None
    if asks_owner:
        owners = list_owner(fields, *OWNER_FIELDS), list_owner(fields, *LISTENER_FIELDS)
        here = is_here(fields, *owners)
    return Facts(
        pack(fields["SOURCE_IP"]),
        None if port is None else int(port),
        pack(fields["DESTINATION_IP"]),
        int(fields["DESTINATION_PORT"]),
        fields["NETWORK_DIRECTION"].decode(),
        here,
        owners,
    )


def pack(address: bytes) -> bytes:
    """Raises ValueError."""
    text = address.decode()
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except OSError as error:
        raise ValueError(f"no address: {text!r}") from error


def list_owner(fields: Fields, prefix: str, container: str, process: str, network: str) -> Owner:
    """As far as it is known. Raises ValueError."""

    def find(name: str) -> str | None:
        value = fields.get(name)
        return None if value is None else value.decode()

    user, inode = find(f"{prefix}USER_ID"), find(network)
    return Owner(
        None if user is None else int(user),
        find(f"{prefix}USER_NAME"),
        find(f"{prefix}SYSTEMD_UNIT"),
        find(f"{prefix}SYSTEMD_USER_UNIT"),
        find(container),
        name=find(process),
        network=None if inode is None else int(inode),
    )


def is_here(fields: Fields, owner: Owner, listener: Owner) -> bool | None:
    """Whether an end is in the daemon's own network namespace; where a user is known, others are told."""
    if fields.get("TCPWATCHD_DETECTED_BY") != b"trace":
        return True
    known = [end.network is None for end in (owner, listener) if end.user is not None]
    return any(known) if known else None
