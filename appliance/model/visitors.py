"""Visitors use the mesh through this machine and are no containers: processes of the host, and other computers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ipaddress import IPv4Address

    from appliance.model.names import Allowance


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectTo:
    """What visitors may reach: some destinations, as in a container's `connect_to`, or everything."""

    allowances: tuple[Allowance, ...] = ()
    everything: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitors:
    """All visitors of this machine."""

    host: ConnectTo | None = None
    """What processes of this host may reach; None where they are not served."""
    guests: frozenset[IPv4Address] = frozenset()
    """Addresses of other computers."""
    guests_to: ConnectTo = ConnectTo()
    dns_listen: frozenset[IPv4Address] = frozenset()
    """Addresses of this host where DNS answers them."""

    def __bool__(self) -> bool:
        """Whether there are any."""
        return self.host is not None or bool(self.guests)

    @property
    def declared(self) -> tuple[ConnectTo, ...]:
        """What the host and the guests may reach, as far as there are any."""
        return (*((self.host,) if self.host is not None else ()), *((self.guests_to,) if self.guests else ()))
