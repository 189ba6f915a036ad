"""A Docker Engine in memory that refuses what the real one refuses, for tests of what talks to drivers/docker/."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from math import inf

import trio

from appliance.drivers.docker.client import ImageError
from appliance.drivers.docker.http import ConflictError, DockerAbsentError, DockerError, NotFoundError, SilentError
from appliance.drivers.docker.types import Event, Inspected, Joined, Listed, NetworkMembers
from appliance.model.facts import DockerNetwork, RunState

BRIDGE = DockerNetwork(
    name="bridge", driver="bridge", subnets=(IPv4Network("172.17.0.0/16"),), gateways=(IPv4Address("172.17.0.1"),)
)


def cid(number: int) -> str:
    """Return a container id."""
    return f"{number:064x}"


async def until(condition, seconds: float = 10.0) -> None:
    """Wait until the condition holds."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)


class FakeDocker:
    """Containers, networks, images and their events. What it was asked is in `calls`."""

    def __init__(self) -> None:
        self.there: dict[str, Inspected] = {}
        self.graces: list[float] = []
        self.nets: dict[str, DockerNetwork] = {"bridge": BRIDGE}
        self.reserved: dict[str, dict[str, IPv4Address]] = {}
        self.images = {"web"}
        self.image_says: dict[str, dict[str, str]] = {"sha256:web": {}}
        """Labels of images, by id."""
        self.calls: list[str] = []
        self.bodies: list[dict[str, object]] = []
        """What was asked to be created."""
        self.refuse: dict[str, str] = {}
        """Call → Docker's message."""
        self.down = False
        self.inspect_gate: dict[str, trio.Event] = {}
        """Inspect of these waits, as while Docker starts them."""
        self.answer_gate: dict[str, trio.Event] = {}
        """The answer of these, as it is when they are asked, is on its way until then."""
        self.members_gate: trio.Event | None = None
        """Descriptions of networks wait for it, as while Docker joins a container to them."""
        self.clock = 1000.0
        self.since: list[float] = []
        self.told: list[Event] = []
        self._streams: list[trio.MemorySendChannel[Event]] = []
        self._numbers = 100

    def _call(self, name: str, subject: str = "") -> None:
        self.calls.append(f"{name} {subject}".strip())
        if self.down:
            raise DockerAbsentError("no Docker Engine answers")
        if name in self.refuse:
            raise DockerError(self.refuse[name], status=500)

    def _find(self, container: str) -> Inspected:
        for one in self.there.values():
            if container in (one.listed.id, one.listed.docker_name):
                return one
        raise NotFoundError(f"No such container: {container}", status=404)

    # -- what happens to containers outside our calls

    def tell(self, kind: str, action: str, subject: str, *, at: float | None = None, **attributes: str) -> None:
        """Send an event."""
        self.clock += 1
        event = Event(
            kind=kind, action=action, id=subject, attributes=attributes, time=self.clock if at is None else at
        )
        self.told.append(event)
        for stream in list(self._streams):
            try:
                stream.send_nowait(event)
            except trio.BrokenResourceError:  # whoever listened has gone
                self._streams.remove(stream)

    def add(self, number: int, labels: dict[str, str], **fields) -> str:
        """Put a running container there without an event."""
        fields = {
            "sandbox_key": "/var/run/docker/netns/one",
            "joined": (
                Joined(network="bridge", address=IPv4Address(f"172.17.0.{number}"), gateway=IPv4Address("172.17.0.1")),
            ),
            "started_at": 900.0,
            **fields,
        }
        state = fields.pop("state", RunState.RUNNING)
        mode = fields.pop("network_mode", "bridge")
        listed = Listed(
            id=cid(number),
            docker_name=f"c{number}",
            image="web",
            state=state,
            labels=labels,
            image_id="sha256:web",
            network_mode=mode,
            networks=("bridge",),
        )
        self.there[cid(number)] = Inspected(listed=listed, **fields)
        return cid(number)

    def change(self, container_id: str, *, state: RunState | None = None, **fields) -> None:
        """Change what inspect shows."""
        one = self.there[container_id]
        listed = one.listed if state is None else replace(one.listed, state=state)
        self.there[container_id] = replace(one, listed=listed, **fields)

    def fall_silent(self) -> None:
        """Let every event stream say nothing for too long."""
        for stream in self._streams:
            stream.send_nowait(SilentError("nothing came"))
        self._streams.clear()

    def break_streams(self) -> None:
        """End every event stream, as when dockerd stops."""
        for stream in self._streams:
            stream.close()
        self._streams.clear()

    # -- drivers.docker.Docker

    @asynccontextmanager
    async def events(self, *, since: float, until: float | None = None):
        """Open the stream; one that ends brings what was told from `since` on."""
        self._call("events" if until is None else "events until")
        self.since.append(since)
        send, receive = trio.open_memory_channel[Event](inf)
        if until is not None:
            for event in self.told:
                if since <= event.time <= until:
                    send.send_nowait(event)
            send.close()
            yield receive
            return
        self._streams.append(send)
        async with receive:
            yield self._deliver(receive)

    @staticmethod
    async def _deliver(receive):
        async for event in receive:
            if isinstance(event, SilentError):
                raise event
            yield event

    async def containers(self):
        """List labelled containers."""
        self._call("containers")
        return tuple(one.listed for one in self.there.values() if "meshbox.service" in one.listed.labels)

    async def listed(self, container_id):
        """List one."""
        self._call("listed", container_id)
        one = self.there.get(container_id)
        return None if one is None else one.listed

    async def inspect(self, container):
        """Inspect one; waits at its gate."""
        self._call("inspect", container)
        if container in self.inspect_gate:
            await self.inspect_gate[container].wait()
        answer = self._find(container)
        if container in self.answer_gate:
            await self.answer_gate.pop(container).wait()
        await trio.lowlevel.checkpoint()
        return answer

    async def networks(self):
        """List networks."""
        self._call("networks")
        return tuple(self.nets.values())

    async def members(self, network):
        """Return the addresses on a network."""
        self._call("members", network)
        if self.members_gate is not None:
            await self.members_gate.wait()
        if network not in self.nets:
            raise NotFoundError(f"network {network} not found", status=404)
        return NetworkMembers(
            network=self.nets[network],
            joined={c: Joined(network=network, address=a) for c, a in self.reserved.get(network, {}).items()},
        )

    async def ensure_network(self, name, *, subnet=None):
        """Make a bridge network."""
        self._call("ensure_network", name)
        if name not in self.nets:
            subnet = subnet or IPv4Network("172.30.0.0/16")
            self.nets[name] = DockerNetwork(
                name=name, driver="bridge", subnets=(subnet,), gateways=(subnet[1],), ours=True, apart=True
            )
        return self.nets[name]

    async def remove_network(self, name):
        """Remove a network."""
        self._call("remove_network", name)
        if any(name in one.listed.networks for one in self.there.values()):
            return False
        self.nets.pop(name, None)
        return True

    async def image_present(self, image):
        """Whether the image is there."""
        self._call("image_present", image)
        return image in self.images

    async def image_labels(self, image):
        """Return an image's labels, by its id."""
        self._call("image_labels", image)
        await trio.lowlevel.checkpoint()
        if image not in self.image_says:
            raise NotFoundError(f"No such image: {image}", status=404)
        return self.image_says[image]

    async def pull(self, image, on_progress):
        """Pull; only images that start with `remote/` exist."""
        self._call("pull", image)
        on_progress("pulling 40 %")
        await trio.sleep(1)
        if not image.startswith("remote/"):
            raise ImageError(image, "manifest unknown")
        self.images.add(image)

    async def create(self, name, body):
        """Create; the image and the network must exist, the name must be free."""
        self._call("create", name)
        self.bodies.append(body)
        if any(one.listed.docker_name == name for one in self.there.values()):
            raise ConflictError(f'Conflict. The container name "/{name}" is already in use', status=409)
        if body["Image"] not in self.images:
            raise NotFoundError(f"No such image: {body['Image']}", status=404)
        network = body["HostConfig"]["NetworkMode"]
        assert network in self.nets
        self._numbers += 1
        listed = Listed(
            id=cid(self._numbers),
            docker_name=name,
            image=body["Image"],
            state=RunState.CREATED,
            labels=body["Labels"],
            image_id="sha256:web",
            networks=(network,),
        )
        self.there[listed.id] = Inspected(listed=listed, joined=(Joined(network=network),))
        return listed.id

    async def start(self, container_id):
        """Start; its network must still be there."""
        self._call("start", container_id)
        one = self._find(container_id)
        for name in one.listed.networks:
            if name not in self.nets:
                raise NotFoundError(f"network {name} not found", status=404)
        address = IPv4Address("172.30.0.9")
        joined = tuple(replace(j, address=j.address or address) for j in one.joined)
        self.change(container_id, state=RunState.RUNNING, started_at=self.clock, joined=joined)

    async def stop(self, container_id, *, grace):
        """Stop."""
        self._call("stop", container_id)
        self._find(container_id)
        self.graces.append(grace)
        self.change(container_id, state=RunState.EXITED)

    async def remove(self, container_id):
        """Remove."""
        self._call("remove", container_id)
        self.there.pop(container_id, None)
