"""UDP: a datagram to and fro, and how many a second pass one way without loss (sockperf).

The round trip runs on one CPU, for the reason given in echo.py.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from bench.contenders import SOURCE, UDP, Service, mirror, proxies
from bench.errors import BenchError
from bench.figures import Figure, Sample, Work
from bench.lab import SERVER, run
from bench.works.echo import ONE_CPU

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bench.contenders import Target
    from bench.lab import Lab

PORT = 7100
SIZE = 64
"""Bytes of payload."""
MIRRORED = 100_000
"""Bytes that each contender must carry there and back, in larger datagrams, before it is measured."""
RATES = tuple(round(4_000 * 1.2**step) for step in range(26))
"""Rates to try, in datagrams a second: 4,000 to 382,000, each a fifth above the one before."""
QUICK_STEP = 4
"""With --quick, only every fourth rate is tried: about twice the one before."""
SLOW = 0.95
"""The part of the rate that the sender must reach."""
LOST = 0.001
"""A smaller part lost counts as no loss."""


@contextmanager
def _open(lab: Lab, *, one_way: bool, names: tuple[str, ...] = UDP) -> Iterator[Mapping[str, Callable[[], Sample]]]:
    command = ["sockperf", "server", "-i", "0.0.0.0", "-p", str(PORT)]
    cpu = lab.server_cpu if one_way else lab.proxy_cpu
    measure = _packets if one_way else _round_trip
    with proxies(lab, names, Service(port=PORT, protocol="udp")) as targets:
        mirror(lab, targets, PORT, "udp", MIRRORED)
        with lab.process("sockperf", SERVER, command, cpu=cpu, ready=f"udp:{PORT}"):
            yield {name: partial(measure, lab, name, target) for name, target in targets.items()}


def _round_trip(lab: Lab, name: str, target: Target) -> Sample:
    command = ["sockperf", "ping-pong", *_to(target), "-t", f"{max(1, lab.seconds):.0f}", "--full-rtt"]
    with target.used() as cpu:
        output = _plain(lab.client(command, cpu=lab.proxy_cpu))
    sent, received = _number(r"SentMessages=(\d+)", output), _number(r"ReceivedMessages=(\d+)", output)
    if received < 0.999 * sent:
        raise BenchError(f"{name} returned {received:.0f} of {sent:.0f} datagrams")
    target.prove(name, cpu, 2 * SIZE * received)
    sample = {
        "p50 µs": _number(r"percentile 50\.000 =\s+([\d.]+)", output),
        "p99 µs": _number(r"percentile 99\.000 =\s+([\d.]+)", output),
    }
    return sample | cpu.per(received, "CPU µs")


def _packets(lab: Lab, name: str, target: Target) -> Sample:
    """Find the highest rate without loss by halving the range of rates."""
    rates = RATES[:: QUICK_STEP if lab.quick else 1]
    low, high = 0, len(rates)
    best: Sample = {"packets/s": 0.0}
    while low < high:
        middle = (low + high) // 2
        # A second chance: another program may have had the CPU the first time.
        sample = _at_rate(lab, name, target, rates[middle]) or _at_rate(lab, name, target, rates[middle])
        if sample:
            best, low = sample, middle + 1
        else:
            high = middle
    return best


def _at_rate(lab: Lab, name: str, target: Target, rate: int) -> Sample | None:
    command = ["sockperf", "throughput", *_to(target), "-t", "1", "--mps", str(rate)]
    before = _arrived()
    with target.used() as cpu:
        output = _plain(lab.client(command))
        run(["sleep", "0.2"])  # until queued datagrams have arrived: they are not lost
    arrived = _arrived() - before
    sent = _number(r"Total of (\d+) messages sent", output)
    if not arrived:
        raise BenchError(f"{name} carried none of {sent:.0f} datagrams")
    target.prove(name, cpu, SIZE * arrived)
    if sent < SLOW * rate or sent - arrived > LOST * sent:
        return None
    return {"packets/s": arrived} | cpu.per(arrived, "CPU µs")


def _arrived() -> float:
    """Return how many datagrams have come to sockets of the server's namespace, whether or not they were read."""
    lines = run(["ip", "netns", "exec", SERVER, "cat", "/proc/net/snmp"]).splitlines()
    names, values = (line.split()[1:] for line in lines if line.startswith("Udp:"))
    counters = dict(zip(names, map(float, values), strict=True))
    return counters["InDatagrams"] + counters["RcvbufErrors"]


def _to(target: Target) -> list[str]:
    return ["-i", target.host, "-p", str(target.port), "-m", str(SIZE)]


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if not found:
        raise BenchError(f"no {pattern!r} in:\n{text}")
    return float(found.group(1))


CPU = (
    Figure(name="CPU µs", better="lower", digits=2),
    Figure(name="CPU µs (user)", better="lower", digits=2),
    Figure(name="CPU µs (system)", better="lower", digits=2),
)
WORKS = (
    Work(
        name="udp-echo",
        title="A UDP datagram to and fro, all on one CPU",
        figures=(
            Figure(name="p50 µs", better="lower", digits=1),
            Figure(name="p99 µs", better="lower", digits=1),
            *CPU,
        ),
        note=ONE_CPU,
        open=partial(_open, one_way=False, names=UDP + SOURCE),
        reference="nginx",
    ),
    Work(
        name="udp-packets",
        title="UDP datagrams one way without loss",
        figures=(Figure(name="packets/s"), *CPU),
        open=partial(_open, one_way=True),
        reference="nginx",
    ),
)
