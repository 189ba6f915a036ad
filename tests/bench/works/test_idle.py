from __future__ import annotations

from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.lab import Lab
from bench.works import WORKS, idle


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that would allow as many as are asked for."""
    monkeypatch.setattr(idle, "FILES", 1 << 20)
    monkeypatch.setattr(idle, "ROOM_KIB", 1)
    monkeypatch.setattr(idle, "TRACKING_MAX", tmp_path / "max")
    idle.TRACKING_MAX.write_text("262144\n")


def test_a_large_machine_holds_as_many_as_are_wanted() -> None:
    """Not 131,000, which would say nothing new."""
    assert idle.room() == (50_000, "this work wants")


def test_each_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is named."""
    monkeypatch.setattr(idle, "ROOM_KIB", 1 << 30)
    assert idle.room()[0] == 0
    assert "MiB of free memory allow" in idle.room()[1]
    monkeypatch.setattr(idle, "ROOM_KIB", 1)
    idle.TRACKING_MAX.write_text("65536\n")
    assert idle.room() == (32768, "nf_conntrack_max, 65,536 and two for each, allows")
    monkeypatch.setattr(idle, "FILES", 20_000)
    assert idle.room() == (9000, "20,000 open files, two for each, allow")


def test_a_machine_that_is_too_small_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what limit; fewer connections are never passed for 8,000."""
    (work,) = (work for work in WORKS if work.name == "idle")
    monkeypatch.setattr(idle, "FILES", 16_000)
    it = Lab(Path(), seconds=1.0, quick=False)
    with pytest.raises(BenchError, match=r"16,000 open files, two for each, allow 7,000 connections here, not 8,000"):
        work.open(it).__enter__()
