"""Questions that are not for the mesh go on to the server that was asked, from inside of the asker's namespace.

Messages pass unchanged, in both directions: transfers, updates, signed messages and what a server says without
recursion are none of our business. Whatever is sent from here is exempt from the rules that lead questions here
(nft/dns.nft): its sockets are transparent. So Docker's own resolver is asked, and what that asks in turn comes here as
a question to another server.

One UDP socket stands for one socket of the asker, and so has a port that the kernel chooses; it ends with the answer to
its last question. An asker that has too many loses those that have waited longest: their servers are silent, or it is
on its own.
"""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING

import structlog

from appliance.dataplane.dns.asked import NETLINK_NETFILTER, asked_by_udp
from appliance.dataplane.dns.door import make_transparent
from appliance.render.dnsmessage import EDE_NETWORK_ERROR, SERVFAIL, Ede, Reply, encode_reply
from appliance.render.ruleset import DNS_DOOR_PORT

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from appliance.dataplane.dns.asked import Address
    from appliance.dataplane.dns.door import DnsDoor
    from appliance.dataplane.namespace import NamespaceSockets
    from appliance.render.dnsmessage import Query

log = structlog.get_logger()

MAX_RELAYS = 512
"""UDP sockets of all askers together."""
MAX_RELAYS_PER_ASKER = 256

WAIT_SECONDS = 10.0
"""For how long an answer is waited for; glibc's resolver asks again after 5 s (resolv.conf(5))."""
SESSION_SECONDS = 60.0
"""For how long more may come where what was sent is no question: VPNs use port 53, too."""

MAX_WAITING = 512
"""Questions of one socket without an answer; when there are more, the oldest is forgotten."""
BATCH = 16
"""Answers taken in a row."""
MAX_DATAGRAM = 65535


