"""What the documents give a user to type, for the tests that type it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted((ROOT / "docs").rglob("*.md"))}
"""All pages of docs/, by path."""
TOUR = PAGES["docs/getting-started.md"].partition("\n## Five minutes\n")[2].partition("\n## ")[0]
SPEC = re.compile(r"^```py\n# app.py\n(.*?)^```", re.MULTILINE | re.DOTALL)
"""The spec file that the tour deploys."""

_TEXTS = (README, *PAGES.values())


def shell_lines(text: str) -> list[str]:
    """Return the lines of all shell blocks, without remarks; those that end in a backslash with what continues them."""
    blocks = "".join(re.findall(r"^ *```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL))
    return [line.partition(" # ")[0].strip() for line in re.sub(r"\\\n\s*", "", blocks).splitlines()]


def documented(begin: str) -> str:
    """Return the command of the documents' shell blocks that begins so; several pages may show the same one."""
    (found,) = {line for text in _TEXTS for line in shell_lines(text) if line.startswith(begin)}
    return found


def quoted(pattern: str) -> tuple[str, ...]:
    """Return what the groups of `pattern` find in the documents' text: one match, on however many pages."""
    (found,) = {match.groups() for text in _TEXTS for match in re.finditer(pattern, text)}
    return found


@dataclass
class Told:
    """A command of a console block and the lines that it prints. `…` stands for what differs from time to time."""

    command: str
    lines: list[str] = field(default_factory=list)


def told(text: str) -> list[Told]:
    """Return the commands of all console blocks, those that end in a backslash with the lines that continue them."""
    found: list[Told] = []
    for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if line.startswith("$ "):
                found.append(Told(line.removeprefix("$ ")))
            else:
                found[-1].lines.append(line)
    return found
