"""Carries out what plan/replicas/rollout.py wants done with containers: create, start, retire.

Each action is a task of its own, one at a time for each replica's container. What fails is tried again, because the
next pass asks for it again: not before its back-off is over, at which the bell rings. Nothing here decides what should
run, and an action that is cut short at any point leaves something that the next pass knows how to go on from.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
import trio

from appliance.drivers.docker import labels
from appliance.drivers.docker.client import PULL_SILENCE
from appliance.drivers.docker.create import create_body, docker_name
from appliance.drivers.docker.http import ConflictError, DockerError, NotFoundError
from appliance.drivers.docker.network import bridge_address, own_network
from appliance.drivers.host import paths
from appliance.errors import HostError, MeshboxError, cause
from appliance.faults import Faults
from appliance.heartbeat import UNWATCHED
from appliance.model.facts import RunState
from appliance.model.privileges import EVERYTHING, host_paths
from appliance.model.rollout import Action, Create, Progress, ReplicaKey, Retire, Start
from appliance.retry import Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
    from collections.abc import Set as AbstractSet
    from ipaddress import IPv4Address, IPv4Network

    from appliance.drivers.docker.client import Docker
    from appliance.drivers.docker.inventory import Bell
    from appliance.drivers.docker.types import Inspected
    from appliance.heartbeat import Heartbeat
    from appliance.model.facts import DockerNetwork
    from appliance.model.privileges import Privileges
    from appliance.model.spec import Container

log = structlog.get_logger()

DRAIN = 10.0
"""Seconds that connections to a retired container may take to end."""
SETTLE = 0.25
"""Seconds before its connections are first counted: those being opened when it was taken out of the backends."""
PEERS_SETTLE = 2.0
"""The same where other machines send connections too: until they have heard that it is to go."""
LONGEST = 2 * PULL_SILENCE
"""Seconds without progress after which an action is stuck. All that it asks of Docker ends sooner, well or not."""
DRAIN_LOOK = 0.1
"""Seconds between checks of how many are left."""


class Deployer:
    """The containers that meshbox creates, in Docker."""

    def __init__(
        self,
        docker: Docker,
        *,
        network: str,
        bell: Bell,
        pairs_to: Callable[[IPv4Address], Awaitable[int]],
        drain: float = DRAIN,
        settle: float = SETTLE,
        subnet: IPv4Network | None = None,
        node: str = "",
        faults: Faults | None = None,
        allows: Privileges = EVERYTHING,
        follow: Callable[[str], Awaitable[str]] = paths.follow,
    ) -> None:
        """`pairs_to` counts the open connections to an address; `subnet` is for the network where it must be made.

        `allows` is what specs may ask of this machine; `follow` follows the symbolic links of a path of the host, and
        raises OSError.
        """
        self._docker = docker
        self._network = network
        self._bell = bell
        self._pairs_to = pairs_to
        self._drain = drain
        self._settle = settle
        self._subnet = subnet
        self._node = node
        self._faults = faults or Faults()
        self._allows = allows
        self._follow = follow
        self._backoff = Backoff()
        self._network_judged = False
        self._nursery: trio.Nursery | None = None
        self._beat = UNWATCHED
        self._busy: dict[ReplicaKey, Action] = {}
        self._progress: dict[ReplicaKey, Progress] = {}
        self.counts: Counter[str] = Counter()
        """`created`, `started`, `retired`, `pulled`, `refused` and `failed` since the start."""

    @property
    def busy(self) -> frozenset[ReplicaKey]:
        """What is under way."""
        return frozenset(self._busy)

    @property
    def going(self) -> frozenset[str]:
        """Ids of the containers that are being retired."""
        return frozenset(action.workload_id for action in self._busy.values() if isinstance(action, Retire))

    @property
    def progress(self) -> Mapping[ReplicaKey, Progress]:
        """What is under way or has failed, in words; what has gone well is not in it."""
        return self._progress

    async def run(
        self, beat: Heartbeat = UNWATCHED, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Carry out actions until cancelled; those under way are then cut short, and the next pass asks for them."""
        try:
            async with trio.open_nursery() as nursery:
                try:
                    self._nursery, self._beat = nursery, beat
                    task_status.started()
                    self._bell()
                    await beat.sleep()
                finally:
                    self._nursery = None
        finally:
            self._busy.clear()

    def submit(self, actions: Iterable[Action], *, unplanned: AbstractSet[ReplicaKey] = frozenset()) -> None:
        """Begin what can begin now; call it at every pass, also with nothing, with all that is to be done.

        Nothing was planned for `unplanned` keys, because something was under way there when the pass began. If that has
        failed by now, the failure is still told.
        """
        if self._nursery is None:
            return
        now = trio.current_time()
        asked = tuple(actions)
        self._forget_all_but({action.key for action in asked} | unplanned)
        for action in asked:
            if action.key not in self._busy and not self._backoff.left(_subject(action), now):
                self._busy[action.key] = action
                self._nursery.start_soon(self._carry_out, action)

    async def pull(self, images: Iterable[str], tell: Callable[[str, str], None]) -> None:
        """Pull those that are absent; `tell` gets an image and how far it is. Raises DockerError at the first fault."""
        for image in images:
            if not await self._docker.image_present(image):
                tell(image, "pulling")
                await self._docker.pull(image, lambda progress, image=image: tell(image, str(progress)))  # type: ignore[misc]
                self.counts["pulled"] += 1
                tell(image, "pulled")

    async def tidy(self) -> bool:
        """Remove our network if nothing uses it and nothing is under way; return whether there is none now."""
        return not self._busy and await self._docker.remove_network(self._network)

    def _forget_all_but(self, asked: AbstractSet[ReplicaKey]) -> None:
        """Drop failures that nobody asks about any more: the spec was mended or removed."""
        for key in self._progress.keys() - asked - self._busy.keys():
            del self._progress[key]
            self._faults.drop(lambda fault, key=key: fault == ("deploy", str(key)))  # type: ignore[misc]

    async def _carry_out(self, action: Action) -> None:
        subject = _subject(action)
        fault = ("deploy", str(action.key))
        try:
            with self._beat.another(f"the deployment of {action.key}", LONGEST) as beat:
                match action:
                    case Create():
                        await self._create(action, beat)
                    case Start():
                        await self._start(action)
                    case Retire():
                        await self._retire(action, beat)
        except Exception as error:  # noqa: BLE001 — whatever it is, it is the problem of this one container
            self.counts["failed"] += 1
            self._say(action.key, cause(error), failed=True)
            trace = {} if isinstance(error, MeshboxError) else {"exc_info": error}
            words = "a container cannot be deployed; will try again"
            self._faults.report(fault, words, cause(error), replica=str(action.key), **trace)
            self._ring_in(self._backoff.charge(subject, trio.current_time()))
        else:
            self._progress.pop(action.key, None)
            self._faults.over(fault)
            if isinstance(action, Start):  # a program that ends at once is started again less and less often
                self._ring_in(self._backoff.charge(subject, trio.current_time()))
            else:
                self._backoff.forget(subject)
        finally:
            self._busy.pop(action.key, None)
        self._bell()

    def _ring_in(self, delay: float) -> None:
        async def ring() -> None:
            await trio.sleep(delay)
            self._bell()

        if self._nursery is not None:
            self._nursery.start_soon(ring)

    def _say(self, key: ReplicaKey, state: str, *, failed: bool = False) -> None:
        self._progress[key] = Progress(key=key, state=state, failed=failed, machine=self._node)

    async def _create(self, action: Create, beat: Heartbeat) -> None:
        key = action.key

        def told(_: str, state: str) -> None:
            beat()
            self._say(key, state)

        self._say(key, "creating")
        container = await self._allowed(action.container)
        await self.pull([container.image], told)
        beat()
        self._say(key, "creating")
        network = await self._docker.ensure_network(self._network, subnet=self._subnet)
        self._judge(network)
        body = create_body(key, container, action.revision, network=network.name, dns=bridge_address(network))
        name = docker_name(key, action.revision)
        try:
            container_id = await self._docker.create(name, body)
        except ConflictError as error:
            container_id = await self._adopt(name, body, error)
        self.counts["created"] += 1
        log.info("container created", container=name, image=container.image)
        self._say(key, "starting")
        await self._start_or_clear(container_id)

    async def _allowed(self, container: Container) -> Container:
        """Return the container with the paths of the host that it really mounts. Raises HostError for one not allowed.

        The plan places nothing where it is not allowed; this is the last word, and the one that follows links.
        """
        lacking = self._allows.lacking([container])
        volumes = container.volumes
        if not lacking and host_paths(container) and not self._allows.all_paths:
            given, volumes = await self._followed(container)
            lacking = given.lacking([replace(container, volumes=volumes)])
        if lacking:
            self.counts["refused"] += 1
            raise HostError(
                f"this machine does not allow {', '.join(lacking)}", "see allow_host_paths and allow_privileged"
            )
        return replace(container, volumes=volumes)

    async def _followed(self, container: Container) -> tuple[Privileges, tuple[str, ...]]:
        """Return what is given and what is mounted without symbolic links, through which a container could leave."""
        try:
            given = frozenset([await self._follow(path) for path in self._allows.paths])
            real = {path: await self._follow(path) for path in host_paths(container)}
        except OSError as error:
            raise HostError(f"cannot find out where host paths lead: {error.filename}: {error.strerror}") from error
        parted = (text.partition(":") for text in container.volumes)
        volumes = tuple(
            f"{real.get(source, source)}{colon}{rest}" if colon else source for source, colon, rest in parted
        )
        return replace(self._allows, paths=given), volumes

    def _judge(self, network: DockerNetwork) -> None:
        """Warn once if somebody else made the network in another way; it is used anyway."""
        if not self._network_judged:
            self._network_judged = True
            for finding in own_network([network], network.name):
                log.warning(finding.words, remedy=finding.remedy)

    async def _adopt(self, name: str, body: Mapping[str, object], conflict: ConflictError) -> str:
        """Go on after a create whose outcome was never seen: the name is taken, by ourselves unless this raises."""
        try:
            there = await self._docker.inspect(name)
        except NotFoundError:
            raise conflict from None  # gone again; next time
        if there.listed.labels != body["Labels"] | there.listed.labels:  # type: ignore[operator]
            raise DockerError(
                f'container name "{name}" is taken by one that meshbox did not make like this: remove or rename it'
            )
        if there.started_at:
            return there.listed.id
        await self._docker.remove(there.listed.id)
        return await self._docker.create(name, body)

    async def _start(self, action: Start) -> None:
        self._say(action.key, "starting")
        await self._start_or_clear(action.workload_id)
        self.counts["started"] += 1

    async def _start_or_clear(self, container_id: str) -> None:
        """Start it. One whose network was removed can never start again: it is removed, and then created again."""
        try:
            await self._docker.start(container_id)
        except NotFoundError as error:
            if "network" in str(error):
                await self._docker.remove(container_id)
            raise

    async def _retire(self, action: Retire, beat: Heartbeat) -> None:
        try:
            there = await self._docker.inspect(action.workload_id)
        except NotFoundError:
            return
        name = there.listed.docker_name
        if labels.REVISION not in there.listed.labels:
            raise DockerError(f'container "{name}" was not made by meshbox and is left alone: remove it yourself')
        if there.listed.state is RunState.RUNNING:
            await self._wait_drained(action, there, beat)
        self._say(action.key, "stopping")
        grace = min(there.stop_timeout, action.grace)
        try:
            beat.limit += grace  # Docker answers when it has ended
            await self._docker.stop(action.workload_id, grace=grace)
        except NotFoundError:
            return
        self._say(action.key, "removing")
        await self._docker.remove(action.workload_id)
        self.counts["retired"] += 1
        log.info("container retired", container=name, reason=action.reason)

    async def _wait_drained(self, action: Retire, there: Inspected, beat: Heartbeat) -> None:
        """Wait until no connection leads there, but not longer than the drain time."""
        addresses = [j.address for j in there.joined if j.address is not None]
        drain = min(self._drain, action.drain)
        self._say(action.key, "draining")
        settle = min(self._settle, drain)
        await beat.sleep(settle)
        with trio.move_on_after(drain - settle):
            while open_pairs := sum([await self._pairs_to(address) for address in addresses]):
                self._say(action.key, f"draining {open_pairs} connection{'s' if open_pairs > 1 else ''}")
                await beat.sleep(DRAIN_LOOK)


def _subject(action: Action) -> Hashable:
    """Return what its back-off is about: a changed spec or another container is tried at once."""
    which = action.revision if isinstance(action, Create) else action.workload_id
    return type(action), action.key, which
