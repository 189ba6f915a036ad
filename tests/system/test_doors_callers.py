"""As whom callers are seen behind a door, and what that leaves of the server's ports: real namespaces and rules."""

from __future__ import annotations

import os
import resource
import signal
import socket
from contextlib import ExitStack, closing
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from doorworld import DIALLER, VIP, Mesh, Proxy, eventually, proxied
from nsworld import HOST, NEIGHBOUR, SECONDS, WORKLOAD, World, inside

from appliance.dataplane import api
from appliance.dataplane.sources import FIRST_PORT, PORTS
from appliance.model.names import Destination, Protocol
from appliance.model.network import Backend, Listener
from appliance.model.sources import CallerSources, first_address
from appliance.render.ruleset import render_workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.system

MINE, LOCAL = IPv4Address("240.0.0.7"), IPv4Address("240.0.0.8")
STEP = 1 << 21
LOOPBACK = "127.0.0.1"
"""A caller from outside of the namespaces: where this test runs."""


class CallersMesh(Mesh):
    """The workload may reach the neighbour by UDP too, and so may this test."""

    def __init__(self, world: World, proxy: Proxy) -> None:
        super().__init__(world, proxy)
        callers = frozenset({IPv4Address(WORKLOAD), IPv4Address(LOOPBACK)})
        self.listener = replace(self.listener, callers=callers)
        proxy.call(proxy.plane.swap_listener, self.listener)
        self.udp = world.serve("the server, UDP", "neighbour", "udp", 81)
        self.udp.settimeout(SECONDS)
        backend = Backend(address=IPv4Address(NEIGHBOUR), port=81, local=True, label="server", netns=self.neighbour.id)
        self.named = Listener(
            destination=Destination.parse("web.shop:8080/udp"),
            port=29002,
            vip=IPv4Address(VIP),
            callers=callers,
            backends=(backend,),
        )
        proxy.call(proxy.plane.open_listener, self.named)

    def tell(self, **addresses: IPv4Address) -> None:
        """Have these callers seen at addresses of their own."""
        known = {"mine": IPv4Address(WORKLOAD), "local": IPv4Address(LOOPBACK)}
        found = CallerSources(step=STEP, addresses={known[name]: address for name, address in addresses.items()})
        self.proxy.call(self.proxy.plane.set_sources, found)
        self.proxy.ask(api.LEFT)

    def local(self) -> socket.socket:
        """Return a connection of this test to the service, over the listener's port."""
        return socket.create_connection((LOOPBACK, self.listener.port), SECONDS)

    def seen(self, dial: Callable[[], socket.socket]) -> tuple[str, int]:
        """Return whom the server sees."""
        with dial(), self.server.accept()[0] as served:
            return plain(served.getpeername())

    def seen_by_udp(self, client: socket.socket, address: tuple[str, int]) -> tuple[str, int]:
        """Return whom the server sees when the client asks; it must get the answer."""
        client.settimeout(SECONDS)
        client.connect(address)
        client.send(b"question")
        _, sender = self.udp.recvfrom(100)
        self.udp.sendto(b"answer", sender)
        assert client.recv(100) == b"answer"
        return plain(sender)


def tracked() -> int:
    """Return how many connections the kernel tracks in this thread's namespace."""
    return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


def plain(address: tuple[str, int, int, int]) -> tuple[str, int]:
    """Return an address without the IPv6 form that the servers have of it."""
    return address[0].removeprefix("::ffff:"), address[1]


@pytest.fixture(params=[0, 2], ids=["", "workers"])
def mesh(request: pytest.FixtureRequest) -> Iterator[CallersMesh]:
    """Rules in both namespaces, and open doors."""
    with proxied(CallersMesh, request.param) as made:
        made.open()
        yield made


def test_callers_are_seen_by_addresses_of_their_own(mesh: CallersMesh) -> None:
    """By TCP and UDP; one that has none is seen as nobody in particular, and what is connected goes on."""
    with mesh.dial() as old, mesh.server.accept()[0] as served:
        mesh.tell(mine=MINE, local=LOCAL)
        old.sendall(b"still here")
        assert served.recv(100) == b"still here"
        assert plain(served.getpeername())[0] == DIALLER
    for _ in range(3):
        assert mesh.seen(mesh.dial)[0] == str(MINE)
        assert mesh.seen(mesh.local)[0] == str(LOCAL)
    with mesh.world.socket("workload", "udp") as one, socket.socket(type=socket.SOCK_DGRAM) as other:
        assert mesh.seen_by_udp(one, (VIP, 8080))[0] == str(MINE)
        assert mesh.seen_by_udp(other, (LOOPBACK, mesh.named.port))[0] == str(LOCAL)
    assert inside(mesh.neighbour.path, tracked) == 0, "the kernel remembers nothing of it"
    mesh.tell(local=LOCAL)
    assert mesh.seen(mesh.dial)[0] == DIALLER
    assert mesh.seen(mesh.local)[0] == str(LOCAL)


