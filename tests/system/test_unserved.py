"""What nothing serves refuses from the first packet on; what stands still, or opens for one client, serves."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from machine import IMAGE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from machine import Machine

pytestmark = pytest.mark.system

LATE = ("sh", "-c", "until [ -e /tmp/go ]; do sleep 0.02; done; exec python3 /srv/server.py")
"""A program that takes its time before it listens."""
REFUSED = {"ECONNREFUSED"}
CONNECT = """
import errno, socket, sys
found = set()
for _ in range(20):
    with socket.socket() as sock:
        sock.settimeout(5)
        found.add(errno.errorcode.get(sock.connect_ex((sys.argv[1], int(sys.argv[2]))), "connected"))
print(*found)
"""
DATA_PORTS = """
import socket
control = socket.create_server(("0.0.0.0", 7000))
while True:
    client, _ = control.accept()
    with client:
        if not client.recv(10):
            continue
        with socket.create_server(("0.0.0.0", 7010)) as data:
            client.sendall(b"come")
            data.settimeout(5)
            with data.accept()[0] as transfer:
                transfer.sendall(b"file")
"""
TRANSFER = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000), 5) as control:
    control.sendall(b"file?")
    assert control.recv(10) == b"come"
    with socket.create_connection((sys.argv[1], 7010), 5) as data:
        print(data.recv(10).decode())
"""


def met(machine: Machine, protocol: str, name: str, count: int = 20) -> set[str]:
    """Return what so many connections or datagrams of the client have met: errors, or "answer"."""
    patience = ("1000",) if protocol == "udp" else ()
    found = machine.client("client", protocol, name, "7000", str(count), *patience)
    return {one.get("error", "answer") for one in found}


def run_client(machine: Machine) -> None:
    """Run a client that may reach what these tests start."""
    machine.run_container("client", IMAGE, service="near", container="client", connect_to="server.far,server.gone")


def wait_until_placed(machine: Machine, *names: str) -> None:
    """Wait until these containers have their rules, and their doors where there are any."""

    def placed() -> bool:
        rows = [row for row in machine.show("workloads") if row["docker_name"] in names]
        return len(rows) == len(names) and all(row["rules"] and row["door"] in {"open", None} for row in rows)

    wait_until(placed, "rules are in place")


def row_of(machine: Machine, name: str) -> dict[str, Any]:
    """Return what `workloads` says of a container."""
    (row,) = (row for row in machine.show("workloads") if row["docker_name"] == name)
    return dict(row)


@pytest.fixture(params=["true", "false"], ids=["doors", "no doors"])
def served(request: pytest.FixtureRequest, idle: Machine, tmp_path: Path) -> Iterator[Machine]:
    """An appliance with and without doors, which serves the host too."""
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text(f"nameserver {idle.switch.address}\n")
    visits = {"host_access": "true", "host_connect_to": "server.far", "resolv_conf": str(resolv_conf)}
    idle.start(doors=request.param, **visits)
    yield idle
    idle.clear()
    idle.stop()


def from_host(machine: Machine, name: str) -> str:
    """Return what 20 connections of a process of the host meet."""
    vip = machine.meshbox("resolve", name).stdout.split()[0]
    return machine.exec(sys.executable, "-c", CONNECT, vip, "7000").stdout.strip()


