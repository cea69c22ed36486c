"""The law of the house: who imports whom, who knows a clock or a file, how long a function may be."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tcpwatchd"
WORDS = {"connection", "failure"}
"""What every stage may import, beside the modules of its own folder."""
FOLDERS = {"kernel", "tracking", "policy", "owners", "output", "state", "service", "config"}
PROGRAMS = {"exporter", "report"}
"""Beside the daemon, and of their own: none of its modules imports them, nor one the other."""
MORE = {
    "kernel.reader": {"clock"},
    "kernel.tables": {"clock"},
    "owners.processes": {"clock"},
    "output.outbox": {"clock"},
    "config.values": {"policy"},
    "config.settings": {"policy"},
    "config.files": {"policy"},
    "config.flags": {"__version__", "policy"},
    "state.baseline": {"output.event", "policy", "tracking.closings"},
    "state.recovery": {"clock", "kernel", "tracking", "policy", "owners", "output"},
    "pipeline": {"clock", *WORDS, *FOLDERS - {"service", "config"}},
    "watch": {"__version__", "clock", "failure", "kernel.trace", "output", "pipeline", "service"},
    "__main__": {"clock", "failure", "pipeline", "watch", *FOLDERS},
    "report.__main__": {"__version__"},
    "report.chosen": {"policy.expression"},
    "report.journals": {"output.event"},
    "report.outline": {"output.event"},
    "report.page": {"__version__", "output.event"},
    "report.structured": {"__version__", "output.event"},
    "report.summary": {"output.event"},
    "report.timeline": {"output.event"},
    "__init__": set(),
    "clock": set(),
    "connection": set(),
    "failure": set(),
}
"""What a module may import that composes stages, or is none."""
PURE = ("tracking.tracker", "tracking.comparison", "tracking.audit", "tracking.closings", "tracking.packed",
        "kernel.pages", "kernel.rows",
        "policy.expression", "policy.rules", "policy.folding", "policy.policy", "policy.scans",
        "policy.sources",
        "output.event", "output.metrics", "state.baseline", "connection", "failure",
        "report.names", "report.tally", "report.summary", "report.outline", "report.structured")  # fmt: skip
LONGEST = 50
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py" or path.parent == PACKAGE
)


def parse(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())


def find_imports(tree: ast.Module) -> set[str]:
    """Modules of ours that a module names, also for type checking."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tcpwatchd":
            package = str(node.module).partition(".")[2]
            whole = "." in package or package in set(MODULES)
            found |= {package} if whole else {f"{package}.{a.name}".strip(".") for a in node.names}
    return found


def test_the_folders_are_the_stages() -> None:
    assert {
        path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"
    } == FOLDERS | PROGRAMS
    assert not (PACKAGE.parent / "systemd" / "__init__.py").exists()


@pytest.mark.parametrize("module", MODULES)
def test_imports(module: str) -> None:
    folder = module.partition(".")[0]
    allowed = MORE.get(module, set()) | (WORDS | {folder} if folder in FOLDERS | PROGRAMS else set())
    foreign = {name for name in find_imports(parse(module)) if not {name, name.partition(".")[0]} & allowed}
    assert foreign == set()


def test_other_programs_are_their_own() -> None:
    for module in MODULES:
        folder, found = module.partition(".")[0], find_imports(parse(module))
        assert {name.partition(".")[0] for name in found} & PROGRAMS <= {folder}


@pytest.mark.parametrize("module", [name for name in MODULES if not name.endswith("__main__")])
def test_only_the_entry_point_reads_arguments_and_environment(module: str) -> None:
    names = {f"{n.value.id}.{n.attr}" for n in ast.walk(parse(module))
             if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}  # fmt: skip
    assert names.isdisjoint({"sys.argv", "os.environ", "os.getenv"})


def test_the_pure_modules_know_no_clock_and_no_files() -> None:
    for module in PURE:
        names = {node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                 for node in ast.walk(parse(module)) if isinstance(node, ast.Call)}  # fmt: skip
        assert names.isdisjoint({"open", "time", "time_ns", "monotonic", "monotonic_ns", "read", "write"})


def test_no_function_is_a_monster() -> None:
    lengths = {
        f"{module}.{node.name}": node.end_lineno - node.lineno + 1
        for module in MODULES
        for node in ast.walk(parse(module))
        if isinstance(node, ast.FunctionDef) and node.end_lineno
    }
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}
