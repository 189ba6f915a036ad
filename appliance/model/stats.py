"""What the data plane counts, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from appliance.model.names import Destination
    from appliance.model.network import Backend


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendStats:
    """Counters of one backend of one listener. `ejected`: seconds for which it still gets no connections."""

    backend: Backend
    opened: int
    failed: int
    active: int
    bytes_in: int
    bytes_out: int
    ejected: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerStats:
    """Counters of one listener. `refused` callers were not allowed; `failed` found no backend.

    UDP only: `evicted` sessions ended early to make room; `dropped` datagrams could not be passed on.
    TCP only: `starved` counts how often accepting paused for want of file descriptors; `stuck` connections have a
    reader that does not take what was sent, for which `stuck_bytes` of the host's memory are reckoned.
    `given_up` connections and sessions were ended because their caller held more than its share.
    """

    destination: Destination
    port: int
    accepted: int
    refused: int
    failed: int
    active: int
    backends: tuple[BackendStats, ...]
    evicted: int = 0
    dropped: int = 0
    starved: int = 0
    stuck: int = 0
    stuck_bytes: int = 0
    given_up: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareStats:
    """A caller that holds, or held, more than its share."""

    caller: str
    """Its address."""
    held: int
    """Open connections and sessions, and dials under way."""
    stuck: int
    """Bytes of the host's memory reckoned for its connections whose reader does not read."""
    given_up: int
    """How many of its connections and sessions were ended for that."""
    last: float
    """When that was, in seconds since the epoch; 0: never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One open pair (TCP) or session (UDP). `age` in seconds; `bytes_in` came from the client."""

    destination: Destination
    client: str
    """address:port"""
    backend: str
    """address:port"""
    label: str
    """The backend's label."""
    bytes_in: int
    bytes_out: int
    age: float
    draining: bool
