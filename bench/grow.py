"""What grows with what, for SCALING.md: `python -m bench.grow` measures it here, in some seconds, as root.

Plans are the appliance's, of facts made up as in controlhost.py; sockets are a data plane's in this process, and the
host's rules go into a network namespace of this process's own.
"""

from __future__ import annotations

import ctypes
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

import orjson
import trio
import uvloop

from appliance.dataplane.inprocess import InProcess
from appliance.drivers.consul import codec
from appliance.drivers.nft.helper import NftHelper
from appliance.errors import HostError
from appliance.model.facts import DockerNetwork, Machine, Settings, Snapshot
from appliance.model.names import Allowance, Destination
from appliance.model.network import Backend, Listener, Netns, NetnsId
from appliance.model.state import HostState
from appliance.plan.compile import Compiler
from appliance.plan.diff import diff
from appliance.render.ruleset import change_host
from bench.controlhost import BOUND, PORT, make_workload
from bench.errors import BenchError
from bench.lab import PROXY_IP, PYTHON
from bench.process import Process, resident

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from appliance.model.facts import Workload
    from appliance.model.network import HostRuleset

SIZES = ((100, 100), (500, 100), (500, 200))
"""Containers, and services that each of them may reach."""
TIMES = 9
SOCKETS = 500
CROWDS = ((2, 2), (3, 95))
"""Callers and backends of each destination."""
MESHES = (10, 100, 1_000)
"""Machines, beside this one with 100 containers and 100 services, that serve nothing which is reached here."""
CONNECTED = IPv4Address("10.92.0.0")
CLONE_NEWNET = 0x40000000
"""linux/sched.h"""


def main() -> None:
    """Print a row for each; each in a process of its own, so that none finds memory that another has left."""
    with ProcessPoolExecutor(1, max_tasks_per_child=1) as pool:
        for work, sizes in ((_plans, SIZES), (_destinations, CROWDS), (_mesh, tuple((m,) for m in MESHES))):
            for row in pool.map(work, *zip(*sizes, strict=True)):
                print(row, flush=True)
    print(_worker())


def _plans(count: int, services: int) -> str:
    """Plan at first, when a backend changes, and when a service appears that all may reach."""
    memory = _resident()
    workloads = _workloads(count, services)
    compiler = Compiler()
    first, have, _, _ = _plan(compiler, workloads, HostState())
    memory = _resident() - memory
    changed, looked = [], []
    for number in range(TIMES):
        ready = BOUND if number % 2 else frozenset()
        workloads[-1] = replace(workloads[-1], bound=ready)
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


def _workloads(count: int, services: int) -> list[Workload]:
    """Return containers that may all reach all services."""
    allowed = (*(Allowance.parse(f"c.s{n}:{PORT}") for n in range(services)), Allowance.parse("c.extra"))
    return [
        make_workload(n, f"c.s{n % services}", CONNECTED + n, Netns(id=NetnsId(device=1, inode=n), path=""), allowed)
        for n in range(count)
    ]


def _plan(
    compiler: Compiler, workloads: Iterable[Workload], have: HostState, machines: Sequence[Machine] = ()
) -> tuple[float, HostState, float, float]:
    """Return ms to plan, the plan, ms to compare it with what is there, and the longest turn of planning in ms."""
    facts = Snapshot(
        now=0.0,
        settings=Settings(node="bench", dns_port=53),
        workloads=tuple(workloads),
        networks=(DockerNetwork(name="bench", driver="bridge", subnets=(), gateways=(IPv4Address(PROXY_IP),)),),
        host_addresses=frozenset((IPv4Address(PROXY_IP),)),
        allocations=have.allocations,
        machines=tuple(machines),
    )
    work = compiler.compile(facts)
    begin, turns = perf_counter(), []
    while True:
        turn = perf_counter()
        try:
            next(work)
        except StopIteration as done:
            want: HostState = done.value.want
            break
        finally:
            turns.append(perf_counter() - turn)
    took = perf_counter() - begin
    begin = perf_counter()
    list(diff(have, want))
    return took * 1000, want, (perf_counter() - begin) * 1000, max(turns) * 1000


