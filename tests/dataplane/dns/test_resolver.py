"""The cache and the forwarder behind it."""

from __future__ import annotations

import asyncio

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from appliance.dataplane.dns import resolver as module
from appliance.dataplane.dns import upstream
from appliance.dataplane.dns.resolver import Resolved, Resolver
from appliance.render.dnsmessage import Query, parse_query
from tests.dataplane.dnsworld import DEADLINE, Upstream, free_port, records, run, until


@pytest.fixture(autouse=True)
def _short_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "TRY_SECONDS", 0.1)
    monkeypatch.setattr(upstream, "TOTAL_SECONDS", 0.5)


class Clock:
    """The running loop with a clock that tests can set forward."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.ahead = 0.0

    def time(self) -> float:
        """Return the loop's time, set forward."""
        return self.loop.time() + self.ahead

    def __getattr__(self, name: str) -> object:
        return getattr(self.loop, name)


def parsed(name: str = "www.example.com", **options: object) -> Query:
    """Return a question as the server hands it on."""
    query = parse_query(dns.message.make_query(name, "A", **options).to_wire())
    assert isinstance(query, Query)
    return query


async def resolve(resolver: Resolver, query: Query, asker: str = "172.18.0.5") -> Resolved:
    """Return what is told."""
    future: asyncio.Future[Resolved] = asyncio.get_running_loop().create_future()
    resolver.resolve(query, asker, future.set_result)
    return await asyncio.wait_for(future, DEADLINE)


def good(query: dns.message.Message) -> dns.message.Message:
    """Answer with one address for 60 s."""
    return records(query, "60 A 192.0.2.1")


def test_kept_for_as_long_as_it_says() -> None:
    """An answer is asked for once while its TTL lasts, and its age is known."""

    async def main() -> None:
        clock = Clock()
        async with Upstream(good) as up:
            resolver = Resolver(clock, lambda: [up.server])
            assert (await resolve(resolver, parsed())).age == 0
            clock.ahead = 30.5
            assert (await resolve(resolver, parsed("WWW.Example.com"))).age == 30
            assert len(up.asked) == 1
            clock.ahead = 60.5
            assert (await resolve(resolver, parsed())).age == 0
            assert len(up.asked) == 2

    run(main)


def test_other_questions_are_other_entries() -> None:
    """DO and CD change what upstream says, so they are part of the key; EDNS alone is not."""

    async def main() -> None:
        async with Upstream(good) as up:
            resolver = Resolver(asyncio.get_running_loop(), lambda: [up.server])
            await resolve(resolver, parsed(use_edns=0, want_dnssec=True))
            await resolve(resolver, parsed(flags=dns.flags.RD | dns.flags.CD))
            await resolve(resolver, parsed(use_edns=0))
            await resolve(resolver, parsed(use_edns=False))
            assert len(up.asked) == 3

    run(main)


def test_negative_answers_are_kept_by_their_soa() -> None:
    """NXDOMAIN with an SOA record is kept for its last number; without one it is not kept."""

    def nothing(query: dns.message.Message) -> dns.message.Message:
        message = records(query)
        message.set_rcode(dns.rcode.NXDOMAIN)
        if "kept" in str(query.question[0].name):
            message.authority.append(dns.rrset.from_text("example.", 600, "IN", "SOA", "a. b. 1 2 3 4 20"))
        return message

    async def main() -> None:
        clock = Clock()
        async with Upstream(nothing) as up:
            resolver = Resolver(clock, lambda: [up.server])
            for ahead, asked in ((0.0, 1), (19.0, 1), (21.0, 2)):
                clock.ahead = ahead
                assert (await resolve(resolver, parsed("kept.example"))).response.rcode == dns.rcode.NXDOMAIN
                assert len(up.asked) == asked
            await resolve(resolver, parsed("other.example"))
            await resolve(resolver, parsed("other.example"))
            assert len(up.asked) == 4

    run(main)


