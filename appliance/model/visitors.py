"""Who uses the mesh through this machine without being a container: processes of the host, and other computers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ipaddress import IPv4Address

    from appliance.model.names import Allowance


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectTo:
    """What visitors may reach: some destinations, as in a container's `connect_to`, or everything that there is."""

    allowances: tuple[Allowance, ...] = ()
    everything: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitors:
    """Everybody who may use the mesh from outside of it."""

    host: ConnectTo | None = None
    """What processes of this host may reach; None where they are not served."""
    guests: frozenset[IPv4Address] = frozenset()
    """Addresses of other computers."""
    guests_to: ConnectTo = ConnectTo()
    dns_listen: frozenset[IPv4Address] = frozenset()
    """Where DNS answers them."""

    def __bool__(self) -> bool:
        """Whether there is anybody."""
        return self.host is not None or bool(self.guests)

    @property
    def declared(self) -> tuple[ConnectTo, ...]:
        """What all of them may reach together."""
        return (*((self.host,) if self.host is not None else ()), *((self.guests_to,) if self.guests else ()))