def _mesh(count: int) -> str:
    """Let a machine come and go, among others, and look at what that takes here: plan, listeners, the host's rules."""
    workloads = _workloads(*SIZES[0])
    compiler = Compiler()
    _, alone, _, _ = _plan(compiler, workloads, HostState())
    _own_network()
    loop = uvloop.new_event_loop()
    plane = InProcess(loop, dns_upstreams=list, dns_port=0)
    for listener in alone.listeners.values():
        plane.open_listener(listener)
    memory = _resident()
    machines = _machines(count + 1)
    _, have, _, _ = _plan(compiler, workloads, alone, machines[:-1])
    for listener in have.listeners.values():
        plane.swap_listener(listener)
    memory = _resident() - memory
    rulesets = [have.host_ruleset]
    figures = []
    for number in range(TIMES):
        took, want, differing, longest = _plan(compiler, workloads, have, machines[: count + 1 - number % 2])
        begin = perf_counter()
        changed = [d for d, listener in want.listeners.items() if listener is not have.listeners[d]]
        for d in changed:
            plane.swap_listener(want.listeners[d])
        figures.append((took, longest, differing, (perf_counter() - begin) * 1000))
        rulesets.append(want.host_ruleset)
        have = want
    plane.close()
    loop.close()
    whole, one = trio.run(_push, [r for r in rulesets if r is not None])
    plan, longest, differing, swapped = (median(each) for each in zip(*figures, strict=True))
    read = _read(machines)
    return (
        f"{count} other machines: one comes or goes: {read:.1f} ms to read them, {plan:.1f} ms to plan, longest turn"
        f" {longest:.1f} ms, {differing:.1f} ms to compare, {swapped:.1f} ms for {len(changed)} listeners, {one:.1f} ms"
        f" for the host's rules, which take {whole:.1f} ms at first; facts, plans and listeners {memory:.0f} KiB"
    )


def _machines(count: int) -> list[Machine]:
    return [Machine(node=f"machine-{n:04}", address=IPv4Address("10.8.0.1") + n) for n in range(count)]


def _read(machines: Sequence[Machine]) -> float:
    """Return the ms to read Consul's answer about the machines, which is about all whenever one changes."""
    answer = orjson.dumps([_entry(machine) for machine in machines])
    took = []
    for _ in range(TIMES):
        begin = perf_counter()
        seen, _ = codec.parse_machines(orjson.loads(answer))
        found, _ = codec.one_per_node(seen)
        took.append((perf_counter() - begin) * 1000)
        if list(found.values()) != sorted(machines, key=lambda m: m.node):
            raise BenchError(f"of {len(machines)} machines {len(found)} were read")
    return median(took)


def _entry(machine: Machine) -> dict[str, object]:
    """Return what Consul's health API says of a machine, as far as it is read."""
    said = codec.machine_service(machine, machine.node)
    return {
        "Node": {"Node": machine.node, "Address": str(machine.address)},
        "Service": {"ID": said["service_id"], "Address": said["address"], "Meta": said["meta"]},
        "Checks": [{"Status": "passing", "ServiceID": each} for each in ("", said["service_id"])],
    }


def _own_network() -> None:
    """Move this process into a new network namespace. Raises HostError without root."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise HostError(f"no network namespace: {os.strerror(ctypes.get_errno())}; run it as root")


async def _push(rulesets: Sequence[HostRuleset]) -> tuple[float, float]:
    """Return the ms that the first ruleset took, and each step to the next one (median)."""
    nft = NftHelper()
    took: list[float] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(nft.run)
        for before, after in zip([None, *rulesets[:-1]], rulesets, strict=True):
            begin = perf_counter()
            await nft.command(change_host(before, after))
            took.append((perf_counter() - begin) * 1000)
        nursery.cancel_scope.cancel()
    return took[0], median(took[1:])


def _destinations(callers: int, backends: int) -> str:
    """Open a socket for each, and exchange backends."""
    loop = uvloop.new_event_loop()
    plane = InProcess(loop, dns_upstreams=list, dns_port=0)
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
