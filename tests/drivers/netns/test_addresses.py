"""Addresses of namespaces; tests/system/test_netns_real.py reads them in real ones."""

from __future__ import annotations

import socket
import sys
from ipaddress import IPv4Address

import pytest
import trio

from appliance.drivers.netns import addresses, identity, netlink
from appliance.errors import RetryError


def message(kind: int, *attributes: tuple[int, bytes]) -> bytes:
    """Return an RTM_NEWADDR message as the kernel sends it."""
    body = addresses._ifaddrmsg.pack(socket.AF_INET, 24, 0, 0, 2)
    return netlink.request(kind, 0, body + b"".join(netlink.attribute(*one) for one in attributes))


class Kernel:
    """Answers one dump of addresses."""

    def __init__(self, *messages: bytes) -> None:
        self._answer = b"".join(messages) + netlink.request(netlink.NLMSG_DONE, 0, b"\0" * 4)
        self.asked = b""

    def send(self, question: bytes) -> None:
        """Take the question."""
        self.asked += question

    def recv(self, _: int) -> bytes:
        """Give the answer."""
        return self._answer


def test_the_local_address_is_meant_each_once_and_without_loopback():
    """IFA_ADDRESS is the other end of a point-to-point link; where there is no IFA_LOCAL it is the address itself."""
    one, two, far = (IPv4Address(text).packed for text in ("10.0.0.1", "10.0.0.2", "10.9.9.9"))
    kernel = Kernel(
        message(20, (1, far), (2, one)),
        message(20, (1, two)),
        message(20, (1, one), (2, one)),
        message(20, (1, b"\x7f\0\0\1"), (2, b"\x7f\0\0\1")),
        message(21, (1, far), (2, far)),
    )
    assert addresses._addresses(kernel) == (IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2"))
    (question,) = netlink.messages(kernel.asked)
    assert question.type == 22
    assert question.body[0] == socket.AF_INET
    assert int.from_bytes(kernel.asked[6:8], sys.byteorder) & netlink.DUMP == netlink.DUMP


@pytest.mark.parametrize("ask", [addresses.read, addresses.wait])
def test_a_file_that_is_no_namespace_is_named_in_the_error(ask, tmp_path):
    """The caller tries again."""
    with pytest.raises(RetryError, match=f"cannot read the addresses in network namespace {tmp_path}/none: No such"):
        trio.run(ask, str(tmp_path / "none"))


def test_waiting_for_an_address_that_does_not_come_ends(monkeypatch):
    """With nothing, although the namespace has other addresses."""
    monkeypatch.setattr(addresses, "_addresses", lambda _: (IPv4Address("10.0.0.1"),))

    async def main() -> None:
        assert await addresses.wait(identity.HOST, timeout=10) == (IPv4Address("10.0.0.1"),)
        assert await addresses.wait(identity.HOST, IPv4Address("10.0.0.1"), timeout=10) == (IPv4Address("10.0.0.1"),)
        assert await addresses.wait(identity.HOST, IPv4Address("10.0.0.2"), timeout=0.02) == ()

    trio.run(main)
