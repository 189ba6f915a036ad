"""Doors of the data plane inside of workloads' namespaces: opened where rules make room for them, and kept open.

A door is a shorter way and not the only one: until a route leads virtual IPs to it, connections go through the host, as
the rules alone lead them. So nothing waits for a door, and where one cannot be opened that is tried again now and then.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from io import FileIO
from typing import TYPE_CHECKING

import trio

from appliance.dataplane.sockets import listen
from appliance.dataplane.udp import sockets as udpsocket
from appliance.drivers.netns import addresses, identity, netlink, routes
from appliance.errors import RetryError
from appliance.model.network import Door
from appliance.render.ruleset import DOOR_ADDRESS, DOOR_PORT

if TYPE_CHECKING:
    from ipaddress import IPv4Address
    from socket import SocketType

    from appliance.dataplane.api import DataPlane
    from appliance.faults import Faults
    from appliance.model.facts import Netns
    from appliance.model.network import NetnsId, WorkloadRuleset

AGAIN = (0.2, 1.0, 5.0, 30.0)
"""Seconds until a door is tried again that could not be opened once, twice, …; the last value repeats."""

LOOK = 10.0
"""Seconds between looks whether namespaces are still there."""


@dataclass(slots=True, kw_only=True)
class _Kept:
    """A namespace that has a door, or is to have one."""

    netns: Netns
    ruleset: WorkloadRuleset
    scope: trio.CancelScope
    """Of whoever opens it."""

    def differs(self, ruleset: WorkloadRuleset, netns: Netns) -> bool:
        """Whether another ruleset asks for more than that a few elements change."""
        return netns != self.netns or any(
            getattr(ruleset, name) != getattr(self.ruleset, name)
            for name in ("door", "address", "vip_range", "gateways")
        )


class Doors:
    """The doors of this host."""

    def __init__(self, plane: DataPlane, faults: Faults) -> None:
        self._plane = plane
        self._faults = faults
        self._kept: dict[NetnsId, _Kept] = {}
        self.open: dict[NetnsId, Door] = {}
        self._nursery: trio.Nursery | None = None
        self._opening = trio.Lock()
        """One door is opened at a time, which takes 1 ms, and traffic has its turn after each."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open doors until cancelled. Those that are open then are the data plane's to close."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                while True:
                    await trio.sleep(LOOK)
                    self._look()
        finally:
            self._nursery = None

    def _look(self) -> None:
        """Let go of namespaces whose files are gone: a socket keeps one alive, with all that is in it."""
        for kept in list(self._kept.values()):
            if identity.identify(kept.netns.path) != kept.netns.id:
                self._forget(kept)

    def _forget(self, kept: _Kept) -> None:
        kept.scope.cancel()
        self._close(kept)
        self._faults.drop(lambda key: key == _key(kept))
        self._kept.pop(kept.netns.id, None)

    def keep(self, ruleset: WorkloadRuleset, netns: Netns, *, anew: bool) -> None:
        """Have a door where the rules in force make room for one; `anew` if the whole of them was just put there."""
        kept = self._kept.get(netns.id)
        if self._nursery is None or (kept is not None and not anew and not kept.differs(ruleset, netns)):
            return
        if kept is not None:
            kept.scope.cancel()
        self._kept[netns.id] = kept = _Kept(netns=netns, ruleset=ruleset, scope=trio.CancelScope())
        self._nursery.start_soon(self._bring, kept)

    async def drop(self, netns: Netns) -> None:
        """Lead nothing to the door of this namespace any more, and close it. Raises RetryError."""
        kept = self._kept.get(netns.id)
        if kept is None:
            return
        kept.scope.cancel()
        await self._lead_past(kept)
        self._forget(kept)

    async def _bring(self, kept: _Kept) -> None:
        """Bring a namespace to what its ruleset wants, however often that has to be tried."""
        failures = 0
        with kept.scope:
            while True:
                try:
                    if kept.ruleset.door and kept.ruleset.address is not None:
                        await addresses.wait(kept.netns.path, kept.ruleset.address)
                        async with self._opening:
                            await self._open(kept, kept.ruleset.address)
                    else:
                        await self._lead_past(kept)
                        self._close(kept)
                except (OSError, RetryError) as error:
                    self._faults.report(
                        _key(kept),
                        "no door in a container; its connections go the longer way, through the host",
                        error,
                        container=str(kept.ruleset.address),
                    )
                else:
                    self._faults.over(_key(kept))
                    return
                await trio.sleep(AGAIN[min(failures, len(AGAIN) - 1)])
                failures += 1

    async def _open(self, kept: _Kept, address: IPv4Address) -> None:
        """Listen, then lead there what is dialled, then serve it. Raises OSError, RetryError."""
        ruleset, netns = kept.ruleset, kept.netns
        door = Door(netns=netns.id, caller=address, dialler=ruleset.dialler)
        if self.open.get(netns.id) == door:
            await routes.add_local_route(netns.path, ruleset.vip_range, address)
            return
        self._close(kept)
        try:
            tcp, udp, file = netlink.entered(netns.path, partial(_listen, netns, self._plane.accepting))
        except OSError:
            await self._lead_past(kept)  # as a former appliance may have left it
            raise
        try:
            await routes.add_local_route(netns.path, ruleset.vip_range, address)
        except BaseException:
            file.close()
            for sock in (*tcp, udp):
                sock.close()
            raise
        self._plane.open_door(door, tcp, udp, file)
        self.open[netns.id] = door

    async def _lead_past(self, kept: _Kept) -> None:
        path = kept.netns.path
        try:
            if identity.identify(path) == kept.netns.id:
                await routes.drop_local_route(path, kept.ruleset.vip_range)
        except RetryError:
            if identity.identify(path) == kept.netns.id:
                raise  # otherwise the namespace went meanwhile

    def _close(self, kept: _Kept) -> None:
        if self.open.pop(kept.netns.id, None) is not None:
            self._plane.close_door(kept.netns.id)


def _key(kept: _Kept) -> tuple[str, NetnsId]:
    return "door", kept.netns.id


def _listen(netns: Netns, number: int) -> tuple[tuple[SocketType, ...], SocketType, FileIO]:
    """Return listening sockets of the namespace that this thread is in, and the file of that. Raises OSError."""
    with ExitStack() as undo:
        file = undo.enter_context(FileIO(netns.path))
        if identity.identify(netns.path) != netns.id:
            raise FileNotFoundError(f"network namespace {netns.id} is gone")
        udp = udpsocket.listen_at_door(DOOR_PORT)
        undo.callback(udp.close)
        tcp = listen(DOOR_PORT, number, str(DOOR_ADDRESS), transparent=True)
        undo.pop_all()
    return tcp, udp, file
