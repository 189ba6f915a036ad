"""Run the data plane alone, as the appliance runs it: `python -m bench.launcher CONFIG.json`.

CONFIG: {"workers": number, "caller": address, "listeners": [{"port", "protocol", "backend": [address, port]}],
"dns": {"port", "address", "names": {"c.s": address}, "upstream": [address, port]},
"doors": {"port": number, "vip": address, "vip_range": network, "into": {address: file of its namespace}}}
"""

from __future__ import annotations

import gc
import signal
import sys
from functools import partial
from io import FileIO
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import trio
import uvloop

from appliance.app import worker
from appliance.dataplane.inprocess import InProcess
from appliance.dataplane.sockets import listen
from appliance.dataplane.udp import sockets
from appliance.dataplane.workers.pool import WorkerPool
from appliance.drivers.netns import identity, netlink, routes
from appliance.model.names import Destination, Name, Protocol
from appliance.model.network import Backend, Door, Listener, Zone
from appliance.model.sources import CallerSources, caller_step

if TYPE_CHECKING:
    import asyncio

    from appliance.dataplane.api import DataPlane


def main() -> None:
    """Serve until SIGTERM."""
    config = orjson.loads(Path(sys.argv[1]).read_bytes())
    caller = IPv4Address(config["caller"])
    dns = config.get("dns")
    loop = uvloop.new_event_loop()
    plane = make_plane(
        loop,
        workers=config.get("workers", 0),
        dns_upstreams=lambda: [(dns["upstream"][0], dns["upstream"][1])] if dns else [],
        dns_port=dns["port"] if dns else 53,
    )
    plane.start()
    doors = config.get("doors")
    if doors:
        _open_doors(plane, doors)
    for number, entry in enumerate(config.get("listeners", ())):
        plane.open_listener(_listener(number, entry, caller, doors))
    if dns:
        names = {Name.parse(name): IPv4Address(address) for name, address in dns["names"].items()}
        plane.set_zone(Zone(suffix="mesh.internal", names=names, views={caller: frozenset(names)}))
        plane.set_dns_addresses(frozenset((IPv4Address(dns["address"]),)))
    gc.collect()
    gc.freeze()
    loop.add_signal_handler(signal.SIGTERM, loop.stop)
    loop.run_forever()
    plane.close()


def make_plane(loop: asyncio.AbstractEventLoop, *, workers: int, **options: Any) -> DataPlane:
    """Return a data plane in this process, or in workers."""
    if not workers:
        return InProcess(loop, **options)
    return WorkerPool(loop, number=workers, command=worker.command(level="warning", form="text"), **options)


def _open_doors(plane: DataPlane, config: dict[str, Any]) -> None:
    """Open doors as the appliance does (appliance/control/doors.py), at this contender's own port."""
    vip_range = IPv4Network(config["vip_range"])
    for address, path in config["into"].items():
        netns, caller = identity.identify(path), IPv4Address(address)
        if netns is None:
            raise SystemExit(f"{path} is no network namespace")
        open_tcp = partial(listen, config["port"], plane.accepting, transparent=True)
        tcp = netlink.entered(path, open_tcp)
        udp = netlink.entered(path, partial(sockets.listen_at_door, config["port"]))
        trio.run(routes.add_local_route, path, vip_range, caller)
        door = Door(netns=netns, caller=caller, dialler=vip_range.network_address)
        plane.open_door(door, tcp, udp, FileIO(path))
    sources = {IPv4Address(address): vip_range.network_address + n for n, address in enumerate(config["into"], start=1)}
    plane.set_sources(CallerSources(step=caller_step(vip_range), addresses=sources))


def _listener(number: int, entry: dict[str, Any], caller: IPv4Address, doors: dict[str, Any] | None) -> Listener:
    address, port = entry["backend"]
    inside = identity.identify(doors["into"][address]) if doors else None
    return Listener(
        destination=Destination(
            name=Name(container=f"c{number}", service="bench"), port=port, protocol=Protocol(entry["protocol"])
        ),
        port=entry["port"],
        vip=IPv4Address(doors["vip"]) if doors else None,
        callers=frozenset((caller,)),
        backends=(Backend(address=IPv4Address(address), port=port, local=True, label="server", netns=inside),),
    )


if __name__ == "__main__":
    main()
