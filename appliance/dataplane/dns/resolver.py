"""Names that are not ours: the host's resolvers are asked once, and the answer is kept for its lifetime.

Answers that have expired are kept for a day and sent when no upstream answers (RFC 8767).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.dataplane.dns.upstream import UpstreamKey, UpstreamQuery
from appliance.render.dnsforward import Response
from appliance.render.dnsmessage import (
    EDE_NO_REACHABLE_AUTHORITY,
    EDE_STALE_ANSWER,
    EDE_STALE_NXDOMAIN,
    NXDOMAIN,
    SERVFAIL,
    Ede,
)
from appliance.render.dnswire import CD

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from appliance.dataplane.dns.upstream import Server
    from appliance.render.dnsmessage import Query

MAX_ENTRIES = 4096
MAX_KEPT_BODY = 4096
"""Octets of the largest answer that is kept: with MAX_ENTRIES this bounds the cache's memory."""

MAX_STALE = 86400.0
"""Seconds for which an expired answer may still be sent (RFC 8767 §5 suggests one to three days)."""

STALE_SECONDS = 30
"""For how long a stale answer is sent before the upstreams are asked again, and its TTL (RFC 8767 §4, §5)."""

FAILURE_SECONDS = 2.0
"""For how long a failure is sent before the upstreams are asked again (RFC 9520 §3.2: at least 1 s)."""

SLOW_SECONDS = 30.0
"""For how long an upstream that did not answer is asked after the others."""

MAX_IN_FLIGHT = 512
"""Different questions under way at once; each takes up to 4 sockets."""

