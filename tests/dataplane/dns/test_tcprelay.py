"""A connection to the server that was asked: whole messages, in both directions, at the asker's pace."""

from __future__ import annotations

import asyncio
import socket

from dnsworld import framed, run, until

from appliance.dataplane.dns.tcprelay import TcpAsker, TcpRelay


class Asker(TcpAsker):
    """Takes so many messages, and notes what else it is told."""

    def __init__(self, room: int = 100) -> None:
        self.room = room
        self.messages: list[bytes] = []
        self.ended = False
        self.drained = 0

    def relayed(self, message: bytes) -> bool:
        """Take it."""
        self.messages.append(message)
        return len(self.messages) < self.room

    def relay_drained(self) -> None:
        """Count it."""
        self.drained += 1

    def relay_ended(self) -> None:
        """Note it."""
        assert not self.ended
        self.ended = True


def relay_to(server: tuple[str, int], asker: Asker) -> TcpRelay:
    """Connect."""
    sock = socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    return TcpRelay(asyncio.get_running_loop(), sock, server, asker)


async def accepted(server: socket.socket) -> socket.socket:
    """Return the next connection."""
    sock, _ = await asyncio.get_running_loop().sock_accept(server)
    sock.setblocking(False)
    return sock


def test_messages_pass_whole() -> None:
    """However they come, several for one question; and the end passes in both directions."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setblocking(False)
            asker = Asker()
            relay = relay_to(server.getsockname(), asker)
            relay.send(b"question")
            with await accepted(server) as sock:
                assert await loop.sock_recv(sock, 100) == framed(b"question")
                for byte in framed(b"one") + framed(b"two"):
                    await loop.sock_sendall(sock, bytes([byte]))
                await until(lambda: asker.messages == [b"one", b"two"])
                relay.finish()
                assert await loop.sock_recv(sock, 100) == b""
                assert asker.drained
                await loop.sock_sendall(sock, framed(b"three"))
            await until(lambda: asker.ended)
            assert asker.messages[2:] == [b"three"]

    run(main)


def test_it_waits_for_the_asker() -> None:
    """What the asker does not read is left to the server."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setblocking(False)
            asker = Asker(room=1)
            relay = relay_to(server.getsockname(), asker)
            with await accepted(server) as sock:
                await loop.sock_sendall(sock, framed(b"one") + framed(b"two"))
                await until(lambda: len(asker.messages) == 1)
                asker.room = 3
                relay.resume()
                await until(lambda: asker.messages == [b"one", b"two"])
            relay.close()
            assert not asker.ended

    run(main)


def test_a_server_that_is_not_there_ends_it() -> None:
    """As one that closes."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            where = server.getsockname()
        asker = Asker()
        relay = relay_to(where, asker)
        relay.send(b"question")
        assert relay.unsent
        await until(lambda: asker.ended)

    run(main)
