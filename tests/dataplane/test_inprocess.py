from __future__ import annotations

import errno
import socket
from dataclasses import replace
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

import pytest
from tcpworld import CALLER, DESTINATION, World, backend_of, eventually, free_port, is_reset, listener_of, read_all

from appliance.dataplane.inprocess import InProcess
from appliance.model.names import Destination, Name
from appliance.model.network import Backend, Listener, Zone

if TYPE_CHECKING:
    from collections.abc import Iterator

UDP = Destination.parse("web.shop:80/udp")


class PlaneWorld(World):
    """The world of the TCP tests with a whole InProcess in it."""

    def __init__(self) -> None:
        super().__init__()
        self.dns_port = free_port()
        self.plane: InProcess = self.call(InProcess, self.loop, dns_upstreams=list, dns_port=self.dns_port)

    def do(self, what: str, *args: Any) -> Any:
        """Call a method of the plane on its loop."""
        return self.call(getattr(self.plane, what), *args)

    def joined(self, port: int, backend: socket.socket) -> tuple[socket.socket, socket.socket]:
        """Return a client and a server joined through that port."""
        client = self.client()
        client.connect((CALLER, port))
        server = self.accept(backend)
        server.sendall(b"!")
        assert client.recv(1) == b"!"
        return client, server

    def _end(self) -> None:
        self.plane.close()
        super()._end()


@pytest.fixture
def world() -> Iterator[PlaneWorld]:
    """A data plane in a thread; nothing may be left of it at the end."""
    made = PlaneWorld()
    yield made
    made.close()


def test_listeners_open_swap_and_close(world: PlaneWorld) -> None:
    """One destination's life: it serves, serves from elsewhere, and closes while its connection goes on."""
    one, two = world.backend(), world.backend()
    port = free_port()
    world.do("open_listener", listener_of(port, backend_of(one)))
    client, server = world.joined(port, one)
    world.do("swap_listener", listener_of(port, backend_of(two)))
    world.joined(port, two)
    world.do("close_listener", DESTINATION)
    with pytest.raises(ConnectionRefusedError):
        world.client().connect((CALLER, port))
    client.sendall(b"still")
    assert read_all(server, 5) == b"still"
    assert world.do("stats") == ()
    assert [c.draining for c in world.do("connections")] == [True, True]
    assert world.do("pairs_to", IPv4Address("127.0.0.1")) == 2
    world.do("end_pairs", DESTINATION)
    assert is_reset(client)
    assert is_reset(server)
    assert world.do("connections") == ()


def test_end_pairs_leaves_open_listeners_alone(world: PlaneWorld) -> None:
    """A destination that was closed and opened again keeps its new connections."""
    backend = world.backend()
    port = free_port()
    world.do("open_listener", listener_of(port, backend_of(backend)))
    old, _ = world.joined(port, backend)
    world.do("close_listener", DESTINATION)
    world.do("open_listener", listener_of(port, backend_of(backend)))
    new, served = world.joined(port, backend)
    world.do("end_pairs", DESTINATION)
    assert is_reset(old)
    new.sendall(b"new")
    assert read_all(served, 3) == b"new"


def test_opening_twice_is_a_swap(world: PlaneWorld) -> None:
    """A full pass that opens what is open already changes what it knows, and breaks nothing."""
    one, two = world.backend(), world.backend()
    port = free_port()
    world.do("open_listener", listener_of(port, backend_of(one)))
    client, server = world.joined(port, one)
    world.do("open_listener", listener_of(port, backend_of(two)))
    world.joined(port, two)
    client.sendall(b"x")
    assert server.recv(1) == b"x"


def test_a_destination_may_move_to_another_port(world: PlaneWorld) -> None:
    """It is closed and opened: a port that is taken is an error, a free one serves, and the connection goes on."""
    backend = world.backend()
    taken = world.backend("0.0.0.0").getsockname()[1]
    first, second = free_port(), free_port()
    world.do("open_listener", listener_of(first, backend_of(backend)))
    client, server = world.joined(first, backend)
    world.do("close_listener", DESTINATION)
    with pytest.raises(OSError, match="in use") as caught:
        world.do("open_listener", listener_of(taken, backend_of(backend)))
    assert caught.value.errno == errno.EADDRINUSE
    world.do("open_listener", listener_of(second, backend_of(backend)))
    world.joined(second, backend)
    with pytest.raises(ConnectionRefusedError):
        world.client().connect((CALLER, first))
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    assert [stats.port for stats in world.do("stats")] == [second]


