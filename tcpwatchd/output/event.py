"""What the daemon says, as journal fields. No I/O.

Every kind has its own MESSAGE_ID and its own entry in systemd/tcpwatchd.catalog. Names of fields follow the
Elastic Common Schema in upper case; what it has no name for begins with TCPWATCHD_. A field that is not known
is absent.
"""

from __future__ import annotations

import re
import time
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from tcpwatchd.connection import NOBODY, Owner, format_endpoint, format_ip

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tcpwatchd.connection import Closed, Connection, PortScan

CONNECTION_OPENED = "55af53b17897428c8b2256cc60c8771b"
CONNECTION_CLOSED = "268f8658388840fa9d2b8f7a47db754c"
WATCH_STARTED = "682ccf2aa1ec4ec9bb7f0401c4d8cba5"
WATCH_STOPPED = "cabac0c61ead4a8d91a8dbf75d722ddf"
POLL_FAILED = "674fc3cc3b334051897330134e4a8e3f"
POLL_RECOVERED = "ecb3c1c0587f4eedbc0a4cffdce29c92"
ROWS_MALFORMED = "c7343d02e8194c4d9ab3a09745545a95"
WATCH_FAILED = "89012c0c8a5d4f13b7fa472be8904d44"

TRACE_USED = "c6b1acaa360f4e4ba605a1004cc17cda"
TRACE_UNAVAILABLE = "ca3cf4249c674d2e80d6963943e7a99d"
BASELINE_UNUSABLE = "f6b3130240b040f4936564f49f36862e"
KEEPING_FAILED = "41e7ebd032d34ec3ae2087f330ce17d9"
KEEPING_RECOVERED = "40ee1956c6094f458d88ad444b807bad"
METRICS_FAILED = "fc7f49e5f4764cf68e43734ce13754bf"
METRICS_RECOVERED = "6603eaf922df44a190cfeed54e977885"
TRACE_GAP = "a6a0151d221745bfafe31da4f21d546d"
RECORDS_LOST = "bf53f016e7e542cab169e64062825f2f"
TRACE_FAILED = "1fe90731c0b14de9810cd0dd1ebbc1c4"
TRACE_CHANGED = "8f0556848a0c42579e845ed3f138217a"
TRACE_RECOVERED = "2630a250e8a3444ea795209e27ca023b"
CONNECTIONS_MISSED = "bd93be3c6e4948478207fa1a3ae28355"
CONNECTIONS_UNTOLD = "d18a271dbb814fcaa6b006e43647abde"
COUNTERS_FAILED = "54f14b4d16674f6cbb66e5ff871af92a"
COUNTERS_RECOVERED = "90460b6920ec45918312c073186afd75"
OWNERS_FAILED = "a395ece0126848d19e89636eb872ba3d"
OWNERS_RECOVERED = "e435dee5feee4ad8b2d0dfded764f083"
CLOSINGS_UNTOLD = "d083b394e11c41628505b43f7ce5d55b"

CONNECTIONS_OPENED = "88c35006b4a7440a9cff6250af81af72"
CONNECTIONS_CLOSED = "178e2941afe3415fb1cd61f599e268ff"
CONNECTIONS_COUNTED = "5a40ed89b8094cf497b217da811bcfa1"
PORT_SCAN = "e73fc756eb2247328f45e6ffc1abb967"
SCANS_UNFOLLOWED = "c0cd3ef6621d499483d5a549af6a8f38"
RESETS_FAILED = "566dcc87b5ae43cfa54b45e3c46726a9"
RESETS_RECOVERED = "37c985f863fa45ad8c96bd0a1672a16e"
RELOADED = "b7029b9e511f42b6b02b1e14186e4922"
RELOAD_FAILED = "895d045cb1a8495f9fcad545c19b4a8e"

