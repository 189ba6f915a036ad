"""A control plane under measurement: the appliance's loop, plans, rules, sockets and names, on facts made up here.

`python -m bench.controlhost NAMESPACES SERVICES FOLDER WORKERS` reads commands from its input, one a line, answers each
with a line of JSON: `cold` (everything from nothing), `backend` (one backend goes or comes), `service` (a service
comes or goes that every workload may reach), `churn SECONDS` (a backend every 100 ms), `wait SECONDS`, and
`idle SECONDS`, which looks for no stalls. "swaps" in the answer is how often other backends were applied.
Workload 0 is the server of the lab and workload 1 its client, so that real traffic can run through it meanwhile, at the
proxy's "port".
"""

from __future__ import annotations

import gc
import os
import resource
import sys
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import orjson
import trio

from appliance import logs
from appliance.app import bridge
from appliance.control.doors import Doors
from appliance.control.effects import HostEffects
from appliance.control.reconcile import Reconciler
from appliance.dataplane.api import LEFT
from appliance.dataplane.inprocess import InProcess
from appliance.dataplane.workers.pool import WorkerPool
from appliance.drivers.local.store import LocalStore
from appliance.drivers.netns import identity
from appliance.drivers.nft.client import Nft
from appliance.drivers.nft.drift import RulesetWatch
from appliance.drivers.nft.helper import NftHelper
from appliance.faults import Faults
from appliance.model.facts import Attachment, BoundPort, DockerNetwork, RunState, Settings, Snapshot, Workload
from appliance.model.names import Allowance, Destination, Name, Port, Protocol
from appliance.model.network import Netns
from bench import stall
from bench.lab import CLIENT_IP, PROXY_IP, SERVER_IP
from bench.process import process_cpu

if TYPE_CHECKING:
    import asyncio

    from appliance.dataplane.api import DataPlane
    from appliance.plan.compile import Plan

PORT = 8080
BOUND = frozenset((BoundPort(Protocol.TCP, PORT),))
"""It has a program."""
TICKS = 0.01
"""Seconds in which the loop looks at the clock several times."""
CHURN = 0.1
"""Seconds between changes of `churn`."""


class ControlHost:
    """The loop with facts that commands change."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, workloads: list[Workload], services: int, folder: Path, workers: int
    ) -> None:
        self._workloads = workloads
        self._services = services
        self._toggle = 0
        self._extra: Workload | None = None
        self.faults = Faults()
        self.registry = LocalStore(folder)
        self._stalls = folder / "stalls"
        self._stalls.mkdir()
        os.environ[stall.FOLDER] = str(self._stalls)
        self.plane: DataPlane = InProcess(loop, dns_upstreams=list, dns_port=5390)
        if workers:
            command = (sys.executable, "-m", "bench.stall", "warning", "text")
            self.plane = WorkerPool(loop, number=workers, command=command, dns_upstreams=list, dns_port=5390)
        else:
            self._ticker = stall.Ticker(loop, self._stalls)
        self.plane.start()
        self.nft_helper = NftHelper()
        self.watch = RulesetWatch(on_drift=lambda _: None)
        self.doors = Doors(self.plane)
        self.applied = trio.Event()
        self._changed = 0.0
        """When the change was made that `applied` is about."""
        self._changing = Destination.parse(f"c.s{services - 1}:{PORT}/tcp")
        self._served = Destination.parse(f"c.s0:{PORT}/tcp")
        self._backends = 0
        self._swaps = 0
        self.reconciler = Reconciler(
            snapshot=self.snapshot,
            carry_out=HostEffects(
                plane=self.plane,
                doors=self.doors,
                nft=Nft(self.nft_helper),
                nft_helper=self.nft_helper,
                watch=self.watch,
                registry=self.registry,
            ).carry_out,
            faults=self.faults,
            followers=self,
        )

    def begin(self, plan: Plan) -> None:
        """Dial nobody: readiness is made up here."""

    async def finish(self, _plan: Plan, facts: Snapshot) -> None:
        """Look at what was applied (`reconcile.Followers`)."""
        listener = self.reconciler.have.listeners.get(self._changing)
        backends = len(listener.backends) if listener else 0
        self._swaps += backends != self._backends
        self._backends = backends
        if facts.now >= self._changed:  # a pass that was under way did not see the change
            self.applied.set()

    def snapshot(self) -> Snapshot:
        """Return the facts."""
        return Snapshot(
            now=monotonic(),
            settings=Settings(node="bench", dns_port=5390),
            workloads=(*self._workloads, self._extra) if self._extra else tuple(self._workloads),
            networks=(
                DockerNetwork(
                    name="bench",
                    driver="bridge",
                    subnets=(IPv4Network("10.91.1.0/24"),),
                    gateways=(IPv4Address(PROXY_IP),),
                ),
            ),
            host_addresses=frozenset((IPv4Address(PROXY_IP),)),
            allocations=self.registry.allocations,
        )

    def _cpu(self) -> tuple[float, float]:
        """Return the CPU time that this process has used, and that its programs have, in seconds."""
        used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        own, ended = (each.ru_utime + each.ru_stime for each in used)
        pid = self.nft_helper.pid
        return own, ended + (process_cpu(pid) if pid else 0.0)

    async def do(self, command: str, *arguments: str) -> dict[str, float]:
        """Carry out a command and return what it took."""
        before = self._cpu()
        swaps = self._swaps
        stall.reset(self._stalls, looking=command != "idle")
        start = monotonic()
        if command == "cold":
            await self.reconciler.reconcile()
            await bridge.answer(self.plane, LEFT)  # workers have heard of all of it
            gc.collect()
            gc.freeze()
            await trio.sleep(TICKS)  # or the next command's stall would be this collection
        elif command == "backend":
            self._change_backend()
            await self._wait_applied()
        elif command == "service":
            self._change_service()
            await self._wait_applied()
        elif command == "churn":
            await self._churn(float(arguments[0]))
        elif command in {"wait", "idle"}:
            await trio.sleep(float(arguments[0]))
        took = monotonic() - start
        swaps = self._swaps - swaps
        if self.faults.total or (command == "backend" and swaps != 1):
            raise SystemExit(f"{command}: {self.faults.total} faults, {swaps} times other backends were applied")
        cpu = [a - b for a, b in zip(self._cpu(), before, strict=True)]
        longest, waited = stall.worst(self._stalls)
        return {
            "ms": took * 1000,
            "own CPU ms": cpu[0] * 1000,
            "nft CPU ms": cpu[1] * 1000,
            "stall ms": longest * 1000,
            "waiting ms": waited * 1000,
            "from": start,
            "to": start + took,
            "swaps": swaps,
            "port": self.reconciler.have.listeners[self._served].port,
            "listeners": len(self.reconciler.have.listeners),
            "rulesets": len(self.reconciler.have.rulesets),
        }

    def _change_backend(self) -> None:
        """Let the last service's only container lose, or find again, its readiness."""
        last = self._services - 1
        workload = self._workloads[last]
        ready = frozenset() if workload.bound else BOUND
        self._workloads[last] = replace(workload, bound=ready)

    def _change_service(self) -> None:
        """Let a service appear, or vanish, that all may reach on whatever ports it has."""
        if self._extra is None:
            address = IPv4Address("10.91.9.9")
            self._extra = make_workload(9999, "c.extra", address, None, ())
        else:
            self._extra = None

    async def _wait_applied(self) -> None:
        self.applied = trio.Event()
        self._changed = monotonic()
        self.reconciler.ring()
        await self.applied.wait()
        await bridge.answer(self.plane, LEFT)  # workers have heard of it

    async def _churn(self, seconds: float) -> None:
        """Change, and look only afterwards whether it was applied, as the world does."""
        start = trio.current_time()
        for number in range(1, round(seconds / CHURN) + 1):
            self._change_backend()
            self.reconciler.ring(urgent=True)
            await trio.sleep_until(start + number * CHURN)
        await bridge.answer(self.plane, LEFT)  # workers have heard of it


