"""What the README, its tour and the changelog say is so."""

from __future__ import annotations

import re
from datetime import date
from typing import TYPE_CHECKING

from documents import PAGES, README, ROOT, SPEC, TOUR, documented, quoted, shell_lines, told
from typer.main import get_command

from appliance import __version__
from appliance.cli.commands import app
from appliance.config import options as config
from appliance.spec.dsl import load

if TYPE_CHECKING:
    from pathlib import Path

SECTIONS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
"""Those of keepachangelog.com."""


def test_readme_is_short() -> None:
    """It fits two screens; everything else has a page in docs/."""
    assert len(README.splitlines()) <= 150


def test_configuration_page_has_every_option_with_its_default() -> None:
    """The table is what the program knows, in the same order and words."""
    page = PAGES["docs/reference/configuration.md"]
    at = 0
    for option in config.options():
        at = page.find(f"`{option.key}`", at)
        assert at >= 0, option.key
        row = page[at : page.index("\n", at)]
        assert option.words in row
        assert f"`{option.default}`" in row or not option.default


def test_every_command_that_is_named_exists() -> None:
    """`meshbox something` in the README is something that meshbox does, and `make something` has a rule."""
    commands = set(get_command(app).commands)
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    everything = []
    for text in (README, *PAGES.values()):
        shell = "\n".join([*shell_lines(text), *re.findall(r"^\$ (.*)$", text, re.MULTILINE)])
        named = re.findall(r"^(?:\S*/)?meshbox ([a-z]+)", shell, re.MULTILINE) + re.findall(r"`meshbox ([a-z]+)", text)
        assert set(named) <= commands
        assert set(re.findall(r"^make ([a-z-]+)", shell, re.MULTILINE)) <= rules
        everything += named
    assert len(everything) > 30


def test_files_that_are_linked_exist() -> None:
    """No link leads nowhere."""
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_readme_shows_what_the_tour_shows() -> None:
    """Its example is the tour's, with the same output, so that a system test runs it too."""
    assert SPEC.findall(README) == SPEC.findall(TOUR)
    shown = told(README)
    assert len(shown) >= 3
    known = told(TOUR)
    assert [one for one in shown if one not in known] == []


def test_example_of_services_is_sound(tmp_path: Path) -> None:
    """Its spec file can be deployed as it stands, without a warning."""
    (spec,) = re.findall(r"^```py\n# library.py\n(.*?)^```", PAGES["docs/guide/services.md"], re.MULTILINE | re.DOTALL)
    file = tmp_path / "library.py"
    file.write_text(spec)
    services, warnings = load(file)
    assert [service.name for service in services] == ["library", "cache"]
    assert warnings == ()


def test_configuration_in_the_guide_is_taken(tmp_path: Path) -> None:
    """Every piece of a configuration file that a page shows is one."""
    shown = [b for text in PAGES.values() for b in re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
    assert len(shown) >= 3
    for number, block in enumerate(shown):
        file = tmp_path / f"{number}.toml"
        file.write_text(block)
        assert config.load(str(file), environment={}) != config.load(environment={})


def test_what_system_tests_type_is_documented() -> None:
    """They look it up where it is needed, which is late in tests that take minutes."""
    sources = "".join(path.read_text() for path in (ROOT / "tests" / "system").glob("*.py"))
    begins = re.findall(r'documented\("([^"]*)"\)', sources)
    patterns = re.findall(r'quoted\(r"([^"]*)"\)', sources)
    assert len(begins) > 10
    assert len(patterns) > 5
    assert all(documented(begin) for begin in begins)
    assert all(quoted(pattern) for pattern in patterns)


def test_changelog_is_kept() -> None:
    """It has the form of Keep a Changelog: newest first, with ISO dates, known sections, and the present version."""
    text = (ROOT / "CHANGELOG.md").read_text()
    assert text.startswith("# Changelog\n")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    releases = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - (\d{4}-\d{2}-\d{2})", heading) for heading in headings[1:]]
    assert all(releases), headings
    found = [(tuple(map(int, release.groups()[:3])), date.fromisoformat(release[4])) for release in releases if release]
    assert found == sorted(found, reverse=True)
    assert len({version for version, _ in found}) == len(found)
    assert __version__ in {".".join(map(str, version)) for version, _ in found}
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= SECTIONS
    for part in re.split(r"^## .*$", text, flags=re.MULTILINE)[1:]:
        before, *sections = re.split(r"^### .*$", part, flags=re.MULTILINE)
        assert before.strip() == "", "entries stand in a section"
        assert all(re.match(r"\s*- ", section) for section in sections), "a section has entries"
