"""At which ports of a network namespace a program takes connections or datagrams, asked of the kernel (sock_diag(7)).

For one port at one address the kernel does the look-up that it does for a packet that comes there. So a socket at
0.0.0.0 counts, one at [::] that also takes IPv4, and one at that very address; one on loopback only does not, nor one
that is connected. Nothing is dialled, and what a container holds in other sockets costs nothing here.

A socket that is bound to an interface (SO_BINDTODEVICE, socket(7)) is found only if asked with that interface. So one
also learns the way: what is found with no interface is reached over lo, from within the namespace; what is found with
that of the address only is reached over the link.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from math import inf
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

import trio

from appliance.drivers.netns import identity, links, netlink
from appliance.model.facts import BoundPort, UnreachedPort
from appliance.model.names import Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from appliance.model.network import NetnsId

BATCH = 64
"""Ports asked in one datagram, about 0.4 ms; traffic has its turn after as many, whichever containers they are of."""
LINKS_LIFE, LINK_MISSING = 30.0, 1.0
"""Seconds for which the interfaces of a namespace are believed, and where none has an address that was asked for;
reading them takes 0.3 ms."""

DeclaredPort = tuple[Protocol, int]

# linux/sock_diag.h, linux/inet_diag.h, linux/netlink.h, net/tcp_states.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_TCP_CLOSE, _TCP_LISTEN = 7, 10
"""The state of a UDP socket that is bound and not connected is that of a TCP socket that is closed."""
_ALL_STATES = 0xFFFFFFFF
_request = Struct("=BBBxI HH 16s16sIII")
"""inet_diag_req_v2: family, protocol, extensions, states; ports, addresses, interface and cookie of the socket."""
_answer = Struct("=I H 10x B B 2x H H 16s 16x I")
"""nlmsghdr: length, type; the beginning of inet_diag_msg: family, state; the socket's own port, and the other one;
its own address, and its interface."""
_SOCKET = slice(16, 68)
"""What of an answer tells one socket from another: what follows counts what waits in it."""
_error = Struct("=16x i")
_ENOUGH = 128
"""Bytes of an answer that are read: all that stand in _answer."""
_NO_COOKIE = 0xFFFFFFFF
_ANY = bytes(16)
_LOOPBACK, _LOOPBACK6 = IPv4Address("127.0.0.1"), IPv6Address("::1")
_LO = 1
"""The index of lo in each namespace (LOOPBACK_IFINDEX)."""
_NUMBERS = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP}
_STATES = {Protocol.TCP: _TCP_LISTEN, Protocol.UDP: _TCP_CLOSE}


class _Socket(NamedTuple):
    """What the kernel says of a socket that takes what was asked about."""

    address: IPv4Address | IPv6Address
    interface: int


class QuestionTurns:
    """Counts questions, and gives traffic its turn after every BATCH."""

    def __init__(self) -> None:
        """None were asked yet."""
        self.asked = 0
        self._next = BATCH

    async def after(self, questions: int) -> None:
        """Count so many more."""
        self.asked += questions
        if self.asked >= self._next:
            self._next = self.asked + BATCH
            await trio.lowlevel.checkpoint()


class NamespacePorts:
    """The ports of one namespace. It keeps the namespace alive: close it when the container ends.

    After an OSError close it, too, and open another: answers that were not read would be taken for those to the next
    questions.
    """

    def __init__(self, sock: socket.socket, path: str, netns: NetnsId | None = None) -> None:
        """`sock` asks in that namespace, and is closed with this; `path` is the namespace's file."""
        self._sock = sock
        self._path = path
        self._netns = netns
        self._asked: tuple[object, object] = (None, None)
        self._first: list[tuple[bytes, Sequence[DeclaredPort]]] = []
        """Addresses and ports as last asked, and the datagrams that mostly find them all."""
        self._said: list[bytes] = []
        self._found: frozenset[BoundPort] = frozenset()
        """What the kernel said when they did, and what that means: it says the same again nearly always."""
        self._links: dict[IPv4Address, int] = {}
        self._links_read = self._links_until = -inf

    def close(self) -> None:
        """Let go of the namespace."""
        self._sock.close()

    async def bound(
        self,
        addresses: Sequence[IPv4Address],
        ports: Sequence[DeclaredPort],
        turns: QuestionTurns,
        *,
        from_host: bool = False,
    ) -> frozenset[BoundPort]:
        """Return those of the ports that a program has, each with the first way that reaches it. Raises OSError.

        It asks over lo for each address, and then over their links; with `from_host` over the links only.
        """
        if self._asked[0] is not addresses or self._asked[1] is not ports:
            self._asked = addresses, ports
            self._first = [] if from_host else _batches(addresses[0], 0, ports)
            self._said = []
            self._links_until = -inf
        said: list[bytes] = []
        for datagram, asked in self._first:
            said += _exchange(self._sock, datagram, len(asked))
            await turns.after(len(asked))
        told = [answer[_SOCKET] for answer in said]
        if told == self._said and not from_host:
            return self._found
        there = _read_all(ports, said) if said else {}
        found = {BoundPort(*port) for port in there}
        if len(found) == len(ports):
            self._said, self._found = told, frozenset(found)
            return self._found
        for address, by_link in _other_ways(addresses, from_host=from_host):
            link = self._link(address) if by_link else 0
            if by_link and not link and not from_host:
                continue
            left = [port for port in ports if port not in there]
            if not left:
                break
            now = await self._ask(_batches(address, link, left), turns)
            other = None if address == addresses[0] else address
            found.update(BoundPort(*port, other, sock.interface != 0) for port, sock in now.items())
            there.update(now)
        return frozenset(found)

    async def unreached(self, ports: Sequence[DeclaredPort], turns: QuestionTurns) -> frozenset[UnreachedPort]:
        """Return those of the ports, none of which is `bound`, whose programs nobody reaches. Raises OSError."""
        there = await self._ask(_batches(_LOOPBACK, _LO, ports), turns)
        found = {UnreachedPort(*port, f"at {sock.address}") for port, sock in there.items() if sock.address.is_loopback}
        left = [port for port in ports if port not in there]
        for port, sock in (await self._ask(_batches(_LOOPBACK6, _LO, left), turns)).items():
            found.add(UnreachedPort(*port, f"at {sock.address}" if sock.address.is_loopback else "by IPv6"))
        return frozenset(found)

    async def _ask(
        self, batches: Sequence[tuple[bytes, Sequence[DeclaredPort]]], turns: QuestionTurns
    ) -> dict[DeclaredPort, _Socket]:
        found = {}
        for datagram, ports in batches:
            found.update(_read_all(ports, _exchange(self._sock, datagram, len(ports))))
            await turns.after(len(ports))
        return found

    def _link(self, address: IPv4Address) -> int:
        """Return the index of the interface that has the address; 0 where none has it now."""
        now = trio.current_time()
        if address not in self._links:
            self._links_until = min(self._links_until, self._links_read + LINK_MISSING)
        if now >= self._links_until:
            self._links_read, self._links_until = now, now + LINKS_LIFE
            with suppress(OSError):  # no descriptor is left, or the namespace's file has gone
                found = links.with_addresses(self._path)
                if self._netns is None or identity.identify(self._path) == self._netns:
                    self._links = found
        return self._links.get(address, 0)


