"""Which ports of containers are backends, and how they are reached: by the sockets that there are in their namespaces.

The sockets are the test's own, made in the container's namespace, as its program would make them.
"""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from machine import IMAGE, wait_until

from appliance.drivers.netns.netlink import entered

if TYPE_CHECKING:
    from collections.abc import Iterator

    from machine import Machine

pytestmark = pytest.mark.system

KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
PORT = 7100
ASK = """
import socket, sys
host, port, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with socket.socket(type=socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as sock:
    sock.settimeout(3)
    try:
        sock.connect((host, port))
        sock.send(b"who")
        print(sock.recv(100).decode())
    except OSError as error:
        print(type(error).__name__)
"""


class Answering:
    """A program that answers with its name what comes to a socket in a container's namespace."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        self.sock = sock
        self.name = name.encode()
        self.taken = 0
        self.thread = threading.Thread(target=self._take if sock.type == socket.SOCK_STREAM else self._answer)
        self.thread.start()

    def _take(self) -> None:
        while True:
            try:
                with self.sock.accept()[0] as client:
                    self.taken += 1
                    client.settimeout(5)
                    if client.recv(100):
                        client.sendall(self.name)
            except TimeoutError:
                continue
            except OSError:
                return

    def _answer(self) -> None:
        while True:
            data, client = self.sock.recvfrom(100)
            if not data:
                return
            self.taken += 1
            self.sock.sendto(self.name, client)

    def stop(self) -> None:
        """Close its socket. Whoever waits at it is woken, also where it is not connected."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.sock.close()


@contextmanager
def answering(
    machine: Machine, container: str, kind: str, address: str, port: int = PORT, **options: Any
) -> Iterator[Answering]:
    """Answer at an address in a container's namespace; `device` and `v6only` are set before it is bound."""

    def make() -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, KINDS[kind])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, options.get("v6only", 0))
        if "device" in options:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, options["device"].encode())
        sock.bind((address, port))
        if kind == "tcp":
            sock.listen(8)
        return sock

    program = Answering(entered(machine.inspect(container)["NetworkSettings"]["SandboxKey"], make), container)
    try:
        yield program
    finally:
        program.stop()


@pytest.fixture(scope="module")
def pair(lasting_mesh: Machine) -> Machine:
    """A container `server.far` on two networks whose program does nothing, and a `client` that may reach it."""
    mesh = lasting_mesh
    mesh.docker("network", "create", "second")
    labels = {"service": "far", "container": "server", "ports": f"{PORT},{PORT}/udp"}
    mesh.run_container("server", IMAGE, "sleep", "1h", **labels)
    mesh.docker("network", "connect", "second", "server")
    mesh.run_container(
        "client", IMAGE, "sleep", "1h", service="near", container="client", connect_to="server.far,own.far"
    )
    wait_until(lambda: "nothing serves" in why(mesh, "tcp"), "the client is in the mesh")
    return mesh


def ask(machine: Machine, kind: str, name: str = "server.far") -> str:
    """Return who answers the client, or the error."""
    return machine.docker("exec", "client", "python3", "-c", ASK, name, str(PORT), kind).strip()


def why(machine: Machine, kind: str, name: str = "server.far") -> str:
    """Return whether the client reaches the port, in words."""
    return machine.meshbox("why", "client.near", f"{name}:{PORT}/{kind}", check=False).stdout


def is_answered(machine: Machine, kind: str, name: str = "server.far") -> bool:
    """Wait until there is a backend, and return whether it answers then, at the first time of asking."""
    wait_until(lambda: "nothing serves" not in why(machine, kind, name), "there is a backend")
    return ask(machine, kind, name) == name.partition(".")[0]


def second(machine: Machine) -> str:
    """Return the server's address on its second network."""
    return str(machine.inspect("server")["NetworkSettings"]["Networks"]["second"]["IPAddress"])


def waits(machine: Machine, kind: str) -> None:
    """Wait until it is no backend."""
    wait_until(lambda: "nothing serves" in why(machine, kind), "there is no backend any more")


