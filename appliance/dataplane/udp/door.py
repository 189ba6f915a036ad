"""The data plane in a workload's namespace: taking what the workload sends by UDP.

The workload's rules lead its datagrams for virtual IPs to one port in its namespace. Each destination has an address of
its own there: DATAGRAM_DOORS and the number of its port on the host. The kernel does not track them (nft/door.nft).
A client's first datagram comes in at the door's socket; from its second on it has a socket of its own
(client.ClientSocket). Every client of a door is its workload, whatever address it calls from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from appliance.dataplane.loop.epoll import IN
from appliance.dataplane.udp.batch import BATCH
from appliance.dataplane.udp.sockets import BUFFERS, PKTINFO_SPACE, packed_address
from appliance.model.network import DATAGRAM_DOORS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from socket import SocketType

    from appliance.dataplane.loop.epoll import EpollSet
    from appliance.dataplane.udp.listener import UdpListener
    from appliance.model.network import Door

PREFIX: Final = DATAGRAM_DOORS.network_address.packed[:2]


class UdpDoor:
    """One namespace's door."""

    def __init__(self, epoll: EpollSet, door: Door, sock: SocketType, listeners: Mapping[int, UdpListener]) -> None:
        """Take what comes in at `sock`; `listeners` says, at any time, which listener serves each port of the host."""
        self._epoll = epoll
        self._sock = sock
        self._caller = str(door.caller)
        self._netns = str(door.netns)
        self._listeners = listeners
        epoll.add(sock.fileno(), self, IN)

    def ready(self, _events: int) -> None:
        """Give datagrams to the listeners of what they asked."""
        for _ in range(BATCH):
            try:
                size, asked, _flags, client = self._sock.recvmsg_into(BUFFERS, PKTINFO_SPACE)
            except OSError:  # nothing left, or an error that the kernel has now forgotten
                return
            address = packed_address(asked)
            if address is None or address[:2] != PREFIX:
                continue
            listener = self._listeners.get(int.from_bytes(address[2:], "big"))
            if listener is not None:
                key = (client[0], client[1], self._netns)
                listener.take_from_door(size, key, client, self._caller, self._sock, asked)

    def fail(self) -> None:
        """Nothing to give up: the datagram whose handling failed is gone."""

    def move(self, door: Door) -> None:
        """Know clients by another address from now on."""
        self._caller = str(door.caller)

    def close(self) -> None:
        """Take nothing more."""
        self._epoll.remove(self._sock.fileno())  # closing does not, where the parent has the same socket
        self._epoll.close(self._sock)
