"""DNS inside of workloads' namespaces: whatever server is asked, by whatever way it would go."""

from __future__ import annotations

import os
import select
import socket
import threading
from ipaddress import IPv4Address, IPv4Network
from itertools import product
from typing import TYPE_CHECKING, Any

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rrset
import dns.update
import pytest
from doorworld import VIP, Mesh, proxied
from nsworld import HOST, NEIGHBOUR, OUTSIDE, OUTSIDE6, WORKLOAD, World, inside

from appliance.dataplane import api
from appliance.dataplane.dns import relay
from appliance.model.names import Name
from appliance.model.network import Zone
from appliance.render.ruleset import DNS_DOOR_PORT, LEAVE_DNS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.system

WEB, DB = Name.parse("web.shop"), Name.parse("db.shop")
ZONE = Zone(
    suffix="mesh.internal",
    names={WEB: IPv4Address(VIP), DB: IPv4Address("240.1.1.9")},
    views={IPv4Address(WORKLOAD): frozenset({WEB})},
    subnets=frozenset({IPv4Network("172.30.0.0/16")}),
)
DOCKER = "127.0.0.11"


class NamedMesh(Mesh):
    """A mesh whose workload also asks for names."""

    def __init__(self, world: World, proxy: Any) -> None:
        super().__init__(world, proxy)
        proxy.call(proxy.plane.set_zone, ZONE)
        self.open()
        self.open_dns()

    def ask(self, server: str, name: str = "web.shop", **options: Any) -> dns.message.Message:
        """Ask as a program of the workload does."""
        return self.exchange(server, dns.message.make_query(name, "A", use_edns=0), **options)

    def exchange(
        self, server: str, query: dns.message.Message, *, protocol: str = "udp", source: str | None = None
    ) -> dns.message.Message:
        """Send a message, and return the answer to it."""
        with self.client(server, protocol, source) as sock:
            wire = query.to_wire()
            sock.send(wire if protocol == "udp" else framed(wire))
            answer = dns.message.from_wire(sock.recv(4096) if protocol == "udp" else read_framed(sock))
            assert answer.id == query.id
            return answer

    def client(self, server: str, protocol: str = "udp", source: str | None = None) -> socket.socket:
        """Return a socket of the workload's that is connected to a server."""
        sock = self.world.socket("workload", protocol, v6=":" in server)
        if source is not None:
            sock.bind((source, 0))
        host, _, device = server.partition("%")
        scope = (0, self.world.interface("workload", device)) if device else ()
        sock.connect((host, 53, *scope))
        return sock

    def counted(self, name: str) -> int:
        """Return a counter of the DNS server's."""
        return int(self.proxy.ask(api.DNS_STATS)[name])


@pytest.fixture(params=[0, 2], ids=["", "workers"])
def mesh(request: pytest.FixtureRequest) -> Iterator[NamedMesh]:
    """Both doors of the workload are open."""
    with proxied(NamedMesh, request.param) as made:
        yield made


@pytest.fixture
def one() -> Iterator[NamedMesh]:
    """The same with a data plane in this process."""
    with proxied(NamedMesh, 0) as made:
        yield made


def framed(wire: bytes) -> bytes:
    """Return a message as it goes over TCP."""
    return len(wire).to_bytes(2) + wire


def exactly(sock: socket.socket, size: int) -> bytes:
    """Return so many bytes of a connection."""
    got = b""
    while len(got) < size:
        part = sock.recv(size - len(got))
        assert part
        got += part
    return got


def read_framed(sock: socket.socket) -> bytes:
    """Return the next message of a connection."""
    return exactly(sock, int.from_bytes(exactly(sock, 2)))


def addresses(answer: dns.message.Message) -> list[str]:
    """Return the data of an answer's records."""
    return [str(record) for rrset in answer.answer for record in rrset]


