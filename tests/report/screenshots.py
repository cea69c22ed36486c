"""Pictures of the report of a made-up day, as the README has them: light, dark, and 400 pixels wide.

python -m tests.report.screenshots [FOLDER]
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.daemon import PROJECT
from tests.namespace import run
from tests.report.journals import write_journal
from tests.report.sample import list_entries

if TYPE_CHECKING:
    import subprocess

FOLDER = PROJECT / "packaging/screenshots"
CONNECTIONS = 20_000
MEASURE = """<script>
document.body.style.width = "{width}px";
document.body.dataset.width = document.body.scrollWidth;
const range = document.createRange();
const boxes = chosen => [...document.querySelectorAll(chosen)].map(element => {{
  range.selectNodeContents(element);
  return [...range.getClientRects()];
}});
document.body.dataset.lines = Math.max(...boxes("td.whole").map(lines => lines.length));
const items = boxes("li").map(lines => lines[0]);
document.body.dataset.gap = Math.min(1000, ...items.flatMap(one => items.filter(
  other => other.top == one.top && other.left > one.left).map(other => other.left - one.right)));
const letters = text => [...text.data].map((_, index) => {{
  range.setStart(text, index);
  range.setEnd(text, index + 1);
  return range.getBoundingClientRect();
}});
document.body.dataset.turned = [...document.querySelectorAll("h1, p, td.text, svg .name")].filter(
  element => letters(element.firstChild).some(
    (one, index, all) => index && one.top == all[index - 1].top && one.left < all[index - 1].left)).length;
</script>"""
"""A window of Chromium's is 500 pixels wide at least, but for pictures."""


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


class Seen(NamedTuple):
    console: list[str]
    """Errors and warnings of the page."""
    width: int
    """Pixels that it takes."""
    lines: int
    """Most of a cell that is to be whole."""
    gap: float
    """Pixels between two peers of the list that are beside each other, at least."""
    turned: int
    """Names of which a letter stands left of the one before."""
    document: str
    """As the browser understood it."""


def look_at(page: Path, picture: Picture, target: Path) -> Seen:
    """Take the picture, and see what becomes of the page in a window of this size."""
    shot = browse(page, picture, f"--screenshot={target}")
    # To measure it takes a script, which the page itself forbids.
    measured = page.with_name("measured.html")
    measured.write_text(
        re.sub("<meta http-equiv.*>", "", page.read_text()) + MEASURE.format(width=picture.width)
    )
    document = browse(measured, picture, "--dump-dom").stdout
    width, lines, gap, turned = (
        re.findall(f'data-{name}="([0-9.-]+)"', document)[0] for name in ("width", "lines", "gap", "turned")
    )
    console = [line for line in shot.stderr.splitlines() if "CONSOLE" in line]
    return Seen(console, int(width), int(lines), float(gap), int(turned), document)


def browse(page: Path, picture: Picture, action: str) -> subprocess.CompletedProcess[str]:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    if picture.dark:
        flags.append("--force-dark-mode")
    return run(
        "chromium",
        *flags,
        f"--window-size={picture.width},{picture.height}",
        action,
        page.as_uri(),
        timeout=60,
    )


if __name__ == "__main__":
    into = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    into.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        made = make_page(Path(scratch))
        for one in PICTURES:
            look_at(made, one, into / f"{one.name}.png")
