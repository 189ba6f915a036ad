"""Readiness probes: looked up as a kernel would answer, and dialled against real sockets on loopback."""

from __future__ import annotations

import errno
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from itertools import pairwise

import pytest
import trio
import trio.testing
from fakedocker import until

from appliance.drivers.docker import probe as module
from appliance.drivers.docker.probe import DIALS, DIALS_OF_ONE, OFTEN, SELDOM, STARTING, Prober, accepts
from appliance.drivers.netns import listening
from appliance.model.facts import BoundPort, Probe, UnreachedPort
from appliance.model.names import Protocol
from appliance.model.network import NetnsId

ID = "a" * 64
LOOPBACK = IPv4Address("127.0.0.1")
SECOND = IPv4Address("127.0.0.2")
TCP, UDP = Protocol.TCP, Protocol.UDP


def probe(*ports, inode=1, started_at=1.0, addresses=(LOOPBACK,), own_rules=False) -> Probe:
    """Return a probe of ports on loopback: `80` by TCP, or a protocol and a port."""
    pairs = tuple(sorted((TCP, port) if isinstance(port, int) else port for port in ports))
    return Probe(ID, NetnsId(device=4, inode=inode), f"/netns/{inode}", started_at, addresses, pairs, own_rules)


def bound(*ports) -> frozenset[BoundPort]:
    """Ports that are reached the usual way."""
    return frozenset(BoundPort(TCP, port) if isinstance(port, int) else BoundPort(*port) for port in ports)


class Told:
    """What a prober has told of each namespace."""

    def __init__(self) -> None:
        self.bound: dict[int, frozenset[BoundPort]] = {}
        self.unreached: dict[int, frozenset[UnreachedPort]] = {}
        self.times: list[float] = []

    def __call__(self, workload_id, netns, found, unreached):
        """Take it."""
        assert workload_id == ID
        self.bound[netns.inode] = found
        self.unreached[netns.inode] = unreached
        self.times.append(trio.current_time())


@asynccontextmanager
async def prober():
    """Run a prober; also yields what it tells."""
    told = Told()
    made = Prober(told)
    async with trio.open_nursery() as nursery:
        await nursery.start(made.run)
        yield made, told
        nursery.cancel_scope.cancel()


class Kernel:
    """Answers look-ups: which ports have a program in which namespace."""

    def __init__(self) -> None:
        self.answers = frozenset(Protocol)
        self.there = True
        self.open: dict[int, frozenset[BoundPort]] = {}
        self.local: frozenset[UnreachedPort] = frozenset()
        self.looks: list[tuple[int, float]] = []
        """Namespaces that were asked, and when."""
        self.words: list[float] = []
        self.addresses: set[tuple[IPv4Address, ...]] = set()
        self.from_host: set[bool] = set()
        self.left: list[int] = []
        self.error: OSError | None = None

    def open_in(self, path, netns):
        """Return a stand-in for a namespace."""
        assert path == f"/netns/{netns.inode}"
        return Space(self, netns.inode) if self.there else None


class Space:
    """One namespace."""

    def __init__(self, kernel: Kernel, inode: int) -> None:
        self.kernel, self.inode = kernel, inode
        self.closed = False

    async def bound(self, addresses, ports, turns, *, from_host=False):
        """Return those that have a program."""
        kernel = self.kernel
        assert not self.closed
        kernel.looks.append((self.inode, trio.current_time()))
        kernel.addresses.add(addresses)
        kernel.from_host.add(from_host)
        if kernel.error is not None:
            raise kernel.error
        await turns.after(len(ports))
        return frozenset(b for b in kernel.open.get(self.inode, ()) if (b.protocol, b.port) in ports)

    async def unreached(self, ports, turns):
        """Return those whose program nobody reaches."""
        self.kernel.words.append(trio.current_time())
        await turns.after(len(ports))
        return frozenset(u for u in self.kernel.local if (u.protocol, u.port) in ports)

    def close(self):
        """Let go of it."""
        self.closed = True
        self.kernel.left.append(self.inode)


