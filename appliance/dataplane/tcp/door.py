"""The data plane inside of a workload's namespace: accepting there what the workload dials.

The workload's rules hand over its connections to virtual IPs as they are (tproxy, nft/door.nft), so the address of an
accepted socket is what was dialled. Whoever comes through is the workload, whatever address it calls from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.dataplane.tcp.accept import Acceptor
from appliance.dataplane.tcp.relay import reset_on_close

if TYPE_CHECKING:
    from collections.abc import Mapping
    from socket import SocketType

    from appliance.dataplane.tcp.accept import Shared
    from appliance.dataplane.tcp.listener import TcpListener
    from appliance.model.network import Door


class DoorWay(Acceptor):
    """One namespace's door."""

    def __init__(
        self, shared: Shared, door: Door, sock: SocketType, listeners: Mapping[tuple[str, int], TcpListener]
    ) -> None:
        """Accept from `sock`; `listeners` has, at any time, whom each virtual IP and port leads to."""
        self._host = str(door.caller)
        self._listeners = listeners
        super().__init__(shared, f"door of {door.caller}", sock)

    def take(self, client: SocketType, host: str) -> bool:  # noqa: ARG002 — see above
        """Give the client to the listener of what it has dialled."""
        try:
            listener = self._listeners.get(client.getsockname())
        except OSError:
            listener = None  # reset meanwhile
        if listener is None:
            reset_on_close(client)
            self.epoll.close(client)
            return True
        if listener.take(client, self._host):
            self.starving = False
            return True
        self.rest()  # the listener does, for want of file descriptors
        return False
