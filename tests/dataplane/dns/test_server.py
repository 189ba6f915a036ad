"""The DNS server as its askers see it, over real sockets on loopback addresses."""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.rcode
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.dataplane.dns import hold
from appliance.dataplane.dns import server as module
from appliance.dataplane.dns.server import DnsServer
from appliance.model.names import Name
from appliance.model.network import Zone
from tests.dataplane.dnsworld import (
    Upstream,
    ask,
    connect,
    exchange,
    framed,
    free_port,
    read_framed,
    records,
    run,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FLASK, REDIS = Name.parse("flask.flask"), Name.parse("redis.flask")
ASKER, OTHER, LATE, STRANGER = "127.0.0.1", "127.0.0.2", "127.0.0.9", "127.1.0.1"
ZONE = Zone(
    suffix="mesh.internal",
    names={FLASK: IPv4Address("240.0.0.1"), REDIS: IPv4Address("240.0.0.2")},
    views={IPv4Address(ASKER): frozenset({FLASK, REDIS}), IPv4Address(OTHER): frozenset({FLASK})},
    subnets=frozenset({IPv4Network("127.0.0.0/16")}),
    askers={IPv4Address(OTHER): FLASK},
)
LOCAL = IPv4Address("127.0.0.1")


class World:
    """A server on a port of its own."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.port = free_port()
        self.at = ("127.0.0.1", self.port)
        self.server = DnsServer(asyncio.get_running_loop(), port=self.port, upstreams=lambda: [upstream.server])
        self.server.set_addresses(frozenset({LOCAL}))

    async def address(self, name: str, source: str = ASKER) -> str:
        """Return the addresses of a name, or the rcode."""
        answer = await ask(self.at, name, source=source)
        return " ".join(str(r) for rrset in answer.answer for r in rrset) or dns.rcode.to_text(answer.rcode())


def good(query: dns.message.Message) -> dns.message.Message:
    """Answer with one address."""
    return records(query, "60 A 192.0.2.1")


@asynccontextmanager
async def world(zone: Zone | None = ZONE) -> AsyncIterator[World]:
    """Serve `zone`, in front of an upstream that knows every name."""
    async with Upstream(good) as upstream:
        made = World(upstream)
        if zone is not None:
            made.server.set_zone(zone)
        try:
            yield made
        finally:
            made.server.close()


def test_each_asker_has_its_view() -> None:
    """The same question is answered according to the asker, also when the answers come from the table."""

    async def main() -> None:
        async with world() as w:
            for _ in range(3):
                assert await w.address("redis.flask", ASKER) == "240.0.0.2"
                assert await w.address("redis.flask", OTHER) == "NXDOMAIN"
                assert await w.address("flask.flask", OTHER) == "240.0.0.1"
            stats = w.server.stats()
            assert (stats["questions"], stats["ready"], stats["ours"]) == (9, 6, 3)

    run(main)


def test_the_reason_is_told() -> None:
    """A hidden name comes with error 18 and the entry that is missing."""

    async def main() -> None:
        async with world() as w:
            answer = await ask(w.at, "redis.flask", source=OTHER)
            assert answer.options[0].to_text() == "EDE 18 (Prohibited): redis.flask is not in connect_to of flask.flask"

    run(main)


def test_id_and_case_of_every_question_come_back() -> None:
    """An answer from the table bears the id and the spelling of the question that it answers."""

    async def main() -> None:
        async with world() as w:
            for name in ("redis.flask", "redis.flask", "ReDiS.fLaSk", "redis.FLASK", "ReDiS.fLaSk", "redis.flask"):
                answer = await ask(w.at, name)
                assert answer.question[0].name.to_text() == name + "."
                assert answer.answer[0].name.to_text() == name + "."

    run(main)


def test_a_new_zone_counts_at_once() -> None:
    """Answers of the former zone, and upstream answers for names that are ours now, are forgotten."""

    async def main() -> None:
        async with world() as w:
            assert await w.address("redis.flask") == "240.0.0.2"
            assert await w.address("new.flask") == "192.0.2.1"
            new = Name.parse("new.flask")
            names = {FLASK: IPv4Address("240.0.0.1"), new: IPv4Address("240.0.0.7")}
            w.server.set_zone(Zone(suffix="mesh.internal", names=names, views={LOCAL: frozenset({new})}))
            assert await w.address("new.flask") == "240.0.0.7"
            assert await w.address("flask.flask") == "NXDOMAIN"
            assert await w.address("redis.flask") == "192.0.2.1"

    run(main)


def test_everything_else_goes_upstream_once() -> None:
    """A name that is not ours is asked of the upstream once, and then answered from memory for every asker."""

    async def main() -> None:
        async with world() as w:
            for source in (ASKER, OTHER, ASKER):
                answer = await ask(w.at, "www.example.com", source=source)
                assert str(answer.answer[0]) == "www.example.com. 60 IN A 192.0.2.1"
                assert not answer.flags & dns.flags.AA
            assert len(w.upstream.asked) == 1
            assert w.server.stats()["ready"] == 1
            assert await w.address("8.8.8.250.in-addr.arpa") == "NXDOMAIN"
            assert len(w.upstream.asked) == 1

    run(main)


def test_upstream_answers_are_forgotten_with_the_second() -> None:
    """The table of upstream answers is emptied, so that TTLs count down."""

    async def main() -> None:
        async with world() as w:
            await ask(w.at, "www.example.com")
            assert w.server._recent
            await until(lambda: not w.server._recent)
            assert (await ask(w.at, "www.example.com")).answer[0].ttl < 60

    run(main)


def test_without_recursion_only_our_names() -> None:
    """A question that does not ask for recursion is answered for our names and refused for others, with a reason."""

    async def main() -> None:
        async with world() as w:
            assert (await ask(w.at, "redis.flask", flags=0)).answer
            refused = await ask(w.at, "www.example.com", flags=0)
            assert refused.rcode() == dns.rcode.REFUSED
            assert refused.options[0].code == 20
            assert not w.upstream.asked

    run(main)


def test_strangers_are_refused() -> None:
    """An asker from none of our networks gets REFUSED with a reason, for any name."""

    async def main() -> None:
        async with world() as w:
            for name in ("redis.flask", "www.example.com"):
                answer = await ask(w.at, name, source=STRANGER)
                assert answer.rcode() == dns.rcode.REFUSED
                assert answer.options[0].code == 18
            assert not w.upstream.asked

    run(main)


def test_an_asker_without_a_view_waits_for_it() -> None:
    """Its questions are held while zones come that do not have it, and answered when one does."""

    async def main() -> None:
        async with world() as w:
            tasks = [asyncio.create_task(w.address(name, LATE)) for name in ("redis.flask", "www.example.com")]
            await until(lambda: w.server.stats()["held_now"] == 2)
            w.server.set_zone(ZONE)
            assert w.server.stats()["held_now"] == 2
            views = {**ZONE.views, IPv4Address(LATE): frozenset({REDIS})}
            w.server.set_zone(Zone(suffix="mesh.internal", names=ZONE.names, views=views, subnets=ZONE.subnets))
            assert await asyncio.gather(*tasks) == ["240.0.0.2", "192.0.2.1"]
            assert w.server.stats()["held_now"] == 0

    run(main)


def test_everybody_waits_for_the_first_zone() -> None:
    """After a start, before anything is known, no asker is told that a name does not exist."""

    async def main() -> None:
        async with world(zone=None) as w:
            tasks = [asyncio.create_task(w.address("redis.flask", source)) for source in (ASKER, STRANGER)]
            await until(lambda: w.server.stats()["held_now"] == 2)
            w.server.set_zone(ZONE)
            assert await asyncio.gather(*tasks) == ["240.0.0.2", "REFUSED"]

    run(main)


def test_waiting_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """An asker that gets no view is told in the end what may be missing, and never that the name does not exist."""
    monkeypatch.setattr(hold, "HOLD_SECONDS", 0.1)

    async def main() -> None:
        async with world() as w:
            answer = await ask(w.at, "redis.flask", source=LATE)
            assert answer.rcode() == dns.rcode.SERVFAIL
            assert "127.0.0.9 is no container of the mesh" in answer.options[0].text
            assert w.server.stats()["held_now"] == 0
            assert (await ask(w.at, "redis.flask", source=LATE)).rcode() == dns.rcode.SERVFAIL

    run(main)


def test_few_can_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bounds, of one asker and of all, a question fails at once instead of being held."""
    monkeypatch.setattr(hold, "MAX_HELD_PER_ASKER", 2)
    monkeypatch.setattr(hold, "MAX_HELD", 3)

    async def main() -> None:
        async with world() as w:
            held = [asyncio.create_task(w.address("redis.flask", LATE)) for _ in range(2)]
            await until(lambda: w.server.stats()["held_now"] == 2)
            assert await w.address("redis.flask", LATE) == "SERVFAIL"
            held.append(asyncio.create_task(w.address("redis.flask", "127.0.0.10")))
            await until(lambda: w.server.stats()["held_now"] == 3)
            assert await w.address("redis.flask", "127.0.0.11") == "SERVFAIL"
            w.server.set_zone(Zone(suffix=""))
            assert await asyncio.gather(*held) == ["REFUSED"] * 3

    run(main)


def test_a_flood_of_one_asker_keeps_no_other_waiting() -> None:
    """However many different names it asks for, of others or of ours: the other is answered among its first ones."""

    async def main() -> None:
        async with world() as w:
            assert await w.address("flask.flask", OTHER) == "240.0.0.1"
            loop = asyncio.get_running_loop()
            names = [f"r{i}.{'mesh.internal' if i % 2 else 'example'}" for i in range(3000)]
            wires = [dns.message.make_query(name, "A").to_wire() for name in names]
            with socket.socket(type=socket.SOCK_DGRAM) as flood, socket.socket(type=socket.SOCK_DGRAM) as victim:
                for sock, source in ((flood, ASKER), (victim, OTHER)):
                    sock.setblocking(False)
                    sock.bind((source, 0))
                    sock.connect(w.at)
                before = w.server.stats()["questions"]
                for wire in wires:
                    flood.send(wire)
                for name in ("redis.flask", "flask.flask", "www.example.com"):
                    victim.send(dns.message.make_query(name, "A").to_wire())
                async with asyncio.timeout(10):
                    for _ in range(3):
                        await loop.sock_recv(victim, 4096)
                stats = w.server.stats()
                assert stats["questions"] - before < len(wires) // 2, "it did not wait for all of them"
                assert stats["crowded_out"] > 0

    run(main)


def test_addresses_that_nobody_has_get_few_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they send: what leaves for them stays in the socket's queue for seconds, where others' answers wait."""
    monkeypatch.setattr(hold, "HOLD_SECONDS", 0.05)

    async def main() -> None:
        async with world() as w:
            query = dns.message.make_query("redis.flask", "A").to_wire()
            socks = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(40)]
            for number, sock in enumerate(socks):
                sock.setblocking(False)
                sock.bind((f"127.{number % 2}.7.{number + 1}", 0))
                sock.connect(w.at)
                for data in (query, query[:14]):
                    sock.send(data)
            await until(lambda: w.server.stats()["refused"] + w.server.stats()["malformed"] == 80)
            assert await w.address("redis.flask") == "240.0.0.2"
            told = 0
            for sock in socks:
                with sock, suppress(BlockingIOError):
                    for _ in range(2):
                        told += bool(sock.recv(4096))
            assert 1 <= told <= 2 * module.TOLD_A_SECOND
            assert w.server.stats()["untold"] == 80 - told

    run(main)


def test_large_answers_need_tcp() -> None:
    """Over UDP an answer beyond the asker's size is cut (TC); over TCP it comes whole, from memory."""

    async def main() -> None:
        async with world() as w:
            w.upstream.behave = lambda q: records(q, *(f"60 TXT {'x' * 200}{i}" for i in range(5)))
            plain = await ask(w.at, "big.example", "TXT", use_edns=False)
            assert plain.flags & dns.flags.TC
            assert not plain.answer
            assert len((await ask(w.at, "big.example", "TXT", payload=4096)).answer[0]) == 5
            reader, writer = await connect(w.at)
            message = dns.message.make_query("big.example", "TXT")
            writer.write(framed(message))
            whole = await read_framed(reader)
            assert message.is_response(whole)
            assert len(whole.answer[0]) == 5
            assert (await ask(w.at, "big.example", "TXT", use_edns=False)).flags & dns.flags.TC
            assert len(w.upstream.asked) == 1
            writer.close()

    run(main)


def test_tcp_answers_like_udp() -> None:
    """Views, errors, silence and upstream names are the same over TCP."""

    async def main() -> None:
        async with world() as w:
            reader, writer = await connect(w.at, OTHER)
            expected = {}
            for name, rcode in (("redis.flask", 3), ("flask.flask", 0), ("www.example.com", 0)):
                message = dns.message.make_query(name, "A")
                expected[message.id] = rcode
                writer.write(framed(message))
            writer.write(framed(b"\1\2\x81\x80" + bytes(8)) + framed(b"\1\2\1\0") + framed(b""))
            expected[0x0102] = 1
            answers = [await read_framed(reader) for _ in expected]
            assert {answer.id: answer.rcode() for answer in answers} == expected
            writer.close()

    run(main)


def test_answers_come_from_the_address_that_was_asked() -> None:
    """Each address has a socket of its own, and one that is dropped is silent at once."""

    async def main() -> None:
        async with world() as w:
            second = IPv4Address("127.0.0.3")
            w.server.set_addresses(frozenset({LOCAL, second}))
            assert (await ask((str(second), w.port), "redis.flask")).answer
            w.server.set_addresses(frozenset({LOCAL}))
            with pytest.raises(ConnectionRefusedError):
                await ask((str(second), w.port), "redis.flask")
            with pytest.raises(ConnectionRefusedError):
                await connect((str(second), w.port))
            assert (await ask(w.at, "redis.flask")).answer

    run(main)


def test_a_taken_address() -> None:
    """What cannot be opened is said, by address and port; the others serve; a later call tries again."""

    async def main() -> None:
        async with world() as w:
            addresses = [IPv4Address(f"127.0.0.{i}") for i in (1, 3, 4)]
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                with socket.socket(type=kind) as holder:
                    holder.bind((str(addresses[1]), w.port))
                    if kind == socket.SOCK_STREAM:
                        holder.listen()
                    with pytest.raises(OSError, match=rf"127\.0\.0\.3:{w.port}.*Address already in use") as caught:
                        w.server.set_addresses(frozenset(addresses))
                    assert caught.value.errno == errno.EADDRINUSE
                    assert (await ask((str(addresses[2]), w.port), "redis.flask")).answer
                w.server.set_addresses(frozenset(addresses))
                assert (await ask((str(addresses[1]), w.port), "redis.flask")).answer
                w.server.set_addresses(frozenset({LOCAL}))

    run(main)


def test_an_address_that_is_not_there_yet() -> None:
    """A gateway address can be listened on before Docker has made its bridge."""

    async def main() -> None:
        async with world() as w:
            w.server.set_addresses(frozenset({LOCAL, IPv4Address("192.0.2.53")}))

    run(main)


def test_a_resolv_conf_that_names_us() -> None:
    """We are not an upstream of ourselves: questions do not go in circles."""

    async def main() -> None:
        async with world() as w:
            w.upstream.server = w.at
            answer = await ask(w.at, "www.example.com")
            assert answer.rcode() == dns.rcode.SERVFAIL
            assert answer.options[0].text == "no upstream resolver is set"

    run(main)


def test_the_tables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that is full loses what fills it."""
    monkeypatch.setattr(module, "MAX_READY", 10)

    async def main() -> None:
        async with world() as w:
            for i in range(25):
                assert await w.address(f"x{i}.mesh.internal") == "NXDOMAIN"
                await w.address(f"x{i}.example")
                assert len(w.server._ready) <= 10
                assert len(w.server._recent) <= 10

    run(main)


def test_a_burst_is_answered_whole() -> None:
    """More questions than one batch takes are all answered, in turn with the rest of the loop."""

    async def main() -> None:
        async with world() as w:
            with socket.socket(type=socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.connect(w.at)
                wires = [dns.message.make_query(f"x{i % 40}.mesh.internal", "A", id=i).to_wire() for i in range(200)]
                for wire in wires:
                    sock.send(wire)
                seen = set()
                async with asyncio.timeout(10):
                    while len(seen) < 200:
                        seen.add(int.from_bytes((await asyncio.get_running_loop().sock_recv(sock, 4096))[:2]))

    run(main)


def test_close_leaves_nothing() -> None:
    """After close the port is free, and held and forwarded questions are forgotten."""

    async def main() -> None:
        async with world() as w:
            w.upstream.behave = lambda _: None
            _, writer = await connect(w.at)
            tasks = [asyncio.create_task(w.address("redis.flask", LATE)), asyncio.create_task(w.address("a.example"))]
            await until(lambda: bool(w.upstream.asked) and w.server.stats()["held_now"] == 1)
            w.server.close()
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                with socket.socket(type=kind) as sock:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind(w.at)
            writer.close()
            for task in tasks:
                task.cancel()

    run(main)


@pytest.mark.parametrize("where", ["parse_query", "encode_reply"])
def test_any_error_at_a_question_is_that_questions_problem(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """A question at which the server fails in any way gets silence, also over TCP, and the next one its answer."""
    real = getattr(module, where)

    def fails(asked, *rest):
        if b"flask\5flask" in (asked if isinstance(asked, bytes) else asked.question):
            raise ZeroDivisionError("nobody has foreseen this")
        return real(asked, *rest)

    monkeypatch.setattr(module, where, fails)
    bad = dns.message.make_query("flask.flask", "A").to_wire()
    good = dns.message.make_query("redis.flask", "A").to_wire()

    async def main() -> None:
        async with world() as w:
            with socket.socket(type=socket.SOCK_DGRAM) as sock:
                sock.sendto(bad, w.at)
            reader, writer = await connect(w.at)
            writer.write(framed(bad) + framed(good))
            assert (await read_framed(reader)).id == int.from_bytes(good[:2])
            assert await w.address("redis.flask") == "240.0.0.2"
            assert w.server.stats()["failed"] == 2
            writer.close()

    with structlog.testing.capture_logs() as logs:
        run(main)
    assert [line["event"] for line in logs] == ["a DNS question cannot be answered; it is passed over"] * 2


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.binary(min_size=1, max_size=500), max_size=40))
def test_any_bytes_and_then_a_question(packets: list[bytes]) -> None:
    """After any bytes, over UDP and TCP, from any asker, a proper question is still answered."""
    query = dns.message.make_query("redis.flask", "A", use_edns=0).to_wire()

    async def main() -> None:
        async with world() as w:
            with socket.socket(type=socket.SOCK_DGRAM) as sock:
                for i, packet in enumerate(packets):
                    sock.sendto(packet, w.at)
                    sock.sendto(query[:i] + packet, w.at)
                    sock.sendto(packet[:2] + query[2:] + packet, w.at)
            _, writer = await connect(w.at)
            writer.write(b"".join(packets))
            assert await w.address("redis.flask") == "240.0.0.2"
            assert (await exchange(w.at, b"\0\1\1\0"))[:4] == b"\0\1\x81\x81"
            writer.close()

    run(main)