@pytest.fixture
def kernel(monkeypatch):
    """One that answers."""
    made = Kernel()
    monkeypatch.setattr(listening, "open_in", made.open_in)
    monkeypatch.setattr(listening, "answered", lambda: made.answers)
    return made


@pytest.fixture
def dials(monkeypatch):
    """What is dialled, none of which answers before a second has passed; and how many at once."""
    made: list[int] = []
    at_once = []
    under_way = []

    async def fake(address, port):
        assert address == LOOPBACK
        made.append(port)
        under_way.append(port)
        at_once.append(len(under_way))
        await trio.sleep(1)
        under_way.remove(port)
        return port in fake.accepted

    monkeypatch.setattr(module, "accepts", fake)
    fake.made, fake.at_once, fake.accepted = made, at_once, set()
    return fake


@pytest.fixture
def run(autojump_clock):
    """Run a scene on Trio's own clock."""
    return lambda scene: trio.run(scene, clock=autojump_clock)


def test_a_port_counts_while_a_program_listens(run, kernel, dials):
    """It is found soon after the start, lost within a second, and found again; and nothing is ever dialled."""

    async def scene():
        async with prober() as (made, told):
            made.want({probe(80, 81, (UDP, 53))})
            await trio.sleep(0.5)
            assert told.bound == {1: frozenset()}
            kernel.open[1] = bound(80, (UDP, 53))
            await trio.sleep(0.2)
            assert told.bound == {1: bound(80, (UDP, 53))}
            await trio.sleep(100)
            kernel.open[1] = bound(81)
            await trio.sleep(1.1)
            assert told.bound == {1: bound(81)}
            kernel.open[1] = bound(80, 81, (UDP, 53))
            await trio.sleep(1.1)
            assert told.bound == {1: bound(80, 81, (UDP, 53))}
        assert dials.made == []
        assert kernel.left == [1]

    run(scene)


def test_look_ups_are_frequent_while_it_starts_only(run, kernel):
    """Ten a second until all is there or 30 s have passed, one a second then."""

    async def scene():
        async with prober() as (made, _):
            made.want({probe(80)})
            await trio.sleep(STARTING + 50)
        times = [at for _, at in kernel.looks]
        pauses = [later - earlier for earlier, later in pairwise(times)]
        early = [pause for at, pause in zip(times, pauses, strict=False) if at < STARTING - 1]
        late = [pause for at, pause in zip(times, pauses, strict=False) if at > STARTING + 1]
        assert early[1:] == pytest.approx([OFTEN] * len(early[1:]))
        assert late == pytest.approx([SELDOM] * len(late))
        kernel.looks.clear()
        kernel.open[2] = bound(80)
        async with prober() as (made, _):
            made.want({probe(80, inode=2)})
            await trio.sleep(10)
        assert len(kernel.looks) <= 12

    run(scene)


def test_containers_are_looked_at_together(run, kernel):
    """However many there are, they wake the process ten times a second at most."""

    async def scene():
        async with prober() as (made, _):
            wanted = set()
            for inode in range(100):
                kernel.open[inode] = bound(80)
                wanted.add(probe(80, inode=inode))
                made.want(wanted)
                await trio.sleep(0.0123)
            await trio.sleep(3)
            kernel.looks.clear()
            await trio.sleep(10)
        assert 10 * 100 - 100 <= len(kernel.looks) <= 10 * 100 + 100
        assert len({round(at, 3) for _, at in kernel.looks}) <= 10 * 10 + 1

    run(scene)


def test_one_with_many_ports_comes_less_often(run, kernel):
    """Its look-ups take a hundredth of the time at most, also while it starts, and others are not kept waiting."""

    async def scene():
        async with prober() as (made, _):
            made.want({probe(*range(1, 257)), probe(80, inode=2)})
            await trio.sleep(20)
        many = sum(inode == 1 for inode, _ in kernel.looks)
        few = sum(inode == 2 for inode, _ in kernel.looks)
        assert many <= 20 / (module.SHARE * module.QUESTION * 256) + 1
        assert few >= 190

    run(scene)