def test_connections_are_refused_until_the_server_listens(served: Machine) -> None:
    """All of them, from containers and from the host; then it works, and when it has ended they are refused again."""
    served.run_container("server", IMAGE, *LATE, service="far", container="server", ports="7000,7000/udp")
    run_client(served)
    wait_until_placed(served, "server", "client")
    assert met(served, "tcp", "server.far") == REFUSED
    assert met(served, "udp", "server.far", 3) == REFUSED
    assert from_host(served, "server.far") == "ECONNREFUSED"
    said = served.meshbox("why", "client.near", "server.far:7000", check=False).stdout
    assert "nothing serves server.far:7000/tcp: connections are refused until something does" in said
    assert "nothing serves it: refused" in served.meshbox("routes").stdout
    served.docker("exec", "server", "touch", "/tmp/go")
    wait_until(lambda: met(served, "tcp", "server.far", 1) == {"answer"}, "it is reached")
    assert met(served, "tcp", "server.far") | met(served, "udp", "server.far", 3) == {"answer"}
    assert from_host(served, "server.far") == "connected"
    served.docker("stop", "--time=0", "server")
    wait_until(lambda: not row_of(served, "server")["ready"], "the end is known")
    wait_until(lambda: met(served, "tcp", "server.far", 1) == REFUSED, "its end is noticed")
    assert met(served, "tcp", "server.far") | met(served, "udp", "server.far", 3) == REFUSED
    assert from_host(served, "server.far") == "ECONNREFUSED"


def test_callers_of_a_paused_container_wait(mesh: Machine) -> None:
    """As on any network: its kernel takes connections; none fails, and open ones go on. It stays in the mesh."""
    mesh.run_container("server", IMAGE, service="far", container="server", ports="7000,7000/udp")
    run_client(mesh)
    wait_until(lambda: met(mesh, "tcp", "server.far", 1) == {"answer"}, "it is reached")
    prefix = ("docker", "--host", f"unix://{mesh.socket}", "exec", "-i", "client", "python3", "/srv/client.py")
    keep = subprocess.Popen((*prefix, "keep", "server.far", "7000", "3", "2"), stdin=-1, stdout=-1, text=True)
    try:
        wait_until(lambda: len(mesh.show("connections")) >= 5, "connections are open")
        mesh.pause("server")
        wait_until(lambda: row_of(mesh, "server")["state"] == "paused", "it is known")
        with ThreadPoolExecutor() as workers:
            waiting = workers.submit(met, mesh, "tcp", "server.far", 3)
            wait_until(lambda: len(mesh.show("connections")) >= 6, "a client waits")
            said = mesh.meshbox("why", "client.near", "server.far:7000").stdout
            assert "paused: callers wait until it goes on" in said
            assert not waiting.done()
            mesh.docker("unpause", "server")
            assert waiting.result() == {"answer"}
        mesh.docker("commit", "server", "backup")
        out, _ = keep.communicate("", timeout=20)
        assert '"error": "' not in out, out
        assert out.count('"answer"') == 5, out
    finally:
        keep.kill()
        keep.wait()
        mesh.docker("rmi", "--force", "backup")
    assert met(mesh, "tcp", "server.far", 3) == {"answer"}


def test_another_replica_takes_over_from_a_paused_one(mesh: Machine) -> None:
    """Nobody waits for the paused one while there is another."""
    names = [mesh.run_container(f"server{n}", IMAGE, service="far", container="server", ports="7000") for n in (1, 2)]
    run_client(mesh)

    def heard(count: int) -> set[str]:
        return {one.get("answer", "") for one in mesh.client("client", "tcp", "server.far", "7000", str(count))}

    wait_until(lambda: len(heard(20)) == 2, "both serve")
    mesh.pause("server1")
    try:
        wait_until(lambda: row_of(mesh, "server1")["state"] == "paused", "it is known")
        assert heard(20) == {names[1][:12]}
    finally:
        mesh.docker("unpause", "server1")
    wait_until(lambda: len(heard(20)) == 2, "both serve again")


def test_a_port_that_opens_for_one_client_is_reached(mesh: Machine) -> None:
    """As FTP's data ports do, beside one that always listens; nothing waits for it, and it is told."""
    mesh.run_container(
        "server", IMAGE, "python3", "-c", DATA_PORTS, service="far", container="server", ports="7000,7010"
    )
    run_client(mesh)
    wait_until(
        lambda: row_of(mesh, "server")["note"] == "port 7010 does not listen, and is dialled when a client comes",
        "it is told",
    )
    for _ in range(5):
        assert mesh.docker("exec", "client", "python3", "-c", TRANSFER, "server.far") == "file"