@pytest.mark.parametrize("mesh", [2], ids=["workers"], indirect=True)
def test_a_new_worker_knows_callers(mesh: CallersMesh) -> None:
    """It is told before it serves."""
    mesh.tell(mine=MINE)
    former = mesh.proxy.plane.pids
    for pid in former:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: None not in mesh.proxy.plane.pids and not set(former) & set(mesh.proxy.plane.pids))
    assert mesh.seen(mesh.dial)[0] == str(MINE)


def test_a_program_can_listen_on_every_port_beside_a_thousand_callers(mesh: CallersMesh) -> None:
    """On all below those that are for callers; without a mesh callers take no port of the server's."""
    mesh.tell(mine=MINE)
    needed = 4 * 1000 + 200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, needed)), hard))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        ports = set()
        for _ in range(1000):
            stack.enter_context(mesh.dial())
            served = stack.enter_context(mesh.server.accept()[0])
            ports.add(plain(served.getpeername())[1])
        assert min(ports) >= FIRST_PORT

        def taken() -> list[int]:
            found = []
            for port in range(32768, FIRST_PORT):
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    with socket.socket(type=kind) as sock:
                        try:
                            sock.bind(("0.0.0.0", port))
                            if kind == socket.SOCK_STREAM:
                                sock.listen()
                        except OSError:
                            found.append(port)
            return found

        assert inside(mesh.neighbour.path, taken) == []


def test_more_short_connections_than_ports_are_served(mesh: CallersMesh) -> None:
    """Of one caller, that closes first: TIME_WAIT is on the data plane's side then, in the server's namespace."""
    mesh.tell(mine=MINE)
    for _ in range(PORTS + 500):
        with mesh.dial() as client:
            served = mesh.server.accept()[0]
            client.send(b"?")
            assert served.recv(1) == b"?"
        with served:
            assert served.recv(1) == b""
            assert plain(served.getpeername())[0] == str(MINE)
    (stats,) = (s for s in mesh.proxy.ask(api.STATS) if s.destination == mesh.listener.destination)
    assert stats.failed == 0
    assert [backend.failed for backend in stats.backends] == [0]


def test_programs_that_hold_ports_for_callers_harm_nothing(mesh: CallersMesh) -> None:
    """These ports are passed over; where the caller's own address has none left, a further one of its has."""
    mesh.tell(mine=MINE)

    def hold() -> list[socket.socket]:
        held = []
        for port in range(FIRST_PORT, FIRST_PORT + PORTS):
            sock = socket.socket()
            sock.bind((str(MINE) if port % 100 else "0.0.0.0", port))
            held.append(sock)
        return held

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, PORTS + 1000)), hard))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for sock in inside(mesh.neighbour.path, hold):
            stack.enter_context(closing(sock))
        for _ in range(20):
            address, port = mesh.seen(mesh.dial)
            assert address != str(MINE)
            assert first_address(IPv4Address(address), mesh.rules.vip_range) == MINE
            assert port % 100
        with mesh.world.socket("workload", "udp") as client:
            assert mesh.seen_by_udp(client, (VIP, 8080))[1] >= FIRST_PORT
    (stats,) = (s for s in mesh.proxy.ask(api.STATS) if s.destination == mesh.listener.destination)
    assert [backend.failed for backend in stats.backends] == [0]


def test_a_callers_address_cannot_be_claimed_from_outside(mesh: CallersMesh) -> None:
    """Not even where the server publishes a port, to which everybody may send."""
    published = replace(mesh.served, published=frozenset({(Protocol.UDP, 82), (Protocol.TCP, 80)}))
    mesh.world.nft("neighbour", render_workload(published))
    server = mesh.world.serve("a published server", "neighbour", "udp", 82)
    server.settimeout(SECONDS)
    mesh.world.ip("-n", mesh.world._name("host"), "addr", "add", f"{MINE}/32", "dev", "br0")

    def send(source: str) -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.bind((source, 0))
            sock.sendto(source.encode(), (NEIGHBOUR, 82))

    for source in (str(MINE), HOST):
        inside(mesh.world.path("host"), lambda source=source: send(source))
    assert server.recv(100) == HOST.encode(), "the datagram from a caller's address came first, and was dropped"
    with inside(mesh.world.path("host"), socket.socket) as sock:
        sock.bind((str(MINE), 0))
        sock.settimeout(0.5)
        with pytest.raises(OSError, match=r"timed out|refused|unreachable"):
            sock.connect((NEIGHBOUR, 80))


def test_a_workload_gains_nothing_by_a_callers_address(mesh: CallersMesh) -> None:
    """Every virtual IP is an address of its namespace. From those of callers it reaches nothing by its door."""
    mesh.tell(mine=MINE)
    assert mesh.seen(lambda: mesh.dial(VIP))[0] == str(MINE)
    for source in (str(LOCAL), str(MINE)):
        with pytest.raises(ConnectionRefusedError):
            mesh.dial(source)
    with mesh.world.socket("workload", "tcp") as sock:
        sock.bind((str(LOCAL), 0))
        with pytest.raises(ConnectionRefusedError):
            sock.connect((str(MINE), 8080))