def test_a_refused_dial_makes_it_look_at_once(run, kernel):
    """The data plane knows first that a program has gone; however often it says so, a look-up is not made twice."""

    async def scene():
        async with prober() as (made, told):
            kernel.open = {1: bound(80), 2: bound(80)}
            made.want({probe(80), probe(80, inode=2, addresses=(SECOND,))})
            await trio.sleep(10.25)
            kernel.open = {}
            kernel.looks.clear()
            for _ in range(100):
                made.hurry(LOOPBACK)
            await trio.testing.wait_all_tasks_blocked()
            assert told.bound == {1: frozenset(), 2: bound(80)}
            assert [inode for inode, _ in kernel.looks] == [1]

    run(scene)


def test_a_refused_dial_before_the_start_is_no_matter(kernel):
    """The data plane runs before and after."""
    Prober(Told()).hurry(LOOPBACK)


def test_what_changes_is_looked_up_at_once(run, kernel):
    """A deploy changes what a container declares, and `docker network connect` its addresses; its namespace stays."""

    async def scene():
        async with prober() as (made, told):
            kernel.open[1] = bound(80, 81)
            made.want({probe(80)})
            await trio.sleep(5.25)
            for changed in (probe(80, 81), probe(80, 81, addresses=(SECOND, LOOPBACK))):
                kernel.looks.clear()
                made.want({changed})
                await trio.testing.wait_all_tasks_blocked()
                assert len(kernel.looks) == 1
            assert told.bound == {1: bound(80, 81)}
            assert (SECOND, LOOPBACK) in kernel.addresses
            assert kernel.left == []

    run(scene)


def test_what_is_no_longer_wanted_ends(run, kernel):
    """When a container dies its namespace can go at once, and its next run is looked up anew."""

    async def scene():
        async with prober() as (made, told):
            made.want({probe(80)})
            await trio.sleep(1)
            made.want({probe(80, inode=2)})
            assert kernel.left == [1]
            kernel.open = {1: bound(80), 2: bound(80)}
            await trio.sleep(1)
            assert told.bound == {1: frozenset(), 2: bound(80)}
            made.want({probe(80, inode=2, started_at=2.0)})
            assert kernel.left == [1, 2]
            made.want(set())
            await trio.sleep(1)
            kernel.looks.clear()
            await trio.sleep(10)
            assert kernel.looks == []

    run(scene)


def test_wishes_before_the_start_count(run, kernel):
    """What was wanted before the prober ran is looked up when it does."""

    async def scene():
        told = Told()
        made = Prober(told)
        made.want({probe(80)})
        kernel.open[1] = bound(80)
        async with trio.open_nursery() as nursery:
            await nursery.start(made.run)
            await trio.sleep(1)
            assert told.bound == {1: bound(80)}
            nursery.cancel_scope.cancel()

    run(scene)


def test_a_port_that_was_lost_is_looked_for_often(run, kernel):
    """A program that is started anew, or takes one connection after the other, is back in a moment."""

    async def scene():
        async with prober() as (made, told):
            kernel.open[1] = bound(80)
            made.want({probe(80)})
            await trio.sleep(100)
            for _ in range(3):
                kernel.open[1] = frozenset()
                await trio.sleep(1.1)
                assert told.bound == {1: frozenset()}
                kernel.open[1] = bound(80)
                await trio.sleep(0.11)
                assert told.bound == {1: bound(80)}
                await trio.sleep(5)
            kernel.open[1] = frozenset()
            await trio.sleep(STARTING + 5)
            kernel.looks.clear()
            await trio.sleep(10)
            assert len(kernel.looks) <= 11

    run(scene)


