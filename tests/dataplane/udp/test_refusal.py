"""What a client hears whose datagram nobody has taken."""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from appliance.dataplane.udp.refusal import port_unreachable
from tests.dataplane.udpworld import CALLER, World, backend

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def world() -> Iterator[World]:
    """A loop with a listener on it."""
    made = World()
    yield made
    made.close()


def test_the_message_quotes_the_datagram() -> None:
    """Type 3, code 3, then both headers; each checksum is right: over all of it, it adds up to none."""
    message = port_unreachable(("10.1.2.3", 40000), ("240.0.0.9", 53))
    assert message[:2] == b"\x03\x03"
    assert folded(message) == 0xFFFF
    quoted = message[8:]
    assert len(quoted) == 28
    assert quoted[0] == 0x45
    assert quoted[9] == socket.IPPROTO_UDP
    assert (socket.inet_ntoa(quoted[12:16]), socket.inet_ntoa(quoted[16:20])) == ("10.1.2.3", "240.0.0.9")
    assert struct.unpack("!HHH", quoted[20:26]) == (40000, 53, 8)


def folded(data: bytes) -> int:
    """The one's complement sum."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    return (total & 0xFFFF) + (total >> 16)


def error_of(world: World, sock: socket.socket) -> int:
    """Wait until an error is there, and return it."""
    found: list[int] = []

    def look() -> bool:
        found.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        return found[-1] != 0

    world.until(look)
    return found[-1]


def client_of(world: World, at: tuple[str, int]) -> socket.socket:
    """A socket that is connected to a listener."""
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind((CALLER, 0))
    sock.connect(at)
    return sock


@pytest.mark.parametrize("number", [1, 2])
def test_a_client_is_told_when_no_backend_is_left(world: World, number: int) -> None:
    """By its first datagram where there is one backend; else once none is left that has not refused."""
    gone = [world.socket() for _ in range(number)]
    backends = [backend(sock) for sock in gone]
    for sock in gone:
        sock.close()
    udp, at = world.open(*backends)
    with client_of(world, at) as client:
        for _ in range(number):
            failed = sum(one.failed for one in udp.stats().backends)
            client.send(b"question")
            world.until(lambda failed=failed: sum(one.failed for one in udp.stats().backends) > failed)
        assert error_of(world, client) == errno.ECONNREFUSED


def test_nobody_is_told_while_another_backend_is_left(world: World) -> None:
    """The next datagram gets that one."""
    gone, server = world.socket(), world.socket()
    dead = replace(backend(gone), weight=1000)
    gone.close()
    udp, at = world.open(dead, backend(server))
    with client_of(world, at) as client:
        client.send(b"question")
        world.until(lambda: any(one.failed for one in udp.stats().backends) or bool(server.queued()))
        world.turn()
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_a_spare_that_refuses_is_told_of_each_time(world: World) -> None:
    """It is never left out, so it is asked again and again."""
    gone = world.socket()
    spare = replace(backend(gone), on_demand=True)
    gone.close()
    _, at = world.open(spare)
    with client_of(world, at) as client:
        for _ in range(2):
            client.send(b"question")
            assert error_of(world, client) == errno.ECONNREFUSED
