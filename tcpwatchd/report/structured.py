"""The report as values, for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tcpwatchd import __version__
from tcpwatchd.output.event import MICROSECONDS, format_utc
from tcpwatchd.report.names import show
from tcpwatchd.report.tally import BYTES, IN, OUT, RESETS, WITHIN, count
from tcpwatchd.report.timeline import make_timeline

if TYPE_CHECKING:
    from tcpwatchd.report.outline import FirstSeen
    from tcpwatchd.report.summary import Flow, Scan, Summary
    from tcpwatchd.report.tally import Tally

FORMAT = 1
"""Raised when what is there means something else; what is added does not."""
MOST_STEPS = 200


def list_values(summary: Summary, first_seen: FirstSeen, faults: list[str], top: int) -> dict[str, Any]:
    """Times in UTC, durations in seconds, sizes in bytes; what is not known is null, or absent."""
    timeline = make_timeline(summary, MOST_STEPS)
    return {
        **list_totals(summary, top),
        "over_time": {
            "step_seconds": timeline.seconds,
            "steps": [
                {"start": format_utc(step.start * MICROSECONDS), **name_directions(step.counts)}
                for step in timeline.steps
            ],
        },
        "services": list_rows(summary.services, top),
        "peers": list_rows(summary.peers, top),
        "ports": list_rows(summary.ports, top),
        "first_seen": {
            "compared_since": None if first_seen.since is None else format_utc(first_seen.since),
            "number": first_seen.number,
            "is_least": first_seen.is_least,
            "peers": [{"name": show(peer), **name_directions(row)} for peer, row in first_seen.peers],
        },
        "longest": [list_flow(flow) for _, flow in summary.longest.items],
        "largest": [list_flow(flow) for _, flow in summary.largest.items],
        "pairs": list_rows(summary.pairs, top),
        "resets": [
            {"name": name_key(key), "resets": row[RESETS]} for key, row in summary.pairs.list_reset(top)
        ],
        "scans": [list_scan(source, scan) for source, scan in summary.scans.items()],
        "said": [
            {"times": said.times, "last": format_utc(said.last), "message": show(said.message)}
            for said in summary.said.values()
        ],
        "missed": {name.removeprefix("TCPWATCHD_").lower(): number for name, number in summary.sums.items()},
        "not_counted": {
            "entries_of_other_units": sum(summary.others.values()),
            "other_units": {show(unit) or "unknown": number for unit, number in summary.others.items()},
            "malformed_entries": summary.malformed,
            "scan_sources_left_out": summary.scans_left_out,
            "faults": faults,
        },
        "doubtful": {
            "entries_of_unknown_units": summary.unknown_writers,
            "connections_perhaps_counted_twice": summary.unpaired,
        },
    }


def list_totals(summary: Summary, top: int) -> dict[str, Any]:
    directions = name_directions(summary.directions)
    return {
        "format": FORMAT,
        "version": __version__,
        "unit": summary.unit,
        "since": format_utc(summary.since),
        "until": format_utc(summary.until),
        "hosts": {show(host): number for host, number in summary.hosts.most_common(top)},
        "connections": {"all": summary.connections, **directions},
        "open_before": summary.open_before,
        "folded": summary.folded,
        "ignored": summary.ignored,
        "closed": {show(how) or "unknown": number for how, number in summary.closed.items()},
        "bytes": {
            name: dict(zip(("source", "destination"), sizes))
            for name, sizes in zip(directions, summary.sizes)
        },
    }


def list_scan(source: bytes, scan: Scan) -> dict[str, Any]:
    return {
        "source": show(source),
        "times": scan.times,
        "last": format_utc(scan.last),
        "verified": scan.is_verified,
        "message": show(scan.message),
    }


def name_key(key: Any) -> str | list[str | None] | None:
    """A service and a peer, or one name; None if that is not known, and for the peer of what is within."""
    return [show(part) or None for part in key] if isinstance(key, tuple) else show(key) or None


def name_directions(counts: list[int]) -> dict[str, int]:
    return {"ingress": counts[IN], "egress": counts[OUT], "internal": counts[WITHIN]}


def list_rows(tally: Tally, top: int) -> dict[str, Any]:
    """`at_most_more`: so many connections more each name can have than it says."""
    return {
        "names": len(tally.rows),
        "at_most_more": tally.most_missed,
        "top": [
            {
                "name": name_key(key),
                "connections": count(row),
                **name_directions(row),
                "bytes": row[BYTES],
                "resets": row[RESETS],
            }
            for key, row in tally.list_top(top)
        ],
    }


def list_flow(flow: Flow) -> dict[str, Any]:
    return {
        "opened": show(flow.start),
        "source": {"ip": show(flow.source[0]), "port": int(flow.source[1])},
        "destination": {"ip": show(flow.destination[0]), "port": int(flow.destination[1])},
        "service": show(flow.service) or None,
        "seconds": None if flow.duration is None else flow.duration / 1e9,
        "bytes": flow.size,
    }
