"""What all listeners and doors of one process share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.dataplane.loop.epoll import EpollSet
from appliance.dataplane.shares import Shares
from appliance.dataplane.sources import Sources
from appliance.dataplane.standstill import Standstill
from appliance.dataplane.tcp.dial import Dials
from appliance.dataplane.tcp.pipes import PipePool
from appliance.dataplane.udp.refusal import Refusals

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from ipaddress import IPv4Address

    from appliance.dataplane.namespace import NamespaceSockets


class Context:
    """The loop, and what is made once for it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        files: int = 0,
        refused: Callable[[IPv4Address], None] | None = None,
    ) -> None:
        """Make what is shared, for a limit of so many open files (0: that of this process).

        `refused` is told the addresses of containers that fail. Raises OSError (EMFILE, ENFILE).
        """
        self.loop = loop
        self.refused = refused
        self.epoll = EpollSet(loop)
        self.shares = Shares(loop, files=files)
        self.pipes = PipePool(self.shares.most)
        self.dials = Dials(loop)
        self.standstill = Standstill()
        self.sources = Sources()
        self.namespaces: dict[str, NamespaceSockets] = {}
        """The namespaces that have a door, by the text of their NetnsId: workloads are dialled from there."""
        self.refusals = Refusals(self.namespaces, self.shares.most)

    def close(self) -> None:
        """Release everything; no listener, door or pair may be open any more."""
        self.dials.close()
        self.refusals.close()
        self.epoll.shut()
        self.pipes.close()
