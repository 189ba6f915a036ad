"""UDP through the doors in workloads' namespaces: real ones, with the rules that lead there."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from io import FileIO
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest
from doorworld import DIALLER, VIP, Mesh, Proxy, eventually, packets, proxied
from nsworld import HOST_OUTSIDE, NEIGHBOUR, OUTSIDE, REFUSED, SECONDS, WORKLOAD, World, inside

from appliance.dataplane import api
from appliance.dataplane.namespace import NamespaceSockets
from appliance.dataplane.sources import Sources
from appliance.dataplane.udp import sockets as udp_sockets
from appliance.errors import RetryError
from appliance.model.names import Destination, Protocol
from appliance.model.network import DATAGRAM_DOORS, Backend, HostRuleset, Listener, VisitorRules
from appliance.render.ruleset import DOOR_PORT, render_host, render_workload

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.system

NAME = Destination.parse("web.shop:8080/udp")
LOW_PORTS = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
"""The first port that every user may bind, of this thread's namespace."""
SIZES = (1, 1472, 1473, 9000, 60000)
IP_RECVERR = 11
"""From linux/in.h (ip(7))."""
SO_NO_CHECK = 11
"""From asm-generic/socket.h: send with a checksum of 0, which says that there is none."""


class UdpMesh(Mesh):
    """The neighbour also serves the destination by UDP."""

    def __init__(self, world: World, proxy: Proxy) -> None:
        super().__init__(world, proxy)
        self.udp = self.serve("the server, UDP", 81)
        self.named = Listener(
            destination=NAME,
            port=29002,
            vip=IPv4Address(VIP),
            callers=frozenset({IPv4Address(WORKLOAD)}),
            backends=(self.backend(81),),
        )
        proxy.call(proxy.plane.open_listener, self.named)

    def serve(self, label: str, port: int) -> socket.socket:
        """Return a server's socket in the neighbour's namespace."""
        sock = self.world.serve(label, "neighbour", "udp", port)
        sock.settimeout(SECONDS)
        return sock

    def backend(self, port: int) -> Backend:
        """Return the value that names it."""
        return Backend(address=IPv4Address(NEIGHBOUR), port=port, local=True, label="server", netns=self.neighbour.id)

    def client(self) -> socket.socket:
        """Return a socket of the workload that is connected to the destination."""
        sock = self.world.socket("workload", "udp")
        sock.connect((VIP, 8080))
        return sock

    def swap(self, **fields: object) -> None:
        """Change the listener, everywhere."""
        self.named = replace(self.named, **fields)  # type: ignore[arg-type]
        self.proxy.call(self.proxy.plane.swap_listener, self.named)
        self.proxy.ask(api.LEFT)


@pytest.fixture(params=[0, 2], ids=["", "workers"])
def mesh(request: pytest.FixtureRequest) -> Iterator[UdpMesh]:
    """Rules in both namespaces; no door is open yet."""
    with proxied(UdpMesh, request.param) as made:
        yield made


def carry(client: socket.socket, server: socket.socket, data: bytes = b"question") -> str:
    """Send something there and back; return from where the server has it."""
    client.send(data)
    got, sender = server.recvfrom(1 << 16)
    assert got == data
    server.sendto(data[::-1], sender)
    assert client.recv(1 << 16) == data[::-1]
    return str(sender[0])


def test_both_ends_stay_in_their_namespaces(mesh: UdpMesh) -> None:
    """The client is answered by what it has asked, the server by an address of the mesh.

    No packet crosses a link, and the kernel remembers nothing.
    """
    mesh.open()
    before = packets(mesh.world, "workload"), packets(mesh.world, "neighbour")
    with mesh.client() as client:
        for size in SIZES:
            assert carry(client, mesh.udp, os.urandom(size)) == f"::ffff:{DIALLER}"
        for path in (mesh.world.path(name) for name in ("workload", "host", "neighbour")):
            assert inside(path, tracked) == 0
        (connection,) = mesh.proxy.ask(api.CONNECTIONS)
        assert connection.client == f"{WORKLOAD}:{client.getsockname()[1]}"
        assert connection.bytes_in == connection.bytes_out == sum(SIZES)
    # IPv6 neighbour discovery may come by on its own
    after = packets(mesh.world, "workload"), packets(mesh.world, "neighbour")
    assert after[0] - before[0] < 10
    assert after[1] - before[1] < 10


