"""Held questions; tests/dataplane/dns/test_server.py has them in the server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import dns.message
import pytest

from appliance.dataplane.dns import hold
from appliance.dataplane.dns.hold import ClientQuery, Hold
from appliance.render.dnsmessage import Query, parse_query
from appliance.render.dnswire import MAX_MESSAGE
from tests.dataplane.dnsworld import run, until

if TYPE_CHECKING:
    from collections.abc import Callable

ONE, OTHER = "172.17.0.2", "172.17.0.3"


def question(asker: str, *, tcp: bool = False) -> ClientQuery:
    """Return a question of that asker."""
    data = dns.message.make_query("web.shop.mesh.internal", "A", use_edns=0, payload=1232).to_wire()
    query = parse_query(data)
    assert isinstance(query, Query)
    return ClientQuery(data, asker, lambda _: None, query, tcp=tcp)


def held(test: Callable[[Hold, list[ClientQuery]], None]) -> None:
    """Run a test with a Hold and the list of what expired."""

    async def main() -> None:
        expired: list[ClientQuery] = []
        test(Hold(asyncio.get_running_loop(), expired.append), expired)

    run(main)


def test_questions_are_released_in_their_order() -> None:
    """And only those of the asker that got its view."""

    def test(holding: Hold, expired: list[ClientQuery]) -> None:
        first, second, others = question(ONE), question(ONE), question(OTHER)
        assert all(map(holding.add, (first, others, second)))
        assert (len(holding), list(holding)) == (3, [ONE, OTHER])
        assert holding.release(ONE) == [first, second]
        assert (len(holding), list(holding)) == (1, [OTHER])
        assert holding.release(OTHER) == [others]
        assert (len(holding), list(holding), expired) == (0, [], [])

    held(test)


def test_askers_may_be_released_while_they_are_gone_through() -> None:
    """A new zone does that."""

    def test(holding: Hold, _expired: list[ClientQuery]) -> None:
        holding.add(question(ONE))
        holding.add(question(OTHER))
        for asker in holding:
            holding.release(asker)
        assert len(holding) == 0

    held(test)


def test_room_is_bounded_for_each_asker_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """What finds no room is not held; room that was given back can be used."""
    monkeypatch.setattr(hold, "MAX_HELD", 3)
    monkeypatch.setattr(hold, "MAX_HELD_PER_ASKER", 2)

    def test(holding: Hold, _expired: list[ClientQuery]) -> None:
        assert [holding.add(question(ONE)) for _ in range(3)] == [True, True, False]
        assert [holding.add(question(OTHER)) for _ in range(2)] == [True, False]
        holding.release(ONE)
        assert holding.add(question(OTHER))

    held(test)


def test_the_asker_that_has_waited_longest_gives_way_to_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it has waited longer than containers that start: addresses that somebody makes up do not hold all places."""
    monkeypatch.setattr(hold, "MAX_HELD", 3)
    monkeypatch.setattr(hold, "GIVES_WAY", 0.02)

    async def main() -> None:
        expired: list[ClientQuery] = []
        holding = Hold(asyncio.get_running_loop(), expired.append)
        made_up = [question(f"172.17.1.{number}") for number in range(3)]
        assert all(map(holding.add, made_up))
        assert not holding.add(question(ONE))
        start = asyncio.get_running_loop().time()
        await until(lambda: asyncio.get_running_loop().time() > start + 0.03)
        starting = question(ONE)
        assert holding.add(starting)
        assert expired == made_up[:1]
        assert not holding.add(question(ONE)), "only for its first question"
        assert holding.release(ONE) == [starting]
        for asker in holding:
            holding.release(asker)

    run(main)


def test_each_question_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It expires once; what its asker asked later waits on, and what was released does not expire."""
    monkeypatch.setattr(hold, "HOLD_SECONDS", 0.05)

    async def main() -> None:
        expired: list[ClientQuery] = []
        loop = asyncio.get_running_loop()
        holding = Hold(loop, expired.append)
        first, second, later = question(ONE), question(ONE), question(ONE)
        holding.add(question(OTHER))
        holding.release(OTHER)
        holding.add(first)
        holding.add(second)
        start = loop.time()
        await until(lambda: loop.time() > start + 0.02)
        monkeypatch.setattr(hold, "HOLD_SECONDS", 3600)
        holding.add(later)
        await until(lambda: len(expired) == 2)
        assert expired == [first, second]
        assert (len(holding), list(holding)) == (1, [ONE])
        assert holding.release(ONE) == [later]

    run(main)


def test_an_answer_may_be_as_long_as_its_way_allows() -> None:
    """By TCP as long as a message can be, by UDP what the asker takes."""
    assert question(ONE, tcp=True).limit == MAX_MESSAGE
    assert question(ONE).limit == 1232
