"""What the README says is so."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

from typer.main import get_command

from appliance import __version__
from appliance.cli.commands import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SECTIONS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
"""Those of keepachangelog.com."""


def test_every_command_that_is_named_exists() -> None:
    """`meshbox something` in the README is something that meshbox does, and `make something` has a rule."""
    commands = set(get_command(app).commands)
    shell = "".join(re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
    shell += "".join(re.findall(r"^\$ (.*\n)", README, re.MULTILINE))
    named = re.findall(r"^(?:\S*/)?meshbox ([a-z]+)", shell, re.MULTILINE) + re.findall(r"`meshbox ([a-z]+)", README)
    assert len(named) > 10
    assert set(named) <= commands
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE)) <= rules


def test_files_that_are_linked_exist() -> None:
    """No link leads nowhere."""
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


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
