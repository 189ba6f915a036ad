"""Routes as the kernel is told of them; tests/system/test_netns_real.py sets them in real namespaces."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network

import pytest
import trio

from appliance.drivers.netns import netlink, routes
from appliance.errors import RetryError

VIPS = IPv4Network("240.0.0.0/4")
GATEWAY = IPv4Address("10.77.0.1")


@pytest.fixture
def kernel(monkeypatch):
    """Record what the kernel is asked in a namespace, and answer with `kernel.errno`."""

    class Kernel:
        errno = 0
        asked: list[bytes] = []  # noqa: RUF012 — one for each test
        joined: list[int] = []  # noqa: RUF012 — as above

    @contextmanager
    def socket_in(path, protocol):
        assert (path, protocol) == ("/run/ns", netlink.NETLINK_ROUTE)
        yield None

    def ask(_, question):
        Kernel.asked.append(question)
        if Kernel.errno:
            raise OSError(Kernel.errno, os.strerror(Kernel.errno))
        return []

    monkeypatch.setattr(netlink, "socket_in", socket_in)
    monkeypatch.setattr(netlink, "ask", ask)
    monkeypatch.setattr(netlink, "join", lambda _, group: Kernel.joined.append(group))
    return Kernel


def parts(question: bytes) -> tuple[int, tuple[int, ...], dict[int, bytes]]:
    """Return type, header and attributes of a request about a route."""
    (message,) = netlink.messages(question)
    size = routes._rtmsg.size
    return message.type, routes._rtmsg.unpack(message.body[:size]), dict(netlink.attributes(message.body[size:]))


def test_a_local_route_is_added_and_dropped_by_the_same_key(kernel):
    """In table `local`, to `lo`, from the source; the drop names table, destination and interface.

    Behind it there is one that no address takes along, and one to the address itself.
    """
    trio.run(routes.add_local_route, "/run/ns", VIPS, GATEWAY)
    added, behind, held, _ = map(parts, kernel.asked)
    kernel.asked.clear()
    trio.run(routes.drop_local_route, "/run/ns", VIPS)
    dropped, dropped_behind, _ = map(parts, kernel.asked)
    assert (added[0], behind[0], held[0]) == (24, 24, 24)
    assert (dropped[0], dropped_behind[0]) == (25, 25)
    assert added[1] == behind[1] == dropped[1] == (2, 4, 0, 0, 255, 4, 254, 2, 0)
    assert added[2] == {**dropped[2], 7: GATEWAY.packed}
    assert behind[2] == {**dropped_behind[2], 7: IPv4Address("127.0.0.1").packed}
    assert dropped[2][1] == IPv4Address("240.0.0.0").packed
    assert held[1] == (2, 32, 0, 0, 255, 4, 254, 2, 0)
    assert held[2] == {**dropped_behind[2], 1: GATEWAY.packed}


def test_a_route_is_dropped_only_through_its_gateway(kernel):
    """In the main table, whatever made it; the kernel compares destination and gateway."""
    trio.run(routes.drop_route, "/run/ns", VIPS, GATEWAY)
    kind, header, attributes = parts(*kernel.asked)
    assert kind == 25
    assert header == (2, 4, 0, 0, 254, 0, 255, 0, 0)
    assert attributes == {1: IPv4Address("240.0.0.0").packed, 5: GATEWAY.packed}


@pytest.mark.parametrize(
    "drop", [lambda: routes.drop_local_route("/run/ns", VIPS), lambda: routes.drop_route("/run/ns", VIPS, GATEWAY)]
)
def test_a_route_that_is_gone_is_no_error_and_a_refusal_is(kernel, drop):
    """ESRCH is the kernel's word for a route that does not exist."""
    kernel.errno = errno.ESRCH
    trio.run(drop)
    kernel.errno = errno.EPERM
    with pytest.raises(RetryError, match=r"cannot remove the route to 240.0.0.0/4 .* /run/ns: Operation not permitted"):
        trio.run(drop)


def test_a_route_that_exists_is_not_added(kernel):
    """A namespace with a default route is left as it is; the look-up asks for an address inside the range."""
    assert trio.run(routes.add_route, "/run/ns", VIPS, GATEWAY) is False
    kind, _, attributes = parts(*kernel.asked)
    assert kind == 26
    assert attributes == {1: IPv4Address("240.0.0.1").packed}


def test_a_look_up_that_fails_names_the_namespace(kernel):
    """Neither a route nor an unreachable one: the caller tries again."""
    kernel.errno = errno.EPERM
    with pytest.raises(RetryError, match=r"cannot look up routes in network namespace /run/ns: Operation not"):
        trio.run(routes.add_route, "/run/ns", VIPS, GATEWAY)
    with pytest.raises(RetryError, match=r"cannot look up routes in network namespace /run/ns: Operation not"):
        trio.run(routes.wait_neighbour, "/run/ns", GATEWAY)


def test_changes_are_subscribed_to_before_the_look_up(kernel):
    """So that a route that comes in between is not missed; one that is there is told at once."""
    assert trio.run(routes.wait_neighbour, "/run/ns", GATEWAY)
    assert kernel.joined == [7]
    kind, _, attributes = parts(*kernel.asked)
    assert (kind, attributes) == (26, {1: GATEWAY.packed})
