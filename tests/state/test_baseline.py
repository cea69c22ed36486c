"""What is known, as text and back."""

from __future__ import annotations

import pytest

from tcpwatchd.state.baseline import MAGIC, BaselineError, format_baseline, parse_baseline
from tests.kept import make_baseline, make_full

FULL = format_baseline(make_full())


def test_everything_comes_back() -> None:
    assert parse_baseline(FULL) == make_full()
    assert parse_baseline(format_baseline(make_baseline())) == make_baseline()


@pytest.mark.parametrize("text", [b"", b"\n", b"drained 1", FULL.replace(MAGIC, b"tcpwatchd-baseline 2 ")])
def test_a_foreign_text_is_refused(text: bytes) -> None:
    with pytest.raises(BaselineError, match="not a baseline of this version"):
        parse_baseline(text)


def test_damage_anywhere_is_found() -> None:
    for at in range(FULL.index(b"\n") + 1, len(FULL)):
        for damaged in (FULL[:at], FULL[:at] + bytes([FULL[at] ^ 1]) + FULL[at + 1 :]):
            with pytest.raises(BaselineError, match="checksum"):
                parse_baseline(damaged)
