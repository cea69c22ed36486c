"""What the report says, as sentences and tables for people: the terminal and the page show the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tcpwatchd.connection import format_endpoint
from tcpwatchd.output.event import MICROSECONDS, format_bytes, format_duration
from tcpwatchd.output.event import count as count_noun
from tcpwatchd.report.names import show
from tcpwatchd.report.summary import SECOND, parse_moment
from tcpwatchd.report.tally import BYTES, IN, OUT, RESETS, WITHIN
from tcpwatchd.report.timeline import format_time

if TYPE_CHECKING:
    from tcpwatchd.report.summary import Flow, Summary
    from tcpwatchd.report.tally import Tally

NOT_KNOWN = "(not known)"
COUNTS = ("in", "out", "within")
DIRECTIONS_MEAN = (
    "In: opened by the peer (inbound). Out: opened by this host (outbound). Within: from this host to itself."
)
HOW_MEANS = {
    b"fin": "By FIN: in the regular way.",
    b"reset": "By reset: broken off, with an RST.",
    b"timeout": "Timed out: the other end did not answer any more.",
}
VERIFIED_MEANS = (
    "Verified: it would be a scan by accepted connections alone; else its source address can be forged."
)
HOW = {b"fin": "by FIN", b"reset": "by reset", b"timeout": "timed out", b"": "not known how"}


class FirstSeen(NamedTuple):
    """Peers that no entry before the period names.

    `since` is when those entries begin, microseconds since the epoch; None if there are none to compare with.
    """

    since: int | None
    peers: list[tuple[bytes, list[int]]]
    number: int
    """How many there are; `peers` has the first of them."""
    is_least: bool = False
    """Whether there can be more, since not all peers were counted."""


class Table(NamedTuple):
    """Columns whose names begin with `<` are text, the others are numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


class Outline(NamedTuple):
    title: str
    sentences: list[str]
    tables: list[Table]
    warnings: list[str]


def make_outline(summary: Summary, first_seen: FirstSeen, faults: list[str], top: int) -> Outline:
    tables = [
        tabulate("Services", "<service", summary.services, top),
        tabulate("Peers", "<address", summary.peers, top),
        tabulate("Ports", "<port", summary.ports, top),
        tabulate_first_seen(first_seen),
        tabulate_flows("Longest connections", summary.longest.items),
        tabulate_flows("Largest connections", summary.largest.items),
        tabulate_resets(summary, top),
        tabulate_scans(summary, top),
        tabulate_said(summary),
    ]
    hosts = sorted(summary.hosts, key=lambda host: (-summary.hosts[host], host))
    where = ", ".join(show(host) for host in hosts[:3])
    if len(hosts) > 3:
        where += f" and {count_noun(len(hosts) - 3, 'more host')}"
    return Outline(
        f"Connections of {where}" if where else "Connections",
        list_sentences(summary),
        [table for table in tables if table.rows or table.notes],
        list_warnings(summary) + faults,
    )


def list_sentences(summary: Summary) -> list[str]:
    period = f"From {format_time(summary.since)} to {format_time(summary.until)}"
    if not summary.entries:
        sentences = [f"{period}: the journal has no entry of {summary.unit}."]
    elif not summary.connections and not sum(summary.closed.values()):
        sentences = [f"{period}: no connections."]
    else:
        inbound, outbound, within = summary.directions
        sentences = [
            f"{period}: {count_noun(summary.connections, 'connection')}, {inbound} in, {outbound} out, "
            f"{within} within."
        ]
    if summary.closed:
        how = ", ".join(f"{summary.closed[key]} {text}" for key, text in HOW.items() if summary.closed[key])
        sent = summary.sizes[IN][1] + summary.sizes[OUT][0] + sum(summary.sizes[WITHIN])
        received = summary.sizes[IN][0] + summary.sizes[OUT][1] + sum(summary.sizes[WITHIN])
        number, sizes = sum(summary.closed.values()), f"{format_bytes(sent)} sent, {format_bytes(received)}"
        sentences.append(f"{number} closed: {how}; {sizes} received.")
    for number, which, what in (
        (summary.open_before, "of them", "open when the watch began"),
        (summary.folded, "of them", "told with others in one entry"),
        (summary.ignored, "more", "ignored by rules, and only counted"),
    ):
        if number:
            sentences.append(f"{number} {which} {'was' if number == 1 else 'were'} {what}.")
    return sentences


def list_meanings(summary: Summary) -> list[str]:
    """Of the words of its sentences that not everybody knows."""
    meanings = [DIRECTIONS_MEAN] if summary.connections else []
    return meanings + [text for how, text in HOW_MEANS.items() if summary.closed[how]]


def list_warnings(summary: Summary) -> list[str]:
    """What can make the report other than what happened."""
    warnings = []
    if summary.others:
        units = ", ".join(show(unit) or "unknown ones" for unit in sorted(summary.others)[:3])
        one, many = "entry was written by another unit", "entries were written by other units"
        warnings.append(f"{inflect(sum(summary.others.values()), one, many)}, and left out: {units}")
    if summary.unknown_writers:
        one, many = (
            "entry is known to be of tcpwatchd by its",
            "entries are known to be of tcpwatchd by their",
        )
        warnings.append(f"{inflect(summary.unknown_writers, one, many)} user alone")
    if summary.malformed:
        entries = inflect(summary.malformed, "entry makes no sense and is", "entries make no sense and are")
        warnings.append(f"{entries} left out")
    if summary.unpaired:
        closed = count_noun(summary.unpaired, "connection")
        warnings.append(f"{closed} that closed may have been counted twice")
    return warnings


