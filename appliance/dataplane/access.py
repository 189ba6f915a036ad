"""The proxy's one access rule, for TCP and UDP: which callers a listener serves, and which backends they may have.

A caller is known by its key. Today that is an address: the one that a connection or datagram comes from, or that of the
workload whose door it came through. A key that a listener does not know is refused.

- A workload of this host may have any backend.
- A peer machine may have backends of this host only. Otherwise two proxies could pass a connection back and forth.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address

    from appliance.dataplane.balance import BackendState
    from appliance.model.network import Listener


class Caller:
    """Who a caller is. It is handed on with its connection or session, and never changed."""

    __slots__ = ("host", "local_only")

    def __init__(self, host: str, *, local_only: bool) -> None:
        self.host = host
        """Its address, which is its key, too."""
        self.local_only = local_only
        """A peer machine: it gets backends of this host only."""


class Served(Protocol):
    """What a caller has: a pair, a dial under way, or a session."""

    caller: Caller

    @property
    def state(self) -> BackendState:
        """The backend that it leads to."""


S = TypeVar("S", bound=Served)


class Access:
    """The callers of one listener, by key."""

    __slots__ = ("_peers", "_workloads")

    def __init__(self, workloads: dict[str, Caller], peers: dict[str, Caller]) -> None:
        self._workloads = workloads
        self._peers = peers

    @staticmethod
    def of(listener: Listener) -> Access:
        """Return the access that a listener gives. One that is in both sets is a workload."""
        return Access(_workloads(listener.callers), _peers(listener.peers))

    def caller(self, key: str) -> Caller | None:
        """Return the caller that has this key; None if it must be refused."""
        return self._workloads.get(key) or self._peers.get(key)

    def recheck(self, served: Iterable[S]) -> list[S]:
        """Tell each who its caller is now, and return those whose caller may not have that backend any more."""
        forbidden = []
        for one in served:
            caller = self.caller(one.caller.host)
            if caller is None or (caller.local_only and not one.state.backend.local):
                forbidden.append(one)
            else:
                one.caller = caller
        return forbidden

    def rekey(self, served: Iterable[Served], former: str, key: str) -> None:
        """Tell what the caller of a former key has that it has another key now, if that may call."""
        caller = self.caller(key)
        if caller is not None:
            for one in served:
                if one.caller.host == former:
                    one.caller = caller


def _workloads(addresses: frozenset[IPv4Address]) -> dict[str, Caller]:
    return {host: Caller(host, local_only=False) for host in map(str, addresses)}


@lru_cache(maxsize=2)
def _peers(addresses: frozenset[IPv4Address]) -> dict[str, Caller]:
    """Return a caller for each peer machine: one table for all listeners, as there may be a thousand machines."""
    return {host: Caller(host, local_only=True) for host in map(str, addresses)}