class Relays:
    """The sockets in workloads' namespaces from which others' servers are asked by UDP, by namespace and asker."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        namespaces: Mapping[str, NamespaceSockets],
        asks: Callable[[Address], bool],
    ) -> None:
        """`asks` says whether a server is to be asked from inside."""
        self.loop = loop
        self._namespaces = namespaces
        self._asks = asks
        self._relays: dict[str, dict[Address, UdpRelay]] = {}
        self._count = 0
        self.relayed = 0
        self.gave_way = 0

    def __len__(self) -> int:
        return self._count

    def datagram(self, door: DnsDoor, sock: socket.socket, client: Address, data: bytes, query: Query | None) -> bool:
        """Send on what a client of the door has sent; `query` is what it asks, if that can be read.

        Return False where the server is not to be asked from inside, or is not known.
        """
        relay = self._relays.get(door.netns, {}).get(client)
        if relay is None:
            upstream, server = self._socket(door, client)
            if server is None:
                return False
            if upstream is None:
                return True
            relay = UdpRelay(self, door.netns, upstream, server, client, sock)
            self._add(relay)
        self.relayed += 1
        relay.send(data, query)
        return True

    def tcp(self, door: DnsDoor, server: Address | None) -> socket.socket | None:
        """Return a TCP socket that is ready to connect from inside; None where that server is asked otherwise."""
        namespace = self._namespaces.get(door.netns)
        if server is None or namespace is None or not self._asks(server):
            return None
        self.relayed += 1
        return namespace.entered(partial(_socket, server, socket.SOCK_STREAM))

    def leave(self, netns: str) -> None:
        """End what is of one namespace."""
        for relay in list(self._relays.get(netns, {}).values()):
            relay.close()

    def close(self) -> None:
        """End all."""
        for netns in list(self._relays):
            self.leave(netns)

    def ended(self, relay: UdpRelay) -> None:
        """Count one no more."""
        of_asker = self._relays[relay.netns]
        del of_asker[relay.client]
        if not of_asker:
            del self._relays[relay.netns]
        self._count -= 1

    def _socket(self, door: DnsDoor, client: Address) -> tuple[socket.socket | None, Address | None]:
        """Return a socket that can ask, and which server was asked; no server if it is not to be asked from inside."""
        namespace = self._namespaces.get(door.netns)
        if namespace is None:
            return None, None
        try:
            return namespace.entered(partial(self._prepared, client))
        except OSError as error:
            log.debug("cannot ask a DNS server from inside a container", container=door.asker, cause=str(error))
            return None, None

    def _prepared(self, client: Address) -> tuple[socket.socket | None, Address | None]:
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
        with socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER) as netlink:
            server = asked_by_udp(netlink, client, DNS_DOOR_PORT)
        if server is None or not self._asks(server):
            return None, None
        return _socket(server, socket.SOCK_DGRAM), server

    def _add(self, relay: UdpRelay) -> None:
        of_asker = self._relays.setdefault(relay.netns, {})
        if len(of_asker) >= MAX_RELAYS_PER_ASKER:
            self._give_way(of_asker)
        elif self._count >= MAX_RELAYS:
            self._give_way(max(self._relays.values(), key=len))
        self._relays.setdefault(relay.netns, {})[relay.client] = relay
        self._count += 1

    def _give_way(self, of_asker: dict[Address, UdpRelay]) -> None:
        self.gave_way += 1
        next(iter(of_asker.values())).close()


class UdpRelay:
    """One socket of an asker's, for one server."""

    def __init__(
        self, relays: Relays, netns: str, upstream: socket.socket, server: Address, client: Address, door: socket.socket
    ) -> None:
        self.netns = netns
        self.client = client
        self._relays = relays
        self._upstream = upstream
        self._server = server
        self._door = door
        self._waiting: dict[bytes, Query | None] = {}
        """The questions without an answer, by id, oldest first."""
        self._other = False
        """It carries what is no question: answers cannot be told from other messages."""
        self._connected = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None

    def send(self, data: bytes, query: Query | None) -> None:
        """Send on a message."""
        self._other |= query is None
        if len(self._waiting) >= MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]
        self._waiting[data[:2]] = query
        try:
            if not self._connected:
                # Only this server's packets come in, and an ICMP error is reported at once.
                self._upstream.connect(self._server)
                self._relays.loop.add_reader(self._upstream, self._readable)
                self._connected = True
            self._upstream.send(data)
        except BlockingIOError:
            pass  # as a full queue anywhere on the way: it asks again
        except OSError as error:
            self._fail(error)
            return
        self._rearm()

    def close(self) -> None:
        """End it; answers that come later are lost."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._connected:
            self._relays.loop.remove_reader(self._upstream)
        self._upstream.close()
        self._relays.ended(self)

    def _rearm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._relays.loop.call_later(SESSION_SECONDS if self._other else WAIT_SECONDS, self.close)

    def _readable(self) -> None:
        try:
            for _ in range(BATCH):
                data = self._upstream.recv(MAX_DATAGRAM)
                if self._other:
                    self._rearm()
                elif data[:2] not in self._waiting:
                    continue  # an answer to no question: a forged one perhaps
                self._waiting.pop(data[:2], None)
                self._tell(data)
                if not self._waiting and not self._other:
                    self.close()
                    return
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)

    def _tell(self, data: bytes) -> None:
        try:
            self._door.sendto(data, self.client)
        except OSError as error:
            log.debug("a DNS answer could not be sent", error=str(error))

    def _fail(self, error: OSError) -> None:
        """Say so to all that wait: their resolvers go to the next server at once."""
        ede = Ede(code=EDE_NETWORK_ERROR, text=f"{self._server[0]} cannot be asked: {error.strerror or error}")
        for query in self._waiting.values():
            if query is not None:
                self._tell(encode_reply(query, Reply(rcode=SERVFAIL, ede=ede)))
        self.close()


def _socket(server: Address, kind: int) -> socket.socket:
    family = socket.AF_INET if len(server) == 2 else socket.AF_INET6
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        make_transparent(sock)
    except OSError:
        sock.close()
        raise
    return sock
