"""Endpoints as text."""

from __future__ import annotations

import pytest

from tcpwatchd.connection import End, Endpoint


@pytest.mark.parametrize(
    ("packed", "text"),
    [
        ("c0000238 1755", "192.0.2.56:5973"),
        ("20010db8000000000000000000000001 01bb", "[2001:db8::1]:443"),
        ("20010db8000000010001000100010001 01bb", "[2001:db8:0:1:1:1:1:1]:443"),
        ("00000000000000000000000000000000 0000", "[::]:0"),
        ("fe80000000000000020000fffe000abc ffff", "[fe80::200:ff:fe00:abc]:65535"),
    ],
)
def test_text(packed: str, text: str) -> None:
    endpoint = Endpoint(bytes.fromhex(packed))
    assert str(endpoint) == text
    assert (endpoint.ip, endpoint.port) == (text.rpartition(":")[0].strip("[]"), int(text.rpartition(":")[2]))


def test_loopback_and_flipped() -> None:
    home, other = Endpoint(b"\x7f\0\0\2\0\1"), Endpoint(b"\x0a\0\0\2\0\1")
    assert home.is_loopback
    assert not other.is_loopback
    assert Endpoint(bytes(15) + b"\1\0\1").is_loopback
    assert End(home, other).flipped == End(other, home)
