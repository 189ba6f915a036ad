"""DNS over TCP (RFC 7766): several questions on one connection, answered as they get ready.

What one connection can hold is bounded: its questions, the answers that its asker does not read, and the time in
which it brings nothing whole. Bytes that trickle in do not count.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import structlog

from appliance.dataplane.dns.asked import asked_by_tcp
from appliance.dataplane.dns.tcprelay import TcpAsker, TcpRelay
from appliance.dataplane.sockets import ACCEPT_PAUSE, NO_DESCRIPTORS
from appliance.render.dnswire import MAX_MESSAGE

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable

    from appliance.dataplane.dns.door import DnsDoor
    from appliance.dataplane.dns.relay import Relays
    from appliance.render.dnsmessage import Query

    Forward = Callable[[bytes, Query | None], bool]
    """Sends a message on to the server that was asked; returns False where that server is not to be asked."""
    Handler = Callable[[bytes, str, Callable[[bytes], None], Forward | None], None]
    """Takes a message, its asker's address, the function that sends the answer (now, later or never), and at a door
    the one that sends the message on.
    """

log = structlog.get_logger()

IDLE_SECONDS = 10.0
"""A connection ends after this time without a whole question received and without a byte of an answer sent."""

MAX_CONNECTIONS = 256
MAX_CONNECTIONS_PER_ASKER = 32

MAX_QUESTION = 4096
"""Octets of the largest question; no real one comes near. A connection that announces more is closed, except at a door:
others' servers are sent whole updates."""

MAX_PENDING = 64
"""Questions of one connection without an answer; more are left unread."""

MAX_UNSENT = 65537
"""Octets of answers that wait for the asker to read, beyond which no more questions are read."""

PARSE_BATCH = 16
"""Questions handed on in a row, before other connections get their turn."""

ACCEPT_BATCH = 32
"""Most connections accepted in a row."""


