from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import orjson
import pytest

import bench.__main__ as program
from bench.errors import BenchError
from bench.figures import Figure, Sample, Work
from bench.lab import Lab


def _fail() -> Sample:
    raise BenchError("b delivered 3 of 5 bytes")


def _work(name: str, *, fails: bool = False) -> Work:
    measure = _fail if fails else lambda: {"Gb/s": 1.0}
    figures = (Figure(name="Gb/s"),)
    return Work(name=name, title=name, figures=figures, open=lambda _: nullcontext({"meshbox": measure}))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two works, neither of which needs root or a network namespace; returns where RESULTS.md would be."""
    monkeypatch.setattr(program, "HERE", tmp_path)
    monkeypatch.setattr(program, "WORKS", (_work("bulk-1-up"), _work("bulk-8-up")))
    monkeypatch.setattr(program, "lab", lambda **how: nullcontext(Lab(tmp_path, **how)))
    monkeypatch.setattr(program.os, "geteuid", lambda: 0)
    monkeypatch.setattr(program.peers, "install", lambda: None)
    monkeypatch.setattr(program.peers, "machine", lambda: {"cpu": "fast"})
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)
    return tmp_path


def _main(here: Path, *arguments: str) -> int:
    return program.main(["--rounds", "1", "--out", str(here / "out"), *arguments])


def _written(here: Path) -> dict[str, object]:
    (path,) = (here / "out").glob("*.json")
    data: dict[str, object] = orjson.loads(path.read_bytes())
    return data


def test_a_run_of_all_works_writes_the_report(here: Path) -> None:
    """And JSON and plots beside it."""
    assert _main(here) == 0
    assert "## bulk-8-up\n" in (here / "RESULTS.md").read_text()
    assert _written(here)["works"] == {name: {"meshbox": [{"Gb/s": 1.0}]} for name in ("bulk-1-up", "bulk-8-up")}
    assert (here / "out/bulk-1-up.png").exists()


def test_one_failed_work_is_an_error_and_costs_no_other_its_place_in_the_report(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An hour of measuring is written down; what is missing is named there, and the exit code says so."""
    monkeypatch.setattr(program, "WORKS", (_work("bulk-1-up", fails=True), _work("bulk-8-up")))
    assert _main(here) == 1
    report = (here / "RESULTS.md").read_text()
    assert "Not measured: b delivered 3 of 5 bytes\n" in report
    assert "| bulk-1-up | Gb/s | meshbox / haproxy splice | ≥ 1.15 | - | **not measured** |" in report
    assert "| meshbox | 1" in report
    assert _written(here)["failed"] == {"bulk-1-up": "b delivered 3 of 5 bytes"}
    said = capsys.readouterr()
    assert "no figures for bulk-1-up" in said.err
    assert "NOT MEASURED bulk-1-up Gb/s: bar 1.15" in said.out


def test_a_run_that_is_ended_leaves_what_it_has_measured(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As JSON, from which a report can be made; not as the report, which is for all works."""

    def stop() -> Sample:
        raise KeyboardInterrupt

    stopped = Work(name="bulk-8-up", title="", figures=(), open=lambda _: nullcontext({"meshbox": stop}))
    monkeypatch.setattr(program, "WORKS", (_work("bulk-1-up"), stopped))
    with pytest.raises(KeyboardInterrupt):
        _main(here)
    assert _written(here)["works"] == {"bulk-1-up": {"meshbox": [{"Gb/s": 1.0}]}}
    assert not (here / "RESULTS.md").exists()


def test_a_lab_that_cannot_be_built_is_an_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a traceback, and without a report."""

    def install() -> None:
        raise BenchError("apt-get failed")

    monkeypatch.setattr(program.peers, "install", install)
    assert _main(here) == 1
    assert not (here / "out").exists()


def test_a_quick_run_is_no_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither itself, nor made from its JSON later."""
    assert _main(here, "--quick") == 0
    assert not capsys.readouterr().err
    assert not (here / "RESULTS.md").exists()
    (path,) = (here / "out").glob("*.json")
    assert _main(here, "--report", str(path)) == 2
    assert not (here / "RESULTS.md").exists()


def test_a_run_of_some_works_is_no_report(here: Path) -> None:
    """It would take the others' figures away."""
    assert _main(here, "--only", "bulk-1-*") == 0
    assert list(_written(here)["works"]) == ["bulk-1-up"]
    assert not (here / "RESULTS.md").exists()


def test_every_name_must_match_something(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A slip of the pen is told before an hour of measuring something else."""
    with pytest.raises(SystemExit, match="2"):
        _main(here, "--only", "bulk-1-up", "tpyo", "bulk*")
    assert "no work matches tpyo;" in capsys.readouterr().err
    assert not (here / "out").exists()
