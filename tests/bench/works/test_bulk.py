from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import orjson
import pytest

from bench import contenders, rules
from bench.contenders import Target, Use
from bench.errors import BenchError
from bench.lab import Lab
from bench.process import Cpu
from bench.works import bulk

MIB = 1 << 20


class _Process:
    """A proxy that is idle, or uses 3 µs whenever it is looked at."""

    def __init__(self, used: float = 3.0) -> None:
        self._used = used

    @contextmanager
    def used(self) -> Iterator[Cpu]:
        yield Cpu(total=self._used)


class _Lab(Lab):
    """A lab whose iperf3 tells what it is told."""

    sent = received = 1000 * MIB

    def client(self, command: list[str], *, cpu: int | None = None) -> str:
        sums = {"sum_sent": self.sent, "sum_received": self.received}
        return orjson.dumps({"end": {k: {"bytes": v, "seconds": 2.0} for k, v in sums.items()}}).decode()


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> _Lab:
    """By whose proxy came twice as much as was received, as when all goes through it."""
    came = iter((0, 2000 * MIB))
    monkeypatch.setattr(contenders, "_came", lambda *, inside: next(came))
    monkeypatch.setattr(rules, "in_place", lambda _: nullcontext())
    return _Lab(Path(), seconds=2.0, quick=False)


def _target(process: _Process | None = None, **more: object) -> Target:
    return Target(host="10.91.1.2", ports=(1,), process=process or _Process(), **more)  # type: ignore[arg-type]


def _measure(lab: Lab, target: Target) -> dict[str, float]:
    return bulk._measure(lab, "haproxy", target, streams=1, direction="up")


def test_what_both_ends_counted_is_a_figure(lab: _Lab) -> None:
    """Per second, by the receiver's count."""
    assert _measure(lab, _target())["Gb/s"] == pytest.approx(1000 * MIB * 8 / 2 / 1e9)


def test_a_run_that_broke_off_is_an_error(lab: _Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what iperf3 says of it, as its exit code does not."""
    monkeypatch.setattr(lab, "client", lambda _: b'{"end": {}, "error": "control socket has closed unexpectedly"}')
    with pytest.raises(BenchError, match="haproxy: iperf3 did not come to its end: control socket has closed"):
        _measure(lab, _target())


def test_more_missing_than_buffers_hold_is_an_error(lab: _Lab) -> None:
    """The server's count is the proof, not the client's."""
    lab.sent = lab.received + bulk._under_way(_target()) + 1
    with pytest.raises(BenchError, match="bytes were sent"):
        _measure(lab, _target())


def test_a_proxy_has_buffers_on_both_sides() -> None:
    """The kernel's forwarding, and no proxy at all, has those of the ends only."""
    without = Target(host="10.91.1.2", ports=(1,))
    assert bulk._under_way(_target()) == 2 * bulk._under_way(without)


def test_who_is_to_splice_must(lab: _Lab) -> None:
    """HAProxy with splice-auto copied everything, and lost to who spliced."""
    with pytest.raises(BenchError, match="haproxy spliced 0 of "):
        _measure(lab, _target(spliced=lambda: 7))


def test_who_splices_may(lab: _Lab) -> None:
    """By its own count."""
    counts = iter((500, 500 + 1000 * MIB, 500 + 1000 * MIB))
    assert _measure(lab, _target(spliced=lambda: next(counts)))


def test_bytes_that_went_another_way_prove_nothing() -> None:
    """Neither past the proxy's links, nor through the kernel of its namespace alone."""
    with pytest.raises(BenchError, match="100 bytes were carried, of which 99 came by the proxy"):
        _target().prove("broken", Use(total=1.0, came=99), 100)
    with pytest.raises(BenchError, match="without its process"):
        _target().prove("broken", Use(came=100), 100)
    _target().prove("sound", Use(total=1.0, came=100), 100)
    Target(host="10.91.3.2", ports=(1,), proxied=False).prove("direct", Use(), 100)