class DnsTcpListener:
    """The listening socket of one address, and its connections."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        limits: TcpLimits,
        handle: Handler,
        door: tuple[DnsDoor, Relays] | None = None,
    ) -> None:
        """`door` says of what door the socket is, and through what others' servers are asked from there."""
        self._loop = loop
        self._sock = sock
        self.limits = limits
        self.handle = handle
        self.door = door
        self.connections: set[TcpConnection] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._starving = False
        """Whether the last attempt to accept failed for want of file descriptors; it is logged once."""
        loop.add_reader(sock, self._acceptable)

    def close(self) -> None:
        """Stop listening and end all connections."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()
        for connection in list(self.connections):
            connection.close()

    def _acceptable(self) -> None:
        """Accept some of the waiting connections. Errors are treated as in tcp/accept.py."""
        for _ in range(ACCEPT_BATCH):
            try:
                sock, (host, *_) = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in NO_DESCRIPTORS:
                    self._on_no_descriptors(error)
                    return
                continue  # that asker is gone already, or an error of its network (accept(2)): the next one
            self._starving = False
            sock.setblocking(False)
            asker = host if self.door is None else self.door[0].asker
            if self.limits.admit(asker):
                self.connections.add(TcpConnection(self._loop, sock, asker, self))
            else:
                sock.close()

    def _on_no_descriptors(self, error: OSError) -> None:
        # The connection stays in the queue: without a pause this would be called again at once, for ever.
        if not self._starving:
            self._starving = True
            log.warning("out of file descriptors; accepting DNS connections pauses", error=str(error))
        self._loop.remove_reader(self._sock)
        self._pause = self._loop.call_later(ACCEPT_PAUSE, self._loop.add_reader, self._sock, self._acceptable)


class TcpLimits:
    """How many connections there are, over all listeners. When these are too many, the asker with most gives way."""

    def __init__(self, known: Callable[[str], bool] = lambda _: True) -> None:
        """`known` says whether an asker has a view. One that has none gives way to all that have."""
        self.opened = 0
        self.refused = 0
        self.gave_way = 0
        self._known = known
        self._by_asker: Counter[str] = Counter()
        self._total = 0
        self._open: set[TcpConnection] = set()

    def admit(self, asker: str) -> bool:
        """Count a new connection if there is room for it."""
        full = self._by_asker[asker] >= MAX_CONNECTIONS_PER_ASKER
        if full or (self._total >= MAX_CONNECTIONS and not self._made_room(asker)):
            self.refused += 1
            return False
        self.opened += 1
        self._total += 1
        self._by_asker[asker] += 1
        return True

    def begun(self, connection: TcpConnection) -> None:
        """Note an admitted connection."""
        self._open.add(connection)

    def _made_room(self, asker: str) -> bool:
        """Close one connection of those that hold most, the one without a question that was idle longest, if any."""

        def weight(other: str) -> tuple[bool, int]:
            return not self._known(other), self._by_asker[other] + (other == asker)

        worst = max(self._open, key=lambda c: (weight(c.asker), not c.busy, -c.alive), default=None)
        if worst is None or weight(worst.asker) < weight(asker):
            return False
        if weight(worst.asker) == weight(asker) and worst.busy:
            return False
        self.gave_way += 1
        worst.close()
        return True

    def left(self, connection: TcpConnection) -> None:
        """Count the end of an admitted connection."""
        self._open.discard(connection)
        asker = connection.asker
        self._total -= 1
        self._by_asker[asker] -= 1
        if not self._by_asker[asker]:
            del self._by_asker[asker]


class TcpConnection(TcpAsker):
    """One asker's connection."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, asker: str, listener: DnsTcpListener
    ) -> None:
        self._loop = loop
        self._sock = sock
        self.asker = asker
        self._listener = listener
        self._in = bytearray()
        self._out = bytearray()
        self._pending = 0
        self._ended = False
        """The asker has sent its last question."""
        self._reading = False
        self._writing = False
        self._closed = False
        self._parsing = False
        self._relay: TcpRelay | None = None
        """To the server that was asked."""
        self._most = MAX_QUESTION if listener.door is None else MAX_MESSAGE
        self.alive = loop.time()
        """When it last brought a question, or took some of an answer."""
        self._timer = loop.call_later(IDLE_SECONDS, self._check_idle)
        listener.limits.begun(self)
        self._update()

    @property
    def busy(self) -> bool:
        """Whether a question of its waits for its answer."""
        return self._pending > 0

    def close(self) -> None:
        """End the connection; answers that come later are dropped."""
        if self._closed:
            return
        self._closed = True
        self._timer.cancel()
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        if self._relay is not None:
            self._relay.close()
        self._listener.connections.discard(self)
        self._listener.limits.left(self)

    def relayed(self, message: bytes) -> bool:
        """Take a message of the server that was asked; return whether there is room for another."""
        self._out += len(message).to_bytes(2) + message
        self._flush()
        self._update()
        return len(self._out) < MAX_UNSENT

    def relay_drained(self) -> None:
        """Go on: the server has taken what was sent."""
        self._parse()

    def relay_ended(self) -> None:
        """End as the server that was asked has ended its connection, once all is sent."""
        self._relay = None
        self._ended = True
        self._update()

    def _forward(self, data: bytes, _query: Query | None) -> bool:
        """Send a message on to the server that was asked, on one connection for all."""
        if self._relay is None:
            if self._listener.door is None or self._closed:
                return False
            door, relays = self._listener.door
            server = asked_by_tcp(self._sock)
            try:
                sock = relays.tcp(door, server)
            except OSError as error:
                log.debug("cannot ask a DNS server from inside a container", container=self.asker, cause=str(error))
                sock = None
            if sock is None or server is None:
                return False
            self._relay = TcpRelay(self._loop, sock, server, self)
        self._relay.send(data)
        return True

    def _check_idle(self) -> None:
        rest = self.alive + IDLE_SECONDS - self._loop.time()
        if rest <= 0:
            self.close()
        else:
            self._timer = self._loop.call_later(rest, self._check_idle)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(MAX_QUESTION)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if data:
            self._in += data
        else:
            self._ended = True
        self._parse()

    def _parse(self) -> None:
        """Hand on the whole questions that have come, as far as there is room for them."""
        if self._parsing:
            return
        self._parsing = True
        rest = self._parse_batch()
        self._parsing = False
        if rest:
            self._loop.call_soon(self._parse)
        self._update()

    def _parse_batch(self) -> bool:
        """Return whether more could be parsed at once."""
        for _ in range(PARSE_BATCH):
            if self._closed or not self._has_room() or len(self._in) < 2:
                return False
            size = int.from_bytes(self._in[:2])
            if size > self._most:
                self.close()
                return False
            if len(self._in) < 2 + size:
                return False
            message = bytes(self._in[2 : 2 + size])
            del self._in[: 2 + size]
            self.alive = self._loop.time()
            self._pending += 1
            forward = None if self._listener.door is None else self._forward
            self._listener.handle(message, self.asker, self._answer, forward)
        return True

    def _has_room(self) -> bool:
        if self._relay is not None and self._relay.unsent >= MAX_UNSENT:
            return False
        return self._pending < MAX_PENDING and len(self._out) < MAX_UNSENT

    def _answer(self, message: bytes) -> None:
        """Send an answer; an empty one is the handler's way to say that there is none."""
        self._pending -= 1
        if self._closed:
            return
        if message:
            self._out += len(message).to_bytes(2) + message
            self._flush()
        self._parse()

    def _flush(self) -> None:
        try:
            sent = self._sock.send(self._out)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        if sent:
            del self._out[:sent]
            self.alive = self._loop.time()

    def _writable(self) -> None:
        self._flush()
        self._parse()

    def _update(self) -> None:
        """Watch for what can be done next; close when nothing is left to do."""
        if self._closed:
            return
        if self._relay is not None:
            self._update_relay(self._relay)
        elif self._ended and not self._pending and not self._out:
            self.close()
        if self._closed:
            return
        reading = not self._ended and self._has_room()
        if reading != self._reading:
            self._reading = reading
            if reading:
                self._loop.add_reader(self._sock, self._readable)
            else:
                self._loop.remove_reader(self._sock)
        writing = bool(self._out)
        if writing != self._writing:
            self._writing = writing
            if writing:
                self._loop.add_writer(self._sock, self._writable)
            else:
                self._loop.remove_writer(self._sock)

    def _update_relay(self, relay: TcpRelay) -> None:
        if self._ended and not self._pending:
            relay.finish()  # the server may still say something
        if len(self._out) < MAX_UNSENT:
            relay.resume()
