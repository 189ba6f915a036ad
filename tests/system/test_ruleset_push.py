"""Pushes while traffic flows: what goes on, what ends, and what a refused push leaves."""

from __future__ import annotations

import socket
import subprocess
import threading
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
import trio
from nsworld import HOST, NEIGHBOUR, REFUSED, World
from test_ruleset_walk import RULES, VIP

from appliance.drivers.netns import routes
from appliance.drivers.nft.client import Nft
from appliance.errors import RetryError
from appliance.model.names import Protocol
from appliance.model.network import Route
from appliance.render.ruleset import BRIDGE_TABLE, REMOVE, TABLE, change_workload, render_workload

pytestmark = pytest.mark.system

GOLDEN = Path(__file__).parent.parent / "render" / "golden"

UDP_ROUTE = Route(vip=IPv4Address(VIP), port=8080, protocol=Protocol.UDP, proxy_port=20002)
WITHOUT_ROUTES = replace(RULES, routes=frozenset())


@pytest.fixture
def world():
    """Bare namespaces, with a TCP and a UDP server in the proxy's place."""
    with World() as made:
        made.serve("TCP", "host", "tcp", 20001)
        made.serve("UDP", "host", "udp", 20002)
        made.serve("the neighbour", "neighbour", "tcp", 80)
        yield made


def push(world: World, *texts: str, name: str = "workload") -> None:
    """Push as the appliance does."""

    async def main() -> None:
        nft = Nft()
        for text in texts:
            await nft.push(world.path(name), text)

    trio.run(main)


def test_a_replace_under_traffic_loses_nothing(world):
    """Of 60 replaces neither a new connection, nor a stream, nor a UDP flow notices anything."""
    push(world, render_workload(RULES))
    other = replace(RULES, published=frozenset())
    pushing = threading.Thread(target=push, args=(world, *[render_workload(r) for r in (other, RULES)] * 30))
    tcp, udp = world.server("TCP"), world.server("UDP")
    with world.socket("workload", "tcp") as stream, world.socket("workload", "udp") as flow:
        stream.connect((VIP, 8080))
        flow.connect((VIP, 8080))
        accepted, _ = tcp.accept()
        pushing.start()
        rounds = 0
        while pushing.is_alive() or rounds < 100:
            message = str(rounds).encode()
            stream.send(message)
            assert accepted.recv(100) == message
            flow.send(message)
            got, sender = udp.recvfrom(100)
            udp.sendto(got, sender)
            assert flow.recv(100) == message
            assert world.probe("workload", "tcp", VIP, 8080) == "TCP"
            rounds += 1
        pushing.join()
        accepted.close()


@pytest.mark.parametrize("golden", sorted(GOLDEN.iterdir()), ids=lambda path: path.name)
def test_the_kernel_takes_every_golden_ruleset(world, golden):
    """Empty sets, ranges of one port, IPv6: pushed twice, since a replace must find its own table."""
    push(world, golden.read_text(), golden.read_text())
    assert world.list_table("workload", BRIDGE_TABLE if golden.name.startswith("bridge") else TABLE)


@pytest.mark.parametrize("golden", sorted(GOLDEN.iterdir()), ids=lambda path: path.name)
def test_no_ruleset_needs_the_files_that_name_protocols_and_ports(world, golden):
    """The image has no /etc/protocols (Debian's netbase), where nft looks up what it does not know."""
    without = "mount --bind /dev/null /etc/protocols && mount --bind /dev/null /etc/services && exec nft -f -"
    command = ["nsenter", f"--net={world.path('workload')}", "unshare", "--mount", "sh", "-c", without]
    done = subprocess.run(command, input=golden.read_bytes(), check=False, capture_output=True)
    assert not done.returncode, done.stderr


def test_a_refused_push_leaves_the_former_rules(world):
    """The words of nft with line and column come back, and nothing of the transaction is applied."""
    push(world, render_workload(RULES))
    before = world.list_table("workload")
    bad = render_workload(RULES) + "add rule inet meshbox nowhere accept\n"
    with pytest.raises(RetryError, match=r"line \d+, column \d+: .*No such file") as caught:
        push(world, bad)
    assert "\n" not in str(caught.value)
    assert world.list_table("workload") == before
    assert world.probe("workload", "tcp", VIP, 8080) == "TCP"


def test_a_delta_makes_the_same_table_as_a_replace(world):
    """Elements added, removed and given another value end in what the whole text would make."""
    moved = replace(UDP_ROUTE, proxy_port=20005)
    new = Route(vip=IPv4Address("241.1.1.9"), port=80, protocol=Protocol.TCP, proxy_port=20009)
    after = replace(RULES, routes=(RULES.routes - {UDP_ROUTE}) | {moved, new}, published=frozenset())
    delta = change_workload(RULES, after)
    assert "table inet meshbox {" not in delta
    push(world, render_workload(RULES), delta)
    changed = world.list_table("workload")
    push(world, render_workload(after))
    assert changed == world.list_table("workload")


