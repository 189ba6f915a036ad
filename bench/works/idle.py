"""Idle connections: the memory that each takes, and the time to open them. Each round starts new processes.

`direct` has no process, so only its time to open means anything. `conntrack` counts the entries that the kernel of a
Docker host keeps of connections.
"""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from bench.contenders import FILES, FILES_BESIDE, MOST_CONNECTIONS, Service, proxies
from bench.errors import BenchError
from bench.figures import Figure, Sample, Work
from bench.lab import CLIENT, PROXY, PYTHON, SERVER, enter, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bench.contenders import Target
    from bench.lab import Lab

PORT = 7200
COUNT = 8000
"""Two files for each connection: within the 20,000 open files of small machines."""
QUICK_COUNT = 1000
EACH = 25_000
"""Connections to one port of the server: each takes a local port of client and proxy, of which there are 35,000."""
ROOM_KIB = 32
"""Memory that a connection may take: four sockets, and nginx's 10 KiB."""
TRACKING_MAX = Path("/proc/sys/net/netfilter/nf_conntrack_max")
NAMES = ("direct", "meshbox", "haproxy", "nginx")
TRACKED = ("meshbox", "dnat")
TRACKED_COUNT = 500


@contextmanager
def _open(lab: Lab, *, count: int | None) -> Iterator[Mapping[str, Callable[[], Sample]]]:
    """Hold `count` connections; None: as many as there is room for, and tell what limits them."""
    most, why = room()
    wanted = QUICK_COUNT if lab.quick else count
    if wanted is None:
        print(f"{most:,} connections: {why} no more", flush=True)
    elif wanted > most:
        raise BenchError(f"{why} {most:,} connections here, not {wanted:,}")
    with _server(lab, wanted or most) as services:
        yield {name: partial(_measure, lab, name, services, wanted or most) for name in NAMES}


def room() -> tuple[int, str]:
    """Return how many connections one proxy can hold here, up to MOST_CONNECTIONS, and what limits them."""
    available = Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0]
    tracked = int(TRACKING_MAX.read_text())
    return min(
        ((FILES - FILES_BESIDE) // 2, f"{FILES:,} open files, two for each, allow"),
        (tracked // 2, f"nf_conntrack_max, {tracked:,} and two for each, allows"),
        (int(available) // ROOM_KIB, f"{int(available) // 1024:,} MiB of free memory allow"),
        (MOST_CONNECTIONS, "this work wants"),
    )


@contextmanager
def _server(lab: Lab, count: int) -> Iterator[tuple[Service, ...]]:
    """Let a server listen on as many ports as so many connections need."""
    services = tuple(Service(port=PORT + number) for number in range(-(-count // EACH)))
    command = [PYTHON, "-m", "bench.clients", "holdd", *(str(service.port) for service in services)]
    ready = " ".join(f"tcp:{service.port}" for service in services)
    with lab.process("holdd", SERVER, command, cpu=lab.server_cpu, ready=ready):
        yield services


def _measure(lab: Lab, name: str, services: tuple[Service, ...], count: int) -> Sample:
    with proxies(lab, (name,), *services) as targets:
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
    """Hold connections; yield the seconds that it took to open them."""
    command = [PYTHON, "-m", "bench.clients", "hold", target.host, str(count), *map(str, target.ports)]
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
    with _server(lab, TRACKED_COUNT) as services:
        yield {name: partial(_measure_tracked, lab, name, services) for name in TRACKED}


def _measure_tracked(lab: Lab, name: str, services: tuple[Service, ...]) -> Sample:
    with proxies(lab, (name,), *services) as targets, targets[name].in_place():
        with _held(lab, name, targets[name], TRACKED_COUNT):
            held = _entries()
        run(["sleep", "1"])
        closed = _entries()
    return {
        "entries per open connection": held / TRACKED_COUNT,
        "entries a second after it closed": closed / TRACKED_COUNT,
    }


def _entries() -> int:
    """Return how many connections the kernel tracks in the proxy's namespace."""
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
        ("idle-most", f"As many idle connections as this machine allows, up to {MOST_CONNECTIONS:,}", None),
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