ERROR, WARNING, NOTICE, INFO = "3", "4", "5", "6"
MICROSECONDS = 1_000_000
QUOTED = 160
"""Bytes of a malformed row that are quoted."""
MOST_SHOWN, MOST_COUNTED = 3, 1000
"""Rules that are named in a message, and in a field."""
LONGEST_PLACE = 80
"""Characters of where a rule is, in a message."""
MOST_LISTED = 100
"""Ranges of ports, and addresses, that are listed of a port scan."""


OWNER_FIELDS = {
    "user": "PROCESS_USER_ID",
    "user_name": "PROCESS_USER_NAME",
    "unit": "PROCESS_SYSTEMD_UNIT",
    "user_unit": "PROCESS_SYSTEMD_USER_UNIT",
    "container": "CONTAINER_ID",
    "process": "PROCESS_PID",
    "thread": "PROCESS_THREAD_ID",
    "name": "PROCESS_NAME",
    "executable": "PROCESS_EXECUTABLE",
    "command_line": "PROCESS_COMMAND_LINE",
    "network": "TCPWATCHD_NETWORK_NAMESPACE",
}
PLAIN_NAME = re.compile(r"[\w.:/@+-]*").fullmatch
"""What stands in a message as it is: another name is put between quotes, and can imitate nothing."""
LISTENER_FIELDS = {
    "user": "DESTINATION_USER_ID",
    "user_name": "DESTINATION_USER_NAME",
    "unit": "DESTINATION_SYSTEMD_UNIT",
    "user_unit": "DESTINATION_SYSTEMD_USER_UNIT",
    "container": "DESTINATION_CONTAINER_ID",
    "network": "TCPWATCHD_DESTINATION_NETWORK_NAMESPACE",
}
"""Of who accepted a connection inside this machine."""


class Event(NamedTuple):
    """One message. `time` is in microseconds since the epoch; `fields` begin with MESSAGE and MESSAGE_ID."""

    time: int
    fields: Mapping[str, str]


def connection_opened(connection: Connection, opened: int, with_owner: bool = False) -> Event:
    """`opened` is when, in microseconds since the epoch. `with_owner`: the message ends with it."""
    named = "New connection", CONNECTION_OPENED, "connection-opened"
    return Event(opened, list_fields(named, connection, opened, with_owner))


def connection_closed(closed: Closed, opened: int, ended: int, with_owner: bool = False) -> Event:
    """Times in microseconds since the epoch. `with_owner`: the message ends with it, and with sums."""
    connection = closed.connection
    named = "Connection closed", CONNECTION_CLOSED, "connection-closed"
    fields = list_fields(named, connection, opened, with_owner)
    fields["EVENT_END"] = format_utc(ended)
    duration = closed.duration
    if duration is not None:
        fields["EVENT_DURATION"] = str(duration)
    add_closing(fields, closed)
    if with_owner:
        fields["MESSAGE"] += describe_sums(fields)
    return Event(ended, fields)


def add_closing(fields: dict[str, str], closed: Closed) -> None:
    """What is known of how it closed."""
    _, _, by, first, source_bytes, destination_bytes, detected_by = closed
    if source_bytes is not None:
        fields["SOURCE_BYTES"] = str(source_bytes)
    if destination_bytes is not None:
        fields["DESTINATION_BYTES"] = str(destination_bytes)
    if source_bytes is not None and destination_bytes is not None:
        fields["NETWORK_BYTES"] = str(source_bytes + destination_bytes)
    if by is not None:
        fields["TCPWATCHD_CLOSED_BY"] = by
    if first is not None:
        fields["TCPWATCHD_CLOSED_FIRST"] = first
    fields["TCPWATCHD_CLOSE_DETECTED_BY"] = detected_by


def connections_opened(
    first: Connection, number: int, opened: int, last: int, with_owner: bool = False
) -> Event:
    """Many that differ in their source ports alone, of which `first` has what is the same.

    `opened` and `last` are when the first and the last of them were, in microseconds since the epoch.
    """
    named = "New connection", CONNECTIONS_OPENED, "connections-opened"
    fields = list_fields(named, first, opened, with_owner)
    return Event(last, make_folded(fields, f"{number} new connections", number, last))


