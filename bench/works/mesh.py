"""Many machines: how soon a registration is usable elsewhere, and what a big mesh costs one appliance.

`mesh` has two whole machines. `scale` has one, and a Consul with 50 simulated ones and 5 registrations for each
service. Nothing answers at their addresses, and nothing is sent there.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from ipaddress import IPv4Address
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from appliance.drivers.consul import codec
from appliance.model.facts import Machine
from appliance.model.names import Destination
from appliance.model.network import Registration
from bench.errors import BenchError
from bench.figures import Figure, Sample, Work
from bench.works.appliance import NOT_PINNED, TESTS, cpu_seconds, family, resident

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Self

    from bench.lab import Lab

IMAGE = "meshbox-test"
STARTS, QUICK_STARTS = 20, 5
MACHINES = 50
REPLICAS = 5
"""Machines that serve each service."""
CHANGES = 10
"""Changes of each kind in one measurement; their median counts."""
IDLE_SECONDS, QUICK_IDLE_SECONDS = 10.0, 4.0
PATIENCE = 60.0
"""Seconds after which a change that is not applied is a failure."""
CASES = {"20 of 20": (20, 20), "20 of 200": (20, 200), "100 of 200": (100, 200)}
"""Services that the container may reach, and services that exist."""


@contextmanager
def _cluster(count: int) -> Iterator[Any]:
    sys.path.insert(0, str(TESTS))
    from cluster import Cluster  # noqa: PLC0415 — the tests' machines, which only these works need
    from machine import IMAGES, DockerError, Switch  # noqa: PLC0415

    try:
        with Switch() as switch, Cluster(switch, first=1, count=count, images={IMAGE: IMAGES[IMAGE]}) as cluster:
            yield cluster
    except (AssertionError, DockerError) as error:
        raise BenchError(str(error)) from error


# -- registration to first connection


@contextmanager
def _registration(lab: Lab) -> Iterator[Mapping[str, Callable[[], Sample]]]:
    with _cluster(2) as cluster:
        one, two = cluster.machines
        one.run_container("client", IMAGE, service="near", container="client", connect_to="server.late")
        labels = ("service=late", "container=server", "ports=7000")
        two.docker("create", "--name=late", *(f"--label=meshbox.{label}" for label in labels), IMAGE)
        yield {"meshbox": partial(_measure_registration, one, two, QUICK_STARTS if lab.quick else STARTS)}


def _measure_registration(one: Any, two: Any, starts: int) -> Sample:
    delays = [_first_connection(one, two) for _ in range(starts)]
    return {"median ms": median(delays) * 1000, "95th percentile ms": quantiles(delays, n=20)[-1] * 1000}


def _first_connection(one: Any, two: Any) -> float:
    """Start `late` on the second machine; return the seconds from its registration to an answer on the first."""
    with ThreadPoolExecutor(2) as workers:
        registered = workers.submit(two.consul.registered, "late")
        answered = workers.submit(one.client, "client", "until", "server.late", "7000", "30")
        two.docker("start", "late")
        first = answered.result()["at"]
        if first is None:
            raise BenchError("what another machine registered was not reached within 30 s")
        took = float(first) - float(registered.result())
    two.docker("stop", "--time=0", "late")
    _wait(lambda: "error" in one.client("client", "tcp", "server.late", "7000", "1")[0], "the stopped one is refused")
    return took


# -- a big mesh


class _Mesh:
    """A machine, and the simulated ones that its Consul knows."""

    def __init__(self, machine: Any) -> None:
        self._machine = machine
        self._watched = self._existing = 0
        self._others = [
            Machine(node=f"sim-{n}", address=IPv4Address("10.99.0.1") + n, meta=()) for n in range(MACHINES)
        ]
        for other in self._others:
            self._register(other, codec.machine_service(other))

    def set_up(self, watched: int, existing: int) -> None:
        """Replace all services, and start a container that may reach some of them."""
        for number in range(self._existing, existing):
            for replica in range(REPLICAS):
                self.announce(number, replica)
        for number in range(existing, self._existing):
            for replica in range(REPLICAS):
                self.withdraw(number, replica)
        self._existing, self._watched = existing, watched
        machine = self._machine
        machine.stop()
        if machine.containers():
            machine.docker("rm", "--force", "client")
        names = ",".join(f"c.s{number}" for number in range(watched))
        machine.run_container("client", IMAGE, service="near", container="client", connect_to=names)
        machine.start()
        _wait(self._known, f"{watched} services are known")

    def _known(self) -> bool:
        rows = [row for row in self._machine.show("routes") if row["destination"].startswith("c.s")]
        return len(rows) == self._watched and all(len(row["backends"]) == REPLICAS for row in rows)

    def announce(self, service: int, replica: int, port: int = 80, weight: int = 1) -> None:
        """Let a simulated machine announce that it serves something."""
        other, destination = self._place(service, replica, port)
        r = Registration(destination=destination, proxy_port=20000 + service, weight=weight)
        self._register(other, codec.destination_service(other, r))

    def withdraw(self, service: int, replica: int, port: int = 80) -> None:
        """Let it withdraw that."""
        other, destination = self._place(service, replica, port)
        service_id = codec.destination_id(other.node, destination)
        self._call("/v1/catalog/deregister", {"Node": other.node, "ServiceID": service_id})

    def _place(self, service: int, replica: int, port: int) -> tuple[Machine, Destination]:
        other = self._others[(service * REPLICAS + replica) % MACHINES]
        return other, Destination.parse(f"c.s{service}:{port}/tcp")

    def _register(self, other: Machine, arguments: Mapping[str, Any]) -> None:
        service_id = arguments["service_id"]
        service = {
            "ID": service_id,
            "Service": arguments["name"],
            "Tags": arguments.get("tags", []),
            "Address": arguments["address"],
            "Port": arguments.get("port", 0),
            "Meta": arguments["meta"],
        }
        check = {"CheckID": service_id, "Name": "simulated", "ServiceID": service_id, "Status": "passing"}
        node = {"Node": other.node, "Address": str(other.address)}
        self._call("/v1/catalog/register", {**node, "Service": service, "Check": check})

    def _call(self, path: str, body: Mapping[str, Any]) -> None:
        answer = self._machine.consul.request("PUT", path, body)
        if answer.status_code != 200:
            raise BenchError(f"Consul refuses {path}: {answer.text[:200]}")

    def measure(self, case: str, idle_seconds: float) -> Sample:
        """Set a case up and measure it."""
        self.set_up(*CASES[case])
        pid = self._machine.appliance.pid
        never = threading.Event()
        never.wait(2)  # until the work that follows a start is done
        with _Used(pid) as idle:
            never.wait(idle_seconds)
        with self._commits() as committed, _Used(pid) as changing:
            times = [self._change(number, committed) for number in range(CHANGES)]
        with _Used(pid) as elsewhere:
            for number in range(CHANGES):
                self.announce(999, number % REPLICAS, weight=number + 2)
                never.wait(0.2)
        for replica in range(REPLICAS):
            self.withdraw(999, replica)
        return {
            "idle: % of a core": idle.seconds / idle_seconds * 100,
            "change to rules, median ms": median(times) * 1000,
            "CPU ms per change": changing.seconds / CHANGES * 1000,
            "CPU ms per change elsewhere": elsewhere.seconds / CHANGES * 1000,
            "resident MiB": sum(map(resident, family(pid))) / 1024,
            "open queries": self._machine.show("peers")["open_queries"],
        }

    def _change(self, number: int, committed: Callable[[], float]) -> float:
        """Add or remove a port of a watched service; return the seconds until the container's rules have it."""
        begin = time.monotonic()
        if number % 2:
            self.withdraw(0, 0, port=81)
        else:
            self.announce(0, 0, port=81)
        return committed() - begin

    @contextmanager
    def _commits(self) -> Iterator[Callable[[], float]]:
        """Yield a function that waits for the next change of the container's rules and returns when it was."""
        path = self._machine.inspect("client")["NetworkSettings"]["SandboxKey"]
        command = ["nsenter", f"--net={path}", "stdbuf", "-oL", "nft", "monitor"]
        monitor = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        seen: list[float] = []
        more = threading.Condition()

        def read() -> None:
            for line in monitor.stdout or ():
                if line.startswith((b"add element", b"delete element", b"add rule")):
                    with more:
                        seen.append(time.monotonic())
                        more.notify()

        def committed() -> float:
            with more:
                if not more.wait_for(lambda: seen, PATIENCE):
                    raise BenchError(f"a change was not applied within {PATIENCE:.0f} s")
                when = seen[0]
            threading.Event().wait(0.3)  # until this change is done with
            with more:
                seen.clear()
            return when

        reader = threading.Thread(target=read)
        reader.start()
        try:
            threading.Event().wait(0.5)  # until it listens
            yield committed
        finally:
            monitor.terminate()
            monitor.wait()
            reader.join()


