"""What sinks write, and what they do when they cannot."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from typing import TYPE_CHECKING, Callable

import pytest

from tcpwatchd.connection import Connection, Endpoint, TcpState
from tcpwatchd.output import sinks
from tcpwatchd.output.event import (
    Event,
    connection_opened,
    connections_counted,
    connections_opened,
    poll_failed,
)
from tcpwatchd.output.sinks import JsonSink, Sink, TextSink, find_sender

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tcpwatchd.connection import Detection

MOMENT = 1_619_616_485_123_456
CLOSED = 999
END = Endpoint(b"\xc0\0\2\x38\x17\x55")
OPENED = connection_opened(Connection(END, END, "ingress", TcpState.ESTABLISHED, "poll", 0), MOMENT)


def written(
    sink: Callable[[], Sink], events: list[Event], capfd: pytest.CaptureFixture[str]
) -> tuple[str, str]:
    made = sink()
    assert all(made.reach() and made.is_ready() and made.write(new) for new in events)
    out, err = capfd.readouterr()
    return out, err


def test_text_is_the_line_in_local_time(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    out, err = written(TextSink, [OPENED, poll_failed("gone", MOMENT), OPENED], capfd)
    line = "2021-04-28 15:28:05: New connection: 192.0.2.56:5973 -> 192.0.2.56:5973\n"
    assert out == line * 2
    assert err == "tcpwatchd: Cannot read the tables of TCP sockets, will try again: gone\n"


@pytest.mark.parametrize(
    ("detected_by", "guessed", "text"),
    [
        ("startup", False, "Open connection: 192.0.2.56:5973 -> 192.0.2.56:5973"),
        ("startup", True, "Open connection: 192.0.2.56:5973 -> 192.0.2.56:5973 (direction guessed)"),
        ("poll", True, "New connection: 192.0.2.56:5973 -> 192.0.2.56:5973 (direction guessed)"),
    ],
)
def test_text_says_what_the_message_leaves_to_fields(
    detected_by: Detection, guessed: bool, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    found = Connection(END, END, "internal", TcpState.ESTABLISHED, detected_by, 0, guessed)
    event = connection_opened(found, MOMENT)
    assert event.fields["MESSAGE"] == "New connection: 192.0.2.56:5973 -> 192.0.2.56:5973"
    assert event.fields["TCPWATCHD_DIRECTION"] == ("guessed" if guessed else "known")
    assert written(TextSink, [event], capfd)[0][21:] == f"{text}\n"


@pytest.fixture(autouse=True)
def _same_time_zone_after() -> object:
    yield
    time.tzset()


def test_json_is_an_object_a_line_of_every_kind(capfd: pytest.CaptureFixture[str]) -> None:
    failure = poll_failed('a\nb \u2028 \udc80 "', MOMENT)
    out, err = written(JsonSink, [OPENED, failure], capfd)
    assert [json.loads(line) for line in out.splitlines()] == [OPENED.fields, failure.fields]
    assert err == ""


def test_a_line_of_json_is_what_a_pipe_takes_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    """However many rules there are, and wherever they stand; the sum is in the message."""
    names = "reported", "ignored", *(f"total_{number}" for number in range(20))
    ignored = [(f"/é{'x' * 200}/{number}.conf:1", 1000 + number) for number in range(900)]
    counted = connections_counted(0, ignored, 10**9, 10**9, dict.fromkeys(names, 10**12), 0)
    out, _ = written(JsonSink, [counted], capfd)
    assert len(out) <= sinks.LONGEST_LINE
    fields = json.loads(out)
    assert fields["TCPWATCHD_IGNORED_BY"].startswith(f"1000 by {ignored[0][0]}, 1001 by ")
    assert fields["TCPWATCHD_IGNORED_BY"].endswith(".conf:1, ...")
    assert {**fields, "TCPWATCHD_IGNORED_BY": ""} == {**counted.fields, "TCPWATCHD_IGNORED_BY": ""}


def test_what_was_open_before_is_said_to_be_open_also_of_many(capfd: pytest.CaptureFixture[str]) -> None:
    found = Connection(END, END, "internal", TcpState.ESTABLISHED, "startup", 0)
    out, _ = written(TextSink, [connections_opened(found, 5, 0, 0)], capfd)
    assert out.endswith(": 5 open connections: 192.0.2.56 -> 192.0.2.56:5973\n")


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The reading end of what is stdout to the sinks."""
    reader, writer = os.pipe()
    monkeypatch.setattr("tcpwatchd.output.sinks.STDOUT", writer)
    yield reader
    for descriptor in (reader, writer):
        os.close(descriptor)


def fill(sink: Sink) -> int:
    """How many events fit in before it is not ready."""
    written = 0
    while sink.is_ready():
        assert sink.write(OPENED)
        written += 1
    return written


@pytest.mark.parametrize("kind", [TextSink, JsonSink])
def test_a_full_pipe_is_not_waited_for(kind: Callable[[], Sink], pipe: int) -> None:
    sink = kind()
    written = fill(sink)
    text = b""
    while text.count(b"\n") < written:
        text += os.read(pipe, 4096)
        if len(text) == 8192:
            written += fill(sink)
    assert len(set(text.splitlines())) == 1, "every line is whole"
    assert text.endswith(b"\n")


def test_a_non_blocking_pipe_gets_whole_lines(pipe: int) -> None:
    os.set_blocking(sinks.STDOUT, False)
    sink, written = TextSink(), 0
    while sink.write(OPENED):
        written += 1
    assert not sink.is_ready()
    text = b""
    while len(text) < 60_000:
        text += os.read(pipe, 60_000 - len(text))
    written += fill(sink)
    while text.count(b"\n") < written:
        text += os.read(pipe, 4096)
    assert len(set(text.splitlines())) == 1


def test_a_reader_that_is_gone_is_an_error(pipe: int) -> None:
    sink = TextSink()
    os.dup2(os.open("/dev/null", os.O_RDONLY), pipe)
    with pytest.raises(BrokenPipeError):
        sink.write(OPENED)


def test_only_libsystemds_socket_is_made_non_blocking() -> None:
    """Whatever else may have that number is left as it is: then each entry waits until the queue has room."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        found = find_sender(sender.fileno())
        assert found
        assert found.fileno() != sender.fileno()
        found.close()
    with contextlib.ExitStack() as stack:
        others = [*socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX)]
        others += [socket.socket(), socket.socket(type=socket.SOCK_DGRAM)]
        file = stack.enter_context(open("/dev/null"))
        numbers = [*(stack.enter_context(other).fileno() for other in others), file.fileno(), CLOSED]
        assert [find_sender(number) for number in numbers] == [None] * len(numbers)
        assert all(other.getblocking() for other in others)