def connections_closed(first: Closed, number: int, opened: int, last: int, with_owner: bool = False) -> Event:
    """The same of what closed; bytes are sums. `last` is when the last of them closed."""
    named = "Connection closed", CONNECTIONS_CLOSED, "connections-closed"
    fields = list_fields(named, first.connection, opened, with_owner)
    add_closing(fields, first)
    return Event(last, make_folded(fields, f"{number} connections closed", number, last))


def make_folded(fields: dict[str, str], message: str, number: int, last: int) -> dict[str, str]:
    """The source without its port."""
    rest = fields["MESSAGE"].partition(" -> ")[2]
    fields["MESSAGE"] = f"{message}: {fields['SOURCE_IP']} -> {rest}"
    fields["EVENT_END"] = format_utc(last)
    fields["EVENT_COUNT"] = str(number)
    del fields["SOURCE_PORT"]
    return fields


def describe_sums(fields: Mapping[str, str]) -> str:
    """As for people: " (12.3 s, 4.2 kB sent, 1.1 MB received)", as far as it is known."""
    words = []
    if "EVENT_DURATION" in fields:
        words.append(format_duration(int(fields["EVENT_DURATION"])))
    if "SOURCE_BYTES" in fields:
        words.append(f"{format_bytes(int(fields['SOURCE_BYTES']))} sent")
    if "DESTINATION_BYTES" in fields:
        words.append(f"{format_bytes(int(fields['DESTINATION_BYTES']))} received")
    return f" ({', '.join(words)})" if words else ""


def list_fields(
    named: tuple[str, str, str], connection: Connection, opened: int, with_owner: bool
) -> dict[str, str]:
    """`named` are the beginning of the message, its id, and the action."""
    source, destination, direction, state, detected_by, _, guessed, priority, *_ = connection
    owner, listener = connection.owner, connection.listener
    message, message_id, action = named
    source_ip, source_port = source.ip, source.port
    destination_ip, destination_port = destination.ip, destination.port
    here, there = format_endpoint(source_ip, source_port), format_endpoint(destination_ip, destination_port)
    fields = {
        "MESSAGE": f"{message}: {here} -> {there}",
        "MESSAGE_ID": message_id,
        "PRIORITY": priority,
        "SYSLOG_IDENTIFIER": "tcpwatchd",
        "EVENT_ACTION": action,
        "EVENT_START": format_utc(opened),
        "SOURCE_IP": source_ip,
        "SOURCE_PORT": str(source_port),
        "DESTINATION_IP": destination_ip,
        "DESTINATION_PORT": str(destination_port),
        "NETWORK_DIRECTION": direction,
        "NETWORK_TYPE": "ipv6" if ":" in source_ip else "ipv4",
        "NETWORK_TRANSPORT": "tcp",
        "TCPWATCHD_DETECTED_BY": detected_by,
        "TCPWATCHD_TCP_STATE": state.name,
        "TCPWATCHD_DIRECTION": "guessed" if guessed else "known",
    }
    if owner is not NOBODY:
        fields.update(list_owner_fields(owner, OWNER_FIELDS))
        if with_owner:
            fields["MESSAGE"] += describe_owner(owner)
    if listener is not NOBODY:
        fields.update(list_owner_fields(listener, LISTENER_FIELDS))
    return fields


