"""What the appliance needs when it runs in its image: the host's network, its namespaces, a lasting state directory."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from appliance import image
from appliance.model.finding import Finding, failed, warning

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


def mounts(config: Config) -> list[Finding]:
    """Check, in the image, what has to be shared with the host."""
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
    """Check whether process 1 has the host's root directory, and not that of this container, and lets us in."""
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
    """Check whether Docker's own bridge is in our network namespace."""
    bridge = next((n for n in networks if n.name == "bridge" and n.driver == "bridge"), None)
    if (
        not image.IMAGE_MARK.exists()
        or bridge is None
        or not bridge.gateways
        or set(here).intersection(bridge.gateways)
    ):
        return []
    return [NO_HOST_NETWORK]


def has_own_network() -> bool:
    """Whether this is a container that Docker named by its id, as it does except with --net=host or --hostname."""
    if not image.IMAGE_MARK.exists():
        return False
    found = re.search(r"/containers/([0-9a-f]{64})/hostname ", MOUNTS.read_text(encoding="utf-8"))
    return found is not None and socket.gethostname() == found[1][:12]