def test_a_program_that_takes_one_connection_keeps_it_for_its_client(pair: Machine) -> None:
    """Nothing is dialled to find out whether it is there (case 24)."""
    with answering(pair, "server", "tcp", "0.0.0.0") as program:
        assert is_answered(pair, "tcp")
        assert program.taken == 1
    waits(pair, "tcp")


@pytest.mark.parametrize("kind", KINDS)
def test_a_port_counts_while_its_program_listens(pair: Machine, kind: str) -> None:
    """As where a supervisor in the container starts it anew: the container goes on."""
    for _ in range(3):
        with answering(pair, "server", kind, "0.0.0.0"):
            assert is_answered(pair, kind)
        waits(pair, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("address", "options"),
    [
        pytest.param("::", {}, id="IPv6 that takes IPv4"),
        pytest.param("second", {}, id="its second network only"),
        pytest.param("0.0.0.0", {"device": "eth0"}, id="bound to its first interface"),
        pytest.param("0.0.0.0", {"device": "eth1"}, id="bound to its second interface"),
        pytest.param("::", {"device": "eth0"}, id="bound to it in IPv6"),
    ],
)
def test_a_socket_is_reached_where_it_is(pair: Machine, kind: str, address: str, options: dict[str, Any]) -> None:
    """At the address, and on the way, that the kernel says (case 14)."""
    with answering(pair, "server", kind, second(pair) if address == "second" else address, **options):
        assert is_answered(pair, kind)
    waits(pair, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("address", "options", "where"),
    [
        ("127.0.0.1", {}, "at 127.0.0.1"),
        ("::", {"v6only": 1}, "by IPv6"),
    ],
)
def test_a_socket_that_nobody_reaches_is_no_backend(
    pair: Machine, kind: str, address: str, options: dict[str, Any], where: str
) -> None:
    """And the words say what a user looks for."""
    with answering(pair, "server", kind, address, **options) as program:
        wait_until(lambda: f"its program listens {where} only" in why(pair, kind), "it is told")
        assert ask(pair, kind) != "server"
        assert program.taken == 0


def test_rules_of_its_own_may_serve_a_port_without_a_socket(pair: Machine) -> None:
    """A container with CAP_NET_ADMIN is dialled; its UDP ports count at once."""
    options = ["--cap-add=NET_ADMIN"]
    pair.run_container(
        "own", IMAGE, "sleep", "1h", options=options, service="far", container="own", ports=f"{PORT},{PORT}/udp"
    )
    wait_until(lambda: "own at" in why(pair, "udp", "own.far"), "its UDP port counts")
    rules = "table ip own { chain in { type nat hook prerouting priority -100; tcp dport 7100 redirect to :7999; }; }"
    with answering(pair, "own", "tcp", "0.0.0.0", 7999):
        pair.exec_in("own", "nft", rules)
        assert is_answered(pair, "tcp", "own.far")


def test_what_compose_runs_for_one_command_gets_no_traffic(pair: Machine) -> None:
    """It carries the labels of its service; only what stays is asked."""
    options = ["--label=com.docker.compose.oneoff=True", "--label=com.docker.compose.service=api"]
    labels = {"service": "far", "container": "server", "ports": f"{PORT},{PORT}/udp"}
    pair.run_container("shell", IMAGE, "sleep", "1h", options=options, **labels)
    (row,) = wait_until(
        lambda: [w for w in pair.show("workloads") if w["docker_name"] == "shell" and w["rules"]], "it is in the mesh"
    )
    assert "Docker Compose started it for one command" in row["note"]
    with (
        answering(pair, "server", "tcp", "0.0.0.0"),
        answering(pair, "server", "udp", "0.0.0.0"),
        answering(pair, "shell", "tcp", "0.0.0.0") as tcp,
        answering(pair, "shell", "udp", "0.0.0.0") as udp,
    ):
        for kind in KINDS:
            assert is_answered(pair, kind)
            assert {ask(pair, kind) for _ in range(6)} == {"server"}
        assert (tcp.taken, udp.taken) == (0, 0)
