from __future__ import annotations

from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.lab import Lab
from bench.works import control

WRK = """
  Latency Distribution
     50%  806.00us
     99%    2.41ms
  68000 requests in 2.00s, 11.0MB read
Requests/sec:  34000.00
"""


class _Host:
    """A control host that says that it has applied so many changes."""

    def __init__(self, swaps: int) -> None:
        self.swaps = swaps
        self.told: list[str] = []

    def tell(self, command: str) -> None:
        self.told.append(command)

    def answer(self) -> dict[str, float]:
        return {"swaps": self.swaps, "stall ms": 4.5, "waiting ms": 1.5}


class _Lab(Lab):
    """A lab whose client is wrk, so to speak."""

    def client(self, command: list[str], *, cpu: int | None = None) -> str:
        return WRK


def _measure(host: _Host, command: str) -> dict[str, float]:
    return control.measure_churn(_Lab(Path(), seconds=2.0, quick=False), host, 20000, command)  # type: ignore[arg-type]


def test_changes_are_applied_beside_traffic() -> None:
    """One every 100 ms while traffic is measured, and for a second more."""
    host = _Host(28)
    assert _measure(host, "churn")["stall ms"] == 4.5
    assert host.told == ["churn 3"]


def test_traffic_beside_a_control_plane_that_hangs_is_no_figure() -> None:
    """It would be as good as at rest, and meet its bar."""
    with pytest.raises(BenchError, match="of 30 changes beside traffic 26 were applied"):
        _measure(_Host(26), "churn")


def test_at_rest_nothing_has_to_be_applied() -> None:
    """That is what the other is compared with."""
    assert _measure(_Host(0), "wait")["p99 µs"] == 2410