def make_workload(
    number: int, name: str, address: IPv4Address, netns: Netns | None, allowed: tuple[Allowance, ...]
) -> Workload:
    """Return a running container that accepts connections."""
    return Workload(
        id=f"{number:064x}",
        docker_name=name,
        name=Name.parse(name),
        state=RunState.RUNNING,
        netns=netns,
        attachments=(Attachment(network="bench", address=address, gateway=IPv4Address(PROXY_IP)),),
        ports=(Port(mesh=PORT, container=PORT, protocol=Protocol.TCP),),
        connect_to=allowed,
        bound=BOUND,
        own_rules=address == IPv4Address(SERVER_IP),  # its server is in another namespace than its rules
    )


def address(number: int) -> IPv4Address:
    """Return the address of a workload; those of the lab's server and client stand for the first two."""
    return {0: IPv4Address(SERVER_IP), 1: IPv4Address(CLIENT_IP)}.get(number, IPv4Address("10.92.0.0") + number)


def workloads(count: int, services: int) -> list[Workload]:
    """Return `count` workloads, in the namespaces mbb-w0, …, that may all reach all services."""
    allowed = (*(Allowance.parse(f"c.s{n}:{PORT}") for n in range(services)), Allowance.parse("c.extra"))
    made = []
    for number in range(count):
        path = f"/run/netns/mbb-w{number}"
        netns = identity.identify(path)
        if netns is None:
            raise SystemExit(f"{path} is no network namespace")
        made.append(
            make_workload(number, f"c.s{number % services}", address(number), Netns(id=netns, path=path), allowed)
        )
    return made


async def _main(
    count: int, services: int, folder: Path, workers: int, loop: asyncio.AbstractEventLoop, _stopping: trio.Event
) -> int:
    host = ControlHost(loop, workloads(count, services), services, folder, workers)
    await host.registry.load()
    async with trio.open_nursery() as nursery:
        await nursery.start(host.nft_helper.run)
        await nursery.start(host.watch.run)
        await nursery.start(host.doors.run)
        commands = trio.lowlevel.FdStream(os.dup(0))
        pending = b""
        async for chunk in commands:
            pending += chunk
            *lines, pending = pending.split(b"\n")
            for line in lines:
                answer = await host.do(*line.decode().split())
                os.write(1, orjson.dumps(answer) + b"\n")
                if line == b"cold":
                    nursery.start_soon(host.reconciler.run)
        nursery.cancel_scope.cancel()
    host.plane.close()
    return 0


if __name__ == "__main__":
    logs.configure(level="warning")
    arguments = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    sys.exit(bridge.run(partial(_main, *arguments)))
