"""The inventory and the deployer on a real Docker Engine, without the rest of the appliance."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
import trio
from fakedocker import until
from machine import IMAGE, Machine
from together import run_together

from appliance.control.deployer import Deployer
from appliance.drivers.docker.client import Docker
from appliance.drivers.docker.inventory import Inventory
from appliance.drivers.netns import identity
from appliance.model.facts import RunState
from appliance.model.names import Port
from appliance.model.rollout import Create, ReplicaKey, Retire, Start
from appliance.model.spec import Container, Health
from appliance.spec.capabilities import KNOWN

pytestmark = pytest.mark.system

KEY = ReplicaKey(service="flask", replica=0, container="web")
WEB = Container(name="web", image=IMAGE, ports=(Port.parse(8000),), command="sleep 1000", cpu=500, memory=64)


async def _no_pairs(_: IPv4Address) -> int:
    return 0


class Followed:
    """An inventory that follows a machine's Docker, and a deployer; what was published is kept."""

    def __init__(self, machine: Machine, docker: Docker) -> None:
        self.machine = machine
        self.history: dict[str, list] = {}
        self.fresh: list = []
        self.inventory = Inventory(
            docker,
            netns_dir=str(machine.netns_dir),
            bell=self._rung,
            fresh_netns=self.fresh.append,
        )
        self.deployer = Deployer(docker, network="meshbox", bell=self._rung, pairs_to=_no_pairs, drain=0.5)

    def _rung(self, *, urgent: bool = False) -> None:
        for workload in self.inventory.workloads:
            known = self.history.setdefault(workload.docker_name, [])
            if not known or known[-1] != workload:
                known.append(workload)

    def get(self, name: str):
        """Return the workload of that Docker name."""
        return next((w for w in self.inventory.workloads if w.docker_name == name), None)

    async def settled(self, name: str, state: RunState = RunState.RUNNING):
        """Wait until Docker has told that the container is in this state."""
        await until(lambda: (w := self.get(name)) is not None and w.state is state and w.started_at > 0, seconds=30)
        return self.get(name)

    async def docker(self, *args: str) -> str:
        """Run the docker command."""
        return await trio.to_thread.run_sync(partial(self.machine.docker, *args))

    async def labelled(self, name: str, *options: str, command: tuple[str, ...] = ("sleep", "1000")) -> None:
        """Run a labelled container, as anybody would."""
        marks = ("--label=meshbox.service=s", f"--label=meshbox.container={name}", "--label=meshbox.ports=8000")
        await self.docker("run", "--detach", f"--name={name}", *marks, *options, IMAGE, *command)

    async def carry_out(self, *actions) -> None:
        """Let the deployer do it."""
        self.deployer.submit(actions)
        await until(lambda: not self.deployer.busy, seconds=60)


@asynccontextmanager
async def follow(machine: Machine):
    """Run an inventory and a deployer on the machine's Docker."""
    async with Docker(str(machine.socket)) as docker, trio.open_nursery() as nursery:
        made = Followed(machine, docker)
        await nursery.start(run_together, made.inventory.parts)
        await nursery.start(made.deployer.run)
        yield made
        nursery.cancel_scope.cancel()


def play(machine: Machine, scene) -> None:
    """Run `scene(followed)`."""

    async def main():
        async with follow(machine) as made:
            await scene(made)

    trio.run(main)


def test_known_before_the_program_runs(idle):
    """At every start and restart a container is published, with its true namespace and address, before it runs."""

    async def scene(f):
        await f.labelled("one")
        for _ in range(4):
            now = await f.settled("one")
            early = [w for w in f.history["one"] if w.netns is not None and not w.started_at]
            assert early, "it was not published before its start"
            f.inventory.punctuality.rules_in_place(now.netns.id)
            assert (early[-1].netns, early[-1].addresses) == (now.netns, now.addresses)
            assert early[-1].healthy is False
            assert now.netns.id == identity.identify(now.netns.path)
            assert f.fresh[-1] == now.netns.id
            f.history.clear()
            await f.docker("restart", "--time=0", "one")
            await until(lambda before=now: f.get("one").started_at > before.started_at)
        found = (f.inventory.punctuality.in_time, f.inventory.punctuality.late)
        assert found == (0, 4), "these had no rules; what begins last waits for them still"

    play(idle, scene)


def test_container_that_starts_with_its_network(idle):
    """On a network made a moment ago a container is known as early, with that network's gateway."""

    async def scene(f):
        await f.docker("network", "create", "--subnet=10.55.0.0/24", "brandnew")
        try:
            await f.labelled("one", "--network=brandnew")
            now = await f.settled("one")
            assert str(now.attachments[0].gateway) == "10.55.0.1"
            assert any(w.netns and not w.started_at for w in f.history["one"])
        finally:
            await f.docker("rm", "--force", "one")
            await f.docker("network", "rm", "brandnew")
        await until(lambda: all(n.name != "brandnew" for n in f.inventory.networks))

    play(idle, scene)


