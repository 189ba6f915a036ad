"""Interfaces as the kernel describes them; tests/system/test_port_claims.py reads real ones."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from appliance.drivers.netns import links, netlink
from appliance.errors import RetryError
from appliance.model.facts import HostBridge


def number(value: int) -> bytes:
    """Return a number as netlink has it."""
    return value.to_bytes(4, "little", signed=True)


def link(index: int, name: str, kind: str, **values: int) -> bytes:
    """Return an RTM_NEWLINK message; `peer`, `netns`, `master` and `mac` are given by name."""
    attributes = netlink.attribute(3, name.encode() + b"\0")
    attributes += netlink.attribute(18, netlink.attribute(1, kind.encode()))
    for key, what in {"peer": 5, "netns": 37, "master": 10}.items():
        if key in values:
            attributes += netlink.attribute(what, number(values[key]))
    if "mac" in values:
        attributes += netlink.attribute(1, values["mac"].to_bytes(6, "big"))
    return netlink.request(16, 0, links._ifinfomsg.pack(0, 1, index, 0, 0) + attributes)


def address(index: int, *attributes: tuple[int, bytes]) -> bytes:
    """Return an RTM_NEWADDR message."""
    body = links._ifaddrmsg.pack(2, 24, 0, 0, index)
    return netlink.request(20, 0, body + b"".join(netlink.attribute(*one) for one in attributes))


class Kernel:
    """Answers what was prepared, by the type of the question and the index of the interface that it names."""

    def __init__(self, answers: dict[tuple[int, int], bytes]) -> None:
        self._answers = answers
        self._next = b""

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def send(self, question: bytes) -> None:
        """Take a question."""
        (message,) = netlink.messages(question)
        index = links._ifinfomsg.unpack_from(message.body)[2] if message.type == 18 else 0
        gone = netlink.request(netlink.NLMSG_ERROR, 0, number(-19))
        self._next = self._answers.get((message.type, index), gone)
        if message.type != 90 and index == 0:
            self._next += netlink.request(netlink.NLMSG_DONE, 0, bytes(4))

    def recv(self, _: int) -> bytes:
        """Give the answer."""
        return self._next


KNOWN_AS = netlink.request(88, 0, bytes(4) + netlink.attribute(1, number(7)))


def ports(monkeypatch: pytest.MonkeyPatch, inside: bytes, **ends: bytes) -> frozenset[str]:
    """Return the ports of a namespace with these interfaces, which the host knows by number 7."""
    answers = {(18, int(name[1:])): end for name, end in ends.items()}
    monkeypatch.setattr(netlink, "own_socket", lambda _: Kernel({(90, 0): KNOWN_AS, **answers}))
    return links._ports("/proc/self/ns/net", Kernel({(18, 0): inside}))


def test_a_port_is_the_other_end_that_is_on_a_bridge(monkeypatch):
    """Loopback has none; nor has a pair that stands in the namespace, or whose other end is on no bridge."""
    inside = (
        link(1, "lo", "")
        + link(2, "eth0", "veth", peer=12, netns=0)
        + link(3, "eth1", "veth", peer=13, netns=0)
        + link(4, "a", "veth", peer=5)
        + link(6, "gone", "veth", peer=16, netns=0)
    )
    ends = {
        "_12": link(12, "vetha", "veth", peer=2, netns=7, master=9),
        "_13": link(13, "vethb", "veth", peer=3, netns=7),
    }
    assert ports(monkeypatch, inside, **ends) == {"vetha"}


@pytest.mark.parametrize(
    "end",
    [
        link(12, "vetha", "veth", peer=2, netns=8, master=9),
        link(12, "vetha", "veth", peer=3, netns=7, master=9),
        link(12, "eth0", "", master=9),
        link(12, "vetha", "veth", master=9),
    ],
    ids=["another namespace's", "another interface's", "no veth", "of nobody"],
)
def test_a_namespace_cannot_claim_anothers_port(monkeypatch, end):
    """What a program says of its interfaces counts where the host sees the same from its side."""
    assert ports(monkeypatch, link(2, "eth0", "veth", peer=12, netns=0), _12=end) == frozenset()


def test_bridges_and_what_the_host_has_there(monkeypatch):
    """By name, with MAC and addresses of both families; those of other interfaces are left out."""
    four, six = IPv4Address("172.18.0.1"), IPv6Address("fe80::1")
    dump = link(4, "docker0", "bridge", mac=0x0242AC120001) + link(3, "br-1", "bridge", mac=5)
    held = address(4, (2, four.packed)) + address(4, (1, six.packed)) + address(9, (2, b"\1\2\3\4")) + address(4)
    monkeypatch.setattr(netlink, "own_socket", lambda _: Kernel({(18, 0): dump, (22, 0): held}))
    assert links.host_bridges() == (
        HostBridge(name="br-1", mac=5),
        HostBridge(name="docker0", mac=0x0242AC120001, addresses=frozenset({four, six})),
    )


@given(st.lists(st.tuples(st.sampled_from([1, 3, 5, 10, 18, 37]), st.binary(max_size=9)), max_size=5))
def test_any_message_about_an_interface(attributes):
    """One that cannot be read is passed over; the others count."""
    odd = links._ifinfomsg.pack(0, 1, 8, 0, 0) + b"".join(netlink.attribute(*one) for one in attributes)
    kernel = Kernel({(18, 0): netlink.request(16, 0, odd) + link(2, "good", "veth")})
    assert "good" in [found.name for found in links._links(kernel, links._dump())]


def test_a_file_that_is_no_namespace_is_named_in_the_error(tmp_path):
    """The caller tries again."""

    async def main() -> None:
        with pytest.raises(RetryError, match=f"cannot read the interfaces of network namespace {tmp_path}/none: No"):
            await links.wait_ports(str(tmp_path / "none"), 1, timeout=1)

    trio.run(main)


def test_waiting_for_ports_ends(monkeypatch):
    """As soon as there are enough; with what there is after the time."""
    there = [frozenset(), frozenset({"a"}), frozenset({"a", "b"})]
    monkeypatch.setattr(links, "_ports", lambda *_: there[0] if len(there) == 1 else there.pop(0))

    async def main() -> None:
        path = "/proc/self/ns/net"
        assert await links.wait_ports(path, 2, timeout=10) == {"a", "b"}
        assert await links.wait_ports(path, 3, timeout=0.1) == {"a", "b"}

    trio.run(main)