def test_an_open_udp_flow_ends_with_its_route_and_resumes_with_it(world):
    """Connection tracking keeps the redirect of an open flow, so the filter must stop it; and let it go on again."""
    push(world, render_workload(RULES))
    udp = world.server("UDP")
    with world.socket("workload", "udp") as flow:
        flow.connect((VIP, 8080))
        flow.send(b"1")
        got, sender = udp.recvfrom(100)
        udp.sendto(got, sender)
        assert flow.recv(100) == b"1"
        push(world, change_workload(RULES, replace(RULES, routes=RULES.routes - {UDP_ROUTE})))
        with pytest.raises(OSError, match="not permitted"):
            flow.send(b"2")
        push(world, change_workload(replace(RULES, routes=RULES.routes - {UDP_ROUTE}), RULES))
        flow.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # the ICMP error of the refusal
        flow.send(b"3")
        assert udp.recv(100) == b"3"


def test_an_open_udp_flow_never_reaches_another_name_that_got_its_proxy_port(world):
    """A proxy port that is given to another virtual IP does not carry the former one's flows."""
    push(world, render_workload(RULES))
    udp = world.server("UDP")
    heir = replace(UDP_ROUTE, vip=IPv4Address("241.1.1.7"))
    with world.socket("workload", "udp") as flow:
        flow.connect((VIP, 8080))
        flow.send(b"1")
        assert udp.recv(100) == b"1"
        push(world, change_workload(RULES, replace(RULES, routes=(RULES.routes - {UDP_ROUTE}) | {heir})))
        with pytest.raises(OSError, match="not permitted"):
            flow.send(b"2")
        assert world.probe("workload", "udp", "241.1.1.7", 8080) == "UDP"


def test_an_open_tcp_pair_outlives_its_route_until_the_proxy_ends_it(world):
    """A listener drains: new connections are refused, the open one goes on."""
    push(world, render_workload(RULES))
    with world.socket("workload", "tcp") as stream:
        stream.connect((VIP, 8080))
        accepted, _ = world.server("TCP").accept()
        push(world, change_workload(RULES, WITHOUT_ROUTES))
        stream.send(b"still here")
        assert accepted.recv(100) == b"still here"
        assert world.probe("workload", "tcp", VIP, 8080) == REFUSED
        accepted.close()
        assert stream.recv(100) == b""


def test_a_connection_that_went_round_the_mesh_ends_when_the_rules_come(world):
    """A container that joins while it runs keeps no direct connection to a neighbour."""
    with world.socket("workload", "tcp") as direct:
        direct.connect((NEIGHBOUR, 80))
        accepted, _ = world.server("the neighbour").accept()
        accepted.settimeout(2)
        push(world, render_workload(RULES))
        with pytest.raises(OSError, match="reset by peer"):
            _talk(direct)
        accepted.close()


def _talk(sock: socket.socket) -> None:
    sock.send(b"past the mesh")
    sock.recv(100)


def test_remove_works_with_and_without_a_table(world):
    """Our table is gone afterwards, others' stay, and a second removal is as good as the first."""
    world.nft("workload", "add table inet others\n")
    push(world, render_workload(RULES), REMOVE, REMOVE)
    assert world.list_table("workload") == ""
    world.nft("workload", "list table inet others\n")


def test_list_table_tells_the_rules_or_that_there_are_none(world):
    """What operators see comes from the kernel."""

    async def main() -> None:
        nft = Nft()
        assert await nft.list_table(world.path("workload")) is None
        await nft.push(world.path("workload"), render_workload(RULES))
        listed = await nft.list_table(world.path("workload"))
        assert listed is not None
        assert f"{VIP} . tcp . 8080 : {HOST} . 20001" in listed
        with pytest.raises(RetryError, match="cannot open"):
            await nft.list_table("/run/netns/mbd-nowhere")
        assert (nft.pushed, nft.failed) == (1, 0)
        with pytest.raises(RetryError):
            await nft.push("/run/netns/mbd-nowhere", REMOVE)
        assert (nft.pushed, nft.failed) == (1, 1)

    trio.run(main)


def test_dry_run_applies_nothing(world):
    """The kernel checks the whole transaction, and there is no table afterwards."""

    async def main() -> None:
        nft = Nft()
        await nft.dry_run(world.path("workload"), render_workload(RULES))
        with pytest.raises(RetryError, match="line 1"):
            await nft.dry_run(world.path("workload"), "add chain inet meshbox x\n")

    trio.run(main)
    assert world.list_table("workload") == ""


def test_a_namespace_without_a_default_route_gets_one_for_virtual_ips(world):
    """On an `internal` network connecting would fail before a rule saw it; elsewhere nothing is added."""
    push(world, render_workload(RULES))
    vips = IPv4Network("240.0.0.0/4")
    path = world.path("workload")

    async def ensure() -> bool:
        return await routes.add_route(path, vips, IPv4Address(HOST))

    assert not trio.run(ensure)
    world.unroute("workload")
    with world.socket("workload", "tcp") as lost, pytest.raises(OSError, match="unreachable"):
        lost.connect((VIP, 8080))
    assert trio.run(ensure)
    assert not trio.run(ensure)
    assert world.probe("workload", "tcp", VIP, 8080) == "TCP"
    assert world.probe("workload", "udp", VIP, 8080) == "UDP"


def test_a_route_that_cannot_be_added_says_why(world):
    """A gateway that is on none of its networks is refused by the kernel."""
    world.unroute("workload")

    async def ensure() -> None:
        await routes.add_route(world.path("workload"), IPv4Network("240.0.0.0/4"), IPv4Address("10.77.0.1"))

    with pytest.raises(RetryError, match=r"cannot add a route to 240\.0\.0\.0/4 .*gateway"):
        trio.run(ensure)