def test_the_first_look_can_be_waited_for(run, kernel):
    """After a restart all that runs is a backend as soon as there are listeners."""

    async def scene():
        async with prober() as (made, told):
            kernel.open = {inode: bound(80) for inode in range(200)}
            made.want({probe(80, inode=inode) for inode in range(200)})
            await made.first_look()
            assert told.bound == kernel.open
        await made.first_look()

    run(scene)


def test_one_that_cannot_be_asked_now_keeps_what_was_known(run, kernel, dials):
    """The kernel may have no memory for its answers, and this process no descriptor: it is asked again later."""

    async def scene():
        async with prober() as (made, told):
            kernel.open[1] = bound(80)
            made.want({probe(80)})
            await trio.sleep(1)
            kernel.error = OSError(errno.ENOBUFS, "No buffer space available")
            kernel.open = {}
            await trio.sleep(10)
            assert told.bound == {1: bound(80)}
            assert len(kernel.left) >= 9, "answers that were not read are left behind"
            kernel.error = None
            await trio.sleep(1.1)
            assert told.bound == {1: frozenset()}
            kernel.there = False
            made.want({probe(80, inode=2)})
            await trio.sleep(10)
            assert 2 not in told.bound
            kernel.there, kernel.open = True, {2: bound(80)}
            await trio.sleep(1.1)
            assert told.bound[2] == bound(80)
        assert dials.made == []

    run(scene)


def test_who_listens_where_nobody_comes_is_asked_seldom(run, kernel):
    """It is for words only: not while a program starts, and not for ports that are there."""

    async def scene():
        kernel.local = frozenset({UnreachedPort(TCP, 80, "at 127.0.0.1"), UnreachedPort(TCP, 81, "by IPv6")})
        async with prober() as (made, told):
            kernel.open[1] = bound(81)
            made.want({probe(80, 81)})
            await trio.sleep(0.9)
            assert kernel.words == []
            await trio.sleep(20)
            assert 4 <= len(kernel.words) <= 5
            assert told.unreached == {1: {UnreachedPort(TCP, 80, "at 127.0.0.1")}}
            kernel.open[1] = bound(80, 81)
            await trio.sleep(0.2)
            assert told.unreached == {1: frozenset()}
            kernel.words.clear()
            await trio.sleep(10)
            assert kernel.words == []

    run(scene)


# -- what cannot be looked up


def test_rules_of_its_own_may_serve_a_port_without_a_socket(run, kernel, dials):
    """What is not found is dialled as well, and its UDP ports always count; what is found is asked over the link."""

    async def scene():
        dials.accepted = {81}
        async with prober() as (made, told):
            kernel.open[1] = bound(80)
            made.want({probe(80, 81, 82, (UDP, 53), own_rules=True)})
            await trio.sleep(0.5)
            assert told.bound == {1: bound(80, (UDP, 53))}
            assert dials.made == []
            await trio.sleep(5)
            assert told.bound == {1: bound(80, 81, (UDP, 53))}
            assert set(dials.made) == {81, 82}
            dials.made.clear()
            await trio.sleep(60)
            assert set(dials.made) == {82}
            kernel.open[1] = bound(80, 81)
            await trio.sleep(1.1)
            assert told.bound == {1: bound(80, 81, (UDP, 53))}
        assert kernel.from_host == {True}

    run(scene)


def test_what_has_taken_a_dial_counts_until_its_end(run, kernel, dials):
    """Also where it is told of other ports; another run begins anew."""

    async def scene():
        dials.accepted = {80}
        async with prober() as (made, told):
            made.want({probe(80, own_rules=True)})
            await trio.sleep(4)
            assert told.bound == {1: bound(80)}
            made.want({probe(80, 81, own_rules=True)})
            await trio.sleep(0.5)
            assert told.bound == {1: bound(80)}
            made.want({probe(80, own_rules=True, started_at=2.0)})
            await trio.sleep(0.5)
            assert told.bound == {1: frozenset()}

    run(scene)


