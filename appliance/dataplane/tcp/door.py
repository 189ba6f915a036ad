"""The data plane in a workload's namespace: accepting what the workload dials by TCP.

The workload's rules lead its connections to virtual IPs to one port of theirs (nft/door.nft). The kernel, which tracks
them, says what was dialled. Every client of a door is its workload, whatever address it calls from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.dataplane.sockets import original_destination, reset_on_close
from appliance.dataplane.tcp.accept import Acceptor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from socket import SocketType

    from appliance.dataplane.context import Context
    from appliance.dataplane.tcp.listener import TcpListener
    from appliance.model.network import Door


class TcpDoor:
    """One namespace's door."""

    def __init__(
        self,
        context: Context,
        door: Door,
        sock: SocketType,
        listeners: Mapping[bytes, TcpListener],
        *,
        dialled: Callable[[SocketType], bytes] = original_destination,
    ) -> None:
        """Accept from `sock`; `listeners` says, at any time, which listener each virtual IP and port leads to.

        `dialled` says which of these a client has dialled. It raises OSError where nobody knows.
        """
        self._epoll = context.epoll
        self.caller = str(door.caller)
        """The workload's key."""
        self._listeners = listeners
        self._dialled = dialled
        self.acceptor = Acceptor(context, f"door of {door.caller}", sock, self._take, only=self.caller)

    def move(self, door: Door) -> None:
        """Know clients by another address from now on."""
        self.caller = self.acceptor.only = str(door.caller)

    def stop(self) -> None:
        """Accept the clients that wait already, then no more."""
        self.acceptor.stop()

    def _take(self, client: SocketType, _host: str) -> bool:
        """Give the client to the listener of what it has dialled."""
        try:
            listener = self._listeners.get(self._dialled(client))
        except OSError:
            listener = None  # reset meanwhile
        if listener is None:
            reset_on_close(client)
            self._epoll.close(client)
            return True
        if listener.take(client, self.caller):
            self.acceptor.starving = False
            return True
        self.acceptor.pause()  # the listener does, for want of file descriptors
        return False
