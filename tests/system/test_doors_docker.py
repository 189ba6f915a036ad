"""Which way connections between containers take, by what the server sees: from inside its namespace, or not."""

from __future__ import annotations

import socket
import sys
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

import pytest
from machine import IMAGE, wait_until

from appliance.drivers.netns.netlink import entered
from appliance.render.ruleset import DOOR_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from machine import Machine

pytestmark = pytest.mark.system

INSIDE = IPv4Network("240.0.0.0/8")
RESOLVE = """
import sys
import dns.message, dns.query
for server, name in (words.split("/") for words in sys.argv[1:]):
    found = dns.query.udp(dns.message.make_query(name, "A"), server, 5)
    print(*(str(record) for rrset in found.answer for record in rrset) or [found.rcode()])
"""
ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], 7003), 5) as sock:
    sock.sendall(b"who\\n")
    print(sock.recv(100).decode())
"""

REVERSE = """
import sys, dns.message, dns.query, dns.reversename
asked = dns.message.make_query(dns.reversename.from_address(sys.argv[1]), "PTR")
print(dns.query.udp(asked, sys.argv[2], timeout=5).answer[0][0])
"""


def caller(machine: Machine, name: str) -> str:
    """Return where a connection of the container `client` comes from, in the eyes of a server that it reaches."""
    address = machine.meshbox("resolve", name, "--from", "client.near").stdout.split()[0]
    return machine.exec_in("client", sys.executable, "-c", ASK, address).stdout.strip()


def populate(machine: Machine) -> str:
    """Run a server, one with rights of its own over its network, and a client; return the gateway of all three."""
    machine.run_container("plain", IMAGE, service="far", container="plain", ports="7003")
    machine.run_container("own", IMAGE, options=["--cap-add=NET_ADMIN"], service="far", container="own", ports="7003")
    machine.run_container("client", IMAGE, service="near", container="client", connect_to="plain.far,own.far")
    ready = {"plain", "own"}
    wait_until(lambda: ready <= {w["docker_name"] for w in machine.show("workloads") if w["ready"]}, "both serve")
    return str(machine.inspect("plain")["NetworkSettings"]["Gateway"])


def test_servers_are_dialled_inside_unless_they_may_have_rules_of_their_own(mesh: Machine) -> None:
    """A container that may have rules for what comes in is dialled from the host, so that such rules see it."""
    gateway = populate(mesh)
    wait_until(lambda: IPv4Address(caller(mesh, "plain.far")) in INSIDE, "the doors are open")
    assert caller(mesh, "own.far") == gateway
    assert "its door is open: the proxy accepts" in mesh.meshbox("why", "client.near", "plain.far:7003").stdout
    assert {w["door"] for w in mesh.show("workloads")} == {"open"}


def test_a_caller_is_seen_by_an_address_of_its_own_that_stays(idle: Machine) -> None:
    """Over restarts of the caller, of the server and of the appliance; its reverse name is the caller's."""
    idle.start()
    gateway = populate(idle)
    idle.run_container("other", IMAGE, service="near", container="other", connect_to="plain.far")

    def seen(name: str = "client") -> str:
        address = idle.meshbox("resolve", "plain.far", "--from", f"{name}.near").stdout.split()[0]
        return idle.exec_in(name, sys.executable, "-c", ASK, address).stdout.strip()

    def inside(name: str = "client") -> str:
        wait_until(lambda: seen(name) != gateway, "the doors are open")
        return seen(name)

    first, other = inside(), inside("other")
    assert first != other
    assert IPv4Address(first) in INSIDE
    assert idle.exec_in("plain", sys.executable, "-c", REVERSE, first, gateway).stdout.strip() == "client.near."
    idle.docker("restart", "-t", "0", "client")
    idle.docker("restart", "-t", "0", "plain")
    wait_until(lambda: {"plain", "client"} <= {w["docker_name"] for w in idle.show("workloads") if w["rules"]}, "back")
    wait_until(lambda: all(w["ready"] for w in idle.show("workloads") if w["docker_name"] == "plain"), "it serves")
    assert inside() == first
    idle.stop()
    idle.start()
    assert (inside(), inside("other")) == (first, other)


