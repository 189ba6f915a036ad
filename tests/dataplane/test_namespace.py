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

from appliance.dataplane import namespace, sources
from appliance.dataplane.namespace import FEW, OWN_NETNS, NamespaceSockets
from appliance.dataplane.sources import FIRST_PORT, PORTS, Sources
from appliance.model.network import Door, NetnsId
from appliance.model.sources import CallerSources

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKLOAD, DIALLER = "127.0.0.1", "127.0.0.77"
CALLER, STRANGER = "172.18.0.3", "172.18.0.4"
SOURCE = "127.0.1.3"
SOURCES = CallerSources(step=256, addresses={IPv4Address(CALLER): IPv4Address(SOURCE)})


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


def known() -> Sources:
    """Return the sources of CALLER."""
    found = Sources()
    found.set(SOURCES)
    return found


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
    made = NamespaceSockets(door(), file, known())
    yield made
    made.close()
    assert open_descriptors() == before


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """A program of the workload."""
    with socket.create_server((WORKLOAD, 0), backlog=1024) as sock:
        sock.settimeout(10)
        yield sock


def dial(sockets: NamespaceSockets, server: socket.socket, caller: str = CALLER) -> socket.socket:
    """Return a connection for a caller."""
    dialled = sockets.dial(server.getsockname(), caller)
    assert dialled is not None
    sock, code = dialled
    assert code in (0, errno.EINPROGRESS)
    return sock


def test_a_few_are_made_at_a_time_and_the_thread_returns(
    sockets: NamespaceSockets, libc: Libc, file: FileIO, server: socket.socket
) -> None:
    """Entering a namespace and returning costs two system calls, for FEW sockets."""
    for turn in range(1, 3):
        for _ in range(FEW):
            with closing(dial(sockets, server)) as sock:
                assert not sock.getblocking()
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert libc.entered == [file.fileno(), OWN_NETNS] * turn


def test_callers_are_told_apart_by_address(sockets: NamespaceSockets, server: socket.socket) -> None:
    """And dialled for from the ports that are for that alone."""
    for caller, source in ((CALLER, SOURCE), (STRANGER, DIALLER)):
        with closing(dial(sockets, server, caller)) as sock, closing(server.accept()[0]) as served:
            assert served.getpeername() == sock.getsockname()
            address, port = sock.getsockname()
            assert address == source
            assert FIRST_PORT <= port < FIRST_PORT + PORTS


@pytest.fixture
def few_ports(monkeypatch: pytest.MonkeyPatch) -> int:
    """Have hardly any ports: as many connections as there are cannot be made here."""
    monkeypatch.setattr(sources, "PORTS", 4)
    return 4


@pytest.mark.usefixtures("few_ports")
@pytest.mark.parametrize("first", ["client", "server"])
def test_connections_that_have_ended_take_no_port(sockets: NamespaceSockets, server: socket.socket, first: str) -> None:
    """Whoever closes first: their TIME_WAIT lasts for a minute, and one second brings more than there are ports."""
    for _ in range(40):
        sock = dial(sockets, server)
        served = server.accept()[0]
        assert served.getpeername()[0] == SOURCE
        for end, other in ((sock, served), (served, sock)) if first == "client" else ((served, sock), (sock, served)):
            end.close()
            if other.fileno() != -1:
                other.setblocking(True)
                assert other.recv(1) == b""


def test_a_caller_without_ports_has_a_further_address(
    sockets: NamespaceSockets, server: socket.socket, few_ports: int
) -> None:
    """Unnoticed: by the time that its own are in use, its next connections come from there."""
    with ExitStack() as stack:
        seen = []
        for _ in range(3 * few_ports):
            stack.enter_context(closing(dial(sockets, server)))
            seen.append(stack.enter_context(closing(server.accept()[0])).getpeername())
        assert len(set(seen)) == 3 * few_ports
        assert {address for address, _ in seen} >= {SOURCE, "127.0.2.3", "127.0.3.3"}