def inflect(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def list_not_shown(number: int) -> list[str]:
    return [inflect(number, "more is not shown.", "more are not shown.")] if number else []


def tabulate(title: str, name: str, tally: Tally, top: int) -> Table:
    rows = tally.list_top(top)
    with_bytes = any(row[BYTES] for _, row in rows)
    columns = [name, *COUNTS, *["bytes"] * with_bytes]
    listed = [
        [name_key(key), *map(str, row[:3]), *[format_bytes(row[BYTES])] * with_bytes] for key, row in rows
    ]
    return Table(title, columns, listed, list_bounds(tally.most_missed, len(tally.rows) - len(rows)))


def list_bounds(most_missed: int, others: int, what: str = "bytes") -> list[str]:
    """`most_missed` is as in `Tally`; `what` else is counted."""
    if most_missed:
        most = count_noun(most_missed, "connection")
        return [
            f"There were too many to count all: each that is shown may have had up to {most} more, with "
            f"their {what}."
        ]
    return list_not_shown(others)


def name_key(key: Any) -> str:
    if isinstance(key, tuple):
        return " ".join(map(name_key, key))
    return show(key) if key else NOT_KNOWN


def tabulate_first_seen(first_seen: FirstSeen) -> Table:
    title, columns = "Peers seen for the first time", ["<address", *COUNTS]
    if first_seen.since is None:
        return Table(title, columns, [], ["The journal has nothing from before to compare with."])
    rows = [[show(peer), *map(str, row[:3])] for peer, row in first_seen.peers]
    notes = [f"Compared with entries since {format_time(first_seen.since)}."]
    if not rows:
        notes.insert(0, "None.")
    least = "At least " * first_seen.is_least
    notes += [f"{least}{note}" for note in list_not_shown(first_seen.number - len(rows))]
    return Table(title, columns, rows, notes)


def tabulate_flows(title: str, flows: list[tuple[int, Flow]]) -> Table:
    columns = ["<opened", "<from", "<to", "<service", "duration", "bytes"]
    return Table(title, columns, [list_flow(flow) for _, flow in flows], [])


def list_flow(flow: Flow) -> list[str]:
    return [
        format_time(parse_moment(flow.start[:SECOND]) * MICROSECONDS),
        format_end(flow.source),
        format_end(flow.destination),
        name_key(flow.service),
        "" if flow.duration is None else format_duration(flow.duration),
        "" if flow.size is None else format_bytes(flow.size),
    ]


def format_end(end: tuple[bytes, bytes]) -> str:
    return format_endpoint(show(end[0]), int(end[1]))


def tabulate_resets(summary: Summary, top: int) -> Table:
    listed = summary.pairs.list_reset(top)
    rows = [
        [name_key(service), show(peer) or "(this machine)", str(row[RESETS])]
        for (service, peer), row in listed
    ]
    others = sum(row[RESETS] > 0 for row in summary.pairs.rows.values()) - len(rows)
    notes = list_bounds(summary.pairs.most_missed, others, "resets")
    return Table("Resets", ["<service", "<peer", "resets"], rows, notes if rows else [])


def tabulate_scans(summary: Summary, top: int) -> Table:
    scans = sorted(summary.scans.values(), key=lambda scan: (-scan.times, -scan.last))
    rows = [
        [format_time(scan.last), str(scan.times), "yes" if scan.is_verified else "no", show(scan.message)]
        for scan in scans[:top]
    ]
    notes = list_not_shown(len(scans) - len(rows) + summary.scans_left_out)
    if rows:
        notes.append(VERIFIED_MEANS)
    return Table("Port scans", ["<last", "times", "<verified", "<message"], rows, notes)


def tabulate_said(summary: Summary) -> Table:
    said = sorted(summary.said.values(), key=lambda said: -said.last)
    rows = [[format_time(one.last), str(one.times), show(one.message)] for one in said]
    sums = summary.sums
    notes = []
    if sums["TCPWATCHD_RECORDS_LOST"]:
        notes.append(f"Records of the trace that were lost: {sums['TCPWATCHD_RECORDS_LOST']}.")
    if sums["TCPWATCHD_MISSED_INBOUND"] or sums["TCPWATCHD_MISSED_OUTBOUND"]:
        inbound, outbound = sums["TCPWATCHD_MISSED_INBOUND"], sums["TCPWATCHD_MISSED_OUTBOUND"]
        notes.append(f"Connections that were missed: {inbound} inbound, at most {outbound} outbound.")
    if not rows and summary.entries:
        notes.append("Nothing: no entry of the period says that anything was missed.")
    return Table("What tcpwatchd missed or could not see", ["<last", "times", "<message"], rows, notes)