class Nameserver:
    """A DNS server somewhere else; `asked` has what it was asked, and from which address."""

    def __init__(
        self, world: World, namespace: str, where: str, behave: Callable[[bytes], list[bytes]], port: int = 53
    ) -> None:
        family = socket.AF_INET6 if ":" in where else socket.AF_INET
        self.asked: list[tuple[bytes, str]] = []
        self._behave = behave
        path = world.path(namespace)
        self._udp: socket.socket = inside(path, lambda: socket.socket(family, socket.SOCK_DGRAM))
        self._tcp: socket.socket = inside(path, lambda: socket.socket(family, socket.SOCK_STREAM))
        for sock in (self._udp, self._tcp):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((where, port))
        self._tcp.listen()
        self._connections: list[socket.socket] = []
        self._ended, self._end = os.pipe()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> list[tuple[bytes, str]]:
        self._thread.start()
        return self.asked

    def __exit__(self, *_: object) -> None:
        os.write(self._end, b"x")
        self._thread.join()
        os.close(self._ended)
        os.close(self._end)
        for sock in (self._udp, self._tcp, *self._connections):
            sock.close()

    def _serve(self) -> None:
        while True:
            ready, _, _ = select.select([self._udp, self._tcp, self._ended, *self._connections], [], [])
            if self._ended in ready:
                return
            if self._udp in ready:
                data, client = self._udp.recvfrom(4096)
                self.asked.append((data, client[0]))
                for answer in self._behave(data):
                    self._udp.sendto(answer, client)
            for sock in [each for each in self._connections if each in ready]:
                self._serve_connection(sock)
            if self._tcp in ready:
                self._connections.append(self._tcp.accept()[0])

    def _serve_connection(self, sock: socket.socket) -> None:
        head = sock.recv(2)
        if not head:
            sock.close()
            self._connections.remove(sock)
            return
        data = exactly(sock, int.from_bytes(head))
        self.asked.append((data, sock.getpeername()[0]))
        for answer in self._behave(data):
            sock.sendall(framed(answer))


def says(text: str) -> Callable[[bytes], list[bytes]]:
    """Return the behaviour of a server that answers every question with one address."""

    def behave(data: bytes) -> list[bytes]:
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.AA
        answer.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", text))
        return [answer.to_wire()]

    return behave


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_whatever_server_is_asked(mesh: NamedMesh, protocol: str) -> None:
    """By IPv4 and IPv6, Docker's own, the host, one that is not there, and by a link-local address."""
    link_local = f"{mesh.world.link_local('neighbour')}%eth0"
    for server in (OUTSIDE, HOST, NEIGHBOUR, DOCKER, "203.0.113.1", OUTSIDE6, "fd99::1", link_local):
        assert addresses(mesh.ask(server, protocol=protocol)) == [VIP], server
    for source in (WORKLOAD, "127.0.0.1"):
        assert addresses(mesh.ask(DOCKER, protocol=protocol, source=source)) == [VIP]
    assert mesh.ask(OUTSIDE, "db.shop", protocol=protocol).rcode() == dns.rcode.NXDOMAIN


def test_no_route_and_no_filter_matters(mesh: NamedMesh) -> None:
    """A tunnel has the default route, and nothing else may leave; the kernel filters by the reverse path."""
    world = mesh.world
    in_workload = ("-n", world._name("workload"))
    world.ip(*in_workload, "link", "add", "tun0", "type", "veth", "peer", "name", "tun1")
    world.ip(*in_workload, "link", "set", "tun1", "up")
    world.ip(*in_workload, "addr", "add", "10.8.0.2/24", "dev", "tun0")
    world.ip(*in_workload, "link", "set", "tun0", "up")
    world.ip(*in_workload, "route", "replace", "default", "dev", "tun0")
    for key in ("all", "default", "eth0", "lo"):
        world.sysctl("workload", f"net/ipv4/conf/{key}/rp_filter", "1")
    world.nft(
        "workload",
        """table ip killswitch {
            chain out {
                type filter hook output priority 0; policy drop;
                oifname { "lo", "tun0" } accept
                ip daddr 172.30.0.0/16 accept
            }
            chain in {
                type filter hook input priority 0; policy drop;
                iifname "lo" accept
                ct state established,related accept
            }
        }""",
    )
    for server in (OUTSIDE, DOCKER, HOST):
        for protocol in ("udp", "tcp"):
            assert addresses(mesh.ask(server, protocol=protocol)) == [VIP]
    assert addresses(mesh.ask(OUTSIDE, source="10.8.0.2")) == [VIP]