@pytest.mark.parametrize("answers", [set(), {UDP}])
def test_where_the_kernel_does_not_answer_ports_are_dialled(run, kernel, dials, answers):
    """At once, and rarer and rarer: every 30 s in the end."""

    async def scene():
        kernel.answers = frozenset(answers)
        kernel.open[1] = bound((UDP, 53))
        dials.accepted = {80}
        async with prober() as (made, told):
            made.want({probe(80, 81, (UDP, 53), (UDP, 54))})
            await trio.sleep(2)
            assert told.bound == {1: bound(80, (UDP, 53)) if answers else bound(80, (UDP, 53), (UDP, 54))}
            await trio.sleep(200)
            dials.made.clear()
            await trio.sleep(120)
            assert len(dials.made) in {3, 4}
        assert bool(kernel.looks) is bool(answers)

    run(scene)


def test_where_it_answers_for_tcp_only_udp_ports_count(run, kernel, dials):
    """As they always did."""

    async def scene():
        kernel.answers = frozenset({TCP})
        async with prober() as (made, told):
            made.want({probe(80, (UDP, 53))})
            await trio.sleep(2)
            assert told.bound == {1: bound((UDP, 53))}
        assert dials.made == []

    run(scene)


def test_what_no_program_listens_for_is_dialled_seldom_and_little_at_a_time(run, kernel, dials):
    """Ports without an end do not keep the dials of others waiting long."""

    async def scene():
        async with prober() as (made, _):
            made.want({probe(*range(1, 257), inode=inode, own_rules=True) for inode in range(10, 30)})
            await trio.sleep(60)
            kernel.looks.clear()
            await trio.sleep(60)
        assert len(kernel.looks) <= 20 * 61
        assert 0 < len(dials.made) <= 120 * DIALS

    run(scene)


def test_one_container_has_few_dials_at_once(run, kernel, dials):
    """However many ports it declares, and though each dial lasts as long as it may."""

    async def scene():
        async with prober() as (made, _):
            made.want({probe(*range(1, 257), own_rules=True)})
            await trio.sleep(30)
        assert max(dials.at_once) == DIALS_OF_ONE

    run(scene)


def test_unwanted_dials_end_at_once(run, kernel, dials):
    """Nothing goes on in the background for a container that has ended."""

    async def scene():
        async with prober() as (made, _):
            made.want({probe(80, own_rules=True)})
            await trio.sleep(2.5)
            assert made._nursery.child_tasks
            made.want(set())
            await trio.testing.wait_all_tasks_blocked()
            assert not made._nursery.child_tasks

    run(scene)


def test_a_dial_is_accepted_or_not():
    """Whatever listens there; the connection is closed at once."""

    async def main():
        with trio.socket.socket() as sock:
            await sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
            assert not await accepts(LOOPBACK, port)
            sock.listen()
            assert await accepts(LOOPBACK, port)
            peer, _ = await sock.accept()
            assert await peer.recv(1) == b""
            peer.close()

    trio.run(main)


def test_without_a_descriptor_nothing_accepts(monkeypatch):
    """It is tried again later, like a port that refuses."""

    def refuse(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(trio.socket, "socket", refuse)
    assert trio.run(accepts, LOOPBACK, 1) is False


def test_ports_are_found_by_this_kernel():
    """The whole of it, in the namespace of this process."""

    async def main():
        with trio.socket.socket() as sock, trio.socket.socket(type=trio.socket.SOCK_DGRAM) as datagrams:
            await sock.bind(("127.0.0.1", 0))
            await datagrams.bind(("127.0.0.1", 0))
            port, udp = sock.getsockname()[1], datagrams.getsockname()[1]
            found = listening.identity.identify(listening.identity.HOST)
            assert found is not None
            async with prober() as (made, told):
                wanted = probe(port, (UDP, udp))
                made.want({wanted._replace(netns=found, path=listening.identity.HOST)})
                await until(lambda: told.bound == {found.inode: bound((UDP, udp))})
                sock.listen()
                await until(lambda: told.bound == {found.inode: bound(port, (UDP, udp))})

    trio.run(main)
