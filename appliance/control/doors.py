"""Doors of the data plane inside workloads' namespaces: opened and closed as the steps say.

A door is a shorter way and not the only one: until a route leads virtual IPs to it, connections go through the host, as
the rules alone lead them. Which doors there should be, and when one that failed is tried again, is up to the loop.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from functools import partial
from io import FileIO
from typing import TYPE_CHECKING

import trio

from appliance.control.dnsdoors import DnsDoors
from appliance.dataplane.sockets import listen
from appliance.dataplane.udp import sockets
from appliance.drivers.netns import addresses, identity, netlink, routes
from appliance.errors import NotYetError, RetryError
from appliance.heartbeat import UNWATCHED
from appliance.render.ruleset import DOOR_PORT

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Network
    from socket import SocketType

    from appliance.dataplane.api import DataPlane
    from appliance.heartbeat import Heartbeat
    from appliance.model.network import Netns, NetnsId, WorkloadDoor

LOOK = 10.0
"""Seconds between checks whether namespaces are still there."""


class Doors:
    """The doors of this host."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self.opened: dict[NetnsId, WorkloadDoor] = {}
        """Those that the data plane serves."""
        self._former: dict[NetnsId, IPv4Address] = {}
        """The address of each that had another one until not long ago."""
        self.dns = DnsDoors(plane)

    async def run(
        self, beat: Heartbeat = UNWATCHED, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Let go of namespaces whose files are gone, until cancelled. Open doors stay with the data plane.

        A socket keeps a namespace alive with all that is in it, also where no step says to close the door: while Docker
        does not answer, or after the loop has forgotten what is there.
        """
        task_status.started()
        while True:
            await beat.sleep(LOOK)
            for opened in list(self.opened.values()):
                if identity.identify(opened.netns.path) != opened.netns.id:
                    self._let_go(opened.netns)
                elif opened.netns.id in self._former:
                    with suppress(RetryError):  # it is gone in this moment
                        await self._leave_former(opened)
            self.dns.let_go()

    async def open(self, wanted: WorkloadDoor) -> None:
        """Listen, then route virtual IPs there, then serve. About 1 ms.

        A door that is open only gets its route again, and is told the workload's address: its connections go on, also
        those of a former address. Raises NotYetError before the namespace has the address, and RetryError where the
        door cannot be opened; then nothing leads to it.
        """
        netns, path = wanted.netns, wanted.netns.path
        if not await addresses.wait(path, wanted.address, timeout=0):
            raise NotYetError(
                f"network namespace {path} does not have the address {wanted.address}",
                partial(addresses.wait, path, wanted.address),
            )
        opened = self.opened.get(netns.id)
        if opened is not None and (opened.netns, opened.vip_range) == (netns, wanted.vip_range):
            if opened.address != wanted.address:
                self._former[netns.id] = opened.address
                self._plane.move_door(wanted.door)
            self.opened[netns.id] = wanted
            former = self._former.get(netns.id)
            await routes.add_local_route(path, wanted.vip_range, wanted.address, former)
            return
        self._let_go(netns)
        try:
            tcp, udp, file = netlink.entered(path, partial(_listen, netns, self._plane.accepting))
        except OSError as error:
            await self._drop_local_route(netns, wanted.vip_range)  # a former appliance may have left it
            words = f"cannot listen at its port {DOOR_PORT}: {error.strerror or error}"
            raise RetryError(words) from error
        try:
            await routes.add_local_route(path, wanted.vip_range, wanted.address)
        except BaseException:
            file.close()
            for sock in (*tcp, udp):
                sock.close()
            raise
        self._plane.open_door(wanted.door, tcp, udp, file)
        self.opened[netns.id] = wanted

    async def close(self, door: WorkloadDoor) -> None:
        """Drop the route to the door, and close it. Raises RetryError."""
        await self.clear(door.netns, door.vip_range)

    async def clear(self, netns: Netns, vip_range: IPv4Network) -> None:
        """Do the same whatever was before: no door, one of ours, or one of a former appliance. Raises RetryError."""
        await self._drop_local_route(netns, vip_range)
        self._let_go(netns)

    async def _drop_local_route(self, netns: Netns, vip_range: IPv4Network) -> None:
        """Drop the route to the door, if the namespace still exists: connections then go through the host."""
        try:
            if identity.identify(netns.path) == netns.id:
                await routes.drop_local_route(netns.path, vip_range)
        except RetryError:
            if identity.identify(netns.path) == netns.id:
                raise  # otherwise the namespace is gone, and its routes with it

    async def _leave_former(self, opened: WorkloadDoor) -> None:
        """Hold on to a former address no longer, which another container may have by now."""
        await routes.add_local_route(opened.netns.path, opened.vip_range, opened.address)
        self._former.pop(opened.netns.id, None)

    def _let_go(self, netns: Netns) -> None:
        self._former.pop(netns.id, None)
        if self.opened.pop(netns.id, None) is not None:
            self._plane.close_door(netns.id)


def _open(path: str, flags: int) -> int:
    """Open a file, and do not wait where it is a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK)


def _listen(netns: Netns, number: int) -> tuple[tuple[SocketType, ...], SocketType, FileIO]:
    """Return listening sockets of the namespace that this thread is in, and the file of that. Raises OSError."""
    with ExitStack() as undo:
        file = undo.enter_context(FileIO(netns.path, opener=_open))
        if identity.identify(netns.path) != netns.id:
            raise FileNotFoundError(f"network namespace {netns.id} is gone")
        udp = sockets.listen_at_door(DOOR_PORT)
        undo.callback(udp.close)
        tcp = listen(DOOR_PORT, number, transparent=True)
        undo.pop_all()
    return tcp, udp, file
