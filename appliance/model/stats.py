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
    TCP only: `starved` counts how often accepting paused for want of file descriptors.
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