def test_events_that_do_not_tell(idle):
    """Also when events are late a starting container is known before it runs: the list and its networks tell."""

    async def scene(f):
        f.inventory._store.connecting = type("Deaf", (dict,), {"setdefault": lambda *_: []})()
        await f.labelled("one")
        await f.settled("one")
        assert any(w.netns and not w.started_at for w in f.history["one"])

    play(idle, scene)


def test_addresses_from_inside_the_namespace(idle, monkeypatch):
    """Where Docker's networks do not tell the address, it is read inside the namespace."""

    async def nothing(*_):
        return ()

    async def scene(f):
        monkeypatch.setattr(f.inventory._prestart, "_ask_networks", nothing)
        await f.labelled("one")
        now = await f.settled("one")
        early = [w for w in f.history["one"] if w.netns is not None and not w.started_at]
        assert early[-1].addresses == now.addresses

    play(idle, scene)


def test_start_that_fails(idle):
    """A container whose program does not exist is seen as starting, and then as stopped; nothing stays behind."""

    async def scene(f):
        with pytest.raises(Exception, match="no-such-program"):
            await f.labelled("one", command=("/no-such-program",))
        await until(lambda: f.get("one") is not None and f.get("one").netns is None)
        await until(lambda: f.get("one").state in (RunState.CREATED, RunState.EXITED))
        assert not f.inventory._store._starting

    play(idle, scene)


def test_impossible_containers_are_reported(idle):
    """Host network, no network and a shared network are told apart, each with its reason."""

    async def scene(f):
        await f.labelled("own")
        await f.labelled("host", "--network=host")
        await f.labelled("none", "--network=none")
        await f.labelled("shares", "--network=container:own")
        own, host, none, shares = [await f.settled(name) for name in ("own", "host", "none", "shares")]
        assert own.problem is None
        assert "network mode host" in host.problem
        assert "network mode none" in none.problem
        assert (shares.problem, shares.netns, shares.addresses) == (None, own.netns, own.addresses)
        await f.docker("restart", "--time=0", "own")
        await until(lambda: "restarted since" in (f.get("shares").problem or ""))

    play(idle, scene)


def test_health_and_end(idle):
    """Health is followed, and a program that ends is seen with its exit code."""

    async def scene(f):
        await f.labelled("one", "--health-cmd=test -e /ok", "--health-interval=1s", "--health-retries=1")
        await f.settled("one")
        await until(lambda: f.get("one").healthy is False)
        await f.docker("exec", "one", "touch", "/ok")
        await until(lambda: f.get("one").healthy is True)
        await f.labelled("two", command=("sh", "-c", "exit 3"))
        await until(lambda: f.get("two") is not None and f.get("two").exit_code == 3)
        await f.docker("rm", "--force", "one", "two")
        await until(lambda: not f.inventory.workloads)

    play(idle, scene)


def test_deployed_container_is_what_was_declared(idle):
    """Create makes exactly the declared container; Retire leaves nothing of it.

    Docker 20.10 knows the names of all capabilities but the three of Linux 5.8 and 5.9.
    """
    full = Container(
        name="web",
        image=IMAGE,
        command="sh -c 'trap exit TERM; sleep 1000 & wait'",
        cpu=500,
        memory=64,
        env=(("A", "b c"),),
        volumes=("/data",),
        health=Health(command="true", interval=1),
        cap_add=("SYS_TIME",),
        cap_drop=tuple(sorted(KNOWN - {"SYS_TIME", "BPF", "PERFMON", "CHECKPOINT_RESTORE"})),
    )

    async def scene(f):
        volumes = await f.docker("volume", "ls", "--quiet")
        await f.carry_out(Create(key=KEY, container=full, revision="0badcafe"))
        assert not f.deployer.progress
        now = await f.settled("meshbox-flask-0-web-0badcafe")
        assert (now.replica, now.revision, str(now.name)) == (0, "0badcafe", "web.flask")
        said = await trio.to_thread.run_sync(f.machine.inspect, now.id)
        host, config = said["HostConfig"], said["Config"]
        network = next(n for n in f.inventory.networks if n.name == "meshbox")
        assert (host["NanoCpus"], host["Memory"]) == (500_000_000, 64 * 2**20)
        assert host["Dns"] == [str(network.gateways[0])]
        assert host["RestartPolicy"]["Name"] == "unless-stopped"
        assert config["Cmd"] == ["sh", "-c", "trap exit TERM; sleep 1000 & wait"]
        assert "A=b c" in config["Env"]
        status = await trio.Path(f"/proc/{said['State']['Pid']}/status").read_text()
        assert "CapBnd:\t0000000002000000\n" in status, "SYS_TIME alone"
        assert config["Healthcheck"]["Test"] == ["CMD-SHELL", "true"]
        assert [m["Destination"] for m in said["Mounts"]] == ["/data"]
        await until(lambda: f.get(now.docker_name).healthy is True)
        await f.carry_out(Retire(key=KEY, workload_id=now.id, reason="test"))
        await until(lambda: not f.inventory.workloads)
        assert await f.docker("volume", "ls", "--quiet") == volumes
        assert await f.deployer.tidy()
        await until(lambda: all(n.name != "meshbox" for n in f.inventory.networks))

    play(idle, scene)


