"""The order of the house, read from the syntax trees: imports point down, colours stay apart, plans stay pure."""

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
BENCH = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted((ROOT / "bench").rglob("*.py"))
}
FILES = MODULES | BENCH

GROUND = {"errors", "faults", "files", "heartbeat", "image", "lock", "logs", "retry", "text"}
"""All that may lie in the root of appliance/: what every room stands on."""
ROOMS = (
    GROUND,
    {"model"},
    {"plan", "render", "spec", "config"},
    {"drivers", "dataplane"},
    {"control", "check"},
    {"api"},
    {"app"},
    {"testing"},
    {"cli"},
)
"""From below. A room imports itself and lower ones, and of its own height what STRANGERS does not keep apart."""
STRANGERS = {frozenset({"drivers", "dataplane"}), frozenset({"control", "check"})}
"""Of one height, and they never import each other."""
WHOLE = {"test_blocking.py", "test_layers.py", "test_readme.py", "test_docs.py"}
"""Tests of the repository as a whole."""
MOST_MODULES = 20
"""In one folder; beyond that nobody finds a module by its name."""

TRIO = {"trio", "outcome"}
ASYNCIO = {"asyncio", "uvloop"}
BOTH = "appliance.app.bridge"
"""The one module that knows both loops."""

IMPURE = TRIO | ASYNCIO | {"logging", "os", "random", "secrets", "select", "selectors", "signal", "socket", "ssl"}
IMPURE |= {"structlog", "subprocess", "threading", "time", "uuid", "httpx2", "multiprocessing", "tempfile"}
PURE = ("model", "plan", "render", "spec")
IMPURE_MODULES = {"appliance.spec.dsl"}
"""It runs a user's file, in the command line's process."""


def room(module: str) -> str:
    """Return the folder right under appliance/, or the file."""
    piece = module.split(".")[1:2]
    return piece[0] if piece and piece != ["__init__"] else "errors"  # appliance itself holds the version only


def height(module: str) -> int:
    """Return how many heights of rooms are below a module's."""
    found = [number for number, rooms in enumerate(ROOMS) if room(module) in rooms]
    assert found, f"{module}: appliance/ has no such room, and its root only the ground ({', '.join(sorted(GROUND))})"
    return found[0]


def imports(module: str, *, types: bool) -> Iterator[str]:
    """Return the modules that one imports, with or without those under `if TYPE_CHECKING`."""
    tree = ast.parse(FILES[module].read_text())
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
            yield from (name if name in FILES or f"{name}.__init__" in FILES else str(node.module) for name in whole)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    """A module imports its own room and lower ones, also where it is only for types."""
    own = height(module)
    for name in imports(module, types=True):
        if name.split(".")[0] == "appliance":
            assert height(name) <= own, f"{module} imports {name}, which is above it"
            assert {room(name), room(module)} not in STRANGERS, (
                f"{module} imports {name}: they must not know each other"
            )


def test_there_are_no_circles() -> None:
    """No module imports itself by way of others, in appliance/ and in bench/, also where it is only for types."""
    graph = {module: {name for name in imports(module, types=True) if name in FILES} - {module} for module in FILES}
    while True:
        imported = {name for names in graph.values() for name in names}
        outside = {module for module, names in graph.items() if not names & graph.keys() or module not in imported}
        if not outside:
            break
        graph = {module: names for module, names in graph.items() if module not in outside}
    circles = {module: sorted(names & graph.keys()) for module, names in graph.items()}
    assert not circles, f"these are, or stand between, modules that import themselves by way of others: {circles}"


@pytest.mark.parametrize("module", MODULES)
def test_colours_stay_apart(module: str) -> None:
    """The data plane is asyncio's and all else Trio's; one module knows both loops."""
    if module != BOTH:
        other = TRIO if room(module) == "dataplane" else ASYNCIO
        for name in imports(module, types=False):
            assert name.split(".")[0] not in other, f"{module} imports {name}"


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in PURE and m not in IMPURE_MODULES])
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
        if room(module) != "cli":
            for name in imports(module, types=False):
                assert name.split(".")[0] not in {"typer", "rich", "click"}, f"{module} imports {name}"


def test_every_test_file_has_its_source() -> None:
    """tests/plan/test_diff.py tests appliance/plan/diff.py, tests/bench/test_main.py bench/__main__.py."""
    here = Path(__file__)
    for path in sorted(here.parent.rglob("test_*.py")):
        place = path.relative_to(here.parent)
        if place.parts[0] != "system" and path.name not in WHOLE:
            source = (
                (ROOT if place.parts[0] in {"bench", "examples", "packaging"} else SOURCE)
                / place.parent
                / place.name.removeprefix("test_")
            )
            places = (source, source.with_suffix("") / "__init__.py", source.with_name(f"__{source.stem}__.py"))
            assert any(map(Path.exists, places)), f"tests/{place} tests nothing: {source.relative_to(ROOT)}"


def test_every_module_has_its_tests() -> None:
    """appliance/plan/diff.py is tested by tests/plan/test_diff.py."""
    for module, path in MODULES.items():
        if path.name != "__init__.py":
            test = ROOT / "tests" / path.relative_to(SOURCE).with_name(f"test_{path.name}")
            assert test.exists(), f"{module} has no {test.relative_to(ROOT)}"


def test_class_names_are_unique() -> None:
    """A reader who meets a class by its name finds one."""
    found: dict[str, str] = {}
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                assert node.name not in found, f"{module} and {found[node.name]} both have a class {node.name}"
                found[node.name] = module


def test_folders_stay_small() -> None:
    """A folder holds as many modules as one sees at a glance."""
    for folder in {path.parent for path in FILES.values()}:
        count = len([path for path in folder.glob("*.py") if path.name != "__init__.py"])
        assert count <= MOST_MODULES, f"{folder.relative_to(ROOT)} has {count} modules"


def test_files_stay_short() -> None:
    """450 lines are the limit; aim at 300."""
    for path in (*SOURCE.rglob("*.py"), *(ROOT / "nft").glob("*.nft")):
        length = len(path.read_text().splitlines())
        assert length <= 450, f"{path.relative_to(ROOT)} has {length} lines"