def test_a_door_that_cannot_be_opened_is_told_with_its_cause(idle: Machine) -> None:
    """A container holds the door's own port: `why` and `workloads` say so, and that it opens once the port is free."""
    idle.run_container("server", IMAGE, service="far", container="server", ports="7003")
    idle.run_container("client", IMAGE, service="near", container="client", connect_to="server.far")
    with occupied(idle, "client"):
        idle.start()

        def told() -> bool:
            return "in use" in (door_of(idle, "client") or "")

        wait_until(told, "the fault is told")
        taken = "cannot listen at its port 4: Address already in use"
        assert door_of(idle, "client") == f"no: {taken}"
        assert door_of(idle, "server") == "open"
        words = idle.meshbox("why", "client.near", "server.far:7003").stdout
        assert f"on the host; its door is not open: {taken}" in words
        assert "Address already in use" in idle.meshbox("workloads").stdout
    # It is tried again after up to 30 s, and at once when its rules are put back.
    idle.exec_in("client", "nft", "delete", "table", "inet", "meshbox")
    wait_until(lambda: door_of(idle, "client") == "open", "the door is open")
    assert "its door is open" in idle.meshbox("why", "client.near", "server.far:7003").stdout


@contextmanager
def occupied(machine: Machine, name: str) -> Iterator[None]:
    """Hold the door's port inside a container's namespace."""
    path = machine.inspect(name)["NetworkSettings"]["SandboxKey"]
    with socket.socket(fileno=entered(path, lambda: socket.socket().detach())) as holder:
        holder.bind(("127.0.0.1", DOOR_PORT))
        holder.listen()
        yield


def door_of(machine: Machine, name: str) -> str | None:
    """Return what `workloads` says of a container's door."""
    (row,) = (w for w in machine.show("workloads") if w["docker_name"] == name)
    return row["door"]


def test_without_doors_all_goes_through_the_host(idle: Machine) -> None:
    """Also where an appliance with doors was before; and with doors again, as at first."""
    idle.start()
    gateway = populate(idle)
    wait_until(lambda: IPv4Address(caller(idle, "plain.far")) in INSIDE, "the doors are open")
    idle.stop()
    idle.start(doors="false")
    assert caller(idle, "plain.far") == gateway
    idle.stop()
    idle.start()
    wait_until(lambda: IPv4Address(caller(idle, "plain.far")) in INSIDE, "the doors are open")


def test_names_of_the_mesh_come_before_dockers_own(mesh: Machine) -> None:
    """A container is called as a name of the mesh is, another has it as an alias; all others are Docker's to answer."""
    mesh.docker("network", "create", "users")
    try:
        on = ["--network=users"]
        mesh.run_container("web.far", IMAGE, options=on, service="far", container="web", ports="7003")
        alias = [*on, "--network-alias=api.far"]
        mesh.run_container("api", IMAGE, options=alias, service="far", container="api", ports="7003")
        mesh.run_container(
            "client", IMAGE, options=on, service="near", container="client", connect_to="web.far,api.far"
        )
        wait_until(lambda: door_of(mesh, "client") == "open", "the door is open")
        vips = [mesh.meshbox("resolve", n, "--from", "client.near").stdout.split()[0] for n in ("web.far", "api.far")]
        asked = [f"127.0.0.11/{name}" for name in ("web.far", "api.far", "api")]
        found = mesh.exec_in("client", sys.executable, "-c", RESOLVE, *asked).stdout.split()
        own = mesh.inspect("api")["NetworkSettings"]["Networks"]["users"]["IPAddress"]
        assert found == [*vips, own]
        assert mesh.metric("meshbox_dns_relayed_total") == 1
    finally:
        mesh.docker("rm", "--force", "web.far", "api", "client")
        mesh.docker("network", "rm", "users")
