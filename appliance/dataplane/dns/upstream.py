"""One question to the upstream resolvers in turn, over UDP, and over TCP when the answer does not fit.

There is a try every second. Each has a new socket, and so a random port, which the kernel chooses, and a random id.
Earlier tries keep listening, so a slow answer still counts. When an upstream fails, the next one is tried at once.
"""

from __future__ import annotations

import asyncio
import socket
from os import urandom
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from appliance.render.dnsforward import Response, read_response
from appliance.render.dnsmessage import FORMERR, NOTIMP, OUR_UDP_SIZE, Edns, encode_question
from appliance.render.dnswire import AD, CD, HEADER, RD

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = structlog.get_logger()

Server = tuple[str, int]
"""Address (IPv4 or IPv6, as text) and port of an upstream resolver."""

TRY_SECONDS = 1.0
"""How long one try has before the next one starts; it keeps listening."""

MAX_TRIES = 4

TOTAL_SECONDS = 3.5
"""When the asker is told that no upstream answered: before Docker's resolver (4 s) and glibc (5 s) give up."""


class UpstreamKey(NamedTuple):
    """What makes two forwarded questions the same."""

    name: tuple[bytes, ...]
    """In lower case."""
    qtype: int
    dnssec: bool
    unchecked: bool
    """CD: the asker validates for itself (RFC 4035 §3.2.2)."""

    def encode(self, ident: int, *, edns: bool) -> bytes:
        """Return the message for an upstream."""
        opt = Edns(size=OUR_UDP_SIZE, dnssec=self.dnssec) if edns else None
        flags = RD | AD | (CD if self.unchecked else 0)
        return encode_question(self.name, self.qtype, ident=ident, flags=flags, edns=opt)


class UpstreamQuery:
    """One question under way.

    Calls `done` once, with the response and the servers that did not answer. The response may have any rcode; it is
    None when no server answered.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        servers: Sequence[Server],
        question: UpstreamKey,
        done: Callable[[Response | None, list[Server]], None],
    ) -> None:
        self._loop = loop
        self._question = question
        self._section = question.encode(0, edns=False)[HEADER.size :]
        self._done = done
        self._servers = list(servers[:MAX_TRIES])
        self._plan = (self._servers * MAX_TRIES)[:MAX_TRIES]
        self._untried = set(self._servers)
        self._tried: list[Server] = []
        self._said: dict[Server, Response] = {}
        """The answers that were of no use, by server."""
        self._failures = 0
        self._udp: set[socket.socket] = set()
        self._tcp: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = loop.call_later(TOTAL_SECONDS, self._finish, None, None)

    def start(self) -> None:
        """Make the first try. If nothing can be sent at all, `done` may be called before this returns."""
        if self._servers:
            self._next()
        else:
            self._finish(None, None)

    def cancel(self) -> None:
        """Stop; `done` is not called."""
        self._deadline.cancel()
        if self._timer is not None:
            self._timer.cancel()
        for sock in list(self._udp):
            self._drop(sock)
        for task in self._tcp:
            task.cancel()

    def _next(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._plan:
            return
        server = self._plan.pop(0)
        self._untried.discard(server)
        self._tried.append(server)
        self._timer = self._loop.call_later(TRY_SECONDS, self._next)
        self._send(server, edns=True)

    def _send(self, server: Server, *, edns: bool) -> None:
        ident = _random_id()
        sock = None
        try:
            family, address = _numeric(server)
            sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            # Connected: only this server's packets come in, and an ICMP error is reported at once.
            sock.connect(address)
            sock.send(self._question.encode(ident, edns=edns))
        except OSError:
            if sock is not None:
                sock.close()
            self._failed(server, None)
            return
        self._udp.add(sock)
        self._loop.add_reader(sock, self._readable, sock, server, ident, edns)

    def _readable(self, sock: socket.socket, server: Server, ident: int, edns: bool) -> None:  # noqa: FBT001 — add_reader passes by position
        try:
            data = sock.recv(65535)
        except BlockingIOError:
            return
        except OSError:
            self._drop(sock)
            self._failed(server, None)
            return
        try:
            response = read_response(data, ident, self._section)
        except Exception:
            log.exception("an answer of a resolver cannot be read; it is passed over", server=server[0])
            response = None
        if response is None:
            # Not an answer to this question: a forged one perhaps, so keep listening.
            return
        self._drop(sock)
        if response.truncated:
            task = self._loop.create_task(self._over_tcp(server))
            self._tcp.add(task)
            task.add_done_callback(self._tcp.discard)
        elif edns and response.rcode in (FORMERR, NOTIMP) and not response.edns:
            # It knows no EDNS (RFC 6891 §7).
            self._send(server, edns=False)
        else:
            self._settle(server, response)

    async def _over_tcp(self, server: Server) -> None:
        ident = _random_id()
        message = self._question.encode(ident, edns=True)
        writer = None
        response = None
        try:
            reader, writer = await asyncio.open_connection(*server)
            writer.write(len(message).to_bytes(2) + message)
            size = int.from_bytes(await reader.readexactly(2))
            response = read_response(await reader.readexactly(size), ident, self._section)
        except (OSError, EOFError):
            response = None
        except Exception:
            log.exception("an answer of a resolver cannot be read; it is passed over", server=server[0])
            response = None
        finally:
            if writer is not None:
                writer.close()
        if response is None or response.truncated:
            self._failed(server, None)
        else:
            self._settle(server, response)

    def _settle(self, server: Server, response: Response) -> None:
        if response.usable:
            self._finish(response, server)
        else:
            self._failed(server, response)

    def _failed(self, server: Server, response: Response | None) -> None:
        self._failures += 1
        if response is not None:
            self._said[server] = response
        if self._untried:
            self._next()
        elif all(s in self._said for s in self._servers) or self._failures >= 2 * len(self._servers):
            # All answered, but of no use; or all were unreachable twice, a second apart.
            self._finish(None, None)

    def _finish(self, response: Response | None, by: Server | None) -> None:
        self.cancel()
        # The last one tried may not have had its time.
        silent = [s for s in self._tried[:-1] if s != by and s not in self._said]
        self._done(response or next(iter(self._said.values()), None), silent)

    def _drop(self, sock: socket.socket) -> None:
        self._loop.remove_reader(sock)
        self._udp.discard(sock)
        sock.close()


def _random_id() -> int:
    return int.from_bytes(urandom(2))


def _numeric(server: Server) -> tuple[int, Any]:
    """Return the family and socket address. Raises OSError if the host is no numeric address."""
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    family, _, _, _, address = socket.getaddrinfo(*server, type=socket.SOCK_DGRAM, flags=flags)[0]
    return family, address
