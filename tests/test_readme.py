"""What the README, its tour and the changelog say is so."""

from __future__ import annotations

import re
from datetime import date
from typing import TYPE_CHECKING

from documents import PAGES, README, ROOT, SPEC, TOUR, documented, quoted, told

from appliance import __version__
from appliance.config import options as config
from appliance.spec.dsl import load

if TYPE_CHECKING:
    from pathlib import Path

SECTIONS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
"""Those of keepachangelog.com."""


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
