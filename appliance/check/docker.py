"""The Docker Engine: whether it answers, and whether its namespaces are where the appliance watches for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from appliance.drivers.docker.client import Docker
from appliance.errors import MeshboxError, RetryError
from appliance.model.facts import RunState
from appliance.model.finding import Finding, failed, ok, warning

if TYPE_CHECKING:
    from appliance.config.options import Config
    from appliance.model.facts import DockerNetwork

PATIENCE = 10.0
"""Seconds that Docker gets for all questions together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerAnswer:
    """What Docker said, for the other checks."""

    finding: Finding
    networks: tuple[DockerNetwork, ...] = ()
    sandbox: str = ""
    """Where Docker keeps the namespace of some running container; empty where none runs."""


async def ask(path: str) -> DockerAnswer:
    """Ask the Docker Engine whose socket is at `path`."""
    try:
        async with Docker(path) as docker:
            with trio.fail_after(PATIENCE):
                version = await docker.version()
                networks = await docker.networks()
                finding = ok("Docker", f"version {version.engine} on {path}")
                return DockerAnswer(finding=finding, networks=networks, sandbox=await _sandbox(docker))
    except MeshboxError as error:
        remedy = error.remedy or "start Docker, or name its socket with docker_socket"
        return DockerAnswer(finding=failed("Docker", error.words, remedy))
    except trio.TooSlowError:
        words = f"no answer on {path} within {PATIENCE:g} s"
        return DockerAnswer(finding=failed("Docker", words, "look at the Docker daemon's log"))


async def _sandbox(docker: Docker) -> str:
    for listed in await docker.containers():
        if listed.state is RunState.RUNNING:
            try:
                found = (await docker.inspect(listed.id)).sandbox_key
            except RetryError:  # it has ended meanwhile, or cannot be read: another one will do
                continue
            if found:
                return found
    return ""


def namespaces(config: Config, sandbox: str) -> list[Finding]:
    """Check whether a container's namespace, which Docker keeps at `sandbox`, is where the appliance watches for it."""
    if not sandbox or (Path(config.netns_dir) / Path(sandbox).name).exists():
        return []
    return [
        warning(
            "netns_dir",
            f"Docker keeps its containers' namespaces in {Path(sandbox).parent}, and netns_dir is {config.netns_dir}",
            f"set netns_dir to where {Path(sandbox).parent} is seen from here; otherwise rules come late",
        )
    ]
