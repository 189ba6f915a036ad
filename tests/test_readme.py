"""What the README says is so."""

from __future__ import annotations

import re
from pathlib import Path

from typer.main import get_command

from appliance import config
from appliance.cli.commands import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_configuration_table_has_every_option_with_its_default() -> None:
    """The table is what the program knows, in the same order and words."""
    rows = [
        f"| `{option.key}` | {f'`{option.default}`' if option.default else ''} | {option.words} |"
        for option in config.options()
    ]
    assert "\n".join(rows) in README


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
