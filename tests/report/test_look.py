"""The page in a browser, with names that are meant to do harm."""

from __future__ import annotations

import re
from html import unescape
from typing import TYPE_CHECKING

import pytest

from tcpwatchd.connection import Closed, Owner
from tcpwatchd.output import event
from tcpwatchd.owners.text import make_printable
from tests.daemon import PROJECT
from tests.namespace import run
from tests.report.journals import TRUSTED, export, make_connection, write_journal
from tests.report.sample import BEGIN
from tests.report.screenshots import PICTURES, look_at

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("<script>alert(1)", '"><img src=x onerror=alert(1)>', "&lt;b&gt;", "{{ 7 * 7 }}",
         "evil\u202egnp.exe", "a\nb\x1b[31m", "x" * 400, "naïve-日本", "שלום-עולם-123")  # fmt: skip
CUT = "ééééééé".encode() + b"\xc3"
"""What the kernel keeps of a longer name: 15 bytes, the last of them half of a letter."""
ADDRESS = "2001:db8:1234:5678:9abc:def0:1234:5678"
"""As wide as one can be."""
NUMBER = 25
"""Pixels that the number of a peer takes before its address, and what keeps it from the one before."""
SCRIPT = "<script>1</script>"

pytestmark = pytest.mark.journals


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    names = [*(name.encode() for name in NAMES), CUT]
    entries = []
    for number, name in enumerate(names, 1):
        owner = Owner(user=0, name=make_printable(name))
        made = make_connection(
            f"[{ADDRESS[:-2]}{number + 9:02}]:{40000 + number}", "[2001:db8::1]:80", "ingress", owner
        )
        host = {**TRUSTED, "_HOSTNAME": f"{SCRIPT}{number}-שלום-1"}
        entries += [export(event.connection_opened(made, BEGIN + number), host)] * number
        closed = Closed(made, made.time + 10**12, "fin", None, 1, 1, "trace")
        entries.append(export(event.connection_closed(closed, BEGIN + number, BEGIN + number), host))
    write_journal(folder / "hostile.journal", entries)
    target = folder / "page.html"
    program = ["/usr/bin/python3", "-m", "tcpwatchd.report", "-D", str(folder), "--html", str(target)]
    run(*program, cwd=PROJECT)
    return target


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_names_are_text_and_nothing_else(page: Path, tmp_path: Path, picture: object) -> None:
    seen = look_at(page, picture, tmp_path / "picture.png")  # type: ignore[arg-type]
    assert seen.console == []
    assert seen.width <= picture.width, "nothing sticks out"  # type: ignore[attr-defined]
    assert (seen.lines, seen.turned) == (1, 0)
    assert seen.gap >= NUMBER, "the next number has room"
    texts = unescape(re.sub("<(script|style)>.*?</\\1>", "", seen.document, flags=re.DOTALL))
    for name in NAMES:
        assert make_printable(name.encode()) in texts
    assert "ééééééé\\xc3" in texts
    assert "\u202e" not in seen.document
    assert "49" not in re.findall("<td>(.*?)</td>", seen.document)
    assert "<img" not in seen.document
    assert seen.document.count("<script>") == 1, "the one that measures"


def test_the_browser_would_tell(page: Path, tmp_path: Path) -> None:
    """What is looked for above can be found."""
    harmful = tmp_path / "page.html"
    harmful.write_text(page.read_text() + SCRIPT)
    seen = look_at(harmful, PICTURES[0], tmp_path / "picture.png")
    assert len(seen.console) == 1
    assert "script" in seen.console[0]
