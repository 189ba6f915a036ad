"""What the appliance needs around it beside programs and ports: rules in the kernel, Docker or not, mounts in an image.

Part of `fitness`; each finding names what is missing and the option that adds it.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from appliance import image
from appliance.drivers.netns import identity
from appliance.drivers.nft.client import Nft
from appliance.drivers.nft.features import door_sample, samples
from appliance.errors import MeshboxError
from appliance.model.finding import Finding, failed, ok, warning

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address

    from appliance.config.options import Config
    from appliance.model.facts import DockerNetwork

MOUNTS = Path("/proc/self/mountinfo")
"""Where a container finds its own id: Docker mounts files of its own folder."""
NO_HOST_NETWORK = failed(
    "network", "this container has a network of its own", "run the container with --net=host --privileged"
)
INIT_ROOT = "/proc/1/root"
"""With --pid=host the root directory of the host, and otherwise that of the container itself."""


async def rules(*, doors: bool) -> Finding:
    """Let nft and the kernel check our rules, without applying them; with `doors` also those one can do without."""
    for name, text in samples():
        try:
            await Nft().dry_run(identity.HOST, text)
        except MeshboxError as error:
            return failed(
                "kernel", f"the {name} are refused: {error}", "use a kernel with nf_tables, nf_nat and nft_reject"
            )
    taken = "nf_tables takes the rules of workloads and of the host"
    try:
        if doors:
            await Nft().dry_run(identity.HOST, door_sample())
    except MeshboxError as error:
        return warning(
            "kernel",
            f"{taken}, but not those of doors into containers, whose connections go the longer way: {error}",
            "use a kernel with nft_tproxy, or set doors = false",
        )
    return ok("kernel", taken)


def more_rights() -> str:
    """Return how to get capabilities that are missing."""
    if image.IMAGE_MARK.exists() or image.CONTAINER_MARK.exists():
        return "run the container with --privileged"
    return "run it as root with all capabilities (of a systemd unit: CapabilityBoundingSet)"


def gateway(config: Config) -> list[Finding]:
    """Say what a machine without Docker does, with which Consul, and what is missing for more."""
    serves = "DNS and proxy for this host and its guests"
    another = ""
    if config.registry == "consul":
        serves += f", for every name in Consul at {config.consul.address}"
        another = "; for another Consul, -e MESHBOX_CONSUL=http://ADDRESS:8500"
    if config.gateway == "yes":
        found = [ok("Docker", f'not asked, since gateway is "yes": {serves}')]
    else:
        found = [
            warning(
                "Docker",
                f"there is no {config.docker_socket}, so this is a gateway: {serves}",
                f"for its containers too, add {image.RUN_OPTIONS}{another}",
            )
        ]
    if config.registry == "local":
        found.append(
            warning(
                "registry",
                "without Docker and with registry = local there is nothing to serve",
                "name a Consul, -e MESHBOX_CONSUL=http://127.0.0.1:8500",
            )
        )
    if not config.guests and _has_network_of_its_own():
        found.append(NO_HOST_NETWORK)
    return found


def mounts(config: Config) -> list[Finding]:
    """Look, in a container, for what has to be shared with the host."""
    if not image.IMAGE_MARK.exists():
        return []
    found = []
    if config.netns_dir.startswith(f"{INIT_ROOT}/"):
        found += _host_root()
    if not Path(config.state_dir).is_mount():
        found.append(
            warning(
                "state",
                f"{config.state_dir} goes away with this container, and with it what was deployed",
                f"add -v /var/lib/meshbox:{config.state_dir}",
            )
        )
    return found


def _host_root() -> list[Finding]:
    """Look whether process 1 has the host's root directory, and not that of this container, and lets us in."""
    words = "containers' network namespaces cannot be reached from here"
    try:
        if Path(INIT_ROOT, ".").samefile("/"):
            return [failed("namespaces", words, "run the container with --pid=host")]
    except OSError as error:
        return [
            failed(
                "namespaces",
                f"{words} ({INIT_ROOT}: {error.strerror})",
                "run the container with --privileged, which has CAP_SYS_PTRACE; or mount them,"
                " -v /run/docker/netns:/run/docker/netns:rslave -e MESHBOX_NETNS_DIR=/run/docker/netns",
            )
        ]
    return []


def host_network(networks: Iterable[DockerNetwork], here: Iterable[IPv4Address]) -> list[Finding]:
    """Look whether Docker's own bridge is in our network namespace."""
    bridge = next((n for n in networks if n.name == "bridge" and n.driver == "bridge"), None)
    if (
        not image.IMAGE_MARK.exists()
        or bridge is None
        or not bridge.gateways
        or set(here).intersection(bridge.gateways)
    ):
        return []
    return [NO_HOST_NETWORK]


def _has_network_of_its_own() -> bool:
    """Whether this is a container that Docker named by its id, as it does except with --net=host or --hostname."""
    if not image.IMAGE_MARK.exists():
        return False
    found = re.search(r"/containers/([0-9a-f]{64})/hostname ", MOUNTS.read_text(encoding="utf-8"))
    return found is not None and socket.gethostname() == found[1][:12]
