"""What the appliance and its workers say to each other (channel.py carries it).

To a worker: first `Init`, then what it must serve, then `Ready`; after that whatever changes. A worker sends `Answer`s
and, for each socket that did not arrive for want of file descriptors, `Missing`; it says `Refused` of containers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipaddress import IPv4Address

    from appliance.dataplane.api import Question
    from appliance.model.names import Destination
    from appliance.model.network import Backend, Door, Listener, NetnsId, Zone
    from appliance.model.sources import CallerSources


@dataclass(frozen=True, slots=True)
class Init:
    """What an InProcess is made with."""

    dns_port: int
    idle_udp: float
    alone: bool
    """Whether it is the only worker."""


@dataclass(frozen=True, slots=True)
class Ready:
    """All that is served at present has been sent."""


@dataclass(frozen=True, slots=True)
class Serve:
    """Open or swap this listener; its socket comes along if it is a new one."""

    listener: Listener
    opened: bool
    doors_only: bool = False
    """It is a new one whose port another worker serves; this one serves what comes through doors."""


@dataclass(frozen=True, slots=True)
class AcceptFor:
    """Also accept for this listener or door from the socket of the worker in `slot`, which comes along."""

    what: Destination | NetnsId
    slot: int


@dataclass(frozen=True, slots=True)
class StopAcceptingFor:
    """Accept no more for the worker in that slot."""

    slot: int


@dataclass(frozen=True, slots=True)
class SetBackends:
    """Give a listener these backends and change nothing else: its callers are many and seldom change."""

    destination: Destination
    backends: tuple[Backend, ...]


@dataclass(frozen=True, slots=True)
class Close:
    """Accept no more."""

    destination: Destination


@dataclass(frozen=True, slots=True)
class ServeDoor:
    """Accept in a namespace and dial from there; the listening socket comes along, and the namespace's file."""

    door: Door
    udp: bool
    """Whether the socket for UDP also comes along; otherwise another worker has it."""


@dataclass(frozen=True, slots=True)
class MoveDoor:
    """Know by another address what comes through that door."""

    door: Door


@dataclass(frozen=True, slots=True)
class LeaveDoor:
    """Accept and dial no more in that namespace."""

    netns: NetnsId


@dataclass(frozen=True, slots=True)
class DialFrom:
    """Dial from these addresses, by caller, inside namespaces."""

    sources: CallerSources


@dataclass(frozen=True, slots=True)
class ServeDnsDoor:
    """Answer names in a namespace; so many sockets come along. With none, on those that it has there."""

    door: Door
    sockets: int


@dataclass(frozen=True, slots=True)
class LeaveDnsDoor:
    """Answer names no more in that namespace."""

    netns: NetnsId


@dataclass(frozen=True, slots=True)
class EndPairs:
    """Reset what closed listeners of this destination still have."""

    destination: Destination


@dataclass(frozen=True, slots=True)
class Confirm:
    """All that Docker has done is known."""


@dataclass(frozen=True, slots=True)
class ServeDns:
    """Answer names on exactly these addresses; the sockets for `opened` come along."""

    addresses: frozenset[IPv4Address]
    opened: IPv4Address | None = None


@dataclass(frozen=True, slots=True)
class AnswerFrom:
    """Answer from this zone."""

    zone: Zone


@dataclass(frozen=True, slots=True)
class SetUpstreams:
    """Pass all other names on to these resolvers."""

    servers: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """Answer this question, and give the answer that number."""

    number: int
    question: Question[Any]


@dataclass(frozen=True, slots=True)
class Stop:
    """Accept nothing more and answer no names."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to the `Ask` with that number."""

    number: int
    value: Any


@dataclass(frozen=True, slots=True)
class Refused:
    """A container at this address has failed after it had served."""

    address: IPv4Address


@dataclass(frozen=True, slots=True)
class Missing:
    """A socket of this listener or door was lost: there was no file descriptor for it."""

    what: Destination | NetnsId
    slot: int | None = None
    """Of the worker that it was to accept for; None if the socket is its own."""
    dns: bool = False
    """Those of that namespace's door for DNS."""
