"""What was not declared is refused at once, whichever way it is tried; what has nothing to do with us goes on."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import pytest
from machine import IMAGE, Program, wait_until

if TYPE_CHECKING:
    from machine import Machine

pytestmark = pytest.mark.system

AT_ONCE = 100
"""Milliseconds (issue: TCP is refused within)."""


@pytest.fixture
def village(mesh: Machine) -> Machine:
    """`server` offers 7000 of its ports, `friend` declared it, `stranger` did not, `outsider` is not in the mesh."""
    mesh.run_container(
        "server", IMAGE, options=("--publish=17002:7002",), service="far", container="server", ports="7000,7000/udp"
    )
    mesh.run_container("friend", IMAGE, service="near", container="friend", connect_to="server.far")
    mesh.run_container("stranger", IMAGE, service="near", container="stranger")
    mesh.run_container("outsider", IMAGE)
    wait_until(lambda: "answer" in mesh.client("friend", "tcp", "server.far", "7000", "1")[0], "the server answers")
    return mesh


def refused(mesh: Machine, who: str, address: str, port: int | str, protocol: str = "tcp") -> None:
    """Check that a dial is refused at once."""
    results = mesh.client(who, protocol, address, str(port), "3")
    for one in results:
        assert one.get("error") in {"ECONNREFUSED", "EPERM", "EACCES", "EHOSTUNREACH", "ECONNRESET"}, results
    assert min(one["ms"] for one in results) < AT_ONCE, results


def answers(result: list[dict[str, Any]]) -> bool:
    """Whether every dial was answered."""
    return all(one.get("answer") for one in result)


def virtual_address(mesh: Machine) -> str:
    """Return the address that `friend` is told for server.far."""
    return str(mesh.client("friend", "resolve", "server.far")["addresses"][0])


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_undeclared_virtual_address_is_refused(village: Machine, protocol: str) -> None:
    """A container that did not declare the destination is refused at its virtual address and is not told the name."""
    refused(village, "stranger", virtual_address(village), 7000, protocol)
    assert village.client("stranger", "resolve", "server.far")["error"] == "EAI_NONAME"


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_undeclared_port_is_refused(village: Machine, protocol: str) -> None:
    """Who may reach one port of a name may not reach its others."""
    refused(village, "friend", "server.far", 7002, protocol)


@pytest.mark.parametrize("who", ["friend", "stranger", "outsider"])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_own_address_of_a_container_is_refused(village: Machine, who: str, protocol: str) -> None:
    """Nobody goes around the proxy, neither to declared ports nor to others, also from outside the mesh."""
    for port in (7000, 7003):
        refused(village, who, village.address_of("server"), port, protocol)


def test_own_address_of_a_deployed_container_is_refused(village: Machine) -> None:
    """On its isolated network, and from any other one, Docker drops it in silence; proxy and replies still pass."""
    village.deploy(
        f"""isolated = service("isolated", containers=[
            container("server", image="{IMAGE}", ports=[7000, "7000/udp"], connect_to=["server.far"])])"""
    )
    (deployed,) = village.containers("label=meshbox.service=isolated")
    village.run_container("beside", IMAGE, options=("--network=meshbox",))
    try:
        for who in ("beside", "outsider", "friend"):
            for protocol in ("tcp", "udp"):
                refused(village, who, village.address_of(deployed), 7000, protocol)
        assert village.docker("exec", "beside", "wget", "-qO-", f"http://{village.switch.address}/")
        assert answers(village.client(deployed, "tcp", "server.far", "7000", "3"))
    finally:
        village.docker("rm", "--force", "beside")


@pytest.mark.parametrize("who", ["stranger", "outsider"])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_proxy_port_is_refused_to_others(village: Machine, who: str, protocol: str) -> None:
    """The proxy's ports answer who declared them only: at the gateway and at the host's outside address."""
    ports = village.proxy_ports(protocol)
    assert ports
    for port in ports:
        for address in ("172.21.0.1", village.address):
            refused(village, who, address, port, protocol)


def test_proxy_port_is_refused_to_the_outside(village: Machine) -> None:
    """From another computer, the proxy's ports are closed."""
    program = (
        "import socket, sys\n"
        "try: socket.create_connection((sys.argv[1], int(sys.argv[2])), 5); print('connected')\n"
        "except OSError as error: print(type(error).__name__)"
    )
    for port in village.proxy_ports():
        found = village.switch.exec("python3", "-c", program, village.address, str(port)).stdout.strip()
        assert found in {"ConnectionRefusedError", "ConnectionResetError"}


