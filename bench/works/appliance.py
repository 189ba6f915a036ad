"""The whole appliance on a Docker Engine of its own: a container's first connection, and the cost of idling."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

import orjson

from bench.errors import BenchError
from bench.figures import Figure, Sample, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bench.lab import Lab

TESTS = Path(__file__).resolve().parents[2] / "tests"
STARTS = 20
IDLE_SECONDS = 45.0
"""Longer than the idle time after which the helper around libnftables ends."""
QUICK_IDLE_SECONDS = 10.0
NOT_PINNED = "Nothing is pinned: the appliance, Docker and the containers share all CPUs."
SPEC = """
app = service("app", count=2, containers=[container("web", image="meshbox-test", ports=[7000, "7000/udp"])])
"""


@contextmanager
def _open(lab: Lab) -> Iterator[Mapping[str, Callable[[], Sample]]]:
    sys.path.insert(0, str(TESTS))
    from machine import Machine, Switch  # noqa: PLC0415 — the tests' machines, which only this work needs

    with Switch() as switch, Machine(switch, 1) as machine:
        machine.start()
        machine.deploy(SPEC)
        yield {"meshbox": partial(_measure, machine, QUICK_IDLE_SECONDS if lab.quick else IDLE_SECONDS)}


def _measure(machine: Any, idle_seconds: float) -> Sample:
    delays = [_first_connection(machine, number) for number in range(STARTS)]
    processes = family(machine.appliance.pid)
    before = sum(map(cpu_seconds, processes))
    threading.Event().wait(idle_seconds)
    used = sum(map(cpu_seconds, family(machine.appliance.pid))) - before
    return {
        "start event to first connection, median ms": quantiles(delays, n=2)[0] * 1000,
        "95th percentile ms": quantiles(delays, n=20)[-1] * 1000,
        "idle: resident MiB": sum(map(resident, family(machine.appliance.pid))) / 1024,
        "idle: % of a core": max(used, 0.0) / idle_seconds * 100,
    }


def _first_connection(machine: Any, number: int) -> float:
    """Start a container that connects by name at once; return the seconds from its start to its connection."""
    name = f"first{number}"
    command = ("python3", "-I", "-S", "/srv/first.py", "web.app", "7000")
    machine.run_container(name, "meshbox-test", *command, service="near", container="first", connect_to="web.app:7000")
    machine.docker("wait", name)
    ((_, result, connected),) = orjson.loads(machine.docker("logs", name).splitlines()[-1])
    started = machine.inspect(name)["State"]["StartedAt"][:26].rstrip("Z")
    machine.docker("rm", name)
    if result != "connected":
        raise BenchError(f"a starting container was {result}")
    return float(connected) - datetime.fromisoformat(f"{started}+00:00").timestamp()


def family(pid: int) -> list[int]:
    """Return the process and its children."""
    children = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            if int(stat.rpartition(")")[2].split()[1]) == pid:
                children.append(int(entry.name))
    return [pid, *children]


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and of its children that have ended; 0 if it has ended itself."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Return the resident memory in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)


def _title(idle_seconds: float) -> str:
    return f"The appliance: {STARTS} containers that connect at once, then idle for {idle_seconds:.0f} s"


WORKS = (
    Work(
        name="appliance",
        title=_title(IDLE_SECONDS),
        quick_title=_title(QUICK_IDLE_SECONDS),
        note=NOT_PINNED,
        figures=(
            Figure(name="start event to first connection, median ms", better="lower"),
            Figure(name="95th percentile ms", better="lower"),
            Figure(name="idle: resident MiB", better="lower", digits=1),
            Figure(name="idle: % of a core", better="lower", digits=2),
        ),
        open=_open,
        reference="meshbox",
    ),
)