@pytest.mark.parametrize("answers_without", [False, True], ids=["", "answers too"])
def test_without_a_checksum_it_arrives_whole(mesh: UdpMesh, *, answers_without: bool) -> None:
    """What has none (RFC 768) must not seem to have a wrong one: on the way, and while the appliance is away."""
    mesh.open()
    with mesh.client() as client, mesh.client() as other:
        client.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        mesh.udp.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, answers_without)
        for size in SIZES:
            for each in (client, other):
                assert carry(each, mesh.udp, os.urandom(size)) == f"::ffff:{DIALLER}"
        mesh.proxy.close_door(mesh.workload.id)
        del mesh.proxy.doors.opened[mesh.workload.id]
        eventually(lambda: not mesh.proxy.ask(api.CONNECTIONS))
        client.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            client.recv(1)


def tracked() -> int:
    """Return how many flows the kernel remembers of this thread's namespace."""
    return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


def test_many_at_once_are_told_apart(mesh: UdpMesh) -> None:
    """From the same port at several addresses, and from many ports."""
    mesh.open()
    clients = [mesh.client() for _ in range(50)]
    port = clients[0].getsockname()[1]
    for source in ("127.0.0.1", "127.0.0.2"):
        other = mesh.world.socket("workload", "udp")
        other.bind((source, port))
        other.connect((VIP, 8080))
        clients.append(other)
    for turn in range(3):
        for number, client in enumerate(clients):
            client.send(f"{turn} {number}".encode())
        for _ in clients:
            data, sender = mesh.udp.recvfrom(100)
            mesh.udp.sendto(data, sender)
        for number, client in enumerate(clients):
            assert client.recv(100) == f"{turn} {number}".encode()
    assert len(mesh.proxy.ask(api.CONNECTIONS)) == len(clients)
    for client in clients:
        client.close()


def test_a_flow_changes_over_as_the_door_comes_and_goes(mesh: UdpMesh) -> None:
    """One that goes on without a pause, from the same port, which the kernel would remember."""
    host = mesh.world.serve("the proxy's port, UDP", "host", "udp", 29002)
    host.settimeout(SECONDS)
    with mesh.client() as client:
        for size in SIZES:
            assert carry(client, host, bytes(size)) == f"::ffff:{WORKLOAD}"
        mesh.open()
        assert carry(client, mesh.udp) == f"::ffff:{DIALLER}"
        assert carry(client, mesh.udp) == f"::ffff:{DIALLER}"
        mesh.proxy.drop(mesh.rules)
        mesh.proxy.ask(api.LEFT)
        assert carry(client, host) == f"::ffff:{WORKLOAD}"
        mesh.open()
        assert carry(client, mesh.udp) == f"::ffff:{DIALLER}"


def test_without_the_appliance_it_is_refused_at_once(mesh: UdpMesh) -> None:
    """Though rules and route stay; and by nobody else. Those who go on asking are served again when it is back."""
    mesh.open()
    mesh.world.serve("the workload itself, UDP", "workload", "udp", 8080)
    with mesh.client() as client:
        carry(client, mesh.udp)
        carry(client, mesh.udp)
        mesh.proxy.close_door(mesh.workload.id)
        del mesh.proxy.doors.opened[mesh.workload.id]
        eventually(lambda: not mesh.proxy.ask(api.CONNECTIONS))
        client.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            client.recv(1)
        assert mesh.world.probe("workload", "udp", VIP, 8080) == REFUSED
        mesh.open()
        carry(client, mesh.udp)


def test_what_is_declared_no_longer_is_refused_at_once(mesh: UdpMesh) -> None:
    """Also in a flow that goes on; and the data plane ends its session, whatever the rules say."""
    mesh.open()
    with mesh.client() as client, mesh.client() as other:
        for each in (client, other):
            carry(each, mesh.udp)
            carry(each, mesh.udp)
        mesh.world.nft("workload", render_workload(replace(mesh.rules, routes=frozenset())))
        assert refused(client)
        mesh.world.nft("workload", render_workload(mesh.rules))
        mesh.swap(callers=frozenset())
        assert mesh.proxy.ask(api.CONNECTIONS) == ()
        other.send(b"let me in")

        def turned_away() -> int:
            (stats,) = (stats for stats in mesh.proxy.ask(api.STATS) if stats.destination == NAME)
            return int(stats.refused)

        eventually(lambda: turned_away() == 1)


def refused(client: socket.socket) -> bool:
    """Return whether what it sends comes back as an error at once."""
    try:
        client.send(b"?")
        client.recv(1)
    except TimeoutError:
        return False
    except OSError:
        return True
    return False


