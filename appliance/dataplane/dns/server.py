"""The DNS server of this host's containers: UDP and TCP on the bridge addresses and at doors, a view for each asker.

A question takes the first of these that fits:

1. The very same bytes came from the same asker before: the answer is there, encoded (`_ready`, `_recent`). All others
   take long, so their askers have turns.
2. It cannot be read, or is of a kind that this server does not answer: an error, or silence.
3. The asker has no view yet but may get one: the question is held, for 4.5 s at most, and then it has failed, so that
   its asker asks again. Any other asker without a view is refused. By UDP few a second are told either: addresses that
   somebody has made up must not fill the socket's queue.
4. The name is ours: answered from the zone, and kept under 1 until the zone changes.
5. It came through a door, to a server that is not this one: that is asked (relay.py). At a door this also goes for what
   is not answered under 2.
6. The resolver asks upstream, or has the answer already.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import structlog

from appliance.dataplane.dns.answers import NONE, EncodedAnswers
from appliance.dataplane.dns.door import DnsDoor
from appliance.dataplane.dns.hold import ClientQuery, Hold
from appliance.dataplane.dns.relay import Relays
from appliance.dataplane.dns.resolver import Resolver
from appliance.dataplane.dns.tcp import DnsTcpListener, TcpLimits
from appliance.dataplane.dns.turns import AT_A_TIME, Turns
from appliance.dataplane.udp.sockets import make_room
from appliance.render.dnsforward import encode_response
from appliance.render.dnsmessage import (
    EDE_NOT_AUTHORITATIVE,
    EDE_NOT_READY,
    EDE_PROHIBITED,
    REFUSED,
    SERVFAIL,
    Ede,
    Query,
    Reply,
    encode_reply,
    parse_query,
)
from appliance.render.dnswire import RD
from appliance.render.zone import ZoneAnswers

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping, Sequence

    from appliance.dataplane.dns.asked import Address
    from appliance.dataplane.dns.resolver import Resolved
    from appliance.dataplane.dns.tcp import Forward
    from appliance.dataplane.namespace import NamespaceSockets
    from appliance.model.network import Zone

log = structlog.get_logger()

IP_FREEBIND = getattr(socket, "IP_FREEBIND", 15)
"""Lets us listen on a gateway address before Docker has put it on its bridge (ip(7))."""

BATCH = 64
"""Questions answered in a row before the rest of the loop gets its turn: about half a millisecond."""

RECEIVE_SIZE = 4096
"""Octets read of a datagram. No real question comes near; a longer one is cut and so answered with an error."""

MAX_READY = 8192
"""Encoded answers kept, in each of the two tables."""

RECENT_SECONDS = 1.0
"""For how long an encoded upstream answer is told without counting down its TTLs: their unit is a second."""

SEND_BUFFER = 1 << 20
"""Octets of a socket's send queue. What leaves for an address that nobody has stays there for seconds (arp(7))."""
SO_SNDBUFFORCE = 32
"""From asm-generic/socket.h: beyond net.core.wmem_max, with CAP_NET_ADMIN."""

COUNTED = (
    *("questions", "ready", "malformed", "ignored", "ours", "refused", "held", "hold_expired", "hold_overflowed"),
    *("unsent", "crowded_out", "untold", "failed"),
)
STRANGERS = ""
"""All askers without a view have turns together, as if they were one."""
TOLD_A_SECOND = 10.0
"""Refusals a second that askers without a view get by UDP, and how many at once. Each takes about a kilobyte of the
send queue for three seconds where its asker does not exist."""


DnsSockets = tuple[socket.socket, socket.socket]
"""For UDP, and listening for TCP."""
NONE_OPENED: Mapping[IPv4Address, DnsSockets] = {}
NO_NAMESPACES: Mapping[str, NamespaceSockets] = {}


def listen(address: IPv4Address, port: int) -> DnsSockets:
    """Return the sockets for one address. Raises OSError."""
    where = (str(address), port)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        for sock in (udp, tcp):
            sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        make_room(udp)
        with suppress(PermissionError):
            udp.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        udp.bind(where)
        tcp.bind(where)
        tcp.listen(128)
    except OSError:
        udp.close()
        tcp.close()
        raise
    return udp, tcp


def cannot_listen(failed: Sequence[tuple[IPv4Address, OSError]], port: int) -> OSError:
    """Return one error for all addresses at which no socket could be opened."""
    what = "; ".join(f"{address}:{port}: {error.strerror or error}" for address, error in failed)
    return OSError(
        failed[0][1].errno, f"DNS cannot listen on {what} (see `ss -lnp 'sport = :{port}'`, or set another dns_port)"
    )


