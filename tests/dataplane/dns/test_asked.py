"""Which server was asked: the kernel's answers, and whatever else may come. Real ones: tests/system."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from appliance.dataplane.dns.asked import asked_by_tcp, asked_by_udp

V4 = bytes.fromhex(
    "a400000000010200010000004e4c00000200000034000180140001800800"
    "0100ac1e000208000200c61200351c000280050001001100000006000200"
    "d57d0000060003000035000034000280140001800800010"
    "07f42000108000200ac1e00021c00028005000100110000000600020000060000"
    "06000300d57d000008000300000001a8080008000000000008000c00abee473f08000b0000000002080007000000001e"
)
V6 = bytes.fromhex(
    "d400000000010200010000004e4c00000a0000004c0001802c000180"
    "14000300fe80000000000000b43888fffe4b03cb14000400fe800000000000000000000000000099"
    "1c000280050001001100000006000200b75800000600030000350000"
)
"""What Linux 6.18 says of flows from 172.30.0.2 to 198.18.0.53, and from a link-local address to fe80::99 (cut)."""


class Kernel:
    """A netlink socket that gives one answer."""

    def __init__(self, answer: bytes | OSError) -> None:
        self.answer = answer
        self.asked = b""

    def send(self, data: bytes) -> None:
        """Take the question."""
        self.asked = data

    def recv(self, _size: int) -> bytes:
        """Give the answer."""
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer


def asked(answer: bytes | OSError, client: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Return which server was asked."""
    return asked_by_udp(Kernel(answer), client, 6)  # type: ignore[arg-type]


def test_the_servers_address_and_port() -> None:
    """By IPv4, also at a socket for both families; by IPv6 with the link of the asker's address."""
    assert asked(V4, ("172.30.0.2", 54653)) == ("198.18.0.53", 53)
    assert asked(V4, ("::ffff:172.30.0.2", 54653, 0, 0)) == ("198.18.0.53", 53)
    assert asked(V6, ("fe80::b438:88ff:fe4b:3cb%eth0", 46936, 0, 3)) == ("fe80::99", 53, 0, 3)


@pytest.mark.parametrize(("client", "here"), [("127.0.0.5", "127.0.0.1"), ("172.30.0.2", "172.30.0.2")])
def test_the_flow_whose_answers_go_to_the_asker(client: str, here: str) -> None:
    """From where the rules have led it: the asker's own address, or the one of lo."""
    kernel = Kernel(V4)
    asked_by_udp(kernel, (client, 7), 6)  # type: ignore[arg-type]
    assert socket.inet_aton(here) + b"\x08\x00\x02\x00" + socket.inet_aton(client) in kernel.asked


def test_whatever_else_comes_is_no_answer() -> None:
    """An error, an answer that is cut anywhere, a kernel without ctnetlink."""
    assert asked(OSError(), ("172.30.0.2", 1)) is None
    assert asked(bytes.fromhex("24000000020000000100000000000000feffffff"), ("172.30.0.2", 1)) is None
    for size in range(len(V4)):
        asked(V4[:size], ("172.30.0.2", 1))
        asked(V4[:size] + b"\xff" * 40, ("172.30.0.2", 1))


def test_a_connection_that_nothing_has_led_here_has_no_other_server() -> None:
    """It is one to the door itself; and one that is gone has none."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        served, _ = server.accept()
        with served:
            assert asked_by_tcp(served) in (None, client.getpeername())
    assert asked_by_tcp(served) is None