@pytest.mark.parametrize("server", [OUTSIDE, OUTSIDE6])
@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_the_server_that_was_asked_answers(mesh: NamedMesh, server: str, protocol: str) -> None:
    """From inside of the namespace, and its answer is what it said: it is asked without recursion here."""
    with Nameserver(mesh.world, "outside", server, says("192.0.2.7")) as asked:
        query = dns.message.make_query("_acme-challenge.corp.test", "A", flags=0)
        answer = mesh.exchange(server, query, protocol=protocol)
        assert addresses(answer) == ["192.0.2.7"]
        assert answer.flags & dns.flags.AA
        ((data, asker),) = asked
        assert data == query.to_wire()
        assert asker == (WORKLOAD if server == OUTSIDE else "fd30::2")


def test_a_link_local_server_answers(one: NamedMesh) -> None:
    """On the link that was named."""
    where = one.world.link_local("neighbour")
    one.world.nft("workload", "add element inet meshbox subnets6 { 2001:db8:77::/64 }")
    scope = one.world.interface("neighbour", "eth0")
    assert scope
    with Nameserver(one.world, "neighbour", "::", says("192.0.2.8")) as asked:
        answer = one.ask(f"{where}%eth0", "www.example.com")
        # Another container's own address: rules refuse it, and that is said at once.
        assert answer.rcode() == dns.rcode.SERVFAIL
        assert not asked


def test_transfers_and_updates_pass(mesh: NamedMesh) -> None:
    """Several messages answer one question; an update is no question at all; more follows on the same connection."""

    def behave(data: bytes) -> list[bytes]:
        message = dns.message.from_wire(data)
        if message.opcode() == dns.opcode.UPDATE:
            return [dns.message.make_response(message).to_wire()]
        parts = []
        for number in range(3):
            part = dns.message.make_response(message)
            part.answer.append(dns.rrset.from_text("corp.test.", 60, "IN", "TXT", f"part{number}"))
            parts.append(part.to_wire())
        return parts

    with Nameserver(mesh.world, "outside", OUTSIDE, behave), mesh.client(OUTSIDE, "tcp") as sock:
        transfer = dns.message.make_query("corp.test", "AXFR")
        sock.sendall(framed(transfer.to_wire()))
        for number in range(3):
            assert f"part{number}" in dns.message.from_wire(read_framed(sock)).answer[0].to_text()
        sock.sendall(framed(dns.message.make_query("web.shop", "A").to_wire()))
        assert addresses(dns.message.from_wire(read_framed(sock))) == [VIP]
        update = dns.update.UpdateMessage("corp.test")
        update.add("new", 60, "A", "192.0.2.9")
        sock.sendall(framed(update.to_wire()))
        assert dns.message.from_wire(read_framed(sock)).rcode() == dns.rcode.NOERROR
        assert mesh.exchange(OUTSIDE, update).rcode() == dns.rcode.NOERROR