def test_a_backend_that_goes_may_still_answer(mesh: UdpMesh) -> None:
    """The client's next datagram goes to another one, from the same socket, and both answers come."""
    mesh.open()
    second = mesh.serve("another server, UDP", 82)
    with mesh.client() as client:
        carry(client, mesh.udp)
        carry(client, mesh.udp)
        client.send(b"first")
        _, sender = mesh.udp.recvfrom(100)
        mesh.swap(backends=(mesh.backend(82),))
        carry(client, second)
        mesh.udp.sendto(b"late", sender)
        assert client.recv(100) == b"late"
        carry(client, second)


def test_another_backend_takes_over_from_one_that_refuses(mesh: UdpMesh) -> None:
    """In the server's own namespace a port without a program is refused at once."""
    mesh.open()
    with mesh.client() as client:
        carry(client, mesh.udp)
        carry(client, mesh.udp)
        mesh.swap(backends=(mesh.backend(83),))
        client.send(b"lost")
        with pytest.raises(ConnectionRefusedError):
            client.recv(1)
        eventually(lambda: not [c for c in mesh.proxy.ask(api.CONNECTIONS) if not c.draining])
        mesh.swap(backends=(mesh.backend(81), mesh.backend(83)))
        for _ in range(20):
            carry(client, mesh.udp)


def test_a_port_without_a_program_is_refused_at_once(mesh: UdpMesh) -> None:
    """Each datagram of a connected client, the first one too, as on a plain network; until a program is there."""
    mesh.open()
    mesh.swap(backends=(mesh.backend(83),))
    with mesh.client() as client, mesh.client() as elsewhere:
        local = mesh.world.socket("workload", "udp")
        local.bind(("127.0.0.2", 0))
        local.connect((VIP, 8080))
        with local:
            for each in (client, elsewhere, local):
                for _ in range(3):
                    each.send(b"anybody?")
                    with pytest.raises(ConnectionRefusedError):
                        each.recv(1)
        server = mesh.serve("a late server", 83)
        carry(client, server)
        carry(client, server)
        carry(client, server)
        server.close()
        for _ in range(2):
            client.send(b"still there?")
            with pytest.raises(ConnectionRefusedError):
                client.recv(1)
        mesh.swap(backends=())
        for each in (client, elsewhere):
            each.send(b"anybody?")
            with pytest.raises(ConnectionRefusedError):
                each.recv(1)


def test_the_error_names_what_was_asked(mesh: UdpMesh) -> None:
    """To a client that is not connected, and wants to know (IP_RECVERR, ip(7)); nobody else hears of it."""
    mesh.open()
    mesh.swap(backends=(mesh.backend(83),))
    with mesh.world.socket("workload", "udp") as client, mesh.client() as other:
        client.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        client.sendto(b"anybody?", (VIP, 8080))
        with pytest.raises(ConnectionRefusedError):
            client.recv(1)
        _, ((_, _, error),), _, asked = client.recvmsg(100, 100, socket.MSG_ERRQUEUE)
        assert asked == (VIP, 8080)
        assert (error[4:7], error[20:24]) == (bytes((2, 3, 3)), socket.inet_aton(VIP)), "ICMP, type, code; by whom"
        assert not other.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def test_another_backend_is_asked_before_a_client_is_refused(mesh: UdpMesh) -> None:
    """It asks again, and is served: no error stops it."""
    mesh.open()
    mesh.swap(backends=(mesh.backend(81), mesh.backend(83)))
    for _ in range(20):
        with mesh.client() as client:
            client.send(b"question")
            while not _waits(mesh.udp):
                assert not client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                client.send(b"question")
            data, sender = mesh.udp.recvfrom(100)
            mesh.udp.sendto(data, sender)
            assert client.recv(100) == b"question"


def _waits(sock: socket.socket) -> bool:
    ready, _, _ = select.select([sock], [], [], 0.1)
    return bool(ready)


