"""A machine whose control plane fails and hangs as it is told, with a Consul server and traffic."""

from __future__ import annotations

import socket
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx2
from cluster import Kept, Load, Server
from machine import IMAGE, Program, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from machine import Machine

SECONDS = 3.0
"""The longest that a part may show nothing, in these tests."""
FOUND_OUT = SECONDS + 1.0
"""Seconds in which a part that hangs is cancelled: checks are made twice a second."""
BACK = 5.0
"""Seconds in which it must be back then."""
PAIR = f"""
pair = service("pair", count=2, containers=[container("server", image="{IMAGE}", ports=[7000, "7000/udp"])])
"""


class Faulty:
    """A machine whose appliance does what it is told, and a Consul server."""

    def __init__(self, machine: Machine, consul: Server) -> None:
        self.machine = machine
        self.consul = consul
        self.place = machine.root / "faults.sock"

    def tell(self, word: str, name: str) -> None:
        """Let a part fail or hang."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
            speaker.connect(str(self.place))
            speaker.send(f"{word} {name}".encode())

    def ask(self, noun: str) -> Any:
        """Return what the admin API says; None while it does not answer."""
        transport = httpx2.HTTPTransport(uds=str(self.machine.root / "run/admin.sock"))
        with suppress(httpx2.HTTPError), httpx2.Client(transport=transport, base_url="http://it", timeout=2.0) as http:
            return http.get(f"/v1/{noun}").json()
        return None

    def metrics(self) -> str:
        """Return all metrics."""
        transport = httpx2.HTTPTransport(uds=str(self.machine.root / "run/admin.sock"))
        with httpx2.Client(transport=transport, base_url="http://it", timeout=5.0) as http:
            return http.get("/metrics").text

    def lasting(self) -> list[str]:
        """Return the names of the parts that last."""
        return [name for name, part in self.parts().items() if part["state"] != "ended"]

    def parts(self) -> dict[str, dict[str, Any]]:
        """Return the parts with their states; none while the admin API does not answer."""
        status = self.ask("status")
        return status["parts"] if status else {}

    def back(self, before: dict[str, dict[str, Any]], *names: str) -> bool:
        """Whether these were started again and are at work."""
        now = self.parts()
        return bool(now) and all(
            now[name]["restarts"] > before[name]["restarts"] and now[name]["state"] == "running" for name in names
        )

    def well(self) -> bool:
        """Whether all parts are at work."""
        now = self.parts()
        return bool(now) and all(part["state"] in {"running", "ended"} for part in now.values())

    def serves(self, client: str) -> bool:
        """Whether a container gets answers."""
        return "answer" in self.machine.client(client, "tcp", "server.pair", "7000", "1")[0]

    @property
    def registered(self) -> bool:
        """Whether this machine and what it serves are healthy in Consul, as other machines see it."""
        passing = [self.consul.get(f"/v1/health/service/{name}?passing=1") for name in ("meshbox", "pair")]
        return all(passing)


@contextmanager
def faulty_world(machine: Machine) -> Iterator[Faulty]:
    """A deployed service and a client that may reach it."""
    machine.stop()
    consul = Server(machine, ())  # type: ignore[arg-type]
    made = Faulty(machine, consul)
    try:
        consul.launch()
        consul.wait_for_leader()
        machine.appliance = Program(
            machine.netns,
            (sys.executable, Path(__file__).parent / "faultyappliance.py", made.place, str(SECONDS)),
            machine.root / "meshbox.log",
            {**machine.settings, "MESHBOX_CONSUL": "http://127.0.0.1:8500"},
        )
        wait_until(machine._ready, "the appliance answers")
        machine.deploy(PAIR)
        machine.run_container("client", IMAGE, service="near", container="client", connect_to="server.pair")
        wait_until(lambda: len(heard(machine)) == 2, "both replicas answer")
        wait_until(lambda: made.registered, "Consul knows")
        yield made
        machine.clear()
        wait_until(lambda: not machine.containers("label=meshbox.revision"), "nothing is left")
    finally:
        machine.stop()
        consul.stop()
        made.place.unlink(missing_ok=True)


def heard(machine: Machine) -> set[str]:
    """Return who answers."""
    return {one["answer"] for one in machine.client("client", "tcp", "server.pair", "7000", "20") if "answer" in one}


class Traffic:
    """New connections with their DNS questions, datagrams, and connections that are kept, while the block lasts."""

    def __init__(self, faulty: Faulty) -> None:
        where = (faulty.machine, "client", "server.pair", "7000")
        self.faulty = faulty
        self.loads = (Load(*where, pause_ms=10), Load(*where, pause_ms=50, udp=True))
        self.kept = Kept(*where, tcp=4, udp=2)

    def __enter__(self) -> Self:
        self.kept.__enter__()
        for load in self.loads:
            load.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for load in self.loads:
            load.__exit__(*error)
        self.kept.__exit__(*error)
        assert [load.failures for load in self.loads] == [[], []]
        assert all(load.count > 20 for load in self.loads)
        assert self.kept.broken() == []
