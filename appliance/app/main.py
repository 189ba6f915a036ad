"""The appliance as a process: everything is started in order, and stopped in reverse.

`stages` lists the parts of the control plane. Each says that it is ready through `nursery.start()`; the whole is ready
when the admin socket accepts. From then on a supervisor keeps them at work, and only a signal ends the process.
"""

from __future__ import annotations

import gc
import resource
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import structlog
import trio

from appliance import logs
from appliance.api import server
from appliance.app import bridge
from appliance.app.control import RunningAppliance
from appliance.app.parts import Parts
from appliance.app.shutdown import drain, finish, leave
from appliance.app.systemd import Notifier
from appliance.check import host
from appliance.drivers.docker.client import Docker
from appliance.drivers.nft import features
from appliance.errors import HostError, MeshboxError
from appliance.heartbeat import Part
from appliance.lock import only_one, squatted
from appliance.model.finding import Level

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from appliance.config.options import Config

log = structlog.get_logger()

LOOK_AHEAD = 2.0
"""Seconds that the first pass waits at most until the ports of all containers were looked up: 500 take 0.1 s."""


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


class Stage(NamedTuple):
    """Parts that start one after the other, and what is done when all of them have."""

    parts: tuple[Part, ...]
    then: Callable[[], Awaitable[object]]


def stages(parts: Parts, notifier: Notifier) -> tuple[Stage, ...]:
    """Return all parts of the control plane in the order in which they start, with the time for each to show progress.

    Where that is long, it is what the part may wait for one answer of Docker, Consul or nft.
    """

    async def limit_doors() -> None:
        parts.limit_to(await features.probe(parts.nft_helper.dry_run))

    async def look_ahead() -> None:
        parts.look_ahead()
        with trio.move_on_after(LOOK_AHEAD):
            await parts.inventory.first_look()

    async def settle() -> None:
        gc.collect()
        gc.freeze()

    admin = partial(server.serve, RunningAppliance(parts), Path(parts.config.run_dir) / "admin.sock")
    return (
        Stage(
            (
                *parts.registry.parts,
                Part(name="nft helper", run=parts.nft_helper.run),
            ),
            limit_doors,
        ),
        Stage(
            (
                Part(name="drift watch", run=parts.drift.run),
                Part(name="doors", run=parts.doors.run),
                Part(name="host addresses", run=parts.host_addresses.run),
                Part(name="host bridges", run=parts.bridges.run),
                *parts.inventory.parts,
            ),
            look_ahead,
        ),
        Stage(
            (
                Part(name="deployer", run=parts.deployer.run),
                Part(name="network tidier", run=parts.tidier.run, silence=120.0),
                Part(name="reconciler", run=parts.reconciler.run),
                Part(name="lease", run=parts.lease.run),
                Part(name="confirmer", run=parts.confirmer.run, may_end=True),
                Part(name="host access", run=parts.host_access.run, silence=90.0, may_end=True),
                Part(name="admin API", run=admin),
                Part(name="watchdog", run=notifier.watchdog, may_end=True),
            ),
            settle,
        ),
    )


async def serve(parts: Parts, stopping: trio.Event) -> int:
    """Start everything in order, serve until `stopping`, then drain and stop in reverse."""
    config, supervisor = parts.config, parts.supervisor
    stop_looking = bridge.repeat(parts.loop, supervisor.look)
    try:
        async with trio.open_nursery() as nursery:
            parts.plane.start()
            notifier = Notifier()
            for stage in stages(parts, notifier):
                for part in stage.parts:
                    await supervisor.start(part, nursery)
                await stage.then()
            supervisor.ready = True
            notifier.ready()
            log.info("ready", node=config.node, workloads=len(parts.inventory.workloads))
            await stopping.wait()
            notifier.stopping(config.drain)
            await finish("undoing host_access", parts.host_access.stop)
            await finish("withdrawing from the registry", parts.registry.withdraw)
            await finish("draining", partial(drain, parts), config.drain)
            await finish("leaving", partial(leave, parts))
            nursery.cancel_scope.cancel()
    finally:
        stop_looking()
        await finish("undoing host_access", parts.host_access.stop)
        await finish("closing the registry", parts.registry.close)
        parts.drift.close()
        parts.plane.close()
    log.info("stopped; containers and their rules stay as they are")
    return 0
