"""Questions that are held: their asker has no view yet and may get one, because its container has just started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.render.dnswire import MAX_MESSAGE

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from appliance.dataplane.dns.tcp import Forward
    from appliance.render.dnsmessage import Query

HOLD_SECONDS = 4.5
"""How long a question waits for its asker's view. Resolvers ask once more after 5 s (resolv.conf(5)): an answer, of
whatever kind, comes before that."""

MAX_HELD = 4096
MAX_HELD_PER_ASKER = 64
"""A program may look up many names at once when it starts, each for IPv4 and IPv6."""
GIVES_WAY = 1.0
"""Seconds after which an asker gives way to a new one if there is no room. A container that starts is known by then as
a rule; an address that somebody has made up never is. The host's rules let 1,000 of these a second in."""


class ClientQuery:
    """A question on its way through the server."""

    __slots__ = ("asker", "data", "forward", "limit", "query", "send", "tcp")

    def __init__(
        self,
        data: bytes,
        asker: str,
        send: Callable[[bytes], None],
        query: Query,
        *,
        tcp: bool,
        forward: Forward | None = None,
    ) -> None:
        """`forward` sends it on to the server that was asked; None where it came to this host's own."""
        self.data = data
        self.asker = asker
        self.send = send
        self.query = query
        self.tcp = tcp
        self.forward = forward
        self.limit = MAX_MESSAGE if tcp else query.udp_limit


class Hold:
    """The questions that are held, by asker. Their number and their time are bounded."""

    def __init__(self, loop: asyncio.AbstractEventLoop, expired: Callable[[ClientQuery], None]) -> None:
        """`expired` is called with each question that was held for HOLD_SECONDS, or gave way to another asker's."""
        self._loop = loop
        self._expired = expired
        self._held: dict[str, list[tuple[float, ClientQuery]]] = {}
        """Each with the time until which it is held; the first one's has come first."""
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        """Return the askers that wait at present; they may be released meanwhile."""
        return iter(tuple(self._held))

    def add(self, asked: ClientQuery) -> bool:
        """Hold a question; return False if there is no room for it."""
        held = self._held.get(asked.asker)
        if held is not None and len(held) >= MAX_HELD_PER_ASKER:
            return False
        if self._count >= MAX_HELD and (held is not None or not self._made_room()):
            return False
        self._count += 1
        until = self._loop.time() + HOLD_SECONDS
        if held is None:
            self._hold(asked.asker, [(until, asked)])
        else:
            held.append((until, asked))
        return True

    def release(self, asker: str) -> list[ClientQuery]:
        """Return the questions of an asker that waits, and hold them no longer."""
        self._timers.pop(asker).cancel()
        held = self._held.pop(asker)
        self._count -= len(held)
        return [asked for _, asked in held]

    def _hold(self, asker: str, held: list[tuple[float, ClientQuery]]) -> None:
        self._held[asker] = held
        self._timers[asker] = self._loop.call_at(held[0][0], self._expire, asker)

    def _made_room(self) -> bool:
        """Let the asker that has waited longest give way, if it has waited long enough."""
        oldest = next(iter(self._held))
        waited = HOLD_SECONDS - (self._held[oldest][0][0] - self._loop.time())
        if waited < GIVES_WAY:
            return False
        for asked in self.release(oldest):
            self._expired(asked)
        return True

    def _expire(self, asker: str) -> None:
        """Let go of the questions of an asker whose time has come. Those that it asked later wait on."""
        del self._timers[asker]
        held = self._held.pop(asker)
        now = self._loop.time()
        left = [one for one in held if one[0] > now]
        self._count -= len(held) - len(left)
        if left:
            self._hold(asker, left)
        for until, asked in held:
            if until <= now:
                self._expired(asked)
