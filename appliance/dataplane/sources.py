"""From which address and port the data plane dials for whom, inside a workload's namespace.

Ports are taken from PORTS alone, by bind(2): below are those on which programs listen, and those that the kernel gives
to programs that dial (ip_local_port_range, 32768 to 60999 by default). Each caller goes round its ports from a random
one, so that a port is used again as late as can be; where it meets one that is in use it goes on at a random one.
A connection in TIME_WAIT is none that is in use: connect(2) takes over its port where that was bound (tcp_twsk_unique
in net/ipv4/tcp_ipv4.c, whatever net.ipv4.tcp_tw_reuse is).
"""

from __future__ import annotations

import time
from ipaddress import IPv4Address
from random import randrange
from typing import TYPE_CHECKING, Final

from appliance.model.sources import SHARES

if TYPE_CHECKING:
    from appliance.model.sources import CallerSources

FIRST_PORT: Final = 61000
"""Just above the default of net.ipv4.ip_local_port_range (ip(7))."""
PORTS = 65536 - FIRST_PORT
"""How many there are."""
TRIES: Final = 8
"""Ports in use that are met one after another before a caller's next address is taken."""
MOST_TRIES: Final = 4 * TRIES
"""Ports tried for one connection."""
FURTHER: Final = 5.0
"""Seconds for which a caller then stays at that address."""


class Source:
    """One caller's addresses, and where it is in its ports."""

    __slots__ = ("_addresses", "_at", "_clashes", "_port", "_until")

    def __init__(self, addresses: list[str]) -> None:
        """`addresses` are tried in order."""
        self._addresses = addresses
        self._at = 0
        self._until = 0.0
        """When it goes back to its first address, if it is at a further one."""
        self._port = randrange(PORTS)
        self._clashes = 0
        """Ports in use that were met since one was free."""

    def take(self) -> tuple[str, int]:
        """Return the address and port to dial from next."""
        if self._at and time.monotonic() >= self._until:
            self._at = 0
        self._port += 1
        if self._port >= PORTS:
            self._port = 0
        return self._addresses[self._at], FIRST_PORT + self._port

    def free(self) -> None:
        """Note that the last one was free."""
        self._clashes = 0

    def clash(self) -> None:
        """Note that the last one is in use."""
        self._port = randrange(PORTS)
        self._clashes += 1
        if self._clashes >= TRIES:
            self._clashes = 0
            self._at = (self._at + 1) % len(self._addresses)
            self._until = time.monotonic() + FURTHER

    @property
    def first(self) -> str:
        """The first of its addresses."""
        return self._addresses[0]

    @property
    def count(self) -> int:
        """How many addresses it has."""
        return len(self._addresses)


class Sources:
    """The callers of this host's backends."""

    def __init__(self) -> None:
        self._by_caller: dict[str, Source] = {}

    def of(self, caller: str, default: Source) -> Source:
        """Return the source of a caller, by the address that listeners know it by; `default` if it has none."""
        return self._by_caller.get(caller, default)

    def set(self, wanted: CallerSources) -> None:
        """Take these from now on. Those with the same addresses go on where they are."""
        former = {source.first: source for source in self._by_caller.values()}
        self._by_caller.clear()
        for caller, first in wanted.addresses.items():
            source = former.get(str(first))
            if source is None or source.count != (SHARES if wanted.step else 1):
                source = former[str(first)] = Source(_addresses(int(first), wanted.step))
            self._by_caller[str(caller)] = source


def _addresses(first: int, step: int) -> list[str]:
    return [str(IPv4Address(first + step * share)) for share in range(SHARES if step else 1)]
