"""The documents: generated pages are up to date, names and commands in them exist, and their form is kept."""

from __future__ import annotations

import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from typer.exceptions import TyperException
from typer.main import get_command

from appliance.cli.commands import app

ROOT = Path(__file__).parent.parent
LIMITS = {"README.md": 150, "ARCHITECTURE.md": 120, "CONTRIBUTING.md": 100, "SECURITY.md": 100}
"""Lines that the pages in the root may have."""
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in LIMITS))
    if path.exists()
)
WIDTH = 100
TOP = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
"""Folders of the repository: a word in backticks that begins with one of them is a path."""
MADE = {"build", "dist"}
"""Folders that make fills."""
ROOMS = {path.name for path in (ROOT / "appliance").iterdir() if path.is_dir()}
FENCE = re.compile(r"^ *```(\w*) *\n(.*?)^ *``` *$", re.MULTILINE | re.DOTALL)
SENTENCE = re.compile(r"(?<=[a-z0-9)`\"*][.?!]) +(?=[A-Z`\"*\[])")
"""Where one sentence ends and another begins in the same line, as far as that can be told."""
LINK = re.compile(r"\[[^\]\[]*\]\(([^)\s]+)\)")
FOR_WHOM = re.compile(r"(This page is for|For) [a-z]")


def generator():
    """docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def text(page: str) -> str:
    """A page."""
    return (ROOT / page).read_text()


def prose(page: str) -> list[tuple[int, str]]:
    """The lines of a page with their numbers, without code and tables."""
    bare = FENCE.sub(lambda block: "\n" * block[0].count("\n"), text(page))
    return [(n, line) for n, line in enumerate(bare.splitlines(), 1) if line.strip() and not line.startswith("|")]


def inline(page: str) -> list[str]:
    """What stands in backticks, in prose and in tables, on one line each."""
    bare = FENCE.sub("", text(page))
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", bare)]


def typed(page: str) -> list[str]:
    """The commands of shell and console blocks, without remarks, with the lines that continue them."""
    found = []
    for kind, block in FENCE.findall(text(page)):
        lines = re.sub(r"\\\n\s*", "", block).splitlines()
        if kind == "sh":
            found += [line.strip() for line in lines]
        elif kind == "console":
            found += [line.strip().removeprefix("$ ") for line in lines if line.strip().startswith("$ ")]
    return [line for line in found if line and not line.startswith("#")]


def words_of(line: str) -> list[list[str]]:
    """The simple commands of a shell line, as words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;()<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    commands: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|&;()"):
            commands.append([])
        else:
            commands[-1].append(word)
    return [command[: next((i for i, w in enumerate(command) if set(w) <= set("<>")), None)] for command in commands]


def meshbox_arguments(command: list[str]) -> list[str] | None:
    """What follows `meshbox` in a simple command, behind sudo, variables or `docker exec`; None where it is another."""
    places = [index for index, word in enumerate(command) if word == "meshbox" or word.endswith("/meshbox")]
    if not places:
        return None
    before = [word for word in command[: places[0]] if "=" not in word]
    if before[:2] == ["docker", "exec"] and len(places) > 1:  # the first one is the container's name
        return command[places[1] + 1 :]
    return command[places[0] + 1 :] if not before or before == ["sudo"] else None


def parsed(arguments: list[str]) -> None:
    """Let the program parse the arguments of `meshbox`, and do nothing. Raises TyperException."""
    root = get_command(app)
    if not arguments or arguments[0] in {"--version", "--help"}:
        return
    with root.make_context("meshbox", arguments[:], resilient_parsing=True) as context:
        rest = [*context._protected_args, *context.args]
        name, command, rest = root.resolve_command(context, rest)
        if command is None:
            raise TyperException(f"there is no command {rest[0] if rest else arguments}")
        if "--help" not in rest:
            command.make_context(name, rest, parent=context)


def rules() -> set[str]:
    """The targets of the Makefile."""
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@cache
def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as they are made where Markdown is shown."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text(page)), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower().strip()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("name", ["configuration.md", "cli.md", "admin-api.md", "metrics.md"])
def test_reference_is_up_to_date(name: str) -> None:
    """What the program says is on the page; `make docs` writes it anew."""
    assert (ROOT / "docs" / "reference" / name).read_text() == generator().PAGES[name](), "run: make docs"


