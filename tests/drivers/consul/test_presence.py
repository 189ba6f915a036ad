"""The presence port over real sockets, on loopback addresses that stand for machines."""

from __future__ import annotations

import errno
import resource
import socket
import struct
from contextlib import ExitStack, asynccontextmanager, contextmanager
from ipaddress import IPv4Address

import pytest
import structlog
import trio

from appliance.drivers.consul import presence
from appliance.drivers.consul.presence import NoAnswerError, Presence, ask
from tests.realconsul import free_ports

ONE, TWO, STRANGER = (IPv4Address(f"127.0.0.{number}") for number in (1, 2, 3))


@asynccontextmanager
async def running(node="m1", knows=frozenset({ONE, TWO}), former=None):
    """A machine that answers those it knows; gives its port."""
    port = former or free_ports(1)
    here = Presence(node, lambda address: address in knows)
    here.open((port, port), frozenset())
    assert here.port == port
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.run)
        yield port
        nursery.cancel_scope.cancel()
        here.close()


@contextmanager
def listener(**options):
    """A socket that listens, and is not one of ours."""
    with socket.create_server((str(ONE), 0), **options) as sock:
        yield sock


def test_known_machines_are_told():
    """Another machine is told which node is alive here, and at once again after a restart."""

    async def main():
        async with running() as port:
            await ask("m1", ONE, port, TWO)
            await ask("m1", TWO, port, ONE)
        async with running(former=port):
            await ask("m1", ONE, port, TWO)

    trio.run(main)


def test_others_are_told_nothing():
    """A client that is no machine of the mesh gets an end and no line."""

    async def main():
        async with running() as port:
            with pytest.raises(NoAnswerError, match=r"127.0.0.1:\d+ does not say that it is m1"):
                await ask("m1", ONE, port, STRANGER)
            with trio.socket.socket() as sock:
                await sock.bind((str(STRANGER), 0))
                await sock.connect((str(ONE), port))
                assert await sock.recv(100) == b""

    trio.run(main)


def test_source_that_this_host_does_not_have():
    """Behind NAT the kernel chooses."""

    async def main():
        async with running(knows=frozenset({ONE})) as port:
            await ask("m1", ONE, port, IPv4Address("192.0.2.1"))
            await ask("m1", ONE, port)

    trio.run(main)


def test_connections_that_stay_hold_up_nobody():
    """Strangers and machines that read nothing, send much or never end are closed at once."""

    async def main():
        async with running() as port:
            with ExitStack() as stack:
                for number in range(100):
                    sock = stack.enter_context(socket.socket())
                    sock.bind((str(STRANGER if number % 2 else TWO), 0))
                    sock.connect((str(ONE), port))
                    sock.send(b"x" * 1000)
                with trio.fail_after(presence.PATIENCE):
                    await ask("m1", ONE, port, TWO)
                for _ in range(3):
                    await ask("m1", ONE, port, TWO)

    trio.run(main)


def test_no_descriptors_for_a_while(monkeypatch):
    """Accepting goes on once there are some again; that it did not is logged once."""
    monkeypatch.setattr(presence, "PAUSE", 0.02)

    async def main():
        async with running() as port:
            sock = socket.socket()
            with sock, without_descriptors(), structlog.testing.capture_logs() as logs:
                sock.connect((str(ONE), port))
                with trio.fail_after(20):
                    while not logs:
                        await trio.sleep(0.01)
                    await trio.sleep(presence.PAUSE * 5)
            assert [line["event"] for line in logs] == ["cannot accept on the presence port; will try again"]
            await ask("m1", ONE, port, TWO)

    trio.run(main)


@contextmanager
def without_descriptors():
    """Let this process open nothing."""
    _, most = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def opened(span, taken=(), former=None):
    """The port that is taken."""
    here = Presence("m1", lambda _: True)
    here.open(span, frozenset(taken), former)
    if here._sock is not None:
        here._sock.close()
    return here.port


def test_which_port():
    """The last that is free and has no destination; the one of the former run before all others, if that is free."""
    first = free_ports(4)
    span = (first, first + 3)
    assert opened(span) == first + 3
    assert opened(span, taken={first + 3}) == first + 2
    with socket.create_server(("127.0.0.1", first + 3)):
        assert opened(span, taken={first + 2}) == first + 1
        assert opened(span, former=first + 3) == first + 2
    assert opened(span, former=first) == first
    assert opened(span, taken={first}, former=first) == first + 3
    assert opened(span, former=first + 4) == first + 3


def test_no_port_is_left():
    """It is said once, with what to do, and nothing else fails."""
    port = free_ports(1)
    with structlog.testing.capture_logs() as logs, socket.create_server(("127.0.0.1", port)):
        assert opened((port, port)) is None
        assert opened((port, port), taken={port}) is None
    assert [line["cause"] for line in logs] == [
        f"port {port}: Address already in use",
        "all of them belong to destinations",
    ]
    assert {line["hint"] for line in logs} == {"widen proxy_ports"}
    trio.run(Presence("m1", lambda _: True).run)


async def no_answer(port, match):
    """Ask, and get no answer."""
    with pytest.raises(NoAnswerError, match=match):
        await ask("m1", ONE, port)


def test_nobody_there():
    """A refusal is at once a lack of an answer."""
    trio.run(no_answer, free_ports(1), "Connection refused")


@pytest.mark.parametrize(
    "said", [b"", b"meshbox m2\n", b"meshbox m10\n", b"meshbox m1", b"SSH-2.0-OpenSSH_9.2\r\n" * 99]
)
def test_somebody_else_there(said):
    """Another node, another program, or half an answer is none."""

    async def main():
        with listener() as sock:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(no_answer, sock.getsockname()[1], "does not say that it is m1")
                accepted, _ = await trio.to_thread.run_sync(sock.accept)
                accepted.sendall(said)
                accepted.shutdown(socket.SHUT_WR)
            accepted.close()

    trio.run(main)


def test_reset():
    """What accepts and resets gives no answer either."""

    async def main():
        with listener() as sock:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(no_answer, sock.getsockname()[1], "Connection reset by peer")
                accepted, _ = await trio.to_thread.run_sync(sock.accept)
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                accepted.close()

    trio.run(main)


@pytest.mark.parametrize("hole", ["silent", "black"])
def test_nothing_comes(hole, monkeypatch):
    """Where nothing answers a connection, or nothing is said on one, it is waited for that long and no longer."""
    monkeypatch.setattr(presence, "PATIENCE", 0.2)
    with listener(backlog=0) as sock, ExitStack() as stack:
        port = sock.getsockname()[1]
        for _ in range(3 if hole == "black" else 0):  # what does not fit into the backlog is dropped
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            assert waiting.connect_ex((str(ONE), port)) == errno.EINPROGRESS
        trio.run(no_answer, port, r"did not answer within 0.2 s")


def test_what_fails_here_is_no_lack_of_an_answer():
    """No descriptors, no way there: both say nothing about the other machine."""

    async def main():
        for address, number in ((ONE, errno.EMFILE), (IPv4Address("255.255.255.255"), errno.ENETUNREACH)):
            with ExitStack() as stack:
                if number == errno.EMFILE:
                    stack.enter_context(without_descriptors())
                with pytest.raises(OSError, match=r"\[Errno") as caught:
                    await ask("m1", address, 1)
            assert caught.value.errno == number

    trio.run(main)
