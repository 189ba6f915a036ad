"""One container takes as much as it can of what all share, and the others notice nothing.

The appliance has 600 open files, so that little is enough. bench/works/shares.py measures the same at full speed.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from machine import IMAGE, ROOT, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from machine import Machine

pytestmark = pytest.mark.system

FILES = 600
SECONDS = 4
MOST_SECONDS = 60
MANY = """
import socket, time
one, two = socket.create_server(("", 10000)), socket.create_server(("127.0.0.1", 10001))
time.sleep(600)
"""
"""Listens at a port of two, and at the other on loopback only."""
SIX = """
import socket, time
server = socket.create_server(("", 7200), family=socket.AF_INET6, dualstack_ipv6=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def mesh(machine: Machine) -> Iterator[Machine]:
    """A machine whose appliance may open few files, with two services, an attacker of one and a client of the other."""
    machine.stop()
    machine.start(open_files=f"{FILES}:{FILES}")
    for name in ("held", "good"):
        machine.run_container(name, IMAGE, service=name, container=name, ports="7000")
    machine.run_container("attacker", IMAGE, service="bad", container="bad", connect_to="held.held")
    machine.run_container("client", IMAGE, service="near", container="near", connect_to="good.good")
    wait_until(lambda: answered(machine, "client", "good.good"), "the client reaches its server")
    wait_until(lambda: answered(machine, "attacker", "held.held"), "the attacker reaches the other one")
    yield machine
    machine.clear()
    machine.stop()


def answered(mesh: Machine, client: str, name: str, count: int = 1) -> bool:
    """Return whether so many connections in a row are answered."""
    (results,) = mesh.client(client, "dials", f"tcp/{name}/7000/{count}").values()
    return all("answer" in one for one in results)


def ready(mesh: Machine, name: str) -> str:
    """Return what the container lacks, or "ready"."""
    (row,) = [row for row in mesh.show("workloads") if row["docker_name"] == name]
    return "ready" if row["ready"] else str(row["waits_for"])


@contextmanager
def attack(mesh: Machine, name: str) -> Iterator[None]:
    """Attack from within the attacker's namespace, for MOST_SECONDS at most."""
    address = mesh.client("attacker", "resolve", "held.held")["addresses"][0]
    netns = mesh.netns_dir / mesh.inspect("attacker")["NetworkSettings"]["SandboxKey"].rpartition("/")[2]
    command = [sys.executable, "-m", "bench.attacks", name, str(MOST_SECONDS), address, "7000"]
    with subprocess.Popen(["nsenter", f"--net={netns}", *command], cwd=ROOT) as attacker:
        try:
            yield
            assert attacker.poll() is None, "it had to go on until now"
        finally:
            attacker.terminate()


def shares(mesh: Machine) -> list[dict[str, Any]]:
    """Return what the check says of callers that hold more than their share."""
    return [row for row in mesh.show("check") if row["subject"] == "share"]


def test_one_container_takes_all_connections(mesh: Machine) -> None:
    """Nobody else is reset, the admin API answers, a new container has its rules, and the check names who it was."""
    met: dict[str, Any] = {}

    def load() -> None:
        met.update(mesh.client("client", "crowd", "loop", "good.good", "7000", str(SECONDS), "4"))

    client = threading.Thread(target=load)
    with attack(mesh, "connections"):
        wait_until(lambda: shares(mesh), "the attacker gives way")
        client.start()
        mesh.run_container("late", IMAGE, service="late", container="late", connect_to="good.good")
        assert answered(mesh, "late", "good.good", 10)
        assert "table inet meshbox" in mesh.meshbox("rules", "late").stdout
        client.join()
        (row,) = shares(mesh)
    assert not met["failures"], met
    assert sum(met["counts"]) > 100
    assert row["words"].startswith("attacker (")
    assert row["level"] == "warning"
    assert mesh.appliance is not None
    assert mesh.appliance.running
    log = mesh.log()
    assert log.count("more than its share of open files") == 1
    assert "out of file descriptors" not in log
    assert "Traceback" not in log


def test_ports_are_found_without_a_dial(mesh: Machine) -> None:
    """Many ports of one container keep no other from being ready; what listens on loopback only is not ready."""
    many = ",".join(map(str, range(10_000, 10_255)))
    mesh.run_container("many", IMAGE, "python3", "-c", MANY, service="many", container="many", ports=many)
    mesh.run_container("six", IMAGE, "python3", "-c", SIX, service="six", container="six", ports="7200")
    wait_until(lambda: ready(mesh, "six") == "ready", "a listener of IPv6 that takes IPv4 is found", seconds=5)
    wait_until(lambda: "10001" in ready(mesh, "many"), "one of many is found, and not the one on loopback", seconds=5)


def test_a_port_that_rules_in_the_container_lead_elsewhere(mesh: Machine) -> None:
    """No program listens there, so a dial finds it, a little later."""
    mesh.run_container("led", IMAGE, service="led", container="led", ports="7000,7300")
    rules = "table ip led { chain in { type nat hook prerouting priority -100; tcp dport 7300 redirect to :7000; }; }"
    mesh.exec_in("led", "nft", rules)
    wait_until(lambda: ready(mesh, "led") == "ready", "a dial is accepted", seconds=15)
