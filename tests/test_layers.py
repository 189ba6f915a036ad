"""The layers of DESIGN §4, read from the syntax trees: imports point down, colours stay apart, plans stay pure."""

from __future__ import annotations

import ast
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "appliance"
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(SOURCE.rglob("*.py"))}

GROUND, VALUES, PLAN, WORKERS, WIRING, CLI = range(6)
LAYERS = {
    "errors": GROUND,
    "faults": GROUND,
    "image": GROUND,
    "logs": GROUND,
    "lock": GROUND,
    "retry": GROUND,
    "model": VALUES,
    "spec": PLAN,
    "config": PLAN,
    "configvalues": PLAN,
    "dsl": PLAN,
    "plan": PLAN,
    "render": PLAN,
    "drivers": WORKERS,
    "dataplane": WORKERS,
    "cli": CLI,
}
"""By first part of the name; what is not listed is wiring."""

SIBLINGS = {"drivers": "dataplane", "dataplane": "drivers"}
"""Same height, but they never import each other."""

TRIO = {"trio", "outcome"}
ASYNCIO = {"asyncio", "uvloop"}
COLOURS = {"dataplane": TRIO, "drivers": ASYNCIO, "wiring": ASYNCIO, "cli": ASYNCIO}
"""What must not be imported at run time. The data plane is asyncio's, the control plane Trio's."""

IMPURE = TRIO | ASYNCIO | {"logging", "os", "random", "secrets", "select", "selectors", "signal", "socket", "ssl"}
IMPURE |= {"structlog", "subprocess", "threading", "time", "uuid", "httpx2", "multiprocessing", "tempfile"}
PURE = ("model", "plan", "render")


def part(module: str) -> str:
    """Return the folder or file right under appliance/."""
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else "errors"  # appliance itself holds the version only


def layer(module: str) -> int:
    """Return the height of a module."""
    return LAYERS.get(part(module), WIRING)


def imports(module: str, *, types: bool) -> Iterator[str]:
    """Return the modules that one imports, with or without those under `if TYPE_CHECKING`."""
    tree = ast.parse(MODULES[module].read_text())
    typing = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and isinstance(branch.test, ast.Name) and branch.test.id == "TYPE_CHECKING"
        for node in chain.from_iterable(ast.walk(statement) for statement in branch.body)
    }
    for node in ast.walk(tree):
        if id(node) in typing and not types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (
                name if name in MODULES or f"{name}.__init__" in MODULES else str(node.module) for name in whole
            )


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    """A module imports its own layer and lower ones, also where it is only for types."""
    for name in imports(module, types=True):
        if name.split(".")[0] == "appliance":
            assert layer(name) <= layer(module), f"{module} imports {name}, which is above it"
            assert part(name) != SIBLINGS.get(part(module)), f"{module} imports {name}: they must not know each other"


@pytest.mark.parametrize("module", MODULES)
def test_colours_stay_apart(module: str) -> None:
    """Only bridge.py and app.py's plumbing through it know both loops."""
    if module in {"appliance.app.bridge", "appliance.app.main.bridge"}:
        return
    kind = part(module) if part(module) in COLOURS else "wiring"
    for name in imports(module, types=False):
        assert name.split(".")[0] not in COLOURS[kind], f"{module} imports {name}"


@pytest.mark.parametrize("module", [m for m in MODULES if part(m) in PURE])
def test_plans_stay_pure(module: str) -> None:
    """Values, plans and renderers have no sockets, clocks, randomness, logging or environment."""
    for name in imports(module, types=False):
        assert name.split(".")[0] not in IMPURE, f"{module} imports {name}"
    calls = (node.func for node in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(node, ast.Call))
    for call in calls:
        name = ast.unparse(call)
        assert name not in {"open", "print", "datetime.now", "input"}, f"{module} calls {name}"


def test_daemon_leaves_the_command_line_out() -> None:
    """What only people at a terminal need is not imported by the appliance."""
    for module in MODULES:
        if layer(module) != CLI:
            for name in imports(module, types=False):
                assert name.split(".")[0] not in {"typer", "rich", "click"}, f"{module} imports {name}"


def test_every_test_file_has_its_source() -> None:
    """tests/plan/test_diff.py tests appliance/plan/diff.py, tests/bench/test_main.py bench/__main__.py."""
    here = Path(__file__)
    for path in sorted(here.parent.rglob("test_*.py")):
        place = path.relative_to(here.parent)
        if place.parts[0] != "system" and path not in (
            here,
            here.with_name("test_docs.py"),
            here.with_name("test_readme.py"),
        ):
            source = (
                (ROOT if place.parts[0] in {"bench", "examples", "packaging"} else SOURCE)
                / place.parent
                / place.name.removeprefix("test_")
            )
            places = (source, source.with_suffix("") / "__init__.py", source.with_name(f"__{source.stem}__.py"))
            assert any(map(Path.exists, places)), f"tests/{place} tests nothing: {source.relative_to(ROOT)}"


def test_every_plan_has_its_tests() -> None:
    """Pure code has no excuse."""
    for module, path in MODULES.items():
        if part(module) in {"plan", "render"} and path.name != "__init__.py":
            test = ROOT / "tests" / path.relative_to(SOURCE).with_name(f"test_{path.name}")
            assert test.exists(), f"{module} has no {test.relative_to(ROOT)}"


def test_files_stay_short() -> None:
    """450 lines are the limit; aim at 300."""
    for path in (*SOURCE.rglob("*.py"), *(ROOT / "nft").glob("*.nft")):
        length = len(path.read_text().splitlines())
        assert length <= 450, f"{path.relative_to(ROOT)} has {length} lines"