def test_closing_what_is_not_open_does_nothing(world: PlaneWorld) -> None:
    """Steps may be repeated."""
    world.do("close_listener", DESTINATION)
    world.do("end_pairs", DESTINATION)


def test_stop_refuses_everywhere_and_tells_what_is_left(world: PlaneWorld) -> None:
    """After stop nothing is accepted; how many connections are left can be asked until none is."""
    backend = world.backend()
    port = free_port()
    world.do("open_listener", listener_of(port, backend_of(backend)))
    client, server = world.joined(port, backend)
    world.do("stop")
    with pytest.raises(ConnectionRefusedError):
        world.client().connect((CALLER, port))
    assert world.do("left") == 1
    assert world.call(lambda: world.plane.active) == 1
    client.close()
    server.close()
    eventually(lambda: world.do("left") == 0)


def test_close_resets_what_is_left(world: PlaneWorld) -> None:
    """Closing the plane ends every connection."""
    backend = world.backend()
    port = free_port()
    world.do("open_listener", listener_of(port, backend_of(backend)))
    client, server = world.joined(port, backend)
    world.do("close")
    assert is_reset(client)
    assert is_reset(server)
    world.plane.close = lambda: None  # once is enough


def echo_once(world: PlaneWorld, port: int, backend: socket.socket) -> socket.socket:
    """Send a datagram through that port and have it answered."""
    client = world.keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    client.connect((CALLER, port))
    client.send(b"ping")
    data, where = backend.recvfrom(100)
    backend.sendto(data, where)
    assert client.recv(100) == b"ping"
    return client


def test_datagrams_are_served_too(world: PlaneWorld) -> None:
    """A UDP destination opens, closes, and opens anew on its port although sessions of the former one were left."""
    backend = world.keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    backend.bind((CALLER, 0))
    port = free_port()
    wanted = Listener(
        destination=UDP,
        port=port,
        callers=frozenset({IPv4Address(CALLER)}),
        backends=(Backend(address=IPv4Address(CALLER), port=backend.getsockname()[1], local=True),),
    )
    world.do("open_listener", wanted)
    echo_once(world, port, backend)
    world.do("close_listener", UDP)
    assert world.do("left") == 0
    assert [c.destination for c in world.do("connections")] == [UDP]
    world.do("open_listener", wanted)
    echo_once(world, port, backend)
    assert len(world.do("connections")) == 1
    assert [stats.destination for stats in world.do("stats")] == [UDP]


def test_names_are_answered(world: PlaneWorld) -> None:
    """The plane's DNS server answers from the zone that it was given, at the addresses that it was given."""
    asker = IPv4Address(CALLER)
    name = Name.parse("web.shop")
    zone = Zone(suffix="mesh.internal", names={name: IPv4Address("240.1.2.3")}, views={asker: frozenset({name})})
    world.do("set_dns_addresses", frozenset({asker}))
    world.do("set_zone", zone)
    client = world.keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    client.connect((CALLER, world.dns_port))
    client.send(b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x04shop\x00\x00\x01\x00\x01")
    assert client.recv(512).endswith(bytes((240, 1, 2, 3)))
    world.do("set_zone", replace(zone, views={}))
    client.send(b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x04shop\x00\x00\x01\x00\x01")
    assert not client.recv(512).endswith(bytes((240, 1, 2, 3)))


def test_closed_listeners_are_forgotten_when_they_are_empty(world: PlaneWorld) -> None:
    """Nothing of a closed listener stays behind once its connections have ended."""
    backend = world.backend()
    for _ in range(5):
        port = free_port()
        world.do("open_listener", listener_of(port, backend_of(backend)))
        client, server = world.joined(port, backend)
        world.do("close_listener", DESTINATION)
        client.close()
        server.close()
    eventually(lambda: world.call(lambda: not world.plane._draining))
