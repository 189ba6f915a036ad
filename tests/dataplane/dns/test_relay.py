"""Questions to others' servers by UDP: what passes, what is bounded, and how a socket ends."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import dns.message
import dns.rcode
import pytest
from dnsworld import Upstream, records, run, until

from appliance.dataplane.dns import relay
from appliance.dataplane.dns.door import DnsDoor
from appliance.render.dnsmessage import Query, parse_query

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

NETNS = "4:3"


class Here:
    """A namespace: this one."""

    @staticmethod
    def entered(make: Callable[[], Any]) -> Any:
        """Make it."""
        return make()


class World:
    """A door's socket, and what is sent to it."""

    def __init__(self, server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop = asyncio.get_running_loop()
        self.inside = True
        self.relays = relay.Relays(self.loop, {NETNS: Here()}, lambda _: self.inside)  # type: ignore[dict-item]
        self.door = DnsDoor(NETNS, "172.18.0.3")
        self.sock = socket.socket(type=socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.clients: list[socket.socket] = []
        self.server: tuple[str, int] | None = server
        monkeypatch.setattr(relay, "asked_by_udp", lambda *_: self.server)

    def client(self) -> socket.socket:
        """Return a socket of the workload's."""
        sock = socket.socket(type=socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        self.clients.append(sock)
        return sock

    def send(self, client: socket.socket, message: dns.message.Message | bytes) -> bool:
        """Give a message of a client's to the relays."""
        wire = message if isinstance(message, bytes) else message.to_wire()
        parsed = parse_query(wire)
        query = parsed if isinstance(parsed, Query) else None
        return self.relays.datagram(self.door, self.sock, client.getsockname(), wire, query)

    async def answer(self, client: socket.socket) -> bytes:
        """Return what the client gets."""
        async with asyncio.timeout(10):
            return await self.loop.sock_recv(client, 65535)


@asynccontextmanager
async def world(monkeypatch: pytest.MonkeyPatch, behave: Any) -> AsyncIterator[tuple[World, Upstream]]:
    """Relay to an upstream that behaves so."""
    async with Upstream(behave) as upstream:
        made = World(upstream.server, monkeypatch)
        try:
            yield made, upstream
        finally:
            made.relays.close()
            assert len(made.relays) == 0
            for sock in (made.sock, *made.clients):
                sock.close()


def good(query: dns.message.Message) -> dns.message.Message:
    """Answer with one address."""
    return records(query, "60 A 192.0.2.1")


def test_an_answer_comes_as_it_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """And ends the socket, once no question waits."""

    async def main() -> None:
        async with world(monkeypatch, good) as (w, upstream):
            query, client = dns.message.make_query("www.example.com", "A"), w.client()
            assert w.send(client, query)
            assert len(w.relays) == 1
            assert await w.answer(client) == good(query).to_wire()
            assert len(w.relays) == 0
            assert upstream.asked == [query]

    run(main)


def test_only_answers_to_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever guesses the port must guess the id as well."""
    other = dns.message.make_query("www.example.com", "A", id=77)

    async def main() -> None:
        async with world(monkeypatch, lambda _: good(other)) as (w, upstream):
            client = w.client()
            w.send(client, dns.message.make_query("www.example.com", "A", id=78))
            await until(lambda: len(upstream.asked) == 1)
            w.send(client, other)
            assert dns.message.from_wire(await w.answer(client)).id == 77
            assert len(w.relays) == 1

    run(main)


def test_what_is_no_question_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """More may come, as often as it wants."""

    async def main() -> None:
        async with world(monkeypatch, good) as (w, _):
            with socket.socket(type=socket.SOCK_DGRAM) as server:
                server.bind(("127.0.0.1", 0))
                w.server, client = server.getsockname(), w.client()
                assert w.send(client, b"\x01\0\0\0hello")
                data, peer = server.recvfrom(100)  # it is there: sent on this host
                assert data == b"\x01\0\0\0hello"
                for text in (b"one", b"two"):
                    server.sendto(text, peer)
                    assert await w.answer(client) == text

    run(main)


def test_a_server_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, to every question that waits."""

    async def main() -> None:
        async with world(monkeypatch, good) as (w, _):
            with socket.socket(type=socket.SOCK_DGRAM) as gone:
                gone.bind(("127.0.0.1", 0))
                w.server = gone.getsockname()
            client = w.client()
            w.send(client, dns.message.make_query("www.example.com", "A", use_edns=0))
            answer = dns.message.from_wire(await w.answer(client))
            assert answer.rcode() == dns.rcode.SERVFAIL
            assert "127.0.0.1 cannot be asked" in answer.options[0].text

    run(main)


def test_who_waits_longest_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one asker, and of the one that has most where all together have too many."""
    monkeypatch.setattr(relay, "MAX_RELAYS_PER_ASKER", 3)

    async def main() -> None:
        async with world(monkeypatch, lambda _: None) as (w, _):
            for number in range(5):
                w.send(w.client(), dns.message.make_query(f"n{number}.example", "A"))
            assert (len(w.relays), w.relays.gave_way) == (3, 2)
            monkeypatch.setattr(relay, "MAX_RELAYS", 4)
            w.relays._namespaces = {NETNS: Here(), "4:4": Here()}  # type: ignore[dict-item]
            w.door = DnsDoor("4:4", "172.18.0.4")
            for number in range(2):
                w.send(w.client(), dns.message.make_query(f"m{number}.example", "A"))
            assert {netns: len(of) for netns, of in w.relays._relays.items()} == {NETNS: 2, "4:4": 2}

    run(main)


def test_silence_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is told: the asker has its own patience, as without a mesh."""
    monkeypatch.setattr(relay, "WAIT_SECONDS", 0.05)

    async def main() -> None:
        async with world(monkeypatch, lambda _: None) as (w, _):
            w.send(w.client(), dns.message.make_query("www.example.com", "A"))
            assert len(w.relays) == 1
            await until(lambda: len(w.relays) == 0)

    run(main)


def test_some_servers_are_not_asked_from_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the mesh, unknown ones, and any from a namespace that cannot be entered."""

    async def main() -> None:
        async with world(monkeypatch, good) as (w, upstream):
            query = dns.message.make_query("www.example.com", "A")
            w.inside = False
            assert not w.send(w.client(), query)
            assert w.relays.tcp(w.door, upstream.server) is None
            w.inside, w.server = True, None
            assert not w.send(w.client(), query)
            assert w.relays.tcp(w.door, None) is None
            w.door = DnsDoor("4:9", "172.18.0.9")
            assert not w.send(w.client(), query)

    run(main)
