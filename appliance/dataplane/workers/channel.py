"""Values and sockets between the appliance and its workers, over a stream socket of the Unix kind.

A message is its length, the number of its sockets, and a pickle. Pickle, because both ends are the same program and
trust each other, and the model's values need no second form. Neither end reads from any other program. A stream,
because a zone is larger than a packet may be. Sockets travel with the first byte of their message (SCM_RIGHTS,
unix(7)). The kernel ends a read at that byte, so sockets arrive one message at a time.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections import deque
from contextlib import suppress
from io import FileIO
from struct import Struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence
    from socket import SocketType

HEADER = Struct("!IB")
"""Length of the pickle in bytes, number of sockets."""
READ = 1 << 18
"""Bytes read at a time."""
MOST_SOCKETS = 3
"""Of one message."""


class Channel:
    """One end."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        *,
        take: Callable[[Any, list[int]], None],
        ended: Callable[[], None],
    ) -> None:
        """Call `take` with each message and the descriptors of its sockets: fewer than were sent if there was no room.

        Call `ended` once the other end is closed.
        """
        self._loop = loop
        self._sock = sock
        self._take = take
        self._ended = ended
        self._in = bytearray()
        self._sockets: deque[list[int]] = deque()
        self._out: deque[tuple[memoryview, Sequence[SocketType | FileIO]]] = deque()
        self._closed = False
        sock.setblocking(False)
        loop.add_reader(sock, self._readable)

    def send(self, message: object, sockets: Sequence[SocketType | FileIO] = ()) -> None:
        """Send a value and these sockets, now or later. Nothing is sent to a closed end.

        A message whose sockets are closed before it can leave is not sent: it is out of date. Files go like sockets.
        """
        if self._closed:
            return
        body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        data = memoryview(HEADER.pack(len(body), len(sockets)) + body)
        if not self._out:
            data = data[self._write(data, sockets) :]
            if len(data) < HEADER.size + len(body):
                sockets = ()  # they went with the first byte
        if data and not self._closed:
            self._out.append((data, sockets))
            if len(self._out) == 1:
                self._loop.add_writer(self._sock, self._flush)

    def close(self) -> None:
        """Close this end; what was not sent is lost."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        self._out.clear()
        for descriptors in self._sockets:
            for descriptor in descriptors:
                os.close(descriptor)

    def _write(self, data: memoryview, sockets: Sequence[SocketType | FileIO]) -> int:
        try:
            if sockets:
                return socket.send_fds(self._sock, [data], [sock.fileno() for sock in sockets])
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:  # the other end has gone, or takes no more sockets: both notice it when they read
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            return len(data)

    def _flush(self) -> None:
        while self._out:
            data, sockets = self._out[0]
            if any(_is_closed(sock) for sock in sockets):
                self._out.popleft()
                continue
            sent = self._write(data, sockets)
            if self._closed:
                return
            if sent < len(data):
                self._out[0] = (data[sent:], () if sent else sockets)
                return
            self._out.popleft()
        self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        try:
            data, sockets, flags, _ = socket.recv_fds(self._sock, READ, MOST_SOCKETS)
        except BlockingIOError:
            return
        except OSError:
            data, sockets, flags = b"", [], 0
        if not data:
            self.close()
            self._ended()
            return
        if sockets or flags & socket.MSG_CTRUNC:
            self._sockets.append(sockets)
        self._in += data
        while len(self._in) >= HEADER.size and not self._closed:
            length, count = HEADER.unpack_from(self._in)
            end = HEADER.size + length
            if len(self._in) < end:
                return
            message = pickle.loads(memoryview(self._in)[HEADER.size : end].toreadonly())  # noqa: S301 — from ourselves
            del self._in[:end]
            self._take(message, self._sockets.popleft() if count else [])


def _is_closed(sock: SocketType | FileIO) -> bool:
    return sock.closed if isinstance(sock, FileIO) else sock.fileno() < 0
