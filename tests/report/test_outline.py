"""What the report says in words: true, whole, and nothing where nothing is known."""

from __future__ import annotations

import pytest

from tcpwatchd.connection import Closed, Owner
from tcpwatchd.output import event
from tcpwatchd.report import summary as module
from tcpwatchd.report.outline import (
    NOT_KNOWN,
    VERIFIED_MEANS,
    FirstSeen,
    Outline,
    Table,
    list_meanings,
    make_outline,
)
from tcpwatchd.report.summary import Summary
from tcpwatchd.report.tally import count
from tests.report.journals import TRUSTED, list_fields, make_connection
from tests.report.summaries import HOSTILE, SINCE, UNTIL, outline_of, sum_up

NONE_BEFORE = FirstSeen(None, [], 0)


def find_table(outline: Outline, title: str) -> Table:
    (found,) = (table for table in outline.tables if table.title == title)
    return found


def make_summary() -> Summary:
    return Summary(SINCE, UNTIL, "tcpwatchd.service", 10)


def test_nothing_is_told_as_nothing() -> None:
    outline = make_outline(make_summary(), NONE_BEFORE, [], 10)
    assert outline.title == "Connections"
    (sentence,) = outline.sentences
    assert sentence.endswith(": the journal has no entry of tcpwatchd.service.")
    assert [table.title for table in outline.tables] == ["Peers seen for the first time"]
    assert outline.warnings == []


def test_every_cell_has_its_column_and_can_be_seen() -> None:
    outline = outline_of(sum_up())
    assert len(outline.tables) == 9
    for table in outline.tables:
        assert len(table.rows) <= 10 or table.title.startswith("What tcpwatchd")
        for row in table.rows:
            assert len(row) == len(table.columns)
            assert all(cell.isprintable() for cell in row)
    assert all(text.isprintable() for text in (*outline.sentences, *outline.warnings, outline.title))


def test_sums_are_those_of_the_summary() -> None:
    summary = sum_up()
    inbound, outbound, within = summary.directions
    outline = outline_of(summary)
    assert (
        f": {summary.connections} connections, {inbound} in, {outbound} out, {within} within."
        in (outline.sentences[0])
    )
    assert outline.sentences[1].startswith(f"{sum(summary.closed.values())} closed: ")
    services = find_table(outline, "Services")
    for row, (_, counts) in zip(services.rows, summary.services.list_top(10)):
        assert row[1:4] == [str(number) for number in counts[:3]]
    assert sum(map(count, summary.services.rows.values())) == summary.connections
    others = len(summary.services.rows) - 10
    assert services.notes == [f"{others} more are not shown."]


def test_how_connections_closed_and_what_was_sent_and_received() -> None:
    """Sent and received are this machine's; within it both are."""
    summary = make_summary()
    for port, (direction, by) in enumerate(
        [("ingress", "fin"), ("egress", "reset"), ("internal", "timeout"), ("egress", None)], 1
    ):
        made = make_connection(f"192.0.2.1:{port}", "10.0.0.1:80", direction, time=SINCE * 1000)  # type: ignore[arg-type]
        closed = Closed(made, made.time + 1, by, None, 1000, 20, "trace")  # type: ignore[arg-type]
        summary.add(SINCE, list_fields(event.connection_closed(closed, SINCE, SINCE)))
    (_, second) = make_outline(summary, NONE_BEFORE, [], 10).sentences
    assert second == (
        "4 closed: 1 by FIN, 1 by reset, 1 timed out, 1 not known how; 3.04 kB sent, 2.06 kB received."
    )


def test_who_is_not_known_is_told_so() -> None:
    summary = make_summary()
    made = make_connection("192.0.2.1:1", "10.0.0.1:80", owner=Owner(user=7), time=SINCE * 1000)
    summary.add(SINCE, list_fields(event.connection_opened(made, SINCE)))
    assert find_table(make_outline(summary, NONE_BEFORE, [], 10), "Services").rows == [
        [NOT_KNOWN, "1", "0", "0"]
    ]


def test_ipv6_ends_have_brackets_and_ports() -> None:
    summary = make_summary()
    made = make_connection("192.0.2.1:1024", "10.0.0.1:80", time=SINCE * 1000)
    made = made._replace(source=type(made.source)(bytes(15) + b"\1\4\0"))
    closed = Closed(made, made.time + 90 * 10**9, "fin", None, 1, 2, "trace")
    summary.add(SINCE, list_fields(event.connection_closed(closed, SINCE, SINCE)))
    (row,) = find_table(make_outline(summary, NONE_BEFORE, [], 10), "Longest connections").rows
    assert row[1:] == ["[::1]:1024", "10.0.0.1:80", "nginx.service", "1 min 30 s", "3 B"]


def test_what_can_make_it_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_NAMES", 2)
    monkeypatch.setattr(module, "MOST_SCANS", 0)
    summary = sum_up()
    fields = list_fields(event.records_lost(1, SINCE))
    summary.add(SINCE, {**fields, "TCPWATCHD_RECORDS_LOST": b"many"})
    del fields["_SYSTEMD_UNIT"]
    summary.add(SINCE, fields)
    outline = outline_of(summary, ["/a.journal: it is damaged: read in part"])
    for expected in (
        "1 entry was written by another unit, and left out: größe ☃",
        "1 entry is known to be of tcpwatchd by its user alone",
        "1 entry makes no sense and is left out",
        "/a.journal: it is damaged: read in part",
    ):
        assert expected in outline.warnings
    (note,) = find_table(outline, "Services").notes
    assert note.startswith("There were too many to count all: each that is shown may have had up to ")
    assert find_table(outline, "Port scans").notes == ["1 more is not shown."]
    said = find_table(outline, "What tcpwatchd missed or could not see")
    assert said.notes == [
        "Records of the trace that were lost: 8.",
        "Connections that were missed: 3 inbound, at most 4 outbound.",
    ]


def test_first_seen_says_since_when_and_how_many() -> None:
    table = find_table(outline_of(sum_up()), "Peers seen for the first time")
    assert len(table.rows) == 3
    assert table.notes[0].startswith("Compared with entries since 2026-")
    assert table.notes[1] == "2 more are not shown."
    outline = make_outline(sum_up(), FirstSeen(SINCE, [], 0), [], 10)
    assert find_table(outline, "Peers seen for the first time").notes[0] == "None."


def test_hosts_are_named_the_first_three() -> None:
    summary = make_summary()
    for number in range(5):
        fields = list_fields(event.reloaded([], SINCE), {**TRUSTED, "_HOSTNAME": f"web{number}"})
        for _ in range(5 - number):
            summary.add(SINCE, fields)
    assert (
        make_outline(summary, NONE_BEFORE, [], 10).title == "Connections of web0, web1, web2 and 2 more hosts"
    )


def test_hostile_names_are_one_line_each() -> None:
    summary = sum_up(names=HOSTILE)
    shown = {row[0] for row in find_table(outline_of(summary, top=50), "Services").rows}
    assert len(shown) == len(summary.services.rows)
    assert "\\u202egnp.exe" in shown
    assert "a\\nb\\tc" in shown


@pytest.mark.parametrize(
    ("number", "sentences", "warnings", "note", "hosts"),
    [
        (
            1,
            ["1 of them was open when the watch began.", "1 of them was told with others in one entry.",
             "1 more was ignored by rules, and only counted."],
            ["1 entry was written by another unit, and left out: x.service",
             "1 entry is known to be of tcpwatchd by its user alone",
             "1 entry makes no sense and is left out",
             "1 connection that closed may have been counted twice"],
            "1 more is not shown.",
            "1 more host",
        ),
        (
            2,
            ["2 of them were open when the watch began.", "2 of them were told with others in one entry.",
             "2 more were ignored by rules, and only counted."],
            ["2 entries were written by other units, and left out: x.service",
             "2 entries are known to be of tcpwatchd by their user alone",
             "2 entries make no sense and are left out",
             "2 connections that closed may have been counted twice"],
            "2 more are not shown.",
            "2 more hosts",
        ),
    ],
)  # fmt: skip
def test_one_is_not_many(
    number: int, sentences: list[str], warnings: list[str], note: str, hosts: str
) -> None:
    summary = make_summary()
    summary.open_before = summary.folded = summary.ignored = number
    summary.others[b"x.service"] = summary.unknown_writers = summary.malformed = summary.unpaired = number
    summary.hosts.update(b"%d" % index for index in range(3 + number))
    for index in range(1 + number):
        summary.ports.find_row(b"%d" % index)[0] = 1
    outline = make_outline(summary, FirstSeen(SINCE, [], number), [], 1)
    assert outline.sentences[1:] == sentences
    assert outline.warnings == warnings
    assert find_table(outline, "Ports").notes == [note]
    assert find_table(outline, "Peers seen for the first time").notes[-1] == note
    assert outline.title.endswith(f" and {hosts}")


def test_words_that_not_everybody_knows_are_explained_where_they_are_used() -> None:
    summary = make_summary()
    assert list_meanings(summary) == []
    summary.connections = summary.closed[b"reset"] = 1
    directions, reset = list_meanings(summary)
    assert directions.startswith("In: ")
    assert reset == "By reset: broken off, with an RST."
    assert find_table(outline_of(sum_up()), "Port scans").notes == [VERIFIED_MEANS]
