"""The body that creates a container, image references, and the progress of a pull. Pure."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import orjson

from appliance.drivers.docker import labels
from appliance.errors import InputError
from appliance.model.numbers import check_number
from appliance.text import MOST_MESSAGE, plain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv4Address

    from appliance.model.rollout import ReplicaKey
    from appliance.model.spec import Container, Health

NANO_CPUS_PER_MILLI = 1_000_000
MIB = 1024 * 1024
MOST_OCTETS = 2**63
"""Octets of a layer."""


def docker_name(key: ReplicaKey, revision: str) -> str:
    """Return the Docker name of a container that meshbox creates."""
    return f"meshbox-{key.service}-{key.replica}-{key.container}-{revision}"


def container_labels(key: ReplicaKey, container: Container, revision: str) -> dict[str, str]:
    """Return the labels of a container that meshbox creates; labels.parse_labels reads them back."""
    return {
        labels.SERVICE: key.service,
        labels.CONTAINER: key.container,
        labels.REPLICA: str(key.replica),
        labels.REVISION: revision,
        labels.PORTS: ",".join(map(str, container.ports)),
        labels.CONNECT_TO: ",".join(map(str, container.connect_to)),
    }


def create_body(
    key: ReplicaKey, container: Container, revision: str, *, network: str, dns: IPv4Address | None
) -> dict[str, Any]:
    """Return the body of `POST /containers/create` (Docker Engine API 1.41). Raises InputError."""
    binds = [volume for volume in container.volumes if ":" in volume]
    host: dict[str, Any] = {
        "NetworkMode": network,
        "RestartPolicy": {"Name": "unless-stopped"},
        "Dns": [] if dns is None else [str(dns)],
        "Binds": binds,
    }
    if container.cap_add:
        host["CapAdd"] = list(container.cap_add)
    if container.cap_drop:
        host["CapDrop"] = list(container.cap_drop)
    if container.cpu is not None:
        host["NanoCpus"] = container.cpu * NANO_CPUS_PER_MILLI
    if container.memory is not None:
        host["Memory"] = container.memory * MIB
    body: dict[str, Any] = {
        "Image": container.image,
        "Labels": container_labels(key, container, revision),
        "Env": [f"{name}={value}" for name, value in container.env],
        "Volumes": {volume: {} for volume in container.volumes if ":" not in volume},
        "HostConfig": host,
        "NetworkingConfig": {"EndpointsConfig": {network: {}}},
    }
    if container.command is not None:
        body["Cmd"] = words(container.command, key)
    if container.health is not None:
        body["Healthcheck"] = _health(container.health)
    return body


def words(command: str | tuple[str, ...], key: ReplicaKey) -> list[str]:
    """Split a command as a shell would, as Docker's tools do; a sequence stays as it is. Raises InputError."""
    if not isinstance(command, str):
        return list(command)
    try:
        return shlex.split(command)
    except ValueError as error:
        raise InputError(f"command of {key} cannot be split into words ({error}): mend its quotes") from None


def image_reference(image: str) -> tuple[str, str]:
    """Split an image for `POST /images/create`: its name, and its tag or digest (`latest` without either)."""
    name, at, digest = image.partition("@")
    if at:
        head, colon, tag = name.rpartition(":")
        return (head if colon and "/" not in tag else name), digest
    head, colon, tag = image.rpartition(":")
    if colon and "/" not in tag:
        return head, tag
    return image, "latest"


class PullProgress:
    """The progress of a pull, from the lines that Docker sends: one JSON object for each change of a layer."""

    def __init__(self) -> None:
        self._layers: dict[str, tuple[int, int]] = {}
        self.error: str | None = None
        """Docker's message once it has failed; the HTTP status of the stream is 200 even then."""

    def feed(self, line: bytes) -> None:
        """Add one line; a line that is not understood is skipped."""
        try:
            value = orjson.loads(line)
            self._take(value)
        except (ValueError, TypeError, AttributeError, InputError):
            return

    def _take(self, value: Mapping[str, Any]) -> None:
        if "error" in value:
            self.error = plain(value["error"], MOST_MESSAGE)
        layer, status = plain(value.get("id", "")), value.get("status")
        detail = value.get("progressDetail") or {}
        if status == "Downloading" and detail.get("total"):
            current, total = (check_number(detail.get(key, 0), 0, MOST_OCTETS) for key in ("current", "total"))
            self._layers[layer] = (current, total)
        elif status in {"Download complete", "Pull complete"} and layer in self._layers:
            total = self._layers[layer][1]
            self._layers[layer] = (total, total)

    @property
    def percent(self) -> int | None:
        """How much of the layers known so far has arrived, 0 to 100; None before any size is known."""
        total = sum(t for _, t in self._layers.values())
        return None if total == 0 else sum(min(c, t) for c, t in self._layers.values()) * 100 // total

    def __str__(self) -> str:
        return "pulling" if self.percent is None else f"pulling {self.percent} %"


def _health(health: Health) -> dict[str, Any]:
    test = ["CMD-SHELL", health.command] if isinstance(health.command, str) else ["CMD", *health.command]
    return {
        "Test": test,
        "Interval": _nanoseconds(health.interval),
        "Timeout": _nanoseconds(health.timeout),
        "Retries": health.retries,
        "StartPeriod": _nanoseconds(health.start_period),
    }


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1_000_000_000)