@pytest.mark.usefixtures("few_ports")
def test_ports_of_programs_are_left_to_them(sockets: NamespaceSockets, server: socket.socket) -> None:
    """One that listens within these ports is passed over, by TCP and UDP; without any port it is told, once."""
    with ExitStack() as stack:
        held = []
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            for number in range(4):
                sock = stack.enter_context(socket.socket(type=kind))
                if kind == socket.SOCK_STREAM:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
                sock.bind(("0.0.0.0", FIRST_PORT + number))
                if kind == socket.SOCK_STREAM:
                    sock.listen()
                held.append(sock)
        with capture_logs() as logs:
            for _ in range(2):
                assert sockets.dial(server.getsockname(), CALLER) is None
                assert sockets.dial_udp((WORKLOAD, 53), CALLER) is None
        (entry,) = logs
        assert entry["event"] == (
            "no port is free for a caller inside a container's namespace; dialled from the host instead"
        )
        assert (entry["address"], entry["caller"]) == (WORKLOAD, CALLER)
        for free in (held[2], held[6]):
            free.close()
        with closing(dial(sockets, server)) as sock:
            assert sock.getsockname()[1] == FIRST_PORT + 2
        udp = sockets.dial_udp((WORKLOAD, 53), CALLER)
        assert udp is not None
        with closing(udp):
            assert udp.getsockname()[1] == FIRST_PORT + 2


def test_programs_may_listen_beside_callers(sockets: NamespaceSockets, server: socket.socket) -> None:
    """At any port below; and at theirs with SO_REUSEADDR, which servers set."""
    with ExitStack() as stack:
        used = {stack.enter_context(closing(dial(sockets, server))).getsockname()[1] for _ in range(8)}
        assert min(used) >= FIRST_PORT
        listener = stack.enter_context(socket.create_server(("0.0.0.0", used.pop())))
        assert listener.getsockname()[0] == "0.0.0.0"


def test_a_refused_connection_is_the_backends(sockets: NamespaceSockets) -> None:
    """Its errno is told, now or by the socket; the caller's ports are not to blame."""
    with socket.socket() as nobody:
        nobody.bind((WORKLOAD, 0))
        dialled = sockets.dial(nobody.getsockname(), CALLER)
        assert dialled is not None
        sock, code = dialled
        with closing(sock):
            assert (code if code != errno.EINPROGRESS else sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)) == (
                errno.ECONNREFUSED
            )


@pytest.mark.parametrize("dialler", [DIALLER, "192.0.2.1"], ids=["entering", "binding"])
def test_what_cannot_be_dialled_there_is_not_tried_again_soon(libc: Libc, file: FileIO, dialler: str) -> None:
    """The caller dials from the host; it is logged once, and the thread is where it was."""
    libc.refuses = errno.EPERM if dialler == DIALLER else 0
    made = NamespaceSockets(door(dialler), file, Sources())
    with capture_logs() as logs:
        assert made.dial((WORKLOAD, 53), CALLER) is None
        assert libc.entered in ([], [file.fileno(), OWN_NETNS])
        libc.entered.clear()
        assert made.dial((WORKLOAD, 53), CALLER) is made.dial_udp((WORKLOAD, 53), CALLER) is None
    assert libc.entered == []
    (entry,) = logs
    assert entry["event"] == "cannot dial a container from its namespace; dialled from the host instead"
    assert entry["address"] == WORKLOAD
    made.close()


def test_it_is_tried_again_later(
    libc: Libc, file: FileIO, monkeypatch: pytest.MonkeyPatch, server: socket.socket
) -> None:
    """The route may be back."""
    now = 1000.0
    monkeypatch.setattr(namespace.time, "monotonic", lambda: now)
    libc.refuses = errno.EPERM
    made = NamespaceSockets(door(), file, known())
    assert made.dial(server.getsockname(), CALLER) is None
    libc.refuses = 0
    assert made.dial(server.getsockname(), CALLER) is None
    now += namespace.AGAIN
    dial(made, server).close()
    made.close()


def test_want_of_file_descriptors_is_an_error_and_nothing_else(libc: Libc, file: FileIO, server: socket.socket) -> None:
    """The caller pauses; the namespace is not to blame and is tried again at once."""
    libc.refuses = errno.EMFILE
    made = NamespaceSockets(door(), file, known())
    for make in (made.dial, made.dial_udp):
        with pytest.raises(OSError, match="open files") as caught:
            make((WORKLOAD, 53), CALLER)
        assert caught.value.errno == errno.EMFILE
    libc.refuses = 0
    dial(made, server).close()
    made.close()


@pytest.mark.parametrize(("caller", "source"), [(CALLER, SOURCE), (STRANGER, DIALLER)])
def test_udp_is_dialled_for_callers(sockets: NamespaceSockets, caller: str, source: str) -> None:
    """Only at the door's own address, from which its answers come."""
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind((WORKLOAD, 0))
        sock = sockets.dial_udp(server.getsockname(), caller)
        assert sock is not None
        with closing(sock):
            sock.send(b"?")
            assert server.recvfrom(9) == (b"?", sock.getsockname())
            assert sock.getsockname()[0] == source
            assert sock.getsockname()[1] >= FIRST_PORT
        assert sockets.dial_udp(("127.0.0.2", server.getsockname()[1]), caller) is None


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
