"""Readiness probes: looked up as a kernel would answer, and dialled against real sockets on loopback."""

from __future__ import annotations

import errno
import socket
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from itertools import pairwise

import pytest
import trio
from fakedocker import until

from appliance.drivers.docker import probe as module
from appliance.drivers.docker.probe import DIALS, DIALS_OF_ONE, Prober, accepts
from appliance.drivers.netns import listening
from appliance.model.facts import Probe
from appliance.model.network import NetnsId

LOOPBACK = IPv4Address("127.0.0.1")


def probe(port: int, inode: int = 1, path: str = "") -> Probe:
    """Return a probe of a port on loopback."""
    return Probe("a" * 64, NetnsId(device=4, inode=inode), LOOPBACK, port, path)


@asynccontextmanager
async def prober():
    """Run a prober; also yields what was accepted: namespaces' inodes and ports."""
    accepted: list[tuple[int, int]] = []

    def note(workload_id, netns, ports):
        assert workload_id == "a" * 64
        accepted.extend((netns.inode, port) for port in ports)

    made = Prober(note)
    async with trio.open_nursery() as nursery:
        await nursery.start(made.run)
        yield made, accepted
        nursery.cancel_scope.cancel()


class Kernel:
    """Answers look-ups: which ports listen in which namespace."""

    def __init__(self) -> None:
        self.open: set[int] = set()
        self.looks: list[list[int]] = []
        self.works = True
        self.closed = 0

    def open_in(self, path, netns):
        """Return a stand-in for the socket of a namespace."""
        assert path.startswith("/netns/")
        assert netns.inode == int(path.rpartition("/")[2])
        return self

    async def listening(self, sock, address, ports):
        """Return those that listen."""
        assert sock is self
        assert address == LOOPBACK
        assert list(ports) == sorted(set(ports))
        self.looks.append(list(ports))
        await trio.lowlevel.checkpoint()
        return frozenset(self.open & set(ports))

    def close(self):
        """Let go of the namespace."""
        self.closed += 1


@pytest.fixture
def kernel(monkeypatch):
    """One that answers."""
    made = Kernel()
    monkeypatch.setattr(listening, "open_in", made.open_in)
    monkeypatch.setattr(listening, "listening", made.listening)
    monkeypatch.setattr(listening, "works", lambda: made.works)
    return made


@pytest.fixture
def dials(monkeypatch):
    """What is dialled, none of which answers before a second has passed; and how many at once."""
    made: list[int] = []
    made_at_once = []
    under_way = set()

    async def fake(address, port):
        assert address == LOOPBACK
        made.append(port)
        under_way.add(port)
        made_at_once.append(len(under_way))
        await trio.sleep(1)
        under_way.discard(port)
        return False

    monkeypatch.setattr(module, "accepts", fake)
    fake.made, fake.at_once = made, made_at_once
    return fake


def test_first_success_is_told_once():
    """A port that refuses is dialled again until it accepts; that is told once, and it is dialled no more."""

    async def main():
        with trio.socket.socket() as sock:
            await sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
            assert not await accepts(LOOPBACK, port)
            async with prober() as (made, accepted):
                made.want({probe(port)})
                await until(lambda: made._waiting)
                assert not accepted
                sock.listen()
                await until(lambda: accepted == [(1, port)])
                peer, _ = await sock.accept()
                peer.close()
                assert not made._waiting

    trio.run(main)


def test_what_is_no_longer_wanted_ends():
    """When a container dies its probes end, and its next run is probed anew."""

    async def main():
        with trio.socket.socket() as sock:
            await sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
            async with prober() as (made, accepted):
                made.want({probe(port, 1)})
                await until(lambda: made._waiting)
                made.want({probe(port, 2)})
                sock.listen()
                await until(lambda: accepted == [(2, port)])

    trio.run(main)


def test_unwanted_dials_end_at_once():
    """Nothing goes on in the background for a port that is no longer wanted."""

    async def main():
        with trio.socket.socket() as sock:
            await sock.bind(("127.0.0.1", 0))
            async with prober() as (made, _):
                made.want({probe(sock.getsockname()[1])})
                await until(lambda: made._nursery.child_tasks)
                made.want(set())
                await until(lambda: not made._nursery.child_tasks)

    trio.run(main)


