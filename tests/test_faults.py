"""Faults are logged once with their cause, counted, and logged again when over."""

from __future__ import annotations

from appliance import logs
from appliance.faults import Faults


def test_a_lasting_fault_is_one_line_and_a_count(lines) -> None:
    """The same fault again is counted, not logged."""
    faults = Faults()
    for _ in range(3):
        faults.report("docker", "Docker is away", "connection refused", socket="/s")
    (line,) = lines()
    assert (line["event"], line["cause"], line["socket"]) == ("Docker is away", "connection refused", "/s")
    assert faults.list()["docker"].count == 3
    assert faults.cause("docker") == faults.list()["docker"].cause
    assert faults.cause("consul") is None
    assert faults.total == 3


def test_a_new_cause_is_a_new_line(lines) -> None:
    """What changed is worth saying."""
    faults = Faults()
    faults.report("docker", "Docker is away", "refused")
    faults.report("docker", "Docker is away", "no such file")
    assert [line["cause"] for line in lines()] == ["refused", "no such file"]


def test_the_end_is_told_once(lines) -> None:
    """Recovery is logged with the number of failures; being well is not."""
    faults = Faults()
    faults.report("docker", "Docker is away", "refused")
    faults.over("docker")
    faults.over("docker")
    assert [line["event"] for line in lines()] == ["Docker is away", "works again"]
    assert faults.list() == {}


def test_a_fault_that_flaps_does_not_fill_the_log(lines) -> None:
    """Also where it is over in between, each of its lines comes a few times, and its count is right."""
    faults = Faults()
    for _ in range(50):
        faults.report("docker", "Docker is away", "refused")
        faults.over("docker")
    assert len(lines()) == 2 * logs.REPEATS
    assert faults.total == 50
