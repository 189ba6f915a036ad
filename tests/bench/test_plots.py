from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bench.figures import Figure, Result
from bench.plots import draw
from tests.bench.cases import RESULT


def test_each_work_has_its_picture(tmp_path: Path) -> None:
    """Also one with a contender that lacks a figure, and one whose CPU time is split."""
    split = Figure(name="CPU µs (system)", better="lower")
    whole = replace(RESULT.work, name="split", figures=(*RESULT.work.figures, split))
    sample = {"p50 µs": 10.0, "CPU µs": 5.0, "CPU µs (system)": 3.0}
    draw([RESULT, Result(work=whole, samples={"meshbox": [sample]})], tmp_path / "plots")
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["echo.png", "split.png"]
    assert (tmp_path / "plots/echo.png").read_bytes().startswith(b"\x89PNG")
