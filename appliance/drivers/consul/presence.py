"""The presence port, where a machine says itself that it is alive: both ends of a protocol of one line.

A machine that connects is sent `meshbox <node>`, and nothing is read from it. So a connection costs next to nothing and
cannot be held open. A client that is not a machine of the mesh is sent nothing. An open port alone is no answer: by now
the address may belong to another computer.
"""

from __future__ import annotations

import errno
import os
import socket
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import structlog
import trio

from appliance.errors import RetryError
from appliance.heartbeat import UNWATCHED

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet

    from appliance.heartbeat import Heartbeat

log = structlog.get_logger()

PATIENCE = 5.0
"""Seconds to wait for an answer. TCP tries again 1 s and 3 s after the first attempt; two of the three may be lost."""
SAYING = 0.1
"""Seconds to send the line to one client. They never pass: the kernel has room for a line in a new connection."""
PAUSE = 1.0
"""Seconds until the next attempt after accepting failed."""
BACKLOG = 128
"""Connections that wait to be accepted."""
SILENT = frozenset(
    {errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.EHOSTDOWN}
)
"""Errors that mean that the other machine gives no answer (tcp(7), ip(7)). All other errors come from this host: no
descriptors, no memory, no route, a rule against it."""


class NoAnswerError(RetryError):
    """A machine did not say that it is alive."""


class Presence:
    """The presence port of this machine."""

    def __init__(self, node: str, knows: Callable[[IPv4Address], bool]) -> None:
        """Open nothing yet. `knows` says whether an address is that of a machine of the mesh."""
        self._line = _line(node)
        self._knows = knows
        self._sock: socket.socket | None = None
        self._troubled = False
        self.port: int | None = None
        """Its number, once it is open."""

    def open(self, span: tuple[int, int], taken: AbstractSet[int], former: int | None = None) -> None:
        """Open `former` if it is free, or else the last free port of a range; never one that is `taken`.

        `former` comes first because machines that cannot be told of a new port while Consul is away know that one. If
        no port is free, that is logged.
        """
        first, last = span
        cause = "all of them belong to destinations"
        ports = [port for port in range(last, first - 1, -1) if port not in taken]
        for port in sorted(ports, key=lambda port: port != former):
            try:
                self._sock = _listen(port)
            except OSError as error:
                cause = f"port {port}: {error.strerror}"
                if error.errno != errno.EADDRINUSE:
                    break
            else:
                self.port = port
                return
        log.warning(
            "cannot open a presence port: other machines will refuse this one when its Consul agent dies",
            cause=cause,
            hint="widen proxy_ports",
        )

    async def run(
        self, beat: Heartbeat = UNWATCHED, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Answer until cancelled; return at once if no port is open. The port stays open until `close`."""
        task_status.started()
        if self._sock is None:
            return
        listening = trio.socket.from_stdlib_socket(self._sock)
        while True:
            try:
                connection, (host, *_) = await beat.until(listening.accept)
            except OSError as error:
                if not self._troubled:
                    log.warning("cannot accept on the presence port; will try again", cause=str(error))
                self._troubled = True
                await beat.sleep(PAUSE)
                continue
            self._troubled = False
            with connection:
                if self._knows(IPv4Address(host)):
                    await self._say(connection)

    def close(self) -> None:
        """Close the port."""
        if self._sock is not None:
            self._sock.close()

    async def _say(self, connection: trio.socket.SocketType) -> None:
        with trio.move_on_after(SAYING):
            try:
                await connection.send(self._line)
            except OSError as error:
                log.debug("a machine that asked whether this one is alive has gone", cause=str(error))


async def ask(node: str, address: IPv4Address, port: int, source: IPv4Address | None = None) -> None:
    """Return once the machine has said that it is alive.

    The connection leaves from `source` if this host has that address. Raises NoAnswerError when the machine does not
    say so, and OSError when this host cannot ask.
    """
    line = _line(node)
    with trio.move_on_after(PATIENCE), trio.socket.socket() as sock:
        if source is not None:
            await _leave_from(sock, source)
        try:
            await sock.connect((str(address), port))
            heard = b""
            while len(heard) < len(line) and (more := await sock.recv(len(line) - len(heard))):
                heard += more
        except OSError as error:
            if error.errno in SILENT:
                raise NoAnswerError(f"{address}:{port}: {os.strerror(error.errno)}") from error
            raise
        if heard != line:
            raise NoAnswerError(f"{address}:{port} does not say that it is {node}")
        return
    raise NoAnswerError(f"{address}:{port} did not answer within {PATIENCE:g} s")


async def _leave_from(sock: trio.socket.SocketType, source: IPv4Address) -> None:
    try:
        await sock.bind((str(source), 0))
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:  # behind NAT: the kernel chooses
            raise


def _line(node: str) -> bytes:
    return f"meshbox {node}\n".encode()


def _listen(port: int) -> socket.socket:
    """Listen, also while connections of a former run are in TIME_WAIT. Raises OSError."""
    sock = socket.socket()
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock
