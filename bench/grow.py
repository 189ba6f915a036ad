"""What grows with what, for SCALING.md: `python -m bench.grow` measures it here, in some seconds and without root.

Plans are the appliance's, of facts made up as in controlhost.py; sockets are a data plane's in this process.
"""

from __future__ import annotations

import gc
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING

import uvloop

from appliance.dataplane.plane import DataPlane
from appliance.model.facts import DockerNetwork, Netns, Settings, Snapshot
from appliance.model.names import Allowance, Destination
from appliance.model.network import Backend, Listener, NetnsId
from appliance.model.state import HostState
from appliance.plan.compile import Compiler
from appliance.plan.diff import diff
from bench.controlhost import PORT, make_workload
from bench.lab import PROXY_IP, PYTHON
from bench.process import Process, resident

if TYPE_CHECKING:
    from collections.abc import Iterable

    from appliance.model.facts import Workload

SIZES = ((100, 100), (500, 100), (500, 200))
"""Containers, and services that each of them may reach."""
TIMES = 9
SOCKETS = 500
CROWDS = ((2, 2), (3, 95))
"""Callers and backends of each destination."""
CONNECTED = IPv4Address("10.92.0.0")


def main() -> None:
    """Print a row for each; each in a process of its own, so that none finds memory that another has left."""
    with ProcessPoolExecutor(1, max_tasks_per_child=1) as pool:
        for work, sizes in ((_plans, SIZES), (_destinations, CROWDS)):
            for row in pool.map(work, *zip(*sizes, strict=True)):
                print(row, flush=True)
    print(_worker())


def _plans(count: int, services: int) -> str:
    """Plan at first, when a backend changes, and when a service appears that all may reach."""
    memory = _resident()
    allowed = (*(Allowance.parse(f"c.s{n}:{PORT}") for n in range(services)), Allowance.parse("c.extra"))
    workloads = [
        make_workload(n, f"c.s{n % services}", CONNECTED + n, Netns(id=NetnsId(device=1, inode=n), path=""), allowed)
        for n in range(count)
    ]
    compiler = Compiler()
    first, have, _, _ = _plan(compiler, workloads, HostState())
    memory = _resident() - memory
    changed, looked = [], []
    for number in range(TIMES):
        ready = frozenset((PORT,)) if number % 2 else frozenset()
        workloads[-1] = replace(workloads[-1], accepting=ready)
        took, have, differing, _ = _plan(compiler, workloads, have)
        changed.append(took)
        looked.append(differing)
    extra = make_workload(9999, "c.extra", IPv4Address("10.91.9.9"), None, ())
    appeared, turns = [], []
    for number in range(TIMES):
        took, have, _, longest = _plan(compiler, workloads if number % 2 else [*workloads, extra], have)
        appeared.append(took)
        turns.append(longest)
    return (
        f"{count} containers x {services} services: first plan {first:.0f} ms; a backend changes {median(changed):.1f}"
        f" ms and {median(looked):.1f} ms to compare; a service appears {median(appeared):.0f} ms, longest turn"
        f" {median(turns):.1f} ms; facts and plans {memory / 1024:.0f} MiB"
    )


def _plan(compiler: Compiler, workloads: Iterable[Workload], have: HostState) -> tuple[float, HostState, float, float]:
    """Return ms to plan, the plan, ms to compare it with what is there, and the longest turn of planning in ms."""
    facts = Snapshot(
        now=0.0,
        settings=Settings(node="bench", dns_port=53),
        workloads=tuple(workloads),
        networks=(DockerNetwork(name="bench", driver="bridge", subnets=(), gateways=(IPv4Address(PROXY_IP),)),),
        host_addresses=frozenset((IPv4Address(PROXY_IP),)),
        allocations=have.allocations,
    )
    work = compiler.compile(facts)
    begin, turns = perf_counter(), []
    while True:
        turn = perf_counter()
        try:
            next(work)
        except StopIteration as done:
            want: HostState = done.value
            break
        finally:
            turns.append(perf_counter() - turn)
    took = perf_counter() - begin
    begin = perf_counter()
    list(diff(have, want))
    return took * 1000, want, (perf_counter() - begin) * 1000, max(turns) * 1000


def _destinations(callers: int, backends: int) -> str:
    """Open a socket for each, and exchange backends."""
    loop = uvloop.new_event_loop()
    plane = DataPlane(loop, dns_upstreams=list, dns_port=0)
    memory, files = _resident(), _open_files()
    listeners = [_listener(number, callers, backends) for number in range(SOCKETS)]
    for listener in listeners:
        plane.open_listener(listener)
    memory, files = _resident() - memory, _open_files() - files
    times = []
    for listener in listeners:
        other = replace(listener, backends=listener.backends[1:])
        begin = perf_counter()
        plane.swap_listener(other)
        times.append(perf_counter() - begin)
    plane.close()
    loop.close()
    return (
        f"destination with {callers} callers, {backends} backends: {memory / SOCKETS:.1f} KiB, {files / SOCKETS:.0f}"
        f" open file; {median(times) * 1000:.2f} ms to exchange its backends"
    )


def _listener(number: int, callers: int, backends: int) -> Listener:
    return Listener(
        destination=Destination.parse(f"c.s{number}:{PORT}/tcp"),
        port=20000 + number,
        callers=frozenset(IPv4Address("172.18.0.2") + caller for caller in range(callers)),
        backends=tuple(
            Backend(address=IPv4Address("10.0.0.1") + n, port=20000 + number, local=False, label=f"machine-{n}")
            for n in range(backends)
        ),
    )


def _worker() -> str:
    """Look at a worker that has nothing to do."""
    with TemporaryDirectory() as folder:
        config = Path(folder, "config.json")
        config.write_text('{"workers": 1, "caller": "10.91.1.1", "listeners": []}')
        process = Process("launcher", [PYTHON, "-m", "bench.launcher", str(config)], Path(folder, "log"))
        try:
            threading.Event().wait(3)  # until it has imported what it needs
            _, worker = process.pids()
            return f"worker: {resident(worker) / 1024:.0f} MiB, of which {_private(worker) / 1024:.0f} are its own"
        finally:
            process.stop()


def _resident() -> float:
    gc.collect()
    return resident(os.getpid())


def _private(pid: int) -> int:
    """Return the KiB that no other process shares."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def _open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


if __name__ == "__main__":
    main()
