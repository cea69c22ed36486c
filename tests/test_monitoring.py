"""The examples for Prometheus and Grafana, and the table of metrics; system/test_prometheus.py tries them."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any

import pytest

from tcpwatchd.output.metrics import METRICS, PREFIX
from tests.daemon import PROJECT

FOLDER = PROJECT / "packaging/examples/prometheus"
DASHBOARD = json.loads((FOLDER / "tcpwatchd-dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
OF_HISTOGRAMS = ("_bucket", "_sum", "_count")
KINDS = {
    PREFIX + metric.name + ending: metric.kind
    for metric in METRICS
    for ending in (OF_HISTOGRAMS if metric.kind == "histogram" else ("",))
}
"""Of each series' name."""


def list_queries() -> list[str]:
    return [target["expr"] for panel in PANELS for target in panel["targets"]]


def list_rules() -> list[str]:
    text = (FOLDER / "tcpwatchd.rules.yml").read_text()
    return re.findall(r"^ +expr: (.*?)(?=^ +(?:for|labels):)", text, re.DOTALL | re.MULTILINE)


def find_names(query: str) -> set[str]:
    return set(re.findall(rf"\b{PREFIX}\w+", query))


def test_every_metric_is_on_the_dashboard() -> None:
    found = {name for query in list_queries() for name in find_names(query)}
    shown = {re.sub(rf"(?:{'|'.join(OF_HISTOGRAMS)})$", "", name) for name in found}
    assert found <= KINDS.keys()
    assert shown == {PREFIX + metric.name for metric in METRICS}


@pytest.mark.parametrize("query", [*list_queries(), *list_rules()])
def test_counters_are_never_used_as_they_are(query: str) -> None:
    """They begin anew with each process; and a gauge has no rate."""
    for name in find_names(query):
        uses = re.findall(rf"(\w*)\(?{name}(?:\{{[^}}]*\}})?(\[.*?\])?", query)
        for function, window in uses:
            counted = function in ("rate", "increase") and window != ""
            assert counted == (KINDS[name] != "gauge"), query


def test_windows_go_with_what_is_shown() -> None:
    windows = {window for query in list_queries() for window in re.findall(r"\[.*?\]", query)}
    assert windows == {"[$__rate_interval]", "[$__range]"}


def test_each_rule_is_of_known_metrics_and_says_what_to_do() -> None:
    rules = list_rules()
    text = (FOLDER / "tcpwatchd.rules.yml").read_text()
    assert len(rules) == text.count("- alert: ") == text.count(" severity: ") == text.count(" summary: ")
    assert {name for rule in rules for name in find_names(rule)} <= KINDS.keys()
    assert re.sub(r"\s+", " ", text).count("journalctl -t tcpwatchd") == len(rules)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_each_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    axis = panel["options"]["yAxis"] if panel["type"] == "heatmap" else panel["fieldConfig"]["defaults"]
    assert axis["unit"]
    assert panel["description"].endswith(".")
    assert panel["datasource"] == DATASOURCE
    for target in panel["targets"]:
        assert target["datasource"] == DATASOURCE
        assert target["expr"].count('{job=~"$job", instance=~"$instance"') == target["expr"].count(PREFIX)


def test_the_panels_have_their_places() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


def test_the_port_is_that_of_the_socket() -> None:
    socket = (PROJECT / "systemd/tcpwatchd-metrics.socket").read_text()
    (address,) = re.findall(r"^ListenStream=(.+)$", socket, re.MULTILINE)
    assert f"- targets: ['{address}']\n" in (FOLDER / "prometheus.yml").read_text()
