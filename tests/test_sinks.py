"""What sinks write, and what they do when they cannot."""

from __future__ import annotations

import json
import os
import time
from typing import Callable

import pytest

from tcpwatchd.connection import Connection, Endpoint, TcpState
from tcpwatchd.event import Event, connection_opened, poll_failed
from tcpwatchd.sinks import JsonSink, Sink, TextSink

MOMENT = 1_619_616_485_123_456
END = Endpoint(b"\xc0\0\2\x38\x17\x55")
OPENED = connection_opened(Connection(END, END, "ingress", TcpState.ESTABLISHED, "poll", 0), MOMENT)


def written(
    sink: Callable[[], Sink], events: list[Event], capfd: pytest.CaptureFixture[str]
) -> tuple[str, str]:
    sink().send(events)
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


@pytest.fixture(autouse=True)
def _same_time_zone_after() -> object:
    yield
    time.tzset()


def test_json_is_an_object_a_line_of_every_kind(capfd: pytest.CaptureFixture[str]) -> None:
    failure = poll_failed('a\nb \u2028 \udc80 "', MOMENT)
    out, err = written(JsonSink, [OPENED, failure], capfd)
    assert [json.loads(line) for line in out.splitlines()] == [OPENED.fields, failure.fields]
    assert err == ""


def test_a_batch_larger_than_a_pipe_is_written_whole() -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writer, 1)
        TextSink().send([OPENED] * 5000)
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert len(pipe.read().splitlines()) == 5000
    assert os.waitpid(child, 0)[1] == 0