def test_wishes_before_the_start_count():
    """What was wanted before the prober ran is dialled when it does."""

    async def main():
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        accepted = []
        made = Prober(lambda *found: accepted.append(found))
        wanted = probe(listeners[0].socket.getsockname()[1])
        made.want({wanted})
        async with trio.open_nursery() as nursery:
            await nursery.start(made.run)
            await until(lambda: accepted == [(wanted.workload_id, wanted.netns, frozenset({wanted.port}))])
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_without_a_descriptor_nothing_accepts(monkeypatch):
    """It is tried again later, like a port that refuses."""

    def refuse(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(trio.socket, "socket", refuse)
    assert trio.run(accepts, LOOPBACK, 1) is False


def test_a_port_that_listens_is_found_without_a_dial(autojump_clock, kernel, dials):
    """All ports of a container are looked up together; what is found is asked for no more."""

    async def main():
        async with prober() as (made, accepted):
            made.want({probe(port, 7, "/netns/7") for port in (1, 2, 3)})
            await trio.sleep(0.2)
            assert kernel.looks[:2] == [[1, 2, 3]] * 2
            kernel.open = {2}
            await trio.sleep(1)
            assert accepted == [(7, 2)]
            assert kernel.looks[-1] == [1, 3]
            kernel.open = {1, 2, 3}
            await trio.sleep(1.2)
            assert sorted(accepted) == [(7, 1), (7, 2), (7, 3)]
            assert kernel.closed == 1
            assert not made._nursery.child_tasks
        assert dials.made == []

    trio.run(main, clock=autojump_clock)


def test_a_port_that_is_wanted_later_is_looked_up_too(autojump_clock, kernel):
    """A deploy may change what a container declares; one that is wanted no more is not told."""

    async def main():
        async with prober() as (made, accepted):
            made.want({probe(port, 7, "/netns/7") for port in (1, 2)})
            await trio.sleep(0.1)
            made.want({probe(port, 7, "/netns/7") for port in (2, 3)})
            kernel.open = {1, 2, 3}
            await trio.sleep(0.5)
            assert sorted(accepted) == [(7, 2), (7, 3)]

    trio.run(main, clock=autojump_clock)


def test_what_no_program_listens_for_is_dialled_seldom_and_little_at_a_time(autojump_clock, kernel, dials):
    """Rules in a container may take connections. Ports without an end do not keep the dials of others waiting long."""

    async def main():
        async with prober() as (made, _):
            made.want({probe(port, inode, f"/netns/{inode}") for inode in range(10, 30) for port in range(256)})
            await trio.sleep(60)
            kernel.looks.clear()
            await trio.sleep(60)
        assert len(kernel.looks) <= 20 * 61
        assert 0 < len(dials.made) <= 120 * DIALS

    trio.run(main, clock=autojump_clock)


def test_one_container_has_few_dials_at_once(autojump_clock, kernel, dials):
    """However many ports it declares, and though each dial lasts as long as it may."""

    async def main():
        async with prober() as (made, _):
            made.want({probe(port, 7, "/netns/7") for port in range(256)})
            await trio.sleep(30)
        assert max(dials.at_once) == DIALS_OF_ONE

    trio.run(main, clock=autojump_clock)


def test_dials_become_rare(autojump_clock, kernel, monkeypatch):
    """Every 30 s in the end, where a dial is refused at once."""
    times = []

    async def refused(_, __):
        times.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        return False

    monkeypatch.setattr(module, "accepts", refused)

    async def main():
        kernel.works = False
        async with prober() as (made, _):
            made.want({probe(80, 7, "/netns/7")})
            await trio.sleep(300)
        assert [later - earlier for earlier, later in pairwise(times)][-3:] == pytest.approx([30] * 3)
        assert kernel.looks == []

    trio.run(main, clock=autojump_clock)


def test_a_dial_that_is_accepted_counts(autojump_clock, kernel, monkeypatch):
    """Also where no socket listens on that port."""

    async def accepted_at_once(_, port):
        await trio.lowlevel.checkpoint()
        return port == 81

    monkeypatch.setattr(module, "accepts", accepted_at_once)

    async def main():
        async with prober() as (made, accepted):
            made.want({probe(port, 7, "/netns/7") for port in (80, 81)})
            await trio.sleep(5)
            assert accepted == [(7, 81)]

    trio.run(main, clock=autojump_clock)


def test_a_look_up_that_fails_leaves_dialling(autojump_clock, kernel, monkeypatch):
    """The kernel may have no memory for its answers."""

    async def no_memory(*_):
        raise OSError(105, "No buffer space available")

    monkeypatch.setattr(listening, "listening", no_memory)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        async def main():
            async with prober() as (made, accepted):
                made.want({probe(port, 7, "/netns/7")})
                await until(lambda: accepted == [(7, port)])

        trio.run(main)