class DnsServer:
    """Answers from one Zone, and from the host's resolvers for everything that is not ours.

    Askers are known by address alone: every asker that is to be answered has a view in the zone, container or not.
    Behind a door there is one asker.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        port: int,
        upstreams: Callable[[], Sequence[tuple[str, int]]],
        namespaces: Mapping[str, NamespaceSockets] = NO_NAMESPACES,
    ) -> None:
        """`namespaces` has those from inside of which others' servers can be asked."""
        self._loop = loop
        self._port = port
        self._upstreams = upstreams
        self._resolver = Resolver(loop, self._foreign_upstreams)
        self._zone: ZoneAnswers | None = None
        self._udp: dict[IPv4Address, socket.socket] = {}
        self._tcp: dict[IPv4Address, DnsTcpListener] = {}
        self._doors: dict[str, DnsDoor] = {}
        """By the text of their namespaces."""
        self._door_listeners: dict[str, list[DnsTcpListener]] = {}
        self._relays = Relays(loop, namespaces, self._is_asked_inside)
        self._known: frozenset[str] = frozenset()
        """The askers that have a view."""
        self._limits = TcpLimits(lambda asker: asker in self._known)
        self._turns = Turns(loop)
        self._ready = EncodedAnswers(MAX_READY)
        """Valid until the zone changes."""
        self._recent = EncodedAnswers(MAX_READY)
        """Upstream answers, for RECENT_SECONDS."""
        self._forget: asyncio.TimerHandle | None = None
        self._hold = Hold(loop, self._hold_expired)
        self._may_tell = TOLD_A_SECOND
        """Refusals that askers without a view may get now by UDP, as of `_told_at`."""
        self._told_at = 0.0
        self._stats = dict.fromkeys(COUNTED, 0)

    def set_addresses(
        self, addresses: frozenset[IPv4Address], opened: Mapping[IPv4Address, DnsSockets] = NONE_OPENED
    ) -> None:
        """Listen on exactly these, on the sockets of `opened` where there are any.

        Keeps those that could be opened and raises OSError for the others at the end.
        """
        for address in self._udp.keys() - addresses:
            self._close_address(address)
        failed: list[tuple[IPv4Address, OSError]] = []
        for address in sorted(addresses - self._udp.keys()):
            try:
                self._serve(address, *(opened.get(address) or listen(address, self._port)))
            except OSError as error:
                failed.append((address, error))
        if failed:
            raise cannot_listen(failed, self._port)

    def open_door(self, netns: str, asker: str, sockets: Sequence[socket.socket]) -> None:
        """Answer in a namespace, too, whose workload has that address; without sockets on those that it has."""
        door = self._doors.get(netns)
        if door is None:
            door = self._doors[netns] = DnsDoor(netns, asker)
            self._door_listeners[netns] = []
        door.asker = asker
        for sock in sockets:
            if sock.type == socket.SOCK_STREAM:
                served = DnsTcpListener(self._loop, sock, self._limits, self._tcp_question, (door, self._relays))
                self._door_listeners[netns].append(served)
            else:
                door.udp.append(sock)
                self._loop.add_reader(sock, self._udp_readable, sock, door)

    def close_door(self, netns: str) -> None:
        """Answer no more in that namespace. Nothing to do where there is none."""
        door = self._doors.pop(netns, None)
        if door is None:
            return
        for udp in door.udp:
            self._loop.remove_reader(udp)
            udp.close()
        for listener in self._door_listeners.pop(netns):
            listener.close()
        self._relays.leave(netns)

    def set_zone(self, zone: Zone) -> None:
        """Answer from this zone from now on, and answer the askers that waited for their view."""
        self._zone = ZoneAnswers(zone)
        self._known = frozenset(map(str, zone.views))
        self._ready.clear()
        self._recent.clear()
        for asker in self._hold:
            if self._waits(IPv4Address(asker)):
                continue
            for asked in self._hold.release(asker):
                self._route(asked)

    def stats(self) -> dict[str, int]:
        """Return the counters; all only grow, except those that end in `_now`."""
        return {
            **self._stats,
            "questions": self._stats["questions"] + self._stats["ready"],
            **{f"upstream_{name}": value for name, value in self._resolver.stats.items()},
            "tcp_opened": self._limits.opened,
            "tcp_refused": self._limits.refused,
            "tcp_gave_way": self._limits.gave_way,
            "relayed": self._relays.relayed,
            "relays_gave_way": self._relays.gave_way,
            "relays_now": len(self._relays),
            "held_now": len(self._hold),
            "ready_now": len(self._ready),
        }

    def close(self) -> None:
        """Close every socket and forget every question."""
        for address in list(self._udp):
            self._close_address(address)
        for netns in list(self._doors):
            self.close_door(netns)
        for asker in self._hold:
            self._hold.release(asker)
        self._turns.close()
        self._resolver.close()
        if self._forget is not None:
            self._forget.cancel()

    def _foreign_upstreams(self) -> list[tuple[str, int]]:
        """Return the upstreams without ourselves: a resolv.conf that names us would make questions go in circles."""
        ours = {(str(address), self._port) for address in self._udp}
        return [server for server in self._upstreams() if server not in ours]

    def _is_asked_inside(self, server: Address) -> bool:
        """Whether a server is asked from inside of a namespace by whoever means to ask it.

        This one is not: it has the host's resolvers. Rules refuse to lead to other containers; so it stands for these.
        """
        if len(server) > 2:
            return True
        address = IPv4Address(server[0])
        return address not in self._udp and (self._zone is None or not self._zone.expects(address))

    def _serve(self, address: IPv4Address, udp: socket.socket, tcp: socket.socket) -> None:
        self._udp[address] = udp
        self._tcp[address] = DnsTcpListener(self._loop, tcp, self._limits, self._tcp_question)
        self._loop.add_reader(udp, self._udp_readable, udp, None)

    def _close_address(self, address: IPv4Address) -> None:
        sock = self._udp.pop(address)
        self._loop.remove_reader(sock)
        sock.close()
        self._tcp.pop(address).close()

    def _udp_readable(self, sock: socket.socket, door: DnsDoor | None) -> None:
        """Answer what has come, BATCH questions at most. The hot path: two look-ups and two system calls each."""
        recvfrom, sendto = sock.recvfrom, sock.sendto
        ready, recent = self._ready.by_asker.get, self._recent.by_asker.get
        known = slow = 0
        try:
            for _ in range(BATCH):
                data, client = recvfrom(RECEIVE_SIZE)
                host, question = client[0] if door is None else door.asker, data[2:]
                answer = ready(host, NONE).get(question) or (door is None and recent(host, NONE).get(question))
                if answer:
                    sendto(data[:2] + answer, client)
                    known += 1
                    continue
                forward = None if door is None else partial(self._relays.datagram, door, sock, client)
                reply = partial(self._question, data, host, partial(self._send_udp, sock, client), forward, tcp=False)
                if slow < AT_A_TIME and not self._turns:
                    slow += 1
                    reply()
                elif not self._turns.add(host if host in self._known else STRANGERS, reply):
                    self._stats["crowded_out"] += 1
        except BlockingIOError:
            # Drained; or the send queue is full, and the asker of a lost answer asks again.
            pass
        except OSError as error:
            self._stats["unsent"] += 1
            log.debug("a DNS answer could not be sent", error=str(error))
        self._stats["ready"] += known

    def _send_udp(self, sock: socket.socket, client: tuple[str, int], message: bytes) -> None:
        try:
            if message:
                sock.sendto(message, client)
        except OSError:
            # A full queue, or the socket was closed since. Askers ask again.
            self._stats["unsent"] += 1

    def _tcp_question(self, data: bytes, asker: str, send: Callable[[bytes], None], forward: Forward | None) -> None:
        reply = partial(self._question, data, asker, send, forward, tcp=True)
        # The connections of an asker, and the questions of each that wait, are bounded.
        self._turns.add(asker if asker in self._known else STRANGERS, reply, bounded=False)

    def _question(
        self, data: bytes, asker: str, send: Callable[[bytes], None], forward: Forward | None, *, tcp: bool
    ) -> None:
        """Answer through `send`, now or later, exactly once; with no bytes where silence is right."""
        self._stats["questions"] += 1
        try:
            query = parse_query(data)
        except Exception as error:  # noqa: BLE001 — whatever is wrong with a packet, the next one is answered
            self._fail(send, error)
            return
        if isinstance(query, Query):
            self._route(ClientQuery(data, asker, send, query, tcp=tcp, forward=forward))
        elif forward is not None and asker in self._known and forward(data, None):
            send(b"")
        elif query is None:
            self._stats["ignored"] += 1
            send(b"")
        else:
            self._stats["malformed"] += 1
            send(query if tcp or asker in self._known or self._tells() else b"")

    def _route(self, asked: ClientQuery) -> None:
        try:
            self._decide(asked)
        except Exception as error:  # noqa: BLE001 — whatever is wrong with a question, the next one is answered
            self._fail(asked.send, error)

    def _decide(self, asked: ClientQuery) -> None:
        asker = IPv4Address(asked.asker)
        zone = self._zone
        if zone is None or not zone.knows(asker):
            if self._waits(asker):
                self._wait(asked)
            else:
                self._refuse_stranger(asked, "only containers of this host's mesh are answered")
            return
        query = asked.query
        reply = zone.answer(asker, query)
        if reply is not None:
            self._stats["ours"] += 1
            message = encode_reply(query, reply, asked.limit)
            self._keep(self._ready, asked, message)
            asked.send(message)
        elif asked.forward is not None and asked.forward(asked.data, query):
            asked.send(b"")
        elif query.flags & RD:
            self._resolver.resolve(query, asked.asker, partial(self._resolved, asked))
        else:
            text = "not a name of the mesh, and recursion was not asked for"
            self._refuse(asked, text, EDE_NOT_AUTHORITATIVE)

    def _fail(self, send: Callable[[bytes], None], error: Exception) -> None:
        """Stay silent to one question that cannot be answered for a reason that nobody has foreseen."""
        self._stats["failed"] += 1
        log.error("a DNS question cannot be answered; it is passed over", exc_info=error)
        send(b"")

    def _resolved(self, asked: ClientQuery, found: Resolved) -> None:
        try:
            message = encode_response(asked.query, found.response, age=found.age, limit=asked.limit, ede=found.ede)
        except Exception as error:  # noqa: BLE001 — others may wait for the same answer
            self._fail(asked.send, error)
            return
        if found.response.lifetime > found.age and asked.forward is None:  # there it depends on the server asked
            self._keep(self._recent, asked, message)
            if self._forget is None:
                self._forget = self._loop.call_later(RECENT_SECONDS, self._forget_recent)
        asked.send(message)

    def _forget_recent(self) -> None:
        self._forget = None
        self._recent.clear()

    def _keep(self, table: EncodedAnswers, asked: ClientQuery, message: bytes) -> None:
        if not asked.tcp:
            table.keep(asked.asker, asked.data[2:], message[2:])

    def _refuse(self, asked: ClientQuery, text: str, code: int = EDE_PROHIBITED) -> None:
        self._stats["refused"] += 1
        asked.send(encode_reply(asked.query, Reply(rcode=REFUSED, ede=Ede(code=code, text=text)), asked.limit))

    def _refuse_stranger(self, asked: ClientQuery, text: str) -> None:
        if asked.tcp or self._tells():
            self._refuse(asked, text)
        else:
            self._stats["refused"] += 1
            asked.send(b"")

    def _tells(self) -> bool:
        """Whether an asker without a view is told something by UDP now."""
        now = self._loop.time()
        self._may_tell = min(self._may_tell + (now - self._told_at) * TOLD_A_SECOND, TOLD_A_SECOND)
        self._told_at = now
        if self._may_tell < 1:
            self._stats["untold"] += 1
            return False
        self._may_tell -= 1
        return True

    def _waits(self, asker: IPv4Address) -> bool:
        """Whether this asker has no view and may get one."""
        return self._zone is None or (not self._zone.knows(asker) and self._zone.expects(asker))

    def _wait(self, asked: ClientQuery) -> None:
        if self._hold.add(asked):
            self._stats["held"] += 1
        else:
            self._stats["hold_overflowed"] += 1
            self._end_wait(asked, "too many questions wait for their asker to join the mesh")

    def _hold_expired(self, asked: ClientQuery) -> None:
        """Fail it: it may be known a moment later, and no resolver must believe that the name does not exist."""
        self._stats["hold_expired"] += 1
        self._end_wait(asked, f"{asked.asker} is no container of the mesh; does it have the label meshbox.service?")

    def _end_wait(self, asked: ClientQuery, text: str) -> None:
        """Say that nobody knows: the asker may be known when it asks again. Silence by UDP says the same."""
        if asked.tcp or self._tells():
            reply = Reply(rcode=SERVFAIL, ede=Ede(code=EDE_NOT_READY, text=text))
            asked.send(encode_reply(asked.query, reply, asked.limit))
        else:
            asked.send(b"")