def test_docker_answers_what_is_not_the_meshs(mesh: NamedMesh) -> None:
    """And is asked from inside; what it asks others passes. A name of the mesh never comes to it."""
    world = mesh.world
    world.nft(
        "workload",
        f"""table ip nat {{
            chain out {{
                type nat hook output priority -100;
                ip daddr {DOCKER} udp dport 53 dnat to {DOCKER}:40053
                ip daddr {DOCKER} tcp dport 53 dnat to {DOCKER}:40053
            }}
            chain post {{
                type nat hook postrouting priority 100;
                ip saddr {DOCKER} udp sport 40053 snat to :53
                ip saddr {DOCKER} tcp sport 40053 snat to :53
            }}
        }}""",
    )

    def forward(data: bytes) -> list[bytes]:
        """Ask the outside, as Docker's resolver does: with a socket of the container's namespace."""
        name = dns.message.from_wire(data).question[0].name.to_text()
        if name == "other.":
            return says("172.30.0.3")(data)
        with mesh.client(OUTSIDE) as sock:
            sock.send(data)
            return [sock.recv(4096)]

    with (
        Nameserver(world, "workload", DOCKER, forward, 40053) as asked,
        Nameserver(world, "outside", OUTSIDE, says("192.0.2.7")) as outside,
    ):
        for protocol in ("udp", "tcp"):
            assert addresses(mesh.ask(DOCKER, "other", protocol=protocol)) == ["172.30.0.3"]
            assert addresses(mesh.ask(DOCKER, "www.example.com", protocol=protocol)) == ["192.0.2.7"]
            assert addresses(mesh.ask(DOCKER, "web.shop", protocol=protocol)) == [VIP]
        assert len(asked) == 4
        assert len(outside) == 2


def test_a_server_in_the_container_is_left_alone(mesh: NamedMesh) -> None:
    """What it asks others is caught as any other program's questions are."""

    def forward(data: bytes) -> list[bytes]:
        with mesh.client(OUTSIDE) as sock:
            sock.send(data)
            return [sock.recv(4096)]

    for where in ("127.0.0.1", "::1", WORKLOAD):
        with Nameserver(mesh.world, "workload", where, forward) as asked:
            assert addresses(mesh.ask(where)) == [VIP]
            assert len(asked) == 1


def test_two_servers_from_one_socket(mesh: NamedMesh) -> None:
    """Musl's resolver does so: each answer comes from the server that was asked."""
    with (
        Nameserver(mesh.world, "outside", OUTSIDE, says("192.0.2.7")),
        mesh.world.socket("workload", "udp") as sock,
    ):
        sock.bind(("", 0))
        sock.sendto(dns.message.make_query("web.shop", "A").to_wire(), (DOCKER, 53))
        sock.sendto(dns.message.make_query("www.example.com", "A").to_wire(), (OUTSIDE, 53))
        sock.sendto(dns.message.make_query("web.shop", "A").to_wire(), ("203.0.113.1", 53))
        got = {}
        for _ in range(3):
            data, (host, _) = sock.recvfrom(4096)
            got[host] = addresses(dns.message.from_wire(data))
    assert got == {DOCKER: [VIP], OUTSIDE: ["192.0.2.7"], "203.0.113.1": [VIP]}


def test_what_is_no_dns_passes(mesh: NamedMesh) -> None:
    """VPNs use the port as well: whatever is sent comes back as it was, as often as it comes."""
    with Nameserver(mesh.world, "outside", OUTSIDE, lambda data: [data, b"\x04" + data]), mesh.client(OUTSIDE) as sock:
        for number in range(3):
            message = bytes([1, 0, 0, 0, number]) * 20
            sock.send(message)
            assert {sock.recv(4096), sock.recv(4096)} == {message, b"\x04" + message}


def test_a_server_that_cannot_be_reached_fails_at_once(mesh: NamedMesh) -> None:
    """The asker's resolver goes to the next one, as after an ICMP error."""
    answer = mesh.ask(OUTSIDE, "www.example.com")
    assert answer.rcode() == dns.rcode.SERVFAIL
    assert OUTSIDE in answer.options[0].text
    with mesh.client(OUTSIDE, "tcp") as sock:
        sock.sendall(framed(dns.message.make_query("www.example.com", "A").to_wire()))
        assert sock.recv(10) == b""


