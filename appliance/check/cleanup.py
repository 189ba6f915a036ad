"""`meshbox cleanup`: remove what meshbox put on this host and into its containers' namespaces. Containers stay."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from appliance.drivers.docker import labels
from appliance.drivers.docker.client import Docker
from appliance.drivers.docker.http import DockerAbsentError
from appliance.drivers.host.resolvconf import ResolverSettings
from appliance.drivers.netns import identity, routes
from appliance.drivers.nft.client import Nft
from appliance.drivers.process import run
from appliance.errors import HostError, RetryError
from appliance.lock import only_one, squatted
from appliance.model.facts import RunState
from appliance.render.ruleset import BRIDGE_TABLE, REMOVE, REMOVE_BRIDGE
from appliance.text import plain

if TYPE_CHECKING:
    from appliance.config.options import Config

DOCKER_TIMEOUT = 10.0
"""Seconds that Docker gets for all questions: cleanup must not hang with it."""
IP_TIMEOUT = 5.0
"""Seconds that ip(8) may take."""


@dataclass(slots=True)
class Report:
    """What was done, as words for people."""

    done: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """What stays on purpose, and how to remove it."""
    failed: list[str] = field(default_factory=list)
    """What could not be removed, and why."""


async def clean(config: Config, *, state: bool = False) -> Report:
    """Remove rules, our Docker network if nothing uses it, and run_dir; with `state` also state_dir.

    A fault goes into the report and keeps nothing else from being removed. Raises HostError while an appliance runs,
    and where nft or nsenter is not installed.
    """
    report = Report()
    run_dir = Path(config.run_dir)
    with only_one(run_dir):
        if words := squatted():
            report.left.append(words)
        try:
            async with Docker(config.docker_socket) as docker:
                with trio.fail_after(DOCKER_TIMEOUT):
                    sandboxes = await _sandboxes(docker, report)
                    await _remove_network(docker, config.docker_network, report)
        except (RetryError, HostError, trio.TooSlowError) as error:
            sandboxes = []
            report.left.append(
                f"Docker was not asked ({error or 'no answer'}); if it made the network"
                f" {config.docker_network}: docker network rm {config.docker_network}"
            )
        await _remove_rules([*_files(config.netns_dir), *sandboxes], config, report)
        await _undo_host_names(config, report)
        _remove_folder(run_dir, report)
    if state:
        _remove_folder(Path(config.state_dir), report)
    return report


def _files(folder: str) -> list[str]:
    return sorted(map(str, Path(folder).glob("*")))


async def _sandboxes(docker: Docker, report: Report) -> list[str]:
    """Return the namespace files of the mesh's containers, and report the containers that meshbox made."""
    found, ours = [], []
    for listed in await docker.containers():
        if labels.REVISION in listed.labels:
            ours.append(listed.docker_name)
        if listed.state in {RunState.RUNNING, RunState.PAUSED}:
            try:
                found.append((await docker.inspect(listed.id)).sandbox_key)
            except DockerAbsentError:
                raise
            except RetryError as error:  # its rules are found by the namespace's file, if that is where it should be
                report.left.append(f"container {plain(listed.docker_name)} cannot be read ({error})")
    if ours:
        report.left.append(f"containers that meshbox made: docker rm --force {' '.join(sorted(ours))}")
    return [path for path in found if path]


async def _remove_network(docker: Docker, name: str, report: Report) -> None:
    if not any(network.name == name for network in await docker.networks()):
        return
    if await docker.remove_network(name):
        report.done.append(f"Docker network {name}")
    else:
        report.left.append(f"Docker network {name}, which containers use or which meshbox did not make")


async def _remove_rules(paths: list[str], config: Config, report: Report) -> None:
    """Remove our table from this namespace and from the namespaces of the files, once each."""
    host = identity.identify(identity.HOST)
    found = {host: identity.HOST}
    for path in paths:
        netns_id = identity.identify(path)
        if netns_id is not None:  # else Docker has just removed it, or left an empty file behind
            found.setdefault(netns_id, path)
    nft = Nft()
    containers = 0
    for netns_id, path in found.items():
        try:
            if netns_id == host and await nft.list_table(path, BRIDGE_TABLE) is not None:
                await nft.push(path, REMOVE_BRIDGE)
                report.done.append("port claims of this host's bridges")
            if await nft.list_table(path) is None:
                continue
            if netns_id != host:
                containers += 1
                await routes.drop_local_route(path, config.vip_range)
                await _remove_route(path, str(config.vip_range))
            await nft.push(path, REMOVE)
            if netns_id == host:
                report.done.append("rules of this host")
        except RetryError as error:
            report.failed.append(str(error))
    if containers:
        report.done.append(f"rules in {containers} container{'s' if containers > 1 else ''}")


async def _undo_host_names(config: Config, report: Report) -> None:
    try:
        report.done += await ResolverSettings(resolv_conf=config.resolv_conf, vip_range=config.vip_range).revert()
    except (HostError, RetryError) as error:
        report.failed.append(str(error))


async def _remove_route(path: str, vip_range: str) -> None:
    """Remove the route that containers on internal networks got; most have none."""
    await run(["nsenter", f"--net={path}", "ip", "route", "delete", vip_range], timeout=IP_TIMEOUT)


def _remove_folder(folder: Path, report: Report) -> None:
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:  # a mount point, as run_dir is in a container, can be emptied only
        if not any(folder.iterdir()):
            return
        report.failed.append(f"cannot remove {folder}: {error.strerror}")
    else:
        report.done.append(str(folder))
