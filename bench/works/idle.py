"""Idle connections: what each costs in memory, and how long it takes to open them. Each round starts afresh.

`direct` has no process, so only the time to open means anything there. `conntrack` counts what the kernel of a Docker
host remembers of connections.
"""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import orjson

from bench.contenders import MOST_CONNECTIONS, Service, proxies
from bench.figures import BenchError, Figure, Sample, Work
from bench.lab import CLIENT, PROXY, PYTHON, SERVER, enter, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bench.contenders import Target
    from bench.lab import Lab

PORT = 7200
COUNT = 8000
"""Within the 20,000 open files of small machines, two for each connection."""
QUICK_COUNT = 1000
NAMES = ("direct", "meshbox", "haproxy", "nginx")
TRACKED = ("meshbox", "dnat")
TRACKED_COUNT = 500


@contextmanager
def _open(lab: Lab, *, count: int) -> Iterator[Mapping[str, Callable[[], Sample]]]:
    count = QUICK_COUNT if lab.quick else count
    if count > MOST_CONNECTIONS:
        raise BenchError(f"open files and local ports allow {MOST_CONNECTIONS:,} connections here, not {count:,}")
    command = [PYTHON, "-m", "bench.clients", "holdd", str(PORT)]
    with lab.process("holdd", SERVER, command, cpu=lab.server_cpu, ready=f"tcp:{PORT}"):
        yield {name: partial(_measure, lab, name, count) for name in NAMES}


def _measure(lab: Lab, name: str, count: int) -> Sample:
    with proxies(lab, (name,), Service(port=PORT)) as targets:
        target = targets[name]
        empty = target.process.resident() if target.process else 0.0
        with target.used() as cpu, _held(lab, name, target, count) as opened:
            full = target.process.resident() if target.process else 0.0
    target.prove(name, cpu, count)
    return {
        "KiB per connection": (full - empty) / count,
        "resident MiB": full / 1024,
        "µs to open one": opened / count * 1e6,
        "CPU µs": cpu.per(count, "CPU µs")["CPU µs"],
        "connections": count,
    }


@contextmanager
def _held(lab: Lab, name: str, target: Target, count: int) -> Iterator[float]:
    """Hold so many connections; yield the seconds that it took to open them."""
    command = [PYTHON, "-m", "bench.clients", "hold", target.host, str(target.port), str(count)]
    with subprocess.Popen(
        enter(CLIENT, lab.client_cpu) + command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as client:
        line = client.stdout.readline() if client.stdout else b""
        opened = orjson.loads(line) if line else {"count": 0}
        if opened["count"] != count:
            raise BenchError(f"{name} did not carry {count} connections")
        yield opened["seconds"]
        client.communicate(b"")


@contextmanager
def _tracked(lab: Lab) -> Iterator[Mapping[str, Callable[[], Sample]]]:
    command = [PYTHON, "-m", "bench.clients", "holdd", str(PORT)]
    with lab.process("holdd", SERVER, command, cpu=lab.server_cpu, ready=f"tcp:{PORT}"):
        yield {name: partial(_measure_tracked, lab, name) for name in TRACKED}


def _measure_tracked(lab: Lab, name: str) -> Sample:
    with proxies(lab, (name,), Service(port=PORT)) as targets, targets[name].in_place():
        with _held(lab, name, targets[name], TRACKED_COUNT):
            held = _entries()
        run(["sleep", "1"])
        closed = _entries()
    return {
        "entries per open connection": held / TRACKED_COUNT,
        "entries a second after it closed": closed / TRACKED_COUNT,
    }


def _entries() -> int:
    """Return how much connection tracking knows in the proxy's namespace."""
    return int(run(["ip", "netns", "exec", PROXY, "cat", "/proc/sys/net/netfilter/nf_conntrack_count"]))


IDLE = tuple(
    Work(
        name=name,
        title=title,
        quick_title=f"{QUICK_COUNT:,} idle connections",
        figures=(
            Figure(name="KiB per connection", better="lower", digits=2),
            Figure(name="resident MiB", better="lower", digits=1),
            Figure(name="µs to open one", better="lower"),
            Figure(name="CPU µs", better="lower", digits=1),
            Figure(name="connections"),
        ),
        open=partial(_open, count=count),
    )
    for name, title, count in (
        ("idle", f"{COUNT:,} idle connections", COUNT),
        ("idle-most", "As many idle connections as open files and local ports allow, up to 30,000", MOST_CONNECTIONS),
    )
)
WORKS = (
    *IDLE,
    Work(
        name="conntrack",
        title=f"What connection tracking remembers of {TRACKED_COUNT} connections, in the proxy's namespace",
        figures=(
            Figure(name="entries per open connection", better="lower", digits=2),
            Figure(name="entries a second after it closed", better="lower", digits=2),
        ),
        open=_tracked,
        reference="dnat",
    ),
)
