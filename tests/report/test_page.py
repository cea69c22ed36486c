"""The page: whole, quiet, and what others named is text in it."""

from __future__ import annotations

import re
from html import escape
from html.parser import HTMLParser

import pytest

from tcpwatchd.report.names import show
from tcpwatchd.report.outline import FirstSeen, list_meanings, make_outline
from tcpwatchd.report.page import (
    LONGEST_NAME,
    MOST_PEERS,
    MOST_STEPS,
    PLOT_HEIGHT,
    find_kind,
    find_top,
    format_page,
    make_matrix,
    plot_peers,
    plot_timeline,
    shorten_number,
)
from tcpwatchd.report.summary import Summary
from tcpwatchd.report.timeline import format_zones, make_timeline
from tests.report.summaries import HOSTILE, SINCE, UNTIL, outline_of, sum_up

VOID = {"meta", "link"}
"""Of those that are used, what has no end."""
ALLOWED = {
    "html", "head", "meta", "link", "title", "style", "body", "h1", "h2", "p", "span", "svg", "g", "line",
    "rect", "text", "div", "table", "tr", "thead", "tbody", "th", "td", "ol", "li", "footer",
    "details", "summary",
}  # fmt: skip


class Page(HTMLParser):
    """Fails where tags are not balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))


def read_page(summary: Summary) -> Page:
    return Page(format_page(summary, outline_of(summary)))


@pytest.mark.parametrize("number", [0, 1, 2, 400])
def test_it_is_balanced_without_a_script_and_without_a_network(number: int) -> None:
    page = read_page(sum_up(number))
    assert {tag for tag, _ in page.elements} <= ALLOWED
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "style")]
        for name in "href", "action", "xlink:href":
            assert attributes.get(name, "data:,") == "data:,", tag
    (policy,) = (a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    styles = "".join(text for tag, text in page.texts if tag == "style")
    assert not re.search("url|@import|expression", styles)
    assert "prefers-color-scheme: dark" in styles
    names = [attributes.get("name") for _, attributes in page.elements]
    assert "viewport" in names


def test_hostile_names_are_text() -> None:
    summary = sum_up(400)
    page = Page(format_page(summary, outline_of(summary, top=20)))
    cells = {text for tag, text in page.texts if tag == "td"}
    whole = "\n".join(text for _, text in page.texts)
    for name in HOSTILE:
        shown = show(name.encode())
        assert shown in cells or any(shown in cell for cell in cells), name
        assert shown in whole
    for _, attributes in page.elements:
        for value in attributes.values():
            assert not any(show(name.encode()) in value for name in HOSTILE)
    assert "49" not in {text for tag, text in page.texts if tag == "td" and "{{" in text}


def sum_up_long() -> Summary:
    """Of two services whose names differ in the middle of very many letters, and millions of connections."""
    summary = sum_up(40, [f"{'long-' * 40}{number}.service" for number in (1, 2)])
    for key in summary.times:
        summary.times[key] *= 10**6
    return summary


def test_an_axis_is_beside_its_plot_in_short_numbers() -> None:
    page = format_page(sum_up_long(), outline_of(sum_up_long()))
    axis, plot = re.findall("<svg.*?</svg>", page, re.DOTALL)[:2]
    assert re.findall(">([^<]+)</text>", axis) == ["2M", "4M", "0"]
    assert all(int(y) > PLOT_HEIGHT for y in re.findall('<text [^>]*y="([0-9]+)"', plot))
    assert [label.text for label in plot_timeline(sum_up(1)).y_labels] == ["1", "2"]
    assert "1 connections" not in format_page(sum_up(1), outline_of(sum_up(1)))


def test_long_names_beside_a_plot_differ_and_are_whole_in_a_title() -> None:
    page = format_page(sum_up_long(), outline_of(sum_up_long()))
    found = dict(re.findall('<text class="name"[^>]*>([^<]+)<title>([^<]+)</title>', page))
    services = {shown: whole for shown, whole in found.items() if "service" in whole}
    assert len(services) >= 2
    assert all(len(shown) <= LONGEST_NAME < len(whole) for shown, whole in services.items())
    assert all("…" in shown and shown[-9:] == whole[-9:] for shown, whole in services.items())


def test_whoever_sees_no_plot_has_its_numbers() -> None:
    summary = sum_up(400)
    text = format_page(summary, outline_of(summary))
    (table,) = re.findall("<details>.*</details>", text, re.DOTALL)
    rows = re.findall('<th scope="row" class="whole">([^<]+)</th>(.*)</tr>', table)
    assert [start for start, _ in rows] == make_timeline(summary, MOST_STEPS).labels
    assert sum(int(number) for _, cells in rows for number in re.findall(">([0-9]+)<", cells)) == (
        summary.connections
    )


def test_tables_can_be_reached_by_keys_and_their_heads_are_told() -> None:
    page = read_page(sum_up(400))
    regions = [attributes for _, attributes in page.elements if attributes.get("class") == "scroll"]
    assert [region["aria-label"] for region in regions] == [
        table.title for table in outline_of(sum_up(400)).tables
    ]
    assert all(region["tabindex"] == "0" and region["role"] == "region" for region in regions)
    assert {attributes.get("scope") for tag, attributes in page.elements if tag == "th"} == {"col", "row"}
    kinds = {find_kind(column) for column in ("<opened", "<last", "<from", "<to", "<address", "<peer")}
    assert kinds == {"whole"}
    assert [find_kind(column) for column in ("in", "<service")] == ["number", "text"]


def test_words_are_explained_and_the_zone_is_told() -> None:
    summary = sum_up(400)
    text = format_page(summary, outline_of(summary))
    assert all(escape(meaning) in text for meaning in list_meanings(summary))
    assert f'<p class="note">Local time, {format_zones(SINCE, UNTIL)}.</p>' in text


def read_colours() -> list[dict[str, str]]:
    """Of the light page and of the dark one."""
    text = format_page(sum_up(1), outline_of(sum_up(1)))
    light, dark = re.findall(":root { (.*?)}", text, re.DOTALL)
    return [dict(re.findall("--([a-z0-9]+): #([0-9a-f]+);", scheme)) for scheme in (light, dark)]


def measure_contrast(one: list[float], other: list[float]) -> float:
    """As WCAG 2 does, from 1 to 21."""
    parts = (0.2126, 0.7152, 0.0722)
    bright = sorted(
        sum(
            part * (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)
            for part, value in zip(parts, colour)
        )
        for colour in (one, other)
    )
    return (bright[1] + 0.05) / (bright[0] + 0.05)


def parse_colour(text: str) -> list[float]:
    if len(text) == 3:
        text = "".join(letter * 2 for letter in text)
    return [int(text[at : at + 2], 16) / 255 for at in (0, 2, 4)]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_told_from_the_page_and_letters_read(scheme: int) -> None:
    colours = {name: parse_colour(text) for name, text in read_colours()[scheme].items()}
    for kind in ("kind0", "kind1", "kind2"):
        assert measure_contrast(colours[kind], colours["page"]) >= 3, kind
    for name in ("text", "dim"):
        assert measure_contrast(colours[name], colours["page"]) >= 4.5, name
    opacities = [cell.opacity for _, cells in make_matrix(sum_up(400)).rows for cell in cells if cell.number]
    cells = [
        [part * opacity + behind * (1 - opacity) for part, behind in zip(colours["kind0"], colours["page"])]
        for opacity in (min(opacities), max(opacities))
    ]
    assert measure_contrast(*cells) >= 1.5, "the largest stands out"
    assert all(measure_contrast(cell, colours["text"]) >= 4.5 for cell in cells)


def test_neighbours_in_a_bar_have_a_gap_unless_it_would_hide_them() -> None:
    for tag, attributes in read_page(sum_up(400)).elements:
        if tag == "rect" and "kind" in attributes["class"] and "fill-opacity" not in attributes:
            is_peer = attributes["height"] == "12"
            size = float(attributes["width"][:-1]) if is_peer else float(attributes["height"])
            assert ("gap" in attributes["class"]) == (size > (1 if is_peer else 3))


def test_an_empty_period_has_no_plot_and_says_so() -> None:
    summary = Summary(SINCE, UNTIL, "tcpwatchd.service", 10)
    page = Page(format_page(summary, make_outline(summary, FirstSeen(None, [], 0), [], 10)))
    assert not [tag for tag, _ in page.elements if tag == "svg"]
    assert any(text.endswith(": the journal has no entry of tcpwatchd.service.") for _, text in page.texts)


@pytest.mark.parametrize("number", [1, 2, 50, 400])
def test_everything_is_inside_of_its_plot(number: int) -> None:
    for tag, attributes in read_page(sum_up(number)).elements:
        if tag not in ("rect", "text", "line"):
            continue
        for name in "x", "x1", "x2", "width":
            value = attributes.get(name, "0").removesuffix("%")
            assert 0 <= float(value) <= 100
        if attributes.get("x", "").endswith("%") and "width" in attributes:
            assert float(attributes["x"][:-1]) + float(attributes["width"][:-1]) <= 100.01
        assert float(attributes.get("height", 0)) >= 0
    plot = plot_timeline(sum_up(number))
    for bar in plot.bars:
        assert 0 <= bar.left <= bar.left + bar.width <= 100.001
        assert -0.001 <= bar.top <= bar.top + bar.height <= PLOT_HEIGHT + 0.001
    for label in plot.x_labels:
        assert 0 <= label.at < 100
    for label in plot.y_labels:
        assert 0 <= label.at <= PLOT_HEIGHT
    for _, _, bars in plot_peers(sum_up(number)):
        assert sum(bar.width for bar in bars) <= 100.001


def test_bars_stand_on_each_other_and_add_up() -> None:
    summary = sum_up(400)
    plot = plot_timeline(summary)
    numbers = [int(bar.title.split(": ")[1].split()[0]) for bar in plot.bars]
    assert sum(numbers) == summary.connections
    scales = {round(bar.height / number, 6) for bar, number in zip(plot.bars, numbers)}
    assert len(scales) == 1
    for before, bar in zip(plot.bars, plot.bars[1:]):
        if before.left == bar.left:
            assert bar.top + bar.height == pytest.approx(before.top)


def test_the_matrix_has_the_counts_of_pairs() -> None:
    summary = sum_up(400)
    matrix = make_matrix(summary)
    assert len(matrix.peers) == MOST_PEERS
    peers = [key for key, _ in summary.peers.list_top(MOST_PEERS)]
    by_name = {show(key) or "(not known)": key for key in summary.services.rows}
    assert matrix.rows
    for service, cells in matrix.rows:
        for peer, cell in zip(peers, cells):
            row = summary.pairs.rows.get((by_name[service], peer), [0, 0, 0])
            assert cell.number == sum(row[:3])
            assert 0 <= cell.opacity <= 1


@pytest.mark.parametrize(
    ("most", "top"), [(0, 2), (1, 2), (2, 2), (3, 4), (10, 10), (11, 20), (99, 100), (12345, 20000)]
)
def test_an_axis_ends_at_a_number_of_which_the_half_can_be_read(most: int, top: int) -> None:
    assert find_top(most) == top


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (7, "7"), (999, "999"), (1000, "1k"), (12345, "12.3k"), (999_499, "999k"), (999_500, "1M"),
     (10**9, "1G"), (10**15, "1000T"), (10**20, "1e+08T")],
)  # fmt: skip
def test_short_numbers(number: int, text: str) -> None:
    assert shorten_number(number) == text
