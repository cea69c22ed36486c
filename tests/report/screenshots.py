"""Pictures of the report of a made-up day, as the README has them: light, dark, and 400 pixels wide.

python -m tests.report.screenshots [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.daemon import PROJECT
from tests.namespace import run
from tests.report.journals import write_journal
from tests.report.sample import list_entries

FOLDER = PROJECT / "packaging/screenshots"
CONNECTIONS = 20_000


class Picture(NamedTuple):
    name: str
    width: int
    height: int
    dark: bool = False


PICTURES = (
    Picture("report", 1000, 1240),
    Picture("report-dark", 1000, 1240, dark=True),
    Picture("report-telephone", 400, 1240),
)


def make_page(folder: Path) -> Path:
    write_journal(folder / "day.journal", list_entries(CONNECTIONS))
    page = folder / "report.html"
    program = ["/usr/bin/python3", "-m", "tcpwatchd.report", "-D", str(folder), "--html", str(page)]
    run(*program, cwd=PROJECT, env={"TZ": "Europe/Berlin", "PATH": "/usr/bin:/bin"})
    return page


def take(page: Path, picture: Picture, target: Path) -> str:
    """What Chromium says: its own complaints, and the console of the page."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    size = f"--window-size={picture.width},{picture.height}"
    dark = ["--force-dark-mode"] * picture.dark
    return run("chromium", *flags, *dark, size, f"--screenshot={target}", page.as_uri()).stderr


if __name__ == "__main__":
    into = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    into.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        made = make_page(Path(scratch))
        for one in PICTURES:
            take(made, one, into / f"{one.name}.png")
