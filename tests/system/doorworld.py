"""A workload, its neighbour that serves what it may reach, and a data plane with doors in both namespaces."""

from __future__ import annotations

import asyncio
import concurrent.futures
import socket
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Any, TypeVar

import trio
import uvloop
from nsworld import HOST, NEIGHBOUR, SECONDS, WORKLOAD, World, inside

from appliance.app import worker
from appliance.control.doors import Doors
from appliance.dataplane import api
from appliance.dataplane.inprocess import InProcess
from appliance.dataplane.workers.pool import WorkerPool
from appliance.errors import NotYetError, RetryError
from appliance.model.names import Destination, Protocol
from appliance.model.network import Backend, Listener, Route, WorkloadRuleset
from appliance.plan.doors import doors
from appliance.render.ruleset import LEAD_DNS, render_workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from appliance.model.network import Netns

VIP = "241.1.1.1"
UNDECLARED = "241.1.1.2"
DIALLER = "240.0.0.0"
WEB = Destination.parse("web.shop:8080")

Kind = TypeVar("Kind", bound="Mesh")


class Proxy:
    """A data plane on a loop of its own thread, and what opens its doors. Also a `DataPlane`, for the latter."""

    def __init__(self, workers: int = 0) -> None:
        self.loop = uvloop.new_event_loop()
        self.errors: list[object] = []
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        options: dict[str, Any] = {"dns_upstreams": list, "dns_port": 5391}
        command = worker.command(level="error", form="text")
        make = (lambda: WorkerPool(self.loop, number=workers, command=command, **options)) if workers else None
        self.plane: Any = self.call(make or (lambda: InProcess(self.loop, **options)))
        self.call(self.plane.start)
        self.doors = Doors(self)
        self.accepting = self.plane.accepting

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function on the loop's thread and return its result."""
        done: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def run() -> None:
            try:
                done.set_result(function(*args))
            except BaseException as error:  # noqa: BLE001 — raised again in the caller's thread
                done.set_exception(error)

        self.loop.call_soon_threadsafe(run)
        return done.result(10)

    def open_door(self, *args: Any) -> None:
        self.call(self.plane.open_door, *args)

    def move_door(self, *args: Any) -> None:
        self.call(self.plane.move_door, *args)

    def close_door(self, *args: Any) -> None:
        self.call(self.plane.close_door, *args)

    def open_dns_door(self, *args: Any) -> None:
        self.call(self.plane.open_dns_door, *args)

    def close_dns_door(self, *args: Any) -> None:
        self.call(self.plane.close_dns_door, *args)

    def ask(self, question: api.Question[Any]) -> Any:
        """Return the answer to a question."""
        answered: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self.call(self.plane.ask, question, answered.set_result)
        return answered.result(10)

    def open(self, *rulesets: WorkloadRuleset) -> None:
        """Open the doors of these namespaces, trying again as the loop does. Raises TooSlowError."""

        async def main() -> None:
            with trio.fail_after(10):
                for door in doors({rules.netns.id: rules for rules in rulesets}).values():
                    while self.doors.opened.get(door.netns.id) != door:
                        try:
                            await self.doors.open(door)
                        except NotYetError as missing:
                            await missing.wait()
                        except RetryError:  # one that was closed just now still has the port
                            await trio.sleep(0.02)

        trio.run(main)

    def open_at_once(self, rules: WorkloadRuleset) -> None:
        """Try once to open a door. Raises RetryError."""
        (door,) = doors({rules.netns.id: rules}).values()
        trio.run(self.doors.open, door)

    def drop(self, *rulesets: WorkloadRuleset) -> None:
        """Close these doors."""
        for door in doors({rules.netns.id: rules for rules in rulesets}).values():
            trio.run(self.doors.close, door)

    def look(self, until: Callable[[], bool]) -> None:
        """Let the doors look after their namespaces until something is true."""

        async def main() -> None:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.doors.run)
                with trio.fail_after(10):
                    while not until():
                        await trio.sleep(0.005)
                nursery.cancel_scope.cancel()

        trio.run(main)

    def close(self) -> None:
        self.call(self.plane.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()
        assert not self.errors


class Mesh:
    """A workload that may reach WEB, which the neighbour serves, and the proxy between them."""

    def __init__(self, world: World, proxy: Proxy) -> None:
        self.world = world
        self.proxy = proxy
        self.workload, self.neighbour = world.netns("workload"), world.netns("neighbour")
        self.rules = replace(
            ruleset(self.workload, WORKLOAD),
            routes=frozenset(
                {
                    Route(vip=IPv4Address(VIP), port=8080, protocol=Protocol.TCP, proxy_port=29001),
                    Route(vip=IPv4Address(VIP), port=8080, protocol=Protocol.UDP, proxy_port=29002),
                }
            ),
        )
        self.served = ruleset(self.neighbour, NEIGHBOUR)
        for name, rules in (("workload", self.rules), ("neighbour", self.served)):
            world.nft(name, render_workload(rules))
        self.server = world.serve("the server", "neighbour", "tcp", 80)
        self.server.settimeout(SECONDS)
        backend = Backend(address=IPv4Address(NEIGHBOUR), port=80, local=True, label="server", netns=self.neighbour.id)
        self.listener = Listener(
            destination=WEB,
            port=29001,
            vip=IPv4Address(VIP),
            callers=frozenset({IPv4Address(WORKLOAD)}),
            backends=(backend,),
        )
        proxy.call(proxy.plane.open_listener, self.listener)

    def open(self) -> None:
        """Open both doors. Workers that are still starting answer once they serve them."""
        self.proxy.open(self.rules, self.served)
        self.proxy.ask(api.LEFT)

    def open_dns(self) -> None:
        """Open the workload's door for DNS as well, and lead its questions there."""
        (door,) = doors({self.rules.netns.id: self.rules}).values()
        self.proxy.doors.dns.open(self.workload, door.door)
        self.world.nft("workload", LEAD_DNS)
        self.proxy.ask(api.LEFT)

    def dial(self, source: str | None = None) -> socket.socket:
        """Return a connection of the workload to the service."""
        sock = self.world.socket("workload", "tcp")
        if source is not None:
            sock.bind((source, 0))
        sock.connect((VIP, 8080))
        return sock

    def dial_from(self, port: int, to: int) -> socket.socket:
        """Return a connection of the workload to that port of the service, from that port of its own."""
        sock = self.world.socket("workload", "tcp")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", port))
        sock.connect((VIP, to))
        return sock

    def passes(self) -> bool:
        """Return whether a new connection carries something there and back."""
        with self.dial() as client:
            served, _ = self.server.accept()
            served.settimeout(SECONDS)
            with served:
                client.sendall(b"question")
                served.sendall(b"answer" if served.recv(100) == b"question" else b"")
                return client.recv(100) == b"answer"


def ruleset(netns: Netns, address: str) -> WorkloadRuleset:
    """Return the rules of a workload without routes."""
    return WorkloadRuleset(
        netns=netns,
        proxy=IPv4Address(HOST),
        dns_port=53,
        vip_range=IPv4Network("240.0.0.0/4"),
        proxy_ports=(20000, 29999),
        gateways=frozenset({IPv4Address(HOST)}),
        hosts=frozenset({IPv4Address(HOST)}),
        subnets=frozenset({IPv4Network("172.30.0.0/16")}),
        address=IPv4Address(address),
        door=True,
    )


@contextmanager
def proxied(kind: type[Kind], workers: int) -> Iterator[Kind]:
    """Make such a mesh, with a data plane in this process or in so many workers."""
    with World() as world, closing(Proxy(workers)) as proxy:
        yield kind(world, proxy)


def packets(world: World, name: str) -> int:
    """Return how many packets the workload's link has carried."""

    def read() -> str:
        with open("/proc/thread-self/net/dev") as file:  # noqa: PTH123 — of this thread's namespace
            return file.read()

    line = next(line for line in inside(world.path(name), read).splitlines() if "eth0:" in line)
    counters = line.partition(":")[2].split()
    return int(counters[1]) + int(counters[9])


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds: the kernel takes namespaces apart in its own time."""
    end = time.monotonic() + 10
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end
        pause.wait(0.01)
