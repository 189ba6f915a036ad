"""One question to the upstreams: turns, timeouts, fallbacks, and what is not believed."""

from __future__ import annotations

import asyncio
import socket
from itertools import pairwise
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.rcode
import pytest

from appliance.dataplane.dns import upstream as module
from appliance.dataplane.dns.upstream import UpstreamKey, UpstreamQuery
from tests.dataplane.dnsworld import DEADLINE, Upstream, free_port, records, run, until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.dataplane.dns.upstream import Server
    from appliance.render.dnsforward import Response

QUESTION = UpstreamKey((b"www", b"example", b"com"), 1, False, False)


@pytest.fixture(autouse=True)
def _short_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRY_SECONDS", 0.1)
    monkeypatch.setattr(module, "TOTAL_SECONDS", 1.0)


async def put(servers: Sequence[Server], question: UpstreamKey = QUESTION) -> tuple[Response | None, list[Server]]:
    """Put the question and return what `done` is told."""
    future: asyncio.Future[tuple[Response | None, list[Server]]] = asyncio.get_running_loop().create_future()
    UpstreamQuery(asyncio.get_running_loop(), servers, question, lambda *told: future.set_result(told)).start()
    return await asyncio.wait_for(future, DEADLINE)


def good(query: dns.message.Message) -> dns.message.Message:
    """Answer with one address."""
    return records(query, "60 A 192.0.2.1")


def silent(query: dns.message.Message) -> None:
    """Answer nothing."""


def failing(query: dns.message.Message) -> dns.message.Message:
    """Answer SERVFAIL."""
    message = records(query)
    message.set_rcode(dns.rcode.SERVFAIL)
    return message


def cut(query: dns.message.Message) -> dns.message.Message:
    """Answer that TCP is needed."""
    message = records(query)
    message.flags |= dns.flags.TC
    return message


def test_an_answer() -> None:
    """The question leaves in lower case with RD and EDNS, and the answer comes back."""

    async def main() -> None:
        async with Upstream(good) as up:
            response, slow = await put([up.server], UpstreamKey((b"a", b"b"), 28, True, True))
            assert response is not None
            assert response.lifetime == 60
            assert slow == []
            (asked,) = up.asked
            assert str(asked.question[0]) == "a.b. IN AAAA"
            assert asked.flags & dns.flags.RD
            assert asked.flags & dns.flags.CD
            assert asked.ednsflags & dns.flags.DO
            assert asked.payload == 1232

    run(main)


def test_ids_and_ports_are_random() -> None:
    """Two questions have neither their id nor their source port in a row."""

    async def main() -> None:
        async with Upstream(good) as up:
            for _ in range(12):
                await put([up.server])
            ids = [message.id for message in up.asked]
            ports = [port for _, port in up.askers]
            for numbers in (ids, ports):
                assert len(set(numbers)) > 6
                assert len({b - a for a, b in pairwise(numbers)}) > 6

    run(main)


def test_a_silent_one_is_passed_over() -> None:
    """After one try the next upstream is asked, and the silent one is named."""

    async def main() -> None:
        async with Upstream(silent) as first, Upstream(good) as second:
            response, slow = await put([first.server, second.server])
            assert response is not None
            assert slow == [first.server]

    run(main)


def test_a_slow_answer_counts() -> None:
    """An answer to an earlier try is taken while the next upstream is being asked."""

    async def main() -> None:
        async with Upstream(silent) as first, Upstream(silent) as second:
            task = asyncio.create_task(put([first.server, second.server]))
            await until(lambda: bool(first.asked and second.asked))
            first.transport.sendto(good(first.asked[0]).to_wire(), first.askers[0])
            response, _ = await task
            assert response is not None

    run(main)