def test_generator_writes_what_the_test_compares() -> None:
    """No generated page is left out above."""
    assert set(generator().PAGES) == {"configuration.md", "cli.md", "admin-api.md", "metrics.md"}


@pytest.mark.parametrize("page", PAGES)
def test_first_line_says_for_whom(page: str) -> None:
    """A reader sees at once whether to read on. The README is for all."""
    lines = [line for _, line in prose(page)]
    assert lines[0].startswith("# "), page
    if page != "README.md":
        assert FOR_WHOM.match(lines[1]), f"{page}: {lines[1]}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Files and anchors of the repository exist; pages elsewhere are not asked."""
    for target in LINK.findall(FENCE.sub("", text(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert found.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(found.relative_to(ROOT).as_posix()), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    """A word in backticks that begins like a path of the repository is one; rooms may be named below appliance/."""
    for code in inline(page):
        if not re.fullmatch(r"[\w.*-]+(/[\w.*-]*)+", code):
            continue
        first = code.split("/")[0]
        if first in MADE or (first not in TOP and first not in ROOMS):
            continue
        places = [ROOT, *([ROOT / "appliance"] if first in ROOMS else [])]
        assert any(list(place.glob(code.rstrip("/"))) for place in places), f"{page}: {code}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page: str) -> None:
    """What is to be typed is accepted by the program's own parser; what is only named has a command and its options."""
    commands = get_command(app).commands
    for line in typed(page):
        for command in words_of(line):
            arguments = meshbox_arguments(command)
            try:
                if arguments is not None:
                    parsed(arguments)
            except TyperException as error:
                pytest.fail(f"{page}: {line}: {error.format_message()}")
            if command[:1] == ["make"]:
                assert {word for word in command[1:] if re.fullmatch(r"[a-z-]+", word)} <= rules(), f"{page}: {line}"
    for code in inline(page):
        words = code.split()
        if words[0] == "meshbox" and len(words) > 1 and re.fullmatch(r"[a-z]+", words[1]):
            assert words[1] in commands, f"{page}: {code}"
            known = {option for parameter in commands[words[1]].params for option in parameter.opts}
            asked = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
            assert asked <= known | {"--help"}, f"{page}: {code}"
        if words[0] == "make" and len(words) > 1:
            assert words[1] in rules(), f"{page}: {code}"


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_short(page: str) -> None:
    """At most 100 columns, but for tables, blocks of code, and lines with a link."""
    long = [number for number, line in prose(page) if len(line) > WIDTH and "](" not in line and "://" not in line]
    assert long == [], f"{page}: {long}"


@pytest.mark.parametrize("page", PAGES)
def test_a_line_has_one_sentence(page: str) -> None:
    """So that a change of a sentence is a change of its lines alone."""
    for number, line in prose(page):
        begun = re.sub(r"^ *(?:\d+\.|[-*]|#+) +", "", line)
        assert not SENTENCE.search(begun), f"{page}:{number}: {line}"


@pytest.mark.parametrize("page", [page for page in LIMITS if page in PAGES])
def test_root_pages_are_short(page: str) -> None:
    """They are what is read first; the rest has a page in docs/."""
    assert len(text(page).splitlines()) <= LIMITS[page]


@pytest.mark.parametrize(
    ("line", "good"),
    [
        ("meshbox why web.shop redis.shop:6379", True),
        ("sudo meshbox check --json | jq .", True),
        ("docker exec -i meshbox meshbox deploy /dev/stdin < app.py", True),
        ("MESHBOX_NODE=a meshbox --config x.toml run --dns-port 5353", True),
        ("meshbox why web.shop", False),
        ("meshbox deploy app.py && meshbox sevices", False),
        ("meshbox check --jsno", False),
        ("meshbox run --dns-prot 53", False),
    ],
)
def test_wrong_commands_are_found(line: str, good: bool) -> None:
    """The tests above see through what stands around a command."""
    found = [arguments for command in words_of(line) if (arguments := meshbox_arguments(command)) is not None]
    assert found
    refused = []
    for arguments in found:
        try:
            parsed(arguments)
        except TyperException as error:
            refused.append(error)
    assert bool(refused) != good