def test_other_program_of_the_host_is_left_alone(village: Machine) -> None:
    """A program whose port lies among the proxy's (a database) is reached by all as without meshbox."""
    greeter = (
        "import socketserver\n"
        "class Greet(socketserver.BaseRequestHandler):\n"
        "    def handle(self): self.request.sendall(b'database')\n"
        "with socketserver.TCPServer(('', 27017), Greet) as server: server.serve_forever()"
    )
    database = Program(village.netns, (sys.executable, "-c", greeter), village.root / "database.log")
    try:
        wait_until(lambda: 27017 in village.proxy_ports(), "the database listens")
        for who in ("friend", "stranger", "outsider"):
            for address in ("172.21.0.1", village.address):
                assert answers(village.client(who, "tcp", address, "27017", "1")), (who, address)
        program = "import socket, sys; print(socket.create_connection((sys.argv[1], 27017), 5).recv(100).decode())"
        assert village.switch.exec("python3", "-c", program, village.address).stdout.strip() == "database"
    finally:
        database.stop()


def test_outside_world_stays_in_reach(village: Machine) -> None:
    """A container of the mesh reaches what is outside, by address and by a name that is not ours."""
    for who in ("friend", "stranger", "outsider"):
        for host in (village.switch.address, "www.outside.example") if who != "outsider" else (village.switch.address,):
            assert village.docker("exec", who, "wget", "-qO-", f"http://{host}/").startswith("outside ")


def test_published_ports_still_work(village: Machine) -> None:
    """What Docker publishes is reachable from another computer."""
    program = (
        "import socket, sys; s = socket.create_connection((sys.argv[1], 17002), 5); s.sendall(b'abc'); "
        "s.shutdown(socket.SHUT_WR); print(s.recv(100).decode())"
    )
    assert village.switch.exec("python3", "-c", program, village.address).stdout.startswith("3 ba7816bf")


def test_containers_of_one_service_reach_each_other(village: Machine) -> None:
    """Without any connect_to."""
    village.run_container("sibling", IMAGE, service="far", container="sibling")
    assert answers(village.client("sibling", "tcp", "server.far", "7000", "5"))
    assert answers(village.client("sibling", "udp", "server.far", "7000", "5"))


def test_user_defined_network(village: Machine) -> None:
    """On a network with Docker's own DNS, mesh names work beside container names."""
    village.docker("network", "create", "quarter")
    try:
        village.run_container(
            "remote", IMAGE, options=("--network=quarter",), service="near", container="remote", connect_to="server.far"
        )
        assert answers(village.client("remote", "tcp", "server.far", "7000", "5"))
        assert village.client("remote", "resolve", "remote")["addresses"]
        refused(village, "remote", village.address_of("server"), 7000)
        refused(village, "friend", village.address_of("remote"), 7000)
    finally:
        village.docker("rm", "--force", "remote")
        village.docker("network", "rm", "quarter")


def test_rules_that_somebody_removes_come_back(village: Machine) -> None:
    """A ruleset that is deleted or emptied inside a container is put back within 2 s."""

    def rules() -> list[str]:
        listing = village.exec_in("stranger", "nft", "--stateless", "list", "table", "inet", "meshbox", check=False)
        return sorted(re.split(r"[\s,]+", listing.stdout))  # the kernel lists elements in any order

    whole = rules()
    for damage in ("delete table inet meshbox", "flush table inet meshbox", "flush chain inet meshbox leaving"):
        village.exec_in("stranger", "nft", *damage.split())
        wait_until(lambda: rules() == whole, f"the rules are back after `{damage}`", seconds=2)
        refused(village, "stranger", virtual_address(village), 7000)


def test_impossible_containers_are_reported(village: Machine) -> None:
    """A container on the host's network cannot be isolated; `workloads` says so by name."""
    village.run_container("hosty", IMAGE, options=("--network=host",), service="odd", container="hosty")
    lines = [line for line in village.meshbox("workloads").stdout.splitlines() if "hosty" in line]
    assert any("host" in line.replace("hosty", "") for line in lines), lines


def test_why_names_the_missing_line(village: Machine) -> None:
    """`why` says where the way ends and what to write; with the declaration it goes through."""
    refusal = village.meshbox("why", "stranger.near", "server.far:7000", check=False)
    assert refusal.returncode == 1
    assert "connect_to" in refusal.stdout
    assert "server.far:7000" in refusal.stdout
    assert village.meshbox("why", "friend.near", "server.far:7000").returncode == 0
