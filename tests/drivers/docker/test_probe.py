"""Readiness probes, against real sockets on loopback."""

from __future__ import annotations

import errno
from contextlib import asynccontextmanager
from ipaddress import IPv4Address

import trio
from fakedocker import until

from appliance.drivers.docker.probe import Prober, accepts
from appliance.model.facts import Probe
from appliance.model.network import NetnsId

LOOPBACK = IPv4Address("127.0.0.1")


def probe(port: int, inode: int = 1) -> Probe:
    """Return a probe of a port on loopback."""
    return Probe("a" * 64, NetnsId(device=4, inode=inode), LOOPBACK, port)


@asynccontextmanager
async def prober():
    """Run a prober; also yields what was accepted."""
    accepted: list[Probe] = []
    made = Prober(accepted.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(made.run)
        yield made, accepted
        nursery.cancel_scope.cancel()


def test_first_success_is_told_once():
    """A port that refuses is dialled again until it accepts; that is told once, and it is dialled no more."""

    async def main():
        with trio.socket.socket() as sock:
            await sock.bind(("127.0.0.1", 0))
            wanted = probe(sock.getsockname()[1])
            assert not await accepts(LOOPBACK, wanted.port)
            async with prober() as (made, accepted):
                made.want({wanted})
                await until(lambda: wanted in made._under_way)
                assert not accepted
                sock.listen()
                await until(lambda: accepted == [wanted])
                peer, _ = await sock.accept()
                peer.close()
                assert not made._under_way

    trio.run(main)


def test_what_is_no_longer_wanted_ends():
    """When a container dies its probes end, and its next run is probed anew."""

    async def main():
        with trio.socket.socket() as sock:
            await sock.bind(("127.0.0.1", 0))
            first, second = (probe(sock.getsockname()[1], inode) for inode in (1, 2))
            async with prober() as (made, accepted):
                made.want({first})
                await until(lambda: first in made._under_way)
                made.want({second})
                sock.listen()
                await until(lambda: accepted == [second])

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
        accepted: list[Probe] = []
        made = Prober(accepted.append)
        made.want({probe(listeners[0].socket.getsockname()[1])})
        async with trio.open_nursery() as nursery:
            await nursery.start(made.run)
            await until(lambda: len(accepted) == 1)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_without_a_descriptor_nothing_accepts(monkeypatch):
    """It is tried again later, like a port that refuses."""

    def refuse(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(trio.socket, "socket", refuse)
    assert trio.run(accepts, LOOPBACK, 1) is False
