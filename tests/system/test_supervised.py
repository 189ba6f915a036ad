"""Every part of the control plane fails and hangs, under traffic: nobody notices, and the part is back in time.

The parts are those that the appliance itself names, so one that is added is tried as well.
"""

from __future__ import annotations

import resource
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx2
import pytest
from cluster import Kept, Load, Server
from machine import IMAGE, Program, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from machine import Machine

pytestmark = pytest.mark.system

SECONDS = 3.0
"""The longest that a part may show nothing, in these tests."""
FOUND_OUT = SECONDS + 1.0
"""Seconds in which a part that hangs is cancelled: checks are made twice a second."""
BACK = 5.0
"""Seconds in which it must be back then."""
PAIR = f"""
pair = service("pair", count=2, containers=[container("server", image="{IMAGE}", ports=[7000, "7000/udp"])])
"""
ENDED = "ended"
"""The state of a part that has done all that it had to do."""


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

    @property
    def registered(self) -> bool:
        """Whether this machine and what it serves are healthy in Consul, as other machines see it."""
        passing = [self.consul.get(f"/v1/health/service/{name}?passing=1") for name in ("meshbox", "pair")]
        return all(passing)


@pytest.fixture(scope="module")
def faulty(machine: Machine) -> Iterator[Faulty]:
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


def test_a_part_that_raises_is_back_and_nobody_notices(faulty: Faulty) -> None:
    """Each in turn, with an exception that nobody has foreseen; it is counted, and told with its traceback."""
    names = [name for name, part in faulty.parts().items() if part["state"] != ENDED]
    assert len(names) > 20
    late = {}
    with Traffic(faulty):
        for name in names:
            before = wait_until(faulty.parts, "the admin API answers")
            began = time.monotonic()
            faulty.tell("raise", name)
            wait_until(lambda name=name, before=before: faulty.back(before, name), f"{name} is back", pause=0.02)
            late[name] = time.monotonic() - began
            assert faulty.registered, name
    assert {name: seconds for name, seconds in late.items() if seconds > BACK} == {}
    log = faulty.machine.log()
    assert [name for name in names if f"RuntimeError: {name} was told to fail" not in log] == []
    assert "Traceback" in log
    check = faulty.machine.meshbox("check", check=False, consul="http://127.0.0.1:8500").stdout
    assert "deployer was told to fail" in check
    assert 'meshbox_part_restarts_total{part="reconciler"} ' in metrics(faulty)


def test_parts_that_hang_are_back_and_nobody_notices(faulty: Faulty) -> None:
    """All at once: none of them needs another to be found out."""
    names = [name for name, part in faulty.parts().items() if part["state"] != ENDED and name != "supervisor"]
    with Traffic(faulty):
        before = faulty.parts()
        began = time.monotonic()
        for name in names:
            faulty.tell("hang", name)
        wait_until(lambda: faulty.back(before, *names), "all are back", seconds=40, pause=0.1)
        took = time.monotonic() - began
        assert took <= FOUND_OUT + BACK
        wait_until(lambda: faulty.registered, "Consul knows", seconds=0.1)


def test_what_happens_meanwhile_is_made_up_for(faulty: Faulty) -> None:
    """Containers that come and go while every part hangs get what they should have once the parts are back."""
    machine = faulty.machine
    names = [name for name, part in faulty.parts().items() if part["state"] != ENDED and name != "supervisor"]
    before = faulty.parts()
    with Traffic(faulty):
        for name in names:
            faulty.tell("hang", name)
        machine.run_container("late", IMAGE, service="near", container="late", connect_to="server.pair")
        wait_until(lambda: faulty.back(before, *names), "all are back", seconds=40, pause=0.1)
        wait_until(
            lambda: "answer" in machine.client("late", "tcp", "server.pair", "7000", "1")[0], "it is served", seconds=10
        )
    machine.docker("rm", "--force", "late")
    wait_until(lambda: len(faulty.ask("workloads") or range(9)) == 3, "it is forgotten")


def test_without_a_descriptor_left_it_goes_on(faulty: Faulty) -> None:
    """What is open stays open; a container that starts meanwhile gets its rules once there are descriptors again."""
    machine = faulty.machine
    assert machine.appliance is not None
    pid = machine.appliance.pid
    with Kept(machine, "client", "server.pair", "7000", tcp=4, udp=1) as kept:
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
            machine.run_container("late", IMAGE, service="near", container="late", connect_to="server.pair")
            wait_until(lambda: "Too many open files" in machine.log(), "it has met the limit")
            assert machine.appliance.running
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        wait_until(
            lambda: "answer" in machine.client("late", "tcp", "server.pair", "7000", "1")[0], "it is served", seconds=40
        )
    assert kept.broken() == []
    machine.docker("rm", "--force", "late")


def metrics(faulty: Faulty) -> str:
    """Return all metrics."""
    transport = httpx2.HTTPTransport(uds=str(faulty.machine.root / "run/admin.sock"))
    with httpx2.Client(transport=transport, base_url="http://it", timeout=5.0) as http:
        return http.get("/metrics").text
