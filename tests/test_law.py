"""The law of the house: who imports whom, who logs, how long a function may be."""

from __future__ import annotations

import ast
import statistics
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tcpwatchd"
ALLOWED = {
    "__init__": set(),
    "connection": set(),
    "config": {"__version__"},
    "notify": set(),
    "signals": set(),
    "procnet": {"connection"},
    "instance": set(),
    "pages": {"connection"},
    "tracefs": {"connection", "instance", "pages"},
    "comparison": {"connection"},
    "tracker": {"connection", "comparison"},
    "audit": {"connection"},
    "event": {"connection"},
    "sinks": {"event"},
    "outbox": {"connection", "event", "sinks"},
    "baseline": {"connection", "event"},
    "store": {"connection", "baseline"},
}
STAGES = set(ALLOWED) - {"__init__"}
ALLOWED["line"] = STAGES
ALLOWED["watch"] = {"__version__", "event", "line", "notify", "signals", "sinks", "tracefs"}
ALLOWED["__main__"] = {*STAGES, "line", "watch"}
LONGEST = 50


def parse(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text())


def imports(tree: ast.Module) -> set[str]:
    """Modules of ours that a module names, also for type checking."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "tcpwatchd":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tcpwatchd."):
            found.add(str(node.module).split(".")[1])
    return found


def test_every_module_is_under_the_law() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(ALLOWED)


@pytest.mark.parametrize("module", sorted(ALLOWED))
def test_imports(module: str) -> None:
    assert imports(parse(module)) <= ALLOWED[module]


@pytest.mark.parametrize("module", sorted(set(ALLOWED) - {"__main__"}))
def test_only_the_entry_point_reads_arguments_and_environment(module: str) -> None:
    names = {f"{n.value.id}.{n.attr}" for n in ast.walk(parse(module))
             if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}  # fmt: skip
    assert names.isdisjoint({"sys.argv", "os.environ", "os.getenv"})


def test_the_pure_modules_know_no_clock_and_no_files() -> None:
    for module in ("tracker", "comparison", "pages", "event", "baseline"):
        names = {node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                 for node in ast.walk(parse(module)) if isinstance(node, ast.Call)}  # fmt: skip
        assert names.isdisjoint({"open", "time", "time_ns", "monotonic", "monotonic_ns", "read", "write"})


def test_functions_are_short() -> None:
    functions = [
        node.end_lineno - node.lineno + 1
        for path in PACKAGE.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno
    ]
    assert max(functions) <= LONGEST
    assert statistics.median(functions) <= 10