@pytest.mark.parametrize("mesh", [0], ids=[""], indirect=True)
@pytest.mark.parametrize("caller", ["workload", "host"])
def test_who_comes_by_the_host_is_refused_at_once_too(mesh: UdpMesh, caller: str) -> None:
    """A workload without a door, and the host itself: connection tracking translates what the host's socket says."""
    host = mesh.world.path("host")
    mesh.world.ip("-n", mesh.world._name("host"), "route", "add", "default", "via", OUTSIDE)
    routes = frozenset(route for route in mesh.rules.routes if route.protocol is Protocol.UDP)
    mesh.world.nft(
        "host",
        render_host(
            HostRuleset(
                proxy_ports=(20000, 29999),
                dns_port=53,
                workloads=frozenset({IPv4Address(WORKLOAD)}),
                from_bridges=frozenset({("br0", IPv4Address(WORKLOAD))}),
                listening=frozenset({(Protocol.UDP, 29002)}),
                visitors=VisitorRules(vip_range=IPv4Network("240.0.0.0/4"), host_routes=routes),
            )
        ),
    )
    mesh.proxy.plane._context.refusals._host = inside(host, lambda: udp_sockets.raw(1 << 20))
    mesh.proxy.call(mesh.proxy.plane.close_listener, NAME)
    callers = frozenset(map(IPv4Address, (WORKLOAD, HOST_OUTSIDE)))
    nobody = replace(mesh.named, backends=(), callers=callers)
    mesh.proxy.call(mesh.proxy.plane.open_listener, nobody, inside(host, lambda: udp_sockets.listen(29002)))
    with mesh.world.socket(caller, "udp") as client:
        client.connect((VIP, 8080))
        for _ in range(3):
            client.send(b"anybody?")
            with pytest.raises(ConnectionRefusedError):
                client.recv(1)