class _Used:
    """CPU seconds of a process and its children within a block, with those that have ended."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.seconds = 0.0

    def __enter__(self) -> Self:
        self.seconds = -sum(map(cpu_seconds, family(self._pid)))
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = max(0.0, self.seconds + sum(map(cpu_seconds, family(self._pid))))


@contextmanager
def _scale(lab: Lab) -> Iterator[Mapping[str, Callable[[], Sample]]]:
    with ExitStack() as stack:
        (machine,) = stack.enter_context(_cluster(1)).machines
        mesh = _Mesh(machine)
        idle = QUICK_IDLE_SECONDS if lab.quick else IDLE_SECONDS
        yield {case: partial(mesh.measure, case, idle) for case in CASES}


def _wait(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise BenchError(f"after {PATIENCE:.0f} s still not: {what}")
        threading.Event().wait(0.1)


def _title(starts: int) -> str:
    return f"Two machines with Consul: from registration to the first connection from the other, {starts} times"


WORKS = (
    Work(
        name="mesh",
        title=_title(STARTS),
        quick_title=_title(QUICK_STARTS),
        note=NOT_PINNED,
        figures=(Figure(name="median ms", better="lower"), Figure(name="95th percentile ms", better="lower")),
        open=_registration,
        reference="meshbox",
    ),
    Work(
        name="scale",
        title=f"One appliance in a mesh of {MACHINES} simulated machines: services watched of those that exist, "
        f"{REPLICAS} registrations each",
        figures=(
            Figure(name="idle: % of a core", better="lower", digits=2),
            Figure(name="change to rules, median ms", better="lower"),
            Figure(name="CPU ms per change", better="lower", digits=1),
            Figure(name="CPU ms per change elsewhere", better="lower", digits=1),
            Figure(name="resident MiB", better="lower", digits=1),
            Figure(name="open queries", better="lower"),
        ),
        note=NOT_PINNED,
        open=_scale,
        reference="20 of 200",
    ),
)