def test_network_is_ours_and_apart(idle):
    """The network that is made overlaps nothing and lets containers not talk to each other."""

    async def scene(f):
        await f.carry_out(Create(key=KEY, container=WEB, revision="0badcafe"))
        said = await f.docker("network", "inspect", "meshbox")
        assert '"com.docker.network.bridge.enable_icc": "false"' in said
        assert '"meshbox.managed": "true"' in said
        await until(lambda: any(n.name == "meshbox" for n in f.inventory.networks))
        subnets = [s for n in f.inventory.networks for s in n.subnets if isinstance(s, IPv4Network)]
        assert not any(a.overlaps(b) for i, a in enumerate(subnets) for b in subnets[i + 1 :])

    play(idle, scene)


def test_after_a_crash_between_create_and_start(idle):
    """A container that was made but never started is replaced, and runs."""

    async def scene(f):
        await f.carry_out(Create(key=KEY, container=WEB, revision="0badcafe"))
        now = await f.settled("meshbox-flask-0-web-0badcafe")
        labels = [
            f"--label={k}={v}"
            for k, v in (await trio.to_thread.run_sync(f.machine.inspect, now.id))["Config"]["Labels"].items()
        ]
        await f.docker("rm", "--force", now.docker_name)
        await f.docker("create", f"--name={now.docker_name}", "--network=meshbox", *labels, IMAGE, "false")
        await f.carry_out(Create(key=KEY, container=WEB, revision="0badcafe"))
        again = await f.settled(now.docker_name)
        assert again.state is RunState.RUNNING

    play(idle, scene)


def test_failures_have_dockers_words(idle):
    """An image that is nowhere and a program that is not there are told in Docker's words, with what to do."""

    async def scene(f):
        absent = Container(name="web", image="127.0.0.1:1/none:1")
        await f.carry_out(Create(key=KEY, container=absent, revision="00000001"))
        told = f.deployer.progress[KEY]
        assert told.failed
        assert 'image "127.0.0.1:1/none:1" not found here and not pulled: ' in told.state
        assert "mend image=" in told.state
        broken = Container(name="web", image=IMAGE, command="no-such-program")
        await f.carry_out(Create(key=KEY, container=broken, revision="00000002"))
        assert "no-such-program" in f.deployer.progress[KEY].state

    play(idle, scene)


def test_start_after_the_network_was_lost(idle):
    """A stopped container whose network somebody removed is cleared away, to be made anew."""

    async def scene(f):
        await f.carry_out(Create(key=KEY, container=WEB, revision="0badcafe"))
        now = await f.settled("meshbox-flask-0-web-0badcafe")
        await f.docker("stop", "--time=0", now.id)
        await f.docker("network", "rm", "meshbox")
        await f.carry_out(Start(key=KEY, workload_id=now.id))
        await until(lambda: not f.inventory.workloads)
        await f.carry_out(Create(key=KEY, container=WEB, revision="0badcafe"))
        assert (await f.settled(now.docker_name)).state is RunState.RUNNING

    play(idle, scene)


def test_docker_restarted(idle):
    """While dockerd is away what was known stays; afterwards containers that it restarted are known anew."""

    async def scene(f):
        await f.labelled("stays", "--restart=always")
        await f.labelled("goes")
        before = await f.settled("stays")
        await f.settled("goes")
        await trio.to_thread.run_sync(f.machine.stop_docker)
        await until(lambda: not f.inventory.connected)
        assert {w.docker_name for w in f.inventory.workloads} == {"stays", "goes"}
        await trio.to_thread.run_sync(f.machine.start_docker)
        await until(lambda: f.inventory.connected, seconds=30)
        await until(lambda: f.get("stays").started_at > before.started_at, seconds=30)
        now = f.get("stays")
        assert now.netns.id == identity.identify(now.netns.path)
        await until(lambda: f.get("goes").state is RunState.EXITED)

    play(idle, scene)


def test_nothing_is_leaked(idle):
    """Twenty containers that come and go leave neither descriptors nor entries."""

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def scene(f):
        counts = []
        for _ in range(4):
            for number in range(5):
                await f.labelled(f"c{number}")
            await f.docker("rm", "--force", *(f"c{number}" for number in range(5)))
            await until(lambda: not f.inventory.workloads)
            counts.append(descriptors())
        assert counts[-1] <= counts[0] + 2
        assert not f.inventory._store._starting
        assert not f.inventory._store.connecting
        assert not f.inventory._inspects._under_way

    play(idle, scene)