@pytest.mark.parametrize("mesh", [0], ids=[""], indirect=True)
def test_a_namespace_in_which_a_client_was_told_is_let_go(mesh: UdpMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket that tells would keep it alive."""
    monkeypatch.setattr("appliance.control.doors.LOOK", 0.01)
    mesh.open()
    mesh.swap(backends=())
    with mesh.client() as client:
        client.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            client.recv(1)
    mesh.world.close_servers()
    mesh.world.delete("workload")
    mesh.proxy.look(until=lambda: mesh.workload.id not in mesh.proxy.doors.opened)
    eventually(lambda: not mesh.world.has_link("host", "workload"))


STEAL = f"""
import socket, sys
kept = []
for family, address in ((2, sys.argv[1]), (2, "0.0.0.0"), (10, "::"), (10, "::ffff:" + sys.argv[1])):
    for options in ((), (2,), (15,), (2, 15)):  # SO_REUSEADDR, SO_REUSEPORT
        sock = socket.socket(family, socket.SOCK_DGRAM)
        if family == 10:
            sock.setsockopt(41, 26, 0)  # IPV6_V6ONLY
        for option in options:
            sock.setsockopt(1, option, 1)
        try:
            sock.bind((address, {DOOR_PORT}))
        except OSError:
            continue
        kept.append(sock)
print(len(kept), flush=True)
for sock in kept:
    sock.setblocking(False)
for _ in sys.stdin:
    stolen = 0
    for sock in kept:
        try:
            sock.sendto(b"forged", sock.recvfrom(100)[1])
            stolen += 1
        except OSError:
            pass
    print(stolen, flush=True)
"""
"""Another user's program in the namespace: takes the door's port in any way that works, and what comes in there."""


class Thief:
    """That program."""

    def __init__(self, mesh: UdpMesh) -> None:
        door = str(DATAGRAM_DOORS.network_address + mesh.named.port)
        user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]
        enter = ["nsenter", f"--net={mesh.workload.path}", *user]
        inside(mesh.workload.path, lambda: LOW_PORTS.write_text("0"))  # as Docker has it
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([*enter, sys.executable, "-c", STEAL, door], **pipes)  # type: ignore[call-overload]
        self.bound = int(self.process.stdout.readline())
        """Sockets that it could bind."""

    def stolen(self) -> int:
        """Return how many datagrams it has got since it was asked last; each is answered in the server's name."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_another_user_of_the_namespace_gets_nothing(mesh: UdpMesh) -> None:
    """Neither the door's port, nor a client's datagrams or the way to answer them."""
    mesh.open()
    with mesh.client() as client:
        carry(client, mesh.udp)
        with Thief(mesh) as early:
            assert not early.bound
            carry(client, mesh.udp)
            with Thief(mesh) as late:
                assert not late.bound
                carry(client, mesh.udp)
                with mesh.client() as another:
                    carry(another, mesh.udp)
                assert not early.stolen() + late.stolen()


def test_while_the_appliance_is_away_another_user_gets_nothing(mesh: UdpMesh) -> None:
    """Though the port is free then, and route and rules still lead there: whoever asks is refused."""
    mesh.open()
    mesh.proxy.close_door(mesh.workload.id)
    del mesh.proxy.doors.opened[mesh.workload.id]
    mesh.proxy.ask(api.LEFT)
    with Thief(mesh) as thief, mesh.client() as client:
        assert thief.bound
        assert refused(client)
        assert not thief.stolen()


def test_another_users_program_that_has_the_port_leaves_the_longer_way(mesh: UdpMesh) -> None:
    """It is told, and what clients send goes through the host."""
    host = mesh.world.serve("the proxy's port, UDP", "host", "udp", 29002)
    host.settimeout(SECONDS)
    with Thief(mesh) as thief, mesh.client() as client:
        assert thief.bound
        with pytest.raises(RetryError, match="in use"):
            mesh.proxy.open_at_once(mesh.rules)
        carry(client, host)
        assert not thief.stolen()


def test_a_port_that_is_taken_leaves_the_longer_way(mesh: UdpMesh) -> None:
    """It is told, and the door is opened when the port is free."""
    taken = mesh.world.serve("somebody", "workload", "udp", DOOR_PORT)
    host = mesh.world.serve("the proxy's port, UDP", "host", "udp", 29002)
    host.settimeout(SECONDS)
    with pytest.raises(RetryError, match=r"^cannot listen at its port 4: Address already in use$"):
        mesh.proxy.open_at_once(mesh.rules)
    with mesh.client() as client:
        carry(client, host)
        taken.close()
        mesh.open()
        carry(client, mesh.udp)


@pytest.mark.parametrize("gone", ["workload", "neighbour"])
def test_a_gone_namespace_is_let_go(mesh: UdpMesh, gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session is silent for a minute until it ends: its sockets would keep alive the client's or the server's."""
    monkeypatch.setattr("appliance.control.doors.LOOK", 0.01)
    mesh.open()
    with mesh.client() as client:
        carry(client, mesh.udp)
        carry(client, mesh.udp)
    mesh.world.close_servers()
    netns = mesh.workload if gone == "workload" else mesh.neighbour
    mesh.world.delete(gone)
    mesh.proxy.look(until=lambda: netns.id not in mesh.proxy.doors.opened)
    port = gone if mesh.world.has_link("host", gone) else ""
    assert port
    eventually(lambda: not mesh.world.has_link("host", port))


def test_another_address_of_a_server_is_asked_from_the_host(mesh: UdpMesh) -> None:
    """What is asked from within answers from the door's address, which is not the one that was asked then."""
    mesh.open()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, mesh.client() as client:
        server.bind(("127.0.0.1", 0))
        server.settimeout(SECONDS)
        elsewhere = replace(mesh.backend(server.getsockname()[1]), address=IPv4Address("127.0.0.1"))
        mesh.swap(backends=(elsewhere,))
        assert carry(client, server) == "127.0.0.1"
        assert carry(client, server) == "127.0.0.1"


def test_without_its_route_a_server_is_not_asked_from_within(mesh: UdpMesh) -> None:
    """Somebody may take that away; it is told once, and tried again after a while."""
    mesh.open()
    door = mesh.proxy.doors.opened[mesh.neighbour.id].door
    within = NamespaceSockets(door, FileIO(mesh.neighbour.path), Sources())
    sock = within.dial_udp((NEIGHBOUR, 81), WORKLOAD)
    assert sock is not None
    assert sock.getsockname()[0] == DIALLER
    sock.close()
    for _ in range(2):
        mesh.world.ip("-n", mesh.world._name("neighbour"), "route", "del", "local", "240.0.0.0/4", "dev", "lo")
    assert within.dial_udp((NEIGHBOUR, 81), WORKLOAD) is None
    assert within.dial_udp((NEIGHBOUR, 81), WORKLOAD) is None
    within.close()


@pytest.mark.parametrize("mesh", [2], ids=["workers"], indirect=True)
def test_a_worker_that_is_replaced_goes_on_with_clients(mesh: UdpMesh) -> None:
    """What they send meanwhile waits for the next one."""
    mesh.open()
    with mesh.client() as client:
        carry(client, mesh.udp)
        carry(client, mesh.udp)
        former = mesh.proxy.plane.pids
        for pid in former:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: None not in mesh.proxy.plane.pids and not set(former) & set(mesh.proxy.plane.pids))
        carry(client, mesh.udp)
        carry(client, mesh.udp)