def list_owner_fields(owner: Owner, names: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """What is known of it."""
    known = zip(Owner._fields, owner)
    return [(names[name], str(value)) for name, value in known if value is not None and name in names]


def describe_owner(owner: Owner) -> str:
    """As for people: " (curl[4242], alice, cron.service)", as far as it is known."""
    process = quote(owner.name or "")
    if owner.process is not None:
        process += f"[{owner.process}]"
    user = quote(owner.user_name or "") or ("" if owner.user is None else f"user {owner.user}")
    unit = owner.user_unit or owner.unit
    words = [word for word in (process, user, unit) if word]
    return f" ({', '.join(words)})" if words else ""


def quote(name: str) -> str:
    return name if PLAIN_NAME(name) else '"' + name.replace('"', "\\x22") + '"'


def watch_started(version: str, interval: float, ipv6: bool, now: int) -> Event:
    message = f"Started: version {version} watches the tables of TCP sockets every {interval:g} s"
    if not ipv6:
        message += "; this kernel has no IPv6"
    fields = {"TCPWATCHD_VERSION": version, "TCPWATCHD_INTERVAL": f"{interval:g}"}
    return _own(now, WATCH_STARTED, INFO, message, **fields)


def watch_stopped(totals: Mapping[str, int], now: int) -> Event:
    """Each total is a field of its own: "reported" becomes TCPWATCHD_REPORTED."""
    message = f"Stopped: {describe_totals(totals)}"
    if totals["unreported"]:
        message += f", {totals['unreported']} still open and not reported"
    if totals["unwritten"]:
        message += f", {totals['unwritten']} found but not written yet"
    return _own(now, WATCH_STOPPED, WARNING if totals["unwritten"] else INFO, message, **list_totals(totals))


def describe_totals(totals: Mapping[str, int]) -> str:
    """What became of the connections that were found."""
    text = f"{count(totals['reported'], 'connection')} reported"
    if totals["folded"]:
        text += f", {totals['folded']} folded"
    if totals["reported_closed"] or totals["folded_closed"]:
        text += f" when they opened, {totals['reported_closed']} when they closed"
    if totals["folded_closed"]:
        text += f", {totals['folded_closed']} folded then"
    return text + f", {totals['ignored']} ignored" * (totals["ignored"] > 0)


def list_totals(totals: Mapping[str, int]) -> dict[str, str]:
    """Each as a field of its own."""
    return {f"TCPWATCHD_{name.upper()}": str(total) for name, total in totals.items()}


def connections_counted(
    since: int,
    ignored: list[tuple[str, int]],
    folded: int,
    folded_closed: int,
    totals: Mapping[str, int],
    now: int,
) -> Event:
    """Of what was not written one by one since then, in microseconds since the epoch; rules as "file:line".

    The totals are as at the stop: with what was missed, they add up to what was opened.
    """
    parts = []
    if ignored:
        number = sum(number for _, number in ignored)
        shown = [(shorten(place), times) for place, times in ignored]
        parts.append(f"{number} ignored ({list_by_rule(shown, MOST_SHOWN)})")
    if folded:
        parts.append(f"{folded} folded")
    if folded_closed:
        parts.append(f"{folded_closed} folded as they closed")
    message = f"Not written one by one since {format_utc(since)}: {', '.join(parts)}"
    fields = {"EVENT_START": format_utc(since), "EVENT_END": format_utc(now)}
    fields["TCPWATCHD_IGNORED_BY"] = list_by_rule(ignored, MOST_COUNTED)
    return _own(now, CONNECTIONS_COUNTED, INFO, message, **fields, **list_totals(totals))


def list_by_rule(ignored: list[tuple[str, int]], most: int) -> str:
    """The counts of so many rules, and of the others together."""
    named = [f"{number} by {place}" for place, number in ignored[:most]]
    others = ignored[most:]
    if others:
        named.append(f"{sum(number for _, number in others)} by {count(len(others), 'more rule')}")
    return ", ".join(named)


def shorten(place: str) -> str:
    """To its end, which names the file and the line."""
    return place if len(place) <= LONGEST_PLACE else f"...{place[3 - LONGEST_PLACE :]}"


def port_scan(scan: PortScan, first: int, last: int, now: int) -> Event:
    """`first` and `last` are when it tried what it tried, in microseconds since the epoch."""
    source = format_ip(scan.address)
    seen = [word for word, found in (("accept", scan.open_ports), ("reset", scan.closed_ports)) if found]
    fields = {
        "EVENT_ACTION": "port-scan",
        "EVENT_START": format_utc(first),
        "EVENT_END": format_utc(last),
        "SOURCE_IP": source,
        "NETWORK_TYPE": "ipv6" if ":" in source else "ipv4",
        "NETWORK_TRANSPORT": "tcp",
        "TCPWATCHD_SEEN_BY": ",".join(seen),
        "TCPWATCHD_SOURCE_VERIFIED": "yes" if scan.is_verified else "no",
    }
    if scan.network:
        address, bits = scan.network
        source = fields["TCPWATCHD_SOURCE_NETWORK"] = f"{format_ip(address)}/{bits}"
    if scan.open_ports:
        fields["TCPWATCHD_OPEN_PORTS"] = list_ports(scan.open_ports)
    if scan.closed_ports:
        fields["TCPWATCHD_CLOSED_PORTS"] = list_ports(scan.closed_ports)
    tried, more = describe_tried(scan)
    message = f"Port scan{' goes on' * bool(scan.goes_on)}: {source} tried {tried}"
    return _own(now, PORT_SCAN, WARNING, message, **fields, **more)


def describe_tried(scan: PortScan) -> tuple[str, dict[str, str]]:
    """As for people, and as fields: how many ports, or at how many addresses the same one."""
    ports = sorted({*scan.open_ports, *scan.closed_ports})
    places = [format_ip(address) for address in scan.destinations]
    least = "at least " * scan.is_least
    fields = {"EVENT_COUNT": str(len(ports))}
    text = f"{least}{len(ports)}{' more' * (scan.goes_on == 'ports')} ports of this host"
    if len(ports) == 1:
        text = f"port {ports[0]}{' too' * (scan.goes_on == 'ports')} of this host"
        fields["DESTINATION_PORT"] = str(ports[0])
        fields["EVENT_COUNT"] = str(len(places))
    if len(places) == 1:
        fields["DESTINATION_IP"] = places[0]
    else:
        text += f" at {least}{len(places)}{' more' * (scan.goes_on == 'addresses')} addresses"
        fields["TCPWATCHD_DESTINATION_IPS"] = ",".join(shorten_list(places))
    return text + " again" * (scan.goes_on == "again"), fields


def list_ports(ports: Sequence[int]) -> str:
    """In order, as ranges."""
    ranges: list[list[int]] = []
    for port in ports:
        if ranges and port == ranges[-1][1] + 1:
            ranges[-1][1] = port
        else:
            ranges.append([port, port])
    return ",".join(shorten_list([f"{low}-{high}" if high > low else f"{low}" for low, high in ranges]))


def shorten_list(words: list[str]) -> list[str]:
    return words if len(words) <= MOST_LISTED else [*words[:MOST_LISTED], "..."]


def scans_unfollowed(number: int, now: int) -> Event:
    """Of sources that began to scan while too many did."""
    message = f"Port scans: at least {number} more sources tried many ports of this host"
    return _own(now, SCANS_UNFOLLOWED, WARNING, message, EVENT_COUNT=str(number))


def resets_failed(reason: str, now: int) -> Event:
    message = f"Which closed ports are tried is not known for now, so port scans can be missed: {reason}"
    return _own(now, RESETS_FAILED, WARNING, message, ERROR_MESSAGE=reason)


def resets_recovered(now: int) -> Event:
    return _own(now, RESETS_RECOVERED, NOTICE, "Which closed ports are tried is known again")


def reloaded(needs_restart: Iterable[str], now: int) -> Event:
    """`needs_restart`: settings that were changed, which takes a restart."""
    named = ", ".join(needs_restart)
    message = "The configuration was read again"
    if named:
        message += f"; only a restart changes {named}"
    return _own(now, RELOADED, NOTICE if named else INFO, message)


def reload_failed(reason: str, now: int) -> Event:
    message = f"The configuration is wrong, and the one before stays in force: {reason}"
    return _own(now, RELOAD_FAILED, ERROR, message, ERROR_MESSAGE=reason)


def trace_used(
    path: str,
    buffer_kb: int | None,
    tells_owners: bool,
    no_owners: str | None,
    no_resets: str | None,
    now: int,
) -> Event:
    """`buffer_kb` is for one CPU, None where they differ; `no_owners`: why owners are not told, if known;
    `no_resets`: likewise, which closed ports are tried.
    """
    size = f"{buffer_kb} KiB a CPU" if buffer_kb else "buffers of several sizes"
    message = f"The kernel's trace is in use: every connection is reported ({path}, {size})"
    if not tells_owners:
        message += "; who owns it is only known of a process that can still be found"
    if no_owners:
        message += f": {no_owners}"
    if no_resets:
        message += f"; port scans are seen by open ports only: {no_resets}"
    return _own(now, TRACE_USED, INFO, message, TCPWATCHD_OWNERS="kernel" if tells_owners else "proc")


def trace_unavailable(reason: str, now: int) -> Event:
    message = f"Only polling: connections that open and close between two polls can be missed ({reason})"
    return _own(now, TRACE_UNAVAILABLE, WARNING, message, ERROR_MESSAGE=reason)


def baseline_unusable(reason: str, now: int) -> Event:
    message = f"What was kept over the restart cannot be used, as at a first start: {reason}"
    return _own(now, BASELINE_UNUSABLE, WARNING, message, ERROR_MESSAGE=reason)


def keeping_failed(reason: str, now: int) -> Event:
    message = f"What is known could not be kept over a restart, will try again: {reason}"
    return _own(now, KEEPING_FAILED, WARNING, message, ERROR_MESSAGE=reason)


def keeping_recovered(path: str, now: int) -> Event:
    return _own(now, KEEPING_RECOVERED, NOTICE, f"What is known is kept over a restart again: {path}")


def metrics_failed(reason: str, now: int) -> Event:
    message = f"The metrics cannot be written, will try again: {reason}"
    return _own(now, METRICS_FAILED, WARNING, message, ERROR_MESSAGE=reason)


def metrics_recovered(now: int) -> Event:
    return _own(now, METRICS_RECOVERED, NOTICE, "The metrics are written again")


def trace_gap(since: int, now: int) -> Event:
    """Times in microseconds since the epoch; `now` is the end of the gap."""
    start, end = format_utc(since), format_utc(now)
    message = f"The kernel's trace was not in use from {start} to {end}; short connections may be missing"
    return _own(now, TRACE_GAP, WARNING, message, EVENT_START=start, EVENT_END=end)


def records_lost(records: int, now: int) -> Event:
    message = f"The kernel's trace lost {count(records, 'record')}; short connections may be missing"
    return _own(now, RECORDS_LOST, WARNING, message, TCPWATCHD_RECORDS_LOST=str(records))


def trace_failed(reason: str, now: int) -> Event:
    message = f"Cannot read the kernel's trace, will try again: {reason}"
    return _own(now, TRACE_FAILED, WARNING, message, ERROR_MESSAGE=reason)


def trace_changed(reason: str, now: int) -> Event:
    message = f"Only polling until the kernel's trace is set up as it was: {reason}"
    return _own(now, TRACE_CHANGED, WARNING, message, ERROR_MESSAGE=reason)


def trace_recovered(now: int) -> Event:
    return _own(now, TRACE_RECOVERED, NOTICE, "The kernel's trace can be read again")


def counters_failed(reason: str, now: int) -> Event:
    message = f"Cannot read the kernel's counters, so what polls miss is not counted: {reason}"
    return _own(now, COUNTERS_FAILED, WARNING, message, ERROR_MESSAGE=reason)


def counters_recovered(now: int) -> Event:
    message = "The kernel's counters can be read again: what polls miss is counted from now on"
    return _own(now, COUNTERS_RECOVERED, NOTICE, message)


def owners_failed(reason: str, now: int) -> Event:
    message = f"Cannot find who owns connections, which are reported without: {reason}"
    return _own(now, OWNERS_FAILED, WARNING, message, ERROR_MESSAGE=reason)


def owners_recovered(now: int) -> Event:
    return _own(now, OWNERS_RECOVERED, NOTICE, "Who owns connections is found again")


def closings_untold(trace_tells: bool, now: int) -> Event:
    """`trace_tells`: whether the trace is set up for it, which the service was told not to use."""
    reason = (
        "a flag of the service says so, and its trace was set up for more"
        if trace_tells
        else "the kernel's trace was not set up for it"
    )
    message = f"Connections are reported when they open, and not when they close: {reason}"
    return _own(now, CLOSINGS_UNTOLD, WARNING, message, ERROR_MESSAGE=reason)


def connections_untold(inbound: int, now: int) -> Event:
    """Although there is a trace; how many opened outbound is not known exactly enough then."""
    message = f"{count(inbound, 'inbound connection')} opened of which neither the trace nor a poll told"
    return _own(now, CONNECTIONS_UNTOLD, WARNING, message, TCPWATCHD_MISSED_INBOUND=str(inbound))


def connections_missed(inbound: int, outbound: int, now: int) -> Event:
    short = f"{count(inbound, 'inbound connection')} and at most {count(outbound, 'outbound connection')}"
    message = f"{short} opened and closed between two polls, and were not reported"
    fields = {"TCPWATCHD_MISSED_INBOUND": str(inbound), "TCPWATCHD_MISSED_OUTBOUND": str(outbound)}
    return _own(now, CONNECTIONS_MISSED, NOTICE, message, **fields)


def poll_failed(reason: str, now: int) -> Event:
    message = f"Cannot read the tables of TCP sockets, will try again: {reason}"
    return _own(now, POLL_FAILED, WARNING, message, ERROR_MESSAGE=reason)


def poll_recovered(failed: int, now: int) -> Event:
    message = f"The tables of TCP sockets can be read again, after {count(failed, 'failed poll')}"
    return _own(now, POLL_RECOVERED, NOTICE, message, TCPWATCHD_FAILED_POLLS=str(failed))


def rows_malformed(rows: list[bytes], now: int) -> Event:
    """Speaks of the first row; the quotation is ASCII, whatever the row holds."""
    quoted = repr(rows[0][:QUOTED])[1:]
    skipped = count(len(rows), "malformed row")
    message = f"In the tables of TCP sockets {skipped} could not be read; the first: {quoted}"
    return _own(now, ROWS_MALFORMED, WARNING, message, TCPWATCHD_MALFORMED_ROWS=str(len(rows)))


def watch_failed(reason: str, now: int) -> Event:
    return _own(now, WATCH_FAILED, ERROR, f"Cannot go on: {reason}", ERROR_MESSAGE=reason)


def _own(now: int, message_id: str, priority: str, message: str, **fields: str) -> Event:
    common = {
        "MESSAGE": message,
        "MESSAGE_ID": message_id,
        "PRIORITY": priority,
        "SYSLOG_IDENTIFIER": "tcpwatchd",
        "EVENT_CREATED": format_utc(now),
    }
    return Event(now, {**common, **fields})


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_duration(nanoseconds: int) -> str:
    """To three digits, or two units."""
    seconds = nanoseconds / 1e9
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    named = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next(i for i, (number, _) in enumerate(named) if number)
    return " ".join(f"{number} {unit}" for number, unit in named[first : first + 2] if number)


def format_bytes(number: int) -> str:
    """To three digits, in decimal units."""
    digits, prefix = scale(number)
    return f"{digits} {prefix}B"


def scale(number: int) -> tuple[str, str]:
    """Three digits, and the decimal prefix that goes with them."""
    size, prefixes = float(number), iter("kMGT")
    prefix = ""
    while size >= 999.5 and prefix != "T":
        size, prefix = size / 1000, next(prefixes)
    return f"{float(f'{size:.3g}'):g}", prefix


def format_utc(moment: int) -> str:
    """ISO 8601 with microseconds and Z."""
    seconds, micros = divmod(moment, MICROSECONDS)
    return f"{format_second(seconds)}.{micros:06d}Z"


@lru_cache(maxsize=8)
def format_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def format_local(moment: int) -> str:
    """Local time, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment // MICROSECONDS))