def test_identical_questions_travel_together() -> None:
    """Questions that come while the same one is on its way get its answer; upstream sees one."""

    async def main() -> None:
        async with Upstream(lambda _: None) as up:
            resolver = Resolver(asyncio.get_running_loop(), lambda: [up.server])
            tasks = [asyncio.create_task(resolve(resolver, parsed(), f"172.18.0.{i}")) for i in range(50)]
            await until(lambda: bool(up.asked))
            up.transport.sendto(good(up.asked[0]).to_wire(), up.askers[0])
            told = await asyncio.gather(*tasks)
            assert all(t.response.usable for t in told)
            assert len(up.asked) == 1
            assert resolver.stats["coalesced"] == 49

    run(main)


def test_failure_is_explained_and_short() -> None:
    """When no upstream answers, it is SERVFAIL with error 22 that names the upstreams, for 2 s."""

    async def main() -> None:
        clock = Clock()
        port = free_port()
        servers: list[tuple[str, int]] = [("127.0.0.1", port)]
        resolver = Resolver(clock, lambda: servers)
        told = await resolve(resolver, parsed())
        assert told.response.rcode == dns.rcode.SERVFAIL
        assert told.ede is not None
        assert (told.ede.code, told.ede.text) == (22, "no upstream resolver answered (127.0.0.1)")
        async with Upstream(good) as up:
            servers[:] = [up.server]
            assert (await resolve(resolver, parsed())).response.rcode == dns.rcode.SERVFAIL
            clock.ahead = module.FAILURE_SECONDS
            assert (await resolve(resolver, parsed())).response.usable
        servers.clear()
        told = await resolve(resolver, parsed("other.example"))
        assert told.ede is not None
        assert told.ede.text == "no upstream resolver is set"

    run(main)


def test_stale_rather_than_nothing() -> None:
    """An expired answer is sent while upstream is silent, with a short TTL and error 3, but not after a day."""

    async def main() -> None:
        clock = Clock()
        async with Upstream(good) as up:
            resolver = Resolver(clock, lambda: [up.server])
            await resolve(resolver, parsed())
            up.behave = lambda _: None
            clock.ahead = 100.0
            told = await resolve(resolver, parsed())
            assert told.response.usable
            assert told.response.ttls[0][1] == module.STALE_SECONDS
            assert told.ede is not None
            assert told.ede.code == 3
            asked = len(up.asked)
            assert (await resolve(resolver, parsed())).response.usable
            assert len(up.asked) == asked
            clock.ahead = 140.0
            assert (await resolve(resolver, parsed())).response.usable
            clock.ahead = 60.0 + module.MAX_STALE + 1
            assert not (await resolve(resolver, parsed())).response.usable
            up.behave = good
            clock.ahead += module.FAILURE_SECONDS
            told = await resolve(resolver, parsed())
            assert told.ede is None
            assert told.response.usable

    run(main)


def test_the_silent_upstream_goes_last() -> None:
    """An upstream that kept silent is asked after the others for a while, then first again."""

    async def main() -> None:
        clock = Clock()
        async with Upstream(lambda _: None) as first, Upstream(good) as second:
            resolver = Resolver(clock, lambda: [first.server, second.server])
            await resolve(resolver, parsed("a.example"))
            assert len(first.asked) == 1
            await resolve(resolver, parsed("b.example"))
            assert len(first.asked) == 1
            clock.ahead = module.SLOW_SECONDS + 1
            await resolve(resolver, parsed("c.example"))
            assert len(first.asked) == 2

    run(main)