MAX_WAITING_PER_ASKER = 128
"""Questions of one asker that may wait for upstreams, so that one asker cannot use up MAX_IN_FLIGHT."""
OF_THE_FREE = 2
"""How many times the free places of MAX_IN_FLIGHT an asker may have: several together cannot use them up either, as
each stops while there is room for others."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """An answer to send: `age` is the whole seconds for which it was kept."""

    response: Response
    age: int = 0
    ede: Ede | None = None


@dataclass(slots=True)
class _Entry:
    response: Response
    since: float
    until: float
    ede: Ede | None = None
    stale_at: float = 0.0
    """When its own lifetime ended, however often it was sent after that."""


class Resolver:
    """Cache and forwarder. Not for our own names."""

    def __init__(self, loop: asyncio.AbstractEventLoop, upstreams: Callable[[], Sequence[Server]]) -> None:
        self._loop = loop
        self._upstreams = upstreams
        self._cache: dict[UpstreamKey, _Entry] = {}
        self._brought: dict[str, dict[UpstreamKey, None]] = {}
        """What is in the cache, by the asker whose question has brought it there, oldest first."""
        self._brought_by: dict[UpstreamKey, str] = {}
        self._asks: dict[UpstreamKey, UpstreamQuery] = {}
        self._waiting: dict[UpstreamKey, list[tuple[str, Callable[[Resolved], None]]]] = {}
        self._waiting_by_asker: Counter[str] = Counter()
        self._slow: dict[Server, float] = {}
        self.stats = dict.fromkeys(("forwarded", "cached", "coalesced", "stale", "failed", "overflowed"), 0)

    def resolve(self, query: Query, asker: str, tell: Callable[[Resolved], None]) -> None:
        """Call `tell` once with the answer: at once if it is known, within TOTAL_SECONDS otherwise."""
        question = UpstreamKey(
            query.name, query.qtype, query.edns is not None and query.edns.dnssec, bool(query.flags & CD)
        )
        entry = self._cache.get(question)
        now = self._loop.time()
        if entry is not None and now < entry.until:
            self.stats["cached"] += 1
            tell(Resolved(entry.response, int(now - entry.since), entry.ede))
            return
        waiting = self._waiting.get(question)
        most = MAX_WAITING_PER_ASKER
        if waiting is None:
            most = min(most, OF_THE_FREE * (MAX_IN_FLIGHT - len(self._waiting)))
        if self._waiting_by_asker[asker] >= most:
            self.stats["overflowed"] += 1
            tell(_failure("too many questions are waiting for the upstream resolvers"))
            return
        self._waiting_by_asker[asker] += 1
        if waiting is not None:
            self.stats["coalesced"] += 1
            waiting.append((asker, tell))
            return
        self._waiting[question] = [(asker, tell)]
        self.stats["forwarded"] += 1
        ask = UpstreamQuery(
            self._loop, self._in_turn(now), question, lambda response, silent: self._came(question, response, silent)
        )
        self._asks[question] = ask
        ask.start()

    def close(self) -> None:
        """Drop every question under way without an answer."""
        for ask in self._asks.values():
            ask.cancel()
        self._asks.clear()
        self._waiting.clear()

    def _in_turn(self, now: float) -> list[Server]:
        """Return the upstreams in the host's order, those that did not answer lately last."""
        return sorted(dict.fromkeys(self._upstreams()), key=lambda server: self._slow.get(server, 0.0) > now)

    def _came(self, question: UpstreamKey, response: Response | None, silent: list[Server]) -> None:
        now = self._loop.time()
        self._slow = {s: until for s, until in self._slow.items() if until > now}
        for server in silent:
            self._slow[server] = now + SLOW_SECONDS
        self._asks.pop(question, None)
        if response is not None and response.usable:
            self._keep(question, _Entry(response, now, now + response.lifetime, None, now + response.lifetime))
            resolved = Resolved(response)
        else:
            resolved = self._make_do(question, response, now)
        for asker, tell in self._waiting.pop(question):
            self._waiting_by_asker[asker] -= 1
            if not self._waiting_by_asker[asker]:
                del self._waiting_by_asker[asker]
            tell(resolved)

    def _make_do(self, question: UpstreamKey, response: Response | None, now: float) -> Resolved:
        """Return a stale answer or the failure, and keep it for a moment."""
        former = self._cache.get(question)
        if former is not None and former.response.usable and now < former.stale_at + MAX_STALE:
            self.stats["stale"] += 1
            stale = former.response if former.ede else former.response.with_ttl(STALE_SECONDS)
            ede = Ede(code=EDE_STALE_NXDOMAIN if stale.rcode == NXDOMAIN else EDE_STALE_ANSWER)
            self._keep(question, _Entry(stale, now, now + STALE_SECONDS, ede, former.stale_at))
            return Resolved(stale, 0, ede)
        self.stats["failed"] += 1
        if response is None:
            servers = ", ".join(host for host, _ in self._upstreams())
            resolved = _failure(
                f"no upstream resolver answered ({servers})" if servers else "no upstream resolver is set"
            )
        else:
            resolved = Resolved(Response(rcode=response.rcode))
        self._keep(question, _Entry(resolved.response, now, now + FAILURE_SECONDS, resolved.ede))
        return resolved

    def _keep(self, question: UpstreamKey, entry: _Entry) -> None:
        """Keep the answer to a question for which somebody waits.

        There being no room, the oldest goes of the asker that has brought most: ever new names push out no others'.
        """
        if entry.until <= entry.since or len(entry.response.body) > MAX_KEPT_BODY:
            return
        if question in self._cache:
            self._drop(question)
        while len(self._cache) >= MAX_ENTRIES:
            most = max(self._brought.values(), key=len)
            self._drop(next(iter(most)))
        asker = self._waiting[question][0][0]
        self._cache[question] = entry
        self._brought.setdefault(asker, {})[question] = None
        self._brought_by[question] = asker

    def _drop(self, question: UpstreamKey) -> None:
        del self._cache[question]
        asker = self._brought_by.pop(question)
        brought = self._brought[asker]
        del brought[question]
        if not brought:
            del self._brought[asker]


def _failure(text: str) -> Resolved:
    return Resolved(Response(rcode=SERVFAIL), 0, Ede(code=EDE_NO_REACHABLE_AUTHORITY, text=text))
