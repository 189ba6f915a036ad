"""The appliance as a process: everything is started in order, and stopped in reverse.

One nursery tree holds all control-plane tasks. Each part says that it is ready through `nursery.start()`; the whole is
ready when the admin socket accepts.
"""

from __future__ import annotations

import gc
import resource
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio

from appliance import logs
from appliance.api import server
from appliance.app import bridge
from appliance.app.control import RunningAppliance
from appliance.app.parts import Parts
from appliance.app.shutdown import drain, leave
from appliance.app.systemd import Notifier
from appliance.check import host
from appliance.drivers.docker.client import Docker
from appliance.drivers.nft import features
from appliance.errors import HostError, MeshboxError
from appliance.lock import only_one, squatted
from appliance.model.finding import Level

if TYPE_CHECKING:
    import asyncio

    from appliance.config.options import Config

log = structlog.get_logger()


def run(config: Config) -> int:
    """Run the appliance until SIGTERM or SIGINT; return the exit code. Faults at start are one line and exit 1."""
    logs.configure(level=config.log_level, form=config.log_format)
    # Shells and container engines give few of the open files that are allowed: 1024 are 500 connections.
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    try:
        with only_one(Path(config.run_dir)):
            if words := squatted():
                log.warning(words)
            return bridge.run(partial(_main, config))
    except (MeshboxError, BaseExceptionGroup) as error:
        first: BaseException = error
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        if not isinstance(first, MeshboxError):
            raise
        sys.stderr.write(f"meshbox: {first}\n")
        return 1


async def _main(config: Config, loop: asyncio.AbstractEventLoop, stopping: trio.Event) -> int:
    for finding in await host.examine(config):
        if finding.level is Level.FAILED:
            raise HostError(finding.words, finding.remedy)
        if finding.level is Level.WARNING:
            log.warning(finding.words, remedy=finding.remedy)
    async with Docker(config.docker_socket) as docker:
        return await serve(Parts(config, loop, docker), stopping)


async def serve(parts: Parts, stopping: trio.Event) -> int:
    """Start everything in order, serve until `stopping`, then drain and stop in reverse."""
    config = parts.config
    try:
        async with trio.open_nursery() as nursery:
            parts.plane.start()
            await nursery.start(parts.registry.run)
            await nursery.start(parts.nft_helper.run)
            parts.limit_to(await features.probe(parts.nft_helper.dry_run))
            await nursery.start(parts.drift.run)
            await nursery.start(parts.doors.run)
            await nursery.start(parts.host_addresses.run)
            await nursery.start(parts.inventory.run)
            parts.look_ahead()
            await nursery.start(parts.deployer.run)
            nursery.start_soon(parts.tidier.run)
            await nursery.start(parts.reconciler.run)
            await nursery.start(parts.host_access.run)
            await nursery.start(server.serve, RunningAppliance(parts), Path(config.run_dir) / "admin.sock")
            gc.collect()
            gc.freeze()
            notifier = Notifier()
            nursery.start_soon(notifier.watchdog)
            notifier.ready()
            log.info("ready", node=config.node, workloads=len(parts.inventory.workloads))
            await stopping.wait()
            notifier.stopping(config.drain)
            await parts.host_access.stop()
            await parts.registry.withdraw()
            await drain(parts)
            await leave(parts)
            nursery.cancel_scope.cancel()
    finally:
        await parts.host_access.stop()
        parts.plane.close()
    log.info("stopped; containers and their rules stay as they are")
    return 0
