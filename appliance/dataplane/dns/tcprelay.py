"""A connection to the server that was asked by TCP, from inside of the asker's namespace: whole messages pass."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from appliance.dataplane.dns.asked import Address

READ_SIZE = 65536


class TcpAsker:
    """What a relay needs of the connection that it stands for."""

    def relayed(self, message: bytes) -> bool:
        """Take a message of the server; return whether there is room for another."""
        raise NotImplementedError

    def relay_drained(self) -> None:
        """Go on: the server has taken what was sent."""
        raise NotImplementedError

    def relay_ended(self) -> None:
        """End: the server has ended the connection, or it cannot be reached."""
        raise NotImplementedError


class TcpRelay:
    """The connection to the server that was asked by TCP: whole messages pass in both directions."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, server: Address, asker: TcpAsker) -> None:
        """`sock` is ready to connect, and `asker` is the connection that it stands for."""
        self._loop = loop
        self._sock = sock
        self._asker = asker
        self._in = bytearray()
        self._out = bytearray()
        self._connecting = True
        self._reading = False
        self._writing = True
        self._finishing = False
        self._closed = False
        try:
            sock.connect(server)
        except BlockingIOError:
            pass
        except OSError:
            loop.call_soon(self._end)
            self._writing = False
            return
        loop.add_writer(sock, self._writable)

    @property
    def unsent(self) -> int:
        """Bytes that wait for the server to take them."""
        return len(self._out)

    def send(self, message: bytes) -> None:
        """Send a message to the server."""
        self._out += len(message).to_bytes(2) + message
        self._write_later()

    def finish(self) -> None:
        """Nothing more is sent: the server may end the connection when it has said all."""
        if not self._finishing:
            self._finishing = True
            self._write_later()

    def resume(self) -> None:
        """There is room for messages again."""
        if not (self._closed or self._connecting or self._reading):
            self._reading = True
            self._loop.add_reader(self._sock, self._readable)
            self._parse()

    def close(self) -> None:
        """End it; the asker's connection is told nothing."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()

    def _write_later(self) -> None:
        if not (self._closed or self._writing):
            self._writing = True
            self._loop.add_writer(self._sock, self._writable)

    def _writable(self) -> None:
        if self._connecting:
            if self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._end()
                return
            self._connecting = False
            self.resume()
        try:
            if self._out:
                del self._out[: self._sock.send(self._out)]
            if not self._out:
                self._writing = False
                self._loop.remove_writer(self._sock)
                if self._finishing:
                    self._sock.shutdown(socket.SHUT_WR)
                self._asker.relay_drained()
        except BlockingIOError:
            return
        except OSError:
            self._end()

    def _readable(self) -> None:
        try:
            data = self._sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            self._end()
            return
        if not data:
            self._end()
            return
        self._in += data
        self._parse()

    def _parse(self) -> None:
        """Hand on whole messages, while there is room."""
        while not self._closed and len(self._in) >= 2:
            size = 2 + int.from_bytes(self._in[:2])
            if len(self._in) < size:
                return
            message = bytes(self._in[2:size])
            del self._in[:size]
            if not self._asker.relayed(message):
                if not self._closed and self._reading:
                    self._reading = False
                    self._loop.remove_reader(self._sock)
                return

    def _end(self) -> None:
        if not self._closed:
            self.close()
            self._asker.relay_ended()
