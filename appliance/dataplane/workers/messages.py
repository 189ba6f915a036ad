"""What the appliance and its workers say to each other (channel.py carries it).

To a worker: first `Init`, then what it should serve, then `Ready`; from there on whatever changes. Back come `Answer`s
and, where a socket did not arrive for want of file descriptors, `Missing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipaddress import IPv4Address

    from appliance.dataplane.api import Question
    from appliance.model.names import Destination
    from appliance.model.network import Backend, Door, Listener, NetnsId, Zone


@dataclass(frozen=True, slots=True)
class Init:
    """What a InProcess is made with."""

    dns_port: int
    idle_udp: float
    alone: bool
    """Whether it is the only worker."""


@dataclass(frozen=True, slots=True)
class Ready:
    """All that is served at present has been said."""


@dataclass(frozen=True, slots=True)
class Serve:
    """Open or swap this listener; its socket comes along, where it is a new one."""

    listener: Listener
    opened: bool
    elsewhere: bool = False
    """It is a new one whose port another worker serves; here is to be served what comes through doors."""


@dataclass(frozen=True, slots=True)
class AcceptFor:
    """Accept for this listener, or at that door, from the socket of the worker at `slot`, too; it comes along."""

    what: Destination | NetnsId
    slot: int


@dataclass(frozen=True, slots=True)
class StopAcceptingFor:
    """Accept no more for the worker at that place."""

    slot: int


@dataclass(frozen=True, slots=True)
class SetBackends:
    """Take these backends, and nothing else, to a listener: its callers are many and seldom change."""

    destination: Destination
    backends: tuple[Backend, ...]


@dataclass(frozen=True, slots=True)
class Close:
    """Accept no more."""

    destination: Destination


@dataclass(frozen=True, slots=True)
class ServeDoor:
    """Accept and dial inside of a namespace; the listening socket comes along, and the namespace's file."""

    door: Door
    udp: bool
    """Whether the socket for what comes in by UDP comes along, too; otherwise another worker has it."""


@dataclass(frozen=True, slots=True)
class LeaveDoor:
    """Accept and dial there no more."""

    netns: NetnsId


@dataclass(frozen=True, slots=True)
class EndPairs:
    """Reset what closed listeners of this destination still have."""

    destination: Destination


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
    """Answer this under that number."""

    number: int
    question: Question[Any]


@dataclass(frozen=True, slots=True)
class Stop:
    """Accept nothing more and answer no names."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an `Ask` asked."""

    number: int
    value: Any


@dataclass(frozen=True, slots=True)
class Missing:
    """A socket of this listener or door was lost: there was no file descriptor for it."""

    what: Destination | NetnsId
    slot: int | None = None
    """Of the worker to be covered; None for the worker's own."""