def test_one_asker_cannot_take_all_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its share an asker is told SERVFAIL at once, and another still gets through; places come free again."""
    monkeypatch.setattr(module, "MAX_WAITING_PER_ASKER", 4)
    monkeypatch.setattr(module, "MAX_IN_FLIGHT", 6)

    async def main() -> None:
        async with Upstream(lambda _: None) as up:
            resolver = Resolver(asyncio.get_running_loop(), lambda: [up.server])
            tasks = [asyncio.create_task(resolve(resolver, parsed(f"n{i}.example"), "172.18.0.5")) for i in range(4)]
            await until(lambda: len(up.asked) >= 4)
            refused = await resolve(resolver, parsed("n9.example"), "172.18.0.5")
            assert refused.response.rcode == dns.rcode.SERVFAIL
            up.behave = good
            assert (await resolve(resolver, parsed("m.example"), "172.18.0.6")).response.usable
            await asyncio.gather(*tasks)
            assert not resolver._waiting_by_asker
            assert not resolver._waiting
            assert (await resolve(resolver, parsed("o.example"), "172.18.0.5")).response.usable

    run(main)


def test_several_askers_cannot_take_all_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stops while there is room left for one that has asked nothing yet."""
    monkeypatch.setattr(module, "MAX_IN_FLIGHT", 64)

    async def main() -> None:
        async with Upstream(lambda _: None) as up:
            resolver = Resolver(asyncio.get_running_loop(), lambda: [up.server])
            told: list[Resolved] = []
            for i in range(100):
                for asker in range(8):
                    resolver.resolve(parsed(f"n{i}-{asker}.example"), f"172.18.0.{asker}", told.append)
            shares = [resolver._waiting_by_asker[f"172.18.0.{asker}"] for asker in range(8)]
            assert max(shares) - min(shares) <= 1, "equal shares"
            before = len(resolver._waiting)
            for asker in range(8, 11):
                resolver.resolve(parsed(f"late{asker}.example"), f"172.18.0.{asker}", told.append)
            assert len(resolver._waiting) == before + 3
            resolver.close()

    run(main)


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest entry makes room for a new one, and large answers are not kept."""
    monkeypatch.setattr(module, "MAX_ENTRIES", 3)

    async def main() -> None:
        async with Upstream(good) as up:
            resolver = Resolver(asyncio.get_running_loop(), lambda: [up.server])
            for i in (0, 1, 2, 3, 1):
                await resolve(resolver, parsed(f"n{i}.example"))
            assert len(up.asked) == 4
            await resolve(resolver, parsed("n0.example"))
            assert len(up.asked) == 5
            assert len(resolver._cache) == 3
            up.behave = lambda q: records(q, *(f"60 TXT {'x' * 250}{i}" for i in range(20))).to_wire(max_size=65535)
            for _ in range(2):
                assert (await resolve(resolver, parsed("big.example"))).response.counts == (20, 0, 0)
            assert len(up.asked) == 7

    run(main)


def test_an_asker_of_ever_new_names_pushes_out_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another asker has brought into the cache stays there."""
    monkeypatch.setattr(module, "MAX_ENTRIES", 5)

    async def main() -> None:
        async with Upstream(good) as up:
            resolver = Resolver(asyncio.get_running_loop(), lambda: [up.server])
            for name in ("a.example", "b.example"):
                await resolve(resolver, parsed(name), "172.18.0.6")
            for i in range(20):
                await resolve(resolver, parsed(f"n{i}.example"), "172.18.0.5")
                assert len(resolver._cache) == len(resolver._brought_by) <= 5
            before = len(up.asked)
            for name in ("a.example", "b.example", "n19.example"):
                await resolve(resolver, parsed(name), "172.18.0.7")
            assert len(up.asked) == before
            assert sum(map(len, resolver._brought.values())) == 5

    run(main)


def test_close_forgets_what_is_on_its_way() -> None:
    """After close no question is under way and no asker gets an answer."""

    async def main() -> None:
        async with Upstream(lambda _: None) as up:
            resolver = Resolver(asyncio.get_running_loop(), lambda: [up.server])
            told: list[Resolved] = []
            resolver.resolve(parsed(), "172.18.0.5", told.append)
            await until(lambda: bool(up.asked))
            resolver.close()
            up.transport.sendto(good(up.asked[0]).to_wire(), up.askers[0])
            await asyncio.sleep(0.05)
            assert not told

    run(main)
