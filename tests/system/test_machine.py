"""Both units on Debian's own kernel in a virtual machine: what a container forgives, a machine refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.system.inside import SHORT
from tests.system.machine import needs_machine, run_inside

if TYPE_CHECKING:
    from pathlib import Path

ALL = {"opened": SHORT, "reported": SHORT, "same": True, "by": ["trace"]}


@needs_machine
def test_a_cpu_that_comes_later(tmp_path: Path) -> None:
    results = run_inside("bookworm", "late_cpu", "maxcpus=1", tmp_path)
    assert results["online at first"] == "0"
    assert results["on cpu 0"] == ALL
    assert results["idle share"] < 0.5, (
        "an offline CPU's descriptor answers at once, and must not make it spin"
    )
    assert results["on cpu 1"] == ALL
    assert results["capabilities"] == ["0" * 16]
    assert results["status"].startswith("Trace, and polling")
    assert results["instance left"] is False


@needs_machine
def test_lockdown(tmp_path: Path) -> None:
    results = run_inside("bookworm", "lockdown", "lockdown=confidentiality", tmp_path)
    assert "[confidentiality]" in results["lockdown"]
    assert results["active"] == "active"
    assert len(results["said"]) == 1
    assert results["failed units"] == ""
