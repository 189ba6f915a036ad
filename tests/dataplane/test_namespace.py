"""Sockets of a namespace, here of the test's own; tests/system/test_doors*.py have a real one."""

from __future__ import annotations

import ctypes
import errno
import socket
from contextlib import ExitStack, closing
from io import FileIO
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs
from tcpworld import open_descriptors

from appliance.dataplane import namespace
from appliance.dataplane.namespace import FEW, OWN_NETNS, NamespaceSockets
from appliance.model.network import Door, NetnsId

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKLOAD, DIALLER = "127.0.0.1", "127.0.0.77"


class Libc:
    """Stands for the C library: notes which namespaces the thread entered."""

    def __init__(self) -> None:
        self.entered: list[int] = []
        self.refuses = 0

    def setns(self, descriptor: int, kind: int) -> int:
        """Enter none."""
        assert kind == 0x40000000
        if self.refuses and descriptor != OWN_NETNS:
            ctypes.set_errno(self.refuses)
            return -1
        self.entered.append(descriptor)
        return 0


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> Libc:
    """Keep the test in its namespace."""
    made = Libc()
    monkeypatch.setattr(namespace, "_libc", made)
    return made


def door(dialler: str = DIALLER) -> Door:
    """Return the door of WORKLOAD."""
    return Door(netns=NetnsId(device=4, inode=1), caller=IPv4Address(WORKLOAD), dialler=IPv4Address(dialler))


@pytest.fixture
def file() -> FileIO:
    """Return a namespace's file."""
    return FileIO("/proc/self/ns/net")


@pytest.fixture
def sockets(libc: Libc, file: FileIO) -> Iterator[NamespaceSockets]:
    """Sockets of a namespace; no descriptor may be left at the end."""
    before = open_descriptors() - 1
    made = NamespaceSockets(door(), file)
    yield made
    made.close()
    assert open_descriptors() == before


def test_a_few_are_made_at_a_time_and_the_thread_returns(sockets: NamespaceSockets, libc: Libc, file: FileIO) -> None:
    """Entering a namespace and returning costs two system calls, for FEW sockets."""
    for turn in range(1, 3):
        for _ in range(FEW):
            sock = sockets.socket()
            assert sock is not None
            assert sock.getsockname() == (DIALLER, 0)
            assert not sock.getblocking()
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            sock.close()
        assert libc.entered == [file.fileno(), OWN_NETNS] * turn


@pytest.mark.parametrize("dialler", [DIALLER, "192.0.2.1"], ids=["entering", "binding"])
def test_what_cannot_be_dialled_there_is_not_tried_again_soon(libc: Libc, file: FileIO, dialler: str) -> None:
    """The caller dials from the host; it is logged once, and the thread is where it was."""
    libc.refuses = errno.EPERM if dialler == DIALLER else 0
    made = NamespaceSockets(door(dialler), file)
    with capture_logs() as logs:
        assert made.socket() is None
        assert libc.entered in ([], [file.fileno(), OWN_NETNS])
        libc.entered.clear()
        assert made.socket() is made.dial_udp((WORKLOAD, 53)) is None
    assert libc.entered == []
    (entry,) = logs
    assert entry["event"] == "cannot dial a container from its namespace; dialled from the host instead"
    assert entry["address"] == WORKLOAD
    made.close()


def test_it_is_tried_again_later(libc: Libc, file: FileIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """The route may be back."""
    now = 1000.0
    monkeypatch.setattr(namespace.time, "monotonic", lambda: now)
    libc.refuses = errno.EPERM
    made = NamespaceSockets(door(), file)
    assert made.socket() is None
    libc.refuses = 0
    assert made.socket() is None
    now += namespace.AGAIN
    sock = made.socket()
    assert sock is not None
    sock.close()
    made.close()


def test_want_of_file_descriptors_is_an_error_and_nothing_else(libc: Libc, file: FileIO) -> None:
    """The caller pauses; the namespace is not to blame and is tried again at once."""
    libc.refuses = errno.EMFILE
    made = NamespaceSockets(door(), file)
    for make in (made.socket, lambda: made.dial_udp((WORKLOAD, 53))):
        with pytest.raises(OSError, match="open files") as caught:
            make()
        assert caught.value.errno == errno.EMFILE
    libc.refuses = 0
    sock = made.socket()
    assert sock is not None
    sock.close()
    made.close()


def test_udp_is_dialled_from_the_dialler(sockets: NamespaceSockets) -> None:
    """Only at the door's own address, from which its answers come."""
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind((WORKLOAD, 0))
        sock = sockets.dial_udp(server.getsockname())
        assert sock is not None
        with closing(sock):
            sock.send(b"?")
            assert server.recvfrom(9) == (b"?", sock.getsockname())
            assert sock.getsockname()[0] == DIALLER
        assert sockets.dial_udp(("127.0.0.2", server.getsockname()[1])) is None


def test_udp_is_answered_from_what_was_asked(sockets: NamespaceSockets) -> None:
    """Each socket is connected to its client, and clients share the address; one that is taken is an error."""
    with ExitStack() as stack:
        first, second, door, taken = (stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(4))
        for each, address in ((first, WORKLOAD), (second, WORKLOAD), (door, "0.0.0.0"), (taken, "127.0.0.8")):
            each.bind((address, 0))
        port = door.getsockname()[1]
        for client in (first, second):
            sock = stack.enter_context(closing(sockets.answer_udp(door, ("127.0.0.7", port), client.getsockname())))
            assert sock.getpeername() == client.getsockname()
            sock.send(b"!")
            assert client.recvfrom(9) == (b"!", ("127.0.0.7", port))
        with pytest.raises(OSError, match="in use"):
            sockets.answer_udp(door, taken.getsockname(), first.getsockname())
