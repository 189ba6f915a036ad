from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench import lab, peers


def test_the_commit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every program that is there."""
    monkeypatch.setattr(peers, "run", lambda _: "abc1234-dirty\n")
    facts = peers.machine()
    assert facts["commit"] == "abc1234-dirty"
    assert facts["python"].startswith("Python 3")


def test_without_git_the_commit_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is no reason to measure nothing."""
    real = subprocess.run

    def no_git(command: list[str], **options: Any) -> Any:
        if command[0] == "git":
            raise FileNotFoundError(command[0])
        return real(command, **options)

    monkeypatch.setattr(subprocess, "run", no_git)
    assert peers.machine()["commit"] == "?"


def test_in_a_copy_that_is_no_clone_the_commit_is_not_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As from an archive."""
    monkeypatch.setattr(lab, "ROOT", tmp_path)
    assert peers.machine()["commit"] == "?"
