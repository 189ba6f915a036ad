"""`make bench` itself: it installs what it compares with, measures, and says what it found."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import orjson
import pytest
from debian import readme
from machine import ROOT, run

from bench.contenders import TCP
from bench.lab import PYTHON

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def test_first_contact(tmp_path: Path) -> None:
    """README's command shows every contender with its figures, and leaves them as JSON and a plot."""
    results = (ROOT / "bench/RESULTS.md").read_text()
    line = readme("make bench").partition(" #")[0].strip()
    said = run("sh", "-c", line.replace("ARGS='", f"ARGS='--out {tmp_path} --rounds 1 "), cwd=ROOT, timeout=280).stdout
    shown = {name: float(p50) for name, p50 in re.findall(r"^  (\S+) +p50 µs ([\d.]+) \|", said, re.MULTILINE)}
    assert set(shown) == set(TCP)
    assert min(shown.values()) > 0
    (written,) = tmp_path.glob("*.json")
    assert str(written) in said
    works = orjson.loads(written.read_bytes())["works"]
    assert {name: set(samples) for name, samples in works.items()} == {"echo": set(TCP)}
    assert (tmp_path / "echo.png").exists()
    assert (ROOT / "bench/RESULTS.md").read_text() == results, "which is for a run of all works"
    assert "mbb-" not in run("ip", "netns", "list").stdout


def test_works_on_an_appliance(tmp_path: Path) -> None:
    """Those that measure the reconcile loop, an appliance and a mesh of its own find all their figures."""
    works = ("control", "appliance", "mesh")
    command = (PYTHON, "-m", "bench", "--quick", "--rounds", "1", "--out", tmp_path, "--only", *works)
    run(*command, cwd=ROOT, timeout=280)
    (written,) = tmp_path.glob("*.json")
    assert orjson.loads(written.read_bytes())["works"].keys() == set(works)
