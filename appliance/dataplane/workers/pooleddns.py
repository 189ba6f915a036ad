"""DNS in the first worker: its sockets and its zone, which this process keeps, so that a new worker has them too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.dataplane.dns import server
from appliance.dataplane.workers import messages

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable
    from ipaddress import IPv4Address

    from appliance.dataplane.dns.server import DnsSockets
    from appliance.dataplane.workers.process import WorkerProcess
    from appliance.model.network import Door, NetnsId, Zone


class PooledDns:
    """The DNS server of a pool of workers."""

    def __init__(self, worker: WorkerProcess, port: int) -> None:
        """Have it served by this worker, on `port` of this host's addresses."""
        self._worker = worker
        self._port = port
        self._listening: dict[IPv4Address, DnsSockets] = {}
        self.doors: dict[NetnsId, tuple[Door, tuple[socket.socket, ...]]] = {}
        """Its sockets inside namespaces."""
        self._zone: Zone | None = None

    def set_addresses(self, addresses: frozenset[IPv4Address]) -> None:
        """Serve on exactly these addresses. Raises OSError after having opened those that it could."""
        for address in self._listening.keys() - addresses:
            _close(self._listening.pop(address))
        self._worker.send(messages.ServeDns(frozenset(self._listening)))
        failed: list[tuple[IPv4Address, OSError]] = []
        for address in sorted(addresses - self._listening.keys()):
            try:
                self._listening[address] = server.listen(address, self._port)
            except OSError as error:
                failed.append((address, error))
            else:
                self._hand_over(address, self._listening)
        if failed:
            raise server.cannot_listen(failed, self._port)

    def set_zone(self, zone: Zone) -> None:
        """Answer from this zone."""
        self._zone = zone
        self._worker.send(messages.AnswerFrom(zone))

    def open_door(self, door: Door, sockets: tuple[socket.socket, ...]) -> None:
        """Answer on these sockets of a namespace as well; without any on those that it has there."""
        if sockets:
            self.close_door(door.netns)
            self.doors[door.netns] = door, sockets
            self.hand_over_door(door.netns)
        elif door.netns in self.doors:
            self.doors[door.netns] = door, self.doors[door.netns][1]
            self._worker.send(messages.ServeDnsDoor(door, 0))

    def close_door(self, netns: NetnsId) -> None:
        """Answer no more in that namespace."""
        if netns in self.doors:
            _close(self.doors.pop(netns)[1])
            self._worker.send(messages.LeaveDnsDoor(netns))

    def tell_all(self) -> None:
        """Tell the worker, whose process is new, everything."""
        if self._zone is not None:
            self._worker.send(messages.AnswerFrom(self._zone))
        for number, address in enumerate(self._listening, start=1):
            self._hand_over(address, list(self._listening)[:number])
        for netns in self.doors:
            self.hand_over_door(netns)

    def hand_over_door(self, netns: NetnsId) -> None:
        """Hand over the sockets of a door, which must be open."""
        door, sockets = self.doors[netns]
        self._worker.send(messages.ServeDnsDoor(door, len(sockets)), sockets)

    def close(self) -> None:
        """Let go of all sockets; the worker has its own."""
        for sockets in (*self._listening.values(), *(opened for _, opened in self.doors.values())):
            _close(sockets)
        self._listening.clear()
        self.doors.clear()

    def _hand_over(self, address: IPv4Address, all_so_far: Iterable[IPv4Address]) -> None:
        self._worker.send(messages.ServeDns(frozenset(all_so_far), address), self._listening[address])


def _close(sockets: Iterable[socket.socket]) -> None:
    for sock in sockets:
        sock.close()
