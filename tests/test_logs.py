"""Faults are logged once with their cause, counted, and logged again when over."""

from __future__ import annotations

import io

import orjson
import pytest
import structlog

from appliance import logs


@pytest.fixture
def lines(monkeypatch):
    """Return what was logged since the last call."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure(form="json")

    def read() -> list[dict]:
        text = stream.getvalue()
        stream.seek(0)
        stream.truncate()
        return [orjson.loads(line) for line in text.splitlines()]

    yield read
    structlog.reset_defaults()


def test_a_lasting_fault_is_one_line_and_a_count(lines) -> None:
    """The same fault again is counted, not logged."""
    faults = logs.Faults()
    for _ in range(3):
        faults.report("docker", "Docker is away", "connection refused", socket="/s")
    (line,) = lines()
    assert (line["event"], line["cause"], line["socket"]) == ("Docker is away", "connection refused", "/s")
    assert faults.list()["docker"].count == 3
    assert faults.total == 3


def test_a_new_cause_is_a_new_line(lines) -> None:
    """What changed is worth saying."""
    faults = logs.Faults()
    faults.report("docker", "Docker is away", "refused")
    faults.report("docker", "Docker is away", "no such file")
    assert [line["cause"] for line in lines()] == ["refused", "no such file"]


def test_the_end_is_told_once(lines) -> None:
    """Recovery is logged with the number of failures; being well is not."""
    faults = logs.Faults()
    faults.report("docker", "Docker is away", "refused")
    faults.over("docker")
    faults.over("docker")
    assert [line["event"] for line in lines()] == ["Docker is away", "works again"]
    assert faults.list() == {}


def test_level_is_kept(lines) -> None:
    """Below the configured level nothing is written."""
    logs.configure(level="error", form="json")
    logs.log.warning("quiet")
    assert lines() == []