def test_the_unreachable_and_the_unwilling_make_room_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused port, an address that is none and a SERVFAIL lead to the next upstream without waiting."""
    monkeypatch.setattr(module, "TRY_SECONDS", 60.0)
    monkeypatch.setattr(module, "TOTAL_SECONDS", 60.0)

    async def main() -> None:
        async with Upstream(failing) as unwilling, Upstream(good) as last:
            servers = [("127.0.0.1", free_port()), ("nonsense", 53), unwilling.server, last.server]
            response, _ = await put(servers)
            assert response is not None
            assert response.usable

    run(main)


def test_nobody_answers() -> None:
    """When the time is over there is no response."""

    async def main() -> None:
        async with Upstream(silent) as first:
            response, _ = await put([first.server])
            assert response is None
            assert len(first.asked) == module.MAX_TRIES
        assert (await put([]))[0] is None

    run(main)


def test_everybody_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds of refused ports settle it before the time is over."""
    monkeypatch.setattr(module, "TOTAL_SECONDS", 60.0)

    async def main() -> None:
        assert (await put([("127.0.0.1", free_port()), ("127.0.0.2", free_port())]))[0] is None

    run(main)


def test_everybody_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """When each has said SERVFAIL, that is the answer, at once."""
    monkeypatch.setattr(module, "TRY_SECONDS", 60.0)
    monkeypatch.setattr(module, "TOTAL_SECONDS", 60.0)

    async def main() -> None:
        async with Upstream(failing) as first, Upstream(failing) as second:
            response, _ = await put([first.server, second.server])
            assert response is not None
            assert response.rcode == dns.rcode.SERVFAIL

    run(main)


def test_tcp_when_it_does_not_fit() -> None:
    """A truncated answer is asked for again over TCP, from the same upstream."""

    def big(query: dns.message.Message) -> dns.message.Message:
        return records(query, *(f"60 TXT {'x' * 250}{i}" for i in range(40)))

    async def main() -> None:
        async with Upstream(cut, big) as up:
            response, _ = await put([up.server])
            assert response is not None
            assert response.counts == (40, 0, 0)
            assert len(up.asked_tcp) == 1

    run(main)


def test_tcp_that_fails() -> None:
    """Where TCP brings nothing the next upstream is asked."""

    async def main() -> None:
        async with Upstream(cut, lambda _: b"nonsense") as first, Upstream(good) as second:
            response, _ = await put([first.server, second.server])
            assert response is not None
            assert response.usable

    run(main)


def test_an_upstream_without_edns() -> None:
    """FORMERR without an OPT record is an old server: it is asked again without EDNS."""

    def old(query: dns.message.Message) -> dns.message.Message | bytes:
        if query.edns >= 0:
            return query.id.to_bytes(2) + b"\x80\x81" + bytes(8)
        return good(query)

    async def main() -> None:
        async with Upstream(old) as up:
            response, _ = await put([up.server])
            assert response is not None
            assert response.usable

    run(main)


def test_guesses_are_not_believed() -> None:
    """Wrong ids, other questions and rubbish are passed over, and the right answer behind them is taken."""

    async def main() -> None:
        async with Upstream(silent) as up:
            task = asyncio.create_task(put([up.server]))
            await until(lambda: bool(up.asked))
            right = good(up.asked[0])
            other = records(dns.message.make_query("other.example", "A", id=right.id), "60 A 192.0.2.66")
            wrong = dns.message.from_wire(right.to_wire())
            wrong.id ^= 1
            for message in (wrong.to_wire(), other.to_wire(), b"", b"rubbish", right.to_wire()[:30]):
                up.transport.sendto(message, up.askers[0])
            with socket.socket(type=socket.SOCK_DGRAM) as stranger:
                stranger.sendto(records(up.asked[0], "60 A 192.0.2.66").to_wire(), up.askers[0])
            up.transport.sendto(right.to_wire(), up.askers[0])
            response, _ = await task
            assert response is not None
            assert response.body.endswith(bytes([192, 0, 2, 1]))

    run(main)


def test_cancelled_and_finished_questions_leave_nothing() -> None:
    """No socket stays open, neither after an answer nor after a cancellation, and a cancelled one tells nothing."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with Upstream(silent) as up:
            told: list[object] = []
            ask = UpstreamQuery(loop, [up.server], QUESTION, lambda *what: told.append(what))
            ask.start()
            await until(lambda: len(up.asked) == 2)
            assert len(ask._udp) == 2
            ask.cancel()
            assert not ask._udp
            up.behave = good
            await put([up.server])
            assert not told

    run(main)
