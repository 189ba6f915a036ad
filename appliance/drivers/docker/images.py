"""Which labels of a container come from its image: they are the word of the image's author, not of the operator.

Docker merges an image's labels into those of its containers, so a label whose key and value are the image's counts as
the image's. One that was given at the start too, with the same value, cannot be told apart. Where Docker cannot say,
no label counts.

A container that bears the Docker name which meshbox gives was made by meshbox: no image chooses its container's name.
Its labels are those that meshbox sets, and the image is not asked.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
import trio

from appliance.drivers.docker import labels
from appliance.drivers.docker.create import docker_name
from appliance.drivers.docker.http import NotFoundError
from appliance.errors import cause
from appliance.model.rollout import ReplicaKey
from appliance.text import plain

if TYPE_CHECKING:
    from appliance.drivers.docker.client import Docker
    from appliance.drivers.docker.types import Inspected, Listed

log = structlog.get_logger()

MOST_IMAGES = 1000
"""Images whose labels are remembered, those that were asked for last. An image's id is the hash of what it is."""
ASKED = 16
"""Images that are asked for at once."""
GONE = "Docker has its image no more, which would tell the image's labels from its own"


class ImageLabels:
    """Asks Docker for containers, and says of each which of its labels come from its image."""

    def __init__(self, docker: Docker, *, count_all: bool = False) -> None:
        """With `count_all` (option `image_labels`) an image's labels count like all others, and no image is asked."""
        self._docker = docker
        self._count_all = count_all
        self._judged: dict[str, frozenset[str]] = {}
        """By container id: neither its labels nor its image change, and the image may be removed before it."""
        self._images: OrderedDict[str, dict[str, str]] = OrderedDict()
        self._asking: dict[str, trio.Event] = {}
        self._limit = trio.CapacityLimiter(ASKED)

    async def containers(self) -> tuple[Listed, ...]:
        """Return every container with a `meshbox.service` label, running or not, judged."""
        found = await self._docker.containers()
        self._judged = {one.id: self._judged[one.id] for one in found if one.id in self._judged}
        judged: dict[str, Listed] = {}

        async def judge(one: Listed) -> None:
            judged[one.id] = await self._judge(one)

        async with trio.open_nursery() as nursery:
            for one in found:
                nursery.start_soon(judge, one)
        return tuple(judged[one.id] for one in found)

    async def listed(self, container_id: str) -> Listed | None:
        """Return one container's list entry, judged: this never waits for its start to finish."""
        found = await self._docker.listed(container_id)
        return None if found is None else await self._judge(found)

    async def inspect(self, container: str) -> Inspected:
        """Return all about one container, judged. Waits while Docker starts it. Raises NotFoundError."""
        found = await self._docker.inspect(container)
        return replace(found, listed=await self._judge(found.listed))

    def at_once(self, listed: Listed) -> Listed | None:
        """Return it judged, or None where its image must be asked for first."""
        if self._count_all or labels.SERVICE not in listed.labels:
            return listed
        known = self._judged.get(listed.id)
        if known is None and _made_here(listed):
            known = self._keep(listed, frozenset(_ours(listed)) - labels.SET)
        return None if known is None else replace(listed, from_image=known)

    async def _judge(self, listed: Listed) -> Listed:
        judged = self.at_once(listed)
        if judged is not None:
            return judged
        try:
            image = await self._labels_of(listed.image_id)
        except NotFoundError:
            return replace(listed, doubt=GONE)
        except Exception as error:  # noqa: BLE001 — whatever it is, it is the problem of this one container
            return replace(listed, doubt=f"Docker does not say which labels its image has ({cause(error)})")
        found = frozenset(key for key, value in _ours(listed).items() if image.get(key) == value)
        return replace(listed, from_image=self._keep(listed, found))

    def _keep(self, listed: Listed, found: frozenset[str]) -> frozenset[str]:
        if found and listed.id not in self._judged:
            log.warning(
                "labels that come from an image do not count",
                container=plain(listed.docker_name),
                image=plain(listed.image),
                labels=[plain(key) for key in sorted(found)[: labels.MOST_NAMED]],
                hint="start it with labels of its own, or set image_labels = true",
            )
        self._judged[listed.id] = found
        return found

    async def _labels_of(self, image: str) -> dict[str, str]:
        """Return an image's labels that are ours. Each image is asked for once at a time. Raises RetryError."""
        while image in self._asking:
            await self._asking[image].wait()
        if image in self._images:
            self._images.move_to_end(image)
            return self._images[image]
        self._asking[image] = answered = trio.Event()
        try:
            async with self._limit:
                found = await self._docker.image_labels(image)
        finally:
            del self._asking[image]
            answered.set()
        self._images[image] = {key: value for key, value in found.items() if key.startswith(labels.PREFIX)}
        if len(self._images) > MOST_IMAGES:
            self._images.popitem(last=False)
        return self._images[image]


def _ours(listed: Listed) -> dict[str, str]:
    return {key: value for key, value in listed.labels.items() if key.startswith(labels.PREFIX)}


def _made_here(listed: Listed) -> bool:
    found = labels.parse_labels({key: value for key, value in listed.labels.items() if key in labels.SET})
    if found is None or found.replica is None or found.revision is None:
        return False
    key = ReplicaKey(service=found.name.service, replica=found.replica, container=found.name.container)
    return listed.docker_name == docker_name(key, found.revision)
