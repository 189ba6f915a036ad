"""The tour of docs/getting-started.md: every command, and what it prints."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest
from documents import SPEC, TOUR, told
from machine import MESHBOX, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from machine import Machine

pytestmark = pytest.mark.system


def pattern(lines: list[str]) -> str:
    """Return what the printed lines have to match, however wide columns are. A line of `…` stands for any lines."""
    found = ""
    for line in lines:
        if line == "…":
            found += r"(?:.+\n)*"
        else:
            found += r".*".join(re.escape(" ".join(part.split())) for part in line.split("…")) + r"\n"
    return found


def follow(shell: Callable[[str], str], folder: Path) -> None:
    """Type every command with `shell`, from top to bottom, in a folder with the tour's app.py and nothing else."""
    (spec,) = SPEC.findall(TOUR)
    (folder / "app.py").write_text(spec)
    commands = told(TOUR)
    assert len(commands) > 10
    for each in commands:
        said = shell(each.command).splitlines()
        if os.environ.get("RECORD_TOUR"):
            print("\n".join([f"$ {each.command}", *said]))  # noqa: T201 — for the author of the tour
            continue
        text = "".join(" ".join(line.split()) + "\n" for line in said)
        assert re.fullmatch(pattern(each.lines), text), f"{each.command}\n{text}"


def test_every_command_prints_what_the_tour_says(mesh: Machine, tmp_path: Path) -> None:
    """The command `meshbox` is that of the package, or from source. Of the image: test_image.py."""
    env = {**os.environ, **mesh.settings, "COLUMNS": "150", "NO_COLOR": "1", "DOCKER_HOST": f"unix://{mesh.socket}"}
    env["PATH"] = f"{MESHBOX.parent}:{env['PATH']}"

    def shell(line: str) -> str:
        inside = ("nsenter", f"--net=/run/netns/{mesh.netns}", "sh", "-c", f"exec 2>&1; {line}")
        return run(*inside, check=False, env=env, cwd=tmp_path).stdout

    follow(shell, tmp_path)