def test_what_belongs_to_the_mesh_has_the_hosts_resolvers(one: NamedMesh) -> None:
    """Other containers' addresses, too, which rules refuse: there the host's resolvers answer in their place."""
    with Nameserver(one.world, "outside", OUTSIDE, says("192.0.2.7")) as asked:
        for server in (HOST, NEIGHBOUR):
            answer = one.ask(server, "www.example.com")
            assert answer.rcode() == dns.rcode.SERVFAIL
            assert answer.options[0].text == "no upstream resolver is set"
        assert not asked


def take() -> list[socket.socket]:
    """Bind the door's port, in every way in which that may be had; return the sockets that could be."""
    made = []
    kinds = (socket.SOCK_DGRAM, socket.SOCK_STREAM)
    for where, kind in product(("127.66.0.1", WORKLOAD, "0.0.0.0", "::"), kinds):
        sock = socket.socket(socket.AF_INET6 if where == "::" else socket.AF_INET, kind)
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        try:
            sock.bind((where, DNS_DOOR_PORT))
            if kind == socket.SOCK_STREAM:
                sock.listen()
        except OSError:
            sock.close()
        else:
            made.append(sock)
    return made


def test_nobody_else_has_the_port(mesh: NamedMesh) -> None:
    """No program of the workload can take it while the door is open, nor gets what is led there while it is not."""
    assert inside(mesh.world.path("workload"), take) == []
    mesh.proxy.call(mesh.proxy.plane.stop)
    mesh.proxy.ask(api.LEFT)
    taken = inside(mesh.world.path("workload"), take)
    assert len(taken) == 8
    for protocol, server in product(("udp", "tcp"), (DOCKER, OUTSIDE, OUTSIDE6)):
        with pytest.raises(ConnectionRefusedError):
            mesh.ask(server, protocol=protocol)
    for sock in taken:
        sock.close()


def test_without_the_door_questions_go_to_the_host(mesh: NamedMesh) -> None:
    """As before it was open."""
    host = mesh.world.serve("the host", "host", "udp", 53)
    assert mesh.world.probe("workload", "udp", OUTSIDE, 53) != "the host"
    mesh.world.nft("workload", LEAVE_DNS)
    mesh.proxy.doors.dns.close(mesh.workload)
    assert mesh.world.probe("workload", "udp", "203.0.113.9", 53) == "the host"
    host.close()


def test_a_door_moves_with_its_workload(mesh: NamedMesh) -> None:
    """Its sockets stay; the view is that of the address that the workload has now."""
    (door,) = [d.door for d in mesh.proxy.doors.opened.values() if d.netns == mesh.workload]
    moved = IPv4Address("172.30.0.77")
    views = {moved: frozenset({DB})}
    mesh.proxy.call(mesh.proxy.plane.set_zone, Zone(suffix="", names=ZONE.names, views=views, subnets=ZONE.subnets))
    with mesh.client(OUTSIDE) as sock:
        mesh.proxy.doors.dns.open(mesh.workload, type(door)(netns=door.netns, caller=moved, dialler=door.dialler))
        sock.send(dns.message.make_query("db.shop", "A").to_wire())
        assert addresses(dns.message.from_wire(sock.recv(4096))) == ["240.1.1.9"]


def test_a_hostile_asker_holds_no_more_than_its_share(one: NamedMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand sockets that ask a silent server; its neighbours and its own names are answered meanwhile."""
    monkeypatch.setattr(relay, "MAX_RELAYS_PER_ASKER", 16)
    with Nameserver(one.world, "outside", OUTSIDE, lambda _: []) as asked:
        clients = [one.client(OUTSIDE) for _ in range(100)]
        for number, sock in enumerate(clients):
            sock.send(dns.message.make_query(f"n{number}.example.com", "A").to_wire())
            if not number % 10:
                assert addresses(one.ask(DOCKER)) == [VIP]
        assert addresses(one.ask(DOCKER)) == [VIP]
        while len(asked) < 100:
            select.select([], [], [], 0.01)
        assert one.counted("relays_now") == 16
        assert one.counted("relays_gave_way") == 84
        for sock in clients:
            sock.close()