def open_in(path: str, netns: NetnsId) -> NamespacePorts | None:
    """Return what asks in the namespace that the file leads to; None if that is another one, or gone. About 0.2 ms."""
    try:
        sock = netlink.socket_in(path, _NETLINK_SOCK_DIAG)
    except OSError:
        return None
    if identity.identify(path) == netns:
        return NamespacePorts(sock, path, netns)
    sock.close()
    return None


def answered() -> frozenset[Protocol]:
    """Return what this kernel answers such questions about, tried on sockets of our own.

    That is CONFIG_INET_TCP_DIAG and CONFIG_INET_UDP_DIAG, which may be modules that it loads now.
    """
    found = set()
    for protocol, kind in ((Protocol.TCP, socket.SOCK_STREAM), (Protocol.UDP, socket.SOCK_DGRAM)):
        with suppress(OSError), socket.socket(type=kind) as own, netlink.own_socket(_NETLINK_SOCK_DIAG) as sock:
            own.bind(("127.0.0.1", 0))
            if protocol is Protocol.TCP:
                own.listen(1)
            port = (protocol, own.getsockname()[1])
            ((datagram, _),) = _batches(_LOOPBACK, 0, [port])
            if _read(_exchange(sock, datagram, 1)[0], port) is not None:
                found.add(protocol)
    return frozenset(found)


def _exchange(sock: socket.socket, datagram: bytes, number: int) -> list[bytes]:
    """Ask so many questions. The kernel answers each by a datagram of its own, in their order, within the call."""
    sock.send(datagram)
    return [sock.recv(_ENOUGH) for _ in range(number)]


def _other_ways(addresses: Sequence[IPv4Address], *, from_host: bool) -> Iterator[tuple[IPv4Address, bool]]:
    """Yield where else to ask than over lo at the first address: addresses, and whether over their links."""
    if not from_host:
        for address in addresses[1:]:
            yield address, False
    for address in addresses:
        yield address, True


def _read_all(ports: Sequence[DeclaredPort], answers: Sequence[bytes]) -> dict[DeclaredPort, _Socket]:
    """Return the sockets of those that have one. Raises OSError."""
    read = ((port, _read(answer, port)) for port, answer in zip(ports, answers, strict=True))
    return {port: sock for port, sock in read if sock is not None}


def _read(answer: bytes, asked: DeclaredPort) -> _Socket | None:
    """Return the socket of an answer; None where there is none, or it takes nothing. Raises OSError."""
    if len(answer) < _answer.size or _answer.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        number = -_error.unpack_from(answer)[0] if len(answer) >= _error.size else errno.EBADMSG
        if number == errno.ENOENT:
            return None
        raise OSError(number, os.strerror(number))
    _, _, family, state, port, _, packed, interface = _answer.unpack_from(answer)
    if state != _STATES[asked[0]] or socket.ntohs(port) != asked[1]:
        return None
    address = ip_address(packed[:4] if family == socket.AF_INET else packed)
    return _Socket(getattr(address, "ipv4_mapped", None) or address, interface)


def _batches(
    address: IPv4Address | IPv6Address, link: int, ports: Sequence[DeclaredPort]
) -> list[tuple[bytes, Sequence[DeclaredPort]]]:
    """Return the datagrams that ask about these ports at one address, each with the ports that it is about."""
    return [
        (b"".join(_questions(address, link, batch)), batch)
        for batch in (ports[begin : begin + BATCH] for begin in range(0, len(ports), BATCH))
    ]


def _questions(address: IPv4Address | IPv6Address, link: int, ports: Sequence[DeclaredPort]) -> Iterator[bytes]:
    own = address.packed.ljust(16, b"\0")
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    for protocol, port in ports:
        # Kernels differ in which end of a UDP socket is its own, so both are the same; nobody is connected to itself.
        udp = protocol is Protocol.UDP
        number = socket.htons(port)
        body = _request.pack(
            *(family, _NUMBERS[protocol], 0, _ALL_STATES),
            *(number, number if udp else 0, own, own if udp else _ANY),
            *(link, _NO_COOKIE, _NO_COOKIE),
        )
        yield netlink.request(_SOCK_DIAG_BY_FAMILY, 0, body)
