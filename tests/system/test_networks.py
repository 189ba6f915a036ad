"""Containers join from whatever bridge network they are on, and mesh names work there as they are."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
import pytest
from machine import IMAGE, ROOT, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from machine import Machine

pytestmark = pytest.mark.system


@pytest.mark.parametrize("options", [(), ("--internal",)], ids=["user-defined", "internal"])
def test_names_and_ports_work_on_other_networks(mesh: Machine, options: tuple[str, ...]) -> None:
    """A labelled container on a network of its owner's reaches one on the default bridge, by name, TCP and UDP.

    So does a name of Docker's own.
    """
    mesh.docker("network", "create", *options, "own")
    logged = len(mesh.log(100_000))
    try:
        found = orjson.loads(mesh.meshbox("check", "--json", docker_network="own").stdout)
        (told,) = (row for row in found if row["subject"] == "network")
        assert re.search('"own".* was not made by meshbox.* reach each other', told["words"]), told
        mesh.run_container("server", IMAGE, service="far", container="server", ports="7000,7000/udp")
        mesh.run_container(
            "caller", IMAGE, options=("--network=own",), service="near", container="caller", connect_to="server.far"
        )
        wait_until(lambda: "answer" in mesh.client("caller", "tcp", "server.far", "7000", "1")[0], "TCP answers")
        (result,) = mesh.client("caller", "udp", "server.far", "7000", "1")
        assert "answer" in result
        mesh.run_container(
            "told", IMAGE, options=("--network=own",), service="near", container="told", connect_to="server.far"
        )
        (result,) = mesh.client("told", "tcp", "server.far", "7000", "1")
        assert "answer" in result
        assert mesh.client("told", "resolve", "caller") == {"addresses": [mesh.address_of("caller")]}
        assert "will try again" not in mesh.log(100_000)[logged:], (
            "the route waits until Docker has set the interface up"
        )
    finally:
        mesh.docker("rm", "--force", "caller", "told")
        mesh.docker("network", "rm", "own")


REQUESTS = """
import select, socket, sys
from collections import Counter
address, found = (sys.argv[1], 7003), Counter()
kept = socket.create_connection(address, 5)
print("begun", flush=True)
while not select.select([sys.stdin], [], [], 0.005)[0]:
    try:
        with socket.create_connection(address, 5) as sock:
            sock.sendall(b"who\\n")
            found["answered" if sock.recv(100) else "closed"] += 1
    except OSError as error:
        found[repr(error)] += 1
if sys.argv[2:]:
    kept.settimeout(5)
    kept.sendall(b"who\\n")
    found["not kept"] += not kept.recv(100)
print(found.pop("answered", 0) > 50, dict(+found))
"""
"""Dials a server without pause until its input ends; with another argument, then asks on its first connection again."""


def test_networks_that_are_joined_and_left_fail_no_request(mesh: Machine) -> None:
    """By a client and by a server, while one dials the other; in the end both leave the network that they began on.

    One of the networks comes first by its name, and one comes last.
    """
    for network in ("home", "aaa", "zzz"):
        mesh.docker("network", "create", network)
    try:
        home = ("--network=home",)
        mesh.run_container("server", IMAGE, options=home, service="far", container="server", ports="7003")
        mesh.run_container("client", IMAGE, options=home, service="near", container="client", connect_to="server.far")
        wait_until(lambda: {row["door"] for row in mesh.show("workloads")} == {"open"}, "the doors are open")
        wait_until(lambda: all(row["ready"] for row in mesh.show("workloads")), "the server is ready")
        vip = mesh.meshbox("resolve", "server.far", "--from", "client.near").stdout.split()[0]
        with asking(mesh, vip, "kept"):
            for name in ("client", "server"):
                for network in ("aaa", "zzz"):
                    mesh.docker("network", "connect", network, name)
                    wait_until(lambda n=name: networks_of(mesh, n) == 2, "the network is known")
                    mesh.docker("network", "disconnect", network, name)
                    wait_until(lambda n=name: networks_of(mesh, n) == 1, "it is known to be left")
        with asking(mesh, vip):
            for name in ("client", "server"):
                mesh.docker("network", "connect", "aaa", name)
                wait_until(lambda n=name: networks_of(mesh, n) == 2, "the network is known")
                mesh.docker("network", "disconnect", "home", name)
                wait_until(lambda n=name: networks_of(mesh, n) == 1, "home is known to be left")
    finally:
        mesh.docker("rm", "--force", "client", "server")
        mesh.docker("network", "rm", "home", "aaa", "zzz")


@contextmanager
def asking(machine: Machine, vip: str, *kept: str) -> Iterator[None]:
    """Let the client ask during the block; none of its requests may fail."""
    path = machine.inspect("client")["NetworkSettings"]["SandboxKey"]
    command = ["nsenter", f"--net={path}", sys.executable, "-c", REQUESTS, vip, *kept]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield
        assert process.communicate()[0] == "True {}\n"


def networks_of(machine: Machine, name: str) -> int:
    """Return on how many networks the appliance sees a container."""
    (row,) = (row for row in machine.show("workloads") if row["docker_name"] == name)
    return len(row["addresses"])


def test_names_that_dockers_own_dns_answers_are_told(mesh: Machine) -> None:
    """A name, an alias, and a name with the network's behind it, of containers with labels and without."""
    mesh.docker("network", "create", "far")
    try:
        on = ("--network=far",)
        mesh.run_container("server", IMAGE, options=on, service="far", container="server", ports="7000")
        mesh.run_container("other.far", IMAGE, options=(*on, "--network-alias=Third.far"))
        for name in ("other", "third"):
            mesh.run_container(f"real-{name}", IMAGE, service="far", container=name, ports="7000")
        names = ("server.far", "other.far", "third.far")
        mesh.run_container(
            "caller", IMAGE, options=on, service="near", container="caller", connect_to=",".join((*names, "free.far"))
        )
        here = {mesh.address_of("server"), mesh.address_of("other.far")}
        wait_until(lambda: row(mesh, "caller")["rules"], "the caller is in the mesh")
        wait_until(
            lambda: {r["name"] for r in mesh.show("workloads") if r["ready"]} >= set(names), "all of them are backends"
        )
        for name in names:
            (address,) = mesh.client("caller", "resolve", name)["addresses"]
            said = mesh.meshbox("why", "caller.near", f"{name}:7000", check=False)
            assert (said.returncode == 1) == (address in here), (name, address, said.stdout)
            if address in here:
                assert f"Docker's own DNS (127.0.0.11) answers {name} on network far" in said.stdout
                assert (
                    "another name" in said.stdout or "take the alias third.far from container other.far" in said.stdout
                )
                found = orjson.loads(mesh.meshbox("check", "--json").stdout)
                assert [r["remedy"] for r in found if r["subject"] == "name" and f"answers {name} " in r["words"]]
                assert "Docker's own DNS" in row(mesh, "caller")["note"]
    finally:
        mesh.docker("rm", "--force", "caller", "server", "other.far")
        mesh.docker("network", "rm", "far")


def row(mesh: Machine, docker_name: str) -> dict[str, Any]:
    """Return a container's row of `meshbox workloads`."""
    (found,) = (r for r in mesh.show("workloads") if r["docker_name"] == docker_name)
    return found


class Composed(NamedTuple):
    """A service of a compose file."""

    name: str
    image: str
    labels: dict[str, str]


def compose_file() -> list[Composed]:
    """Read examples/compose.yaml, which has services with an image and labels only."""
    text = re.sub(r"\s+#.*$", "", (ROOT / "examples/compose.yaml").read_text(), flags=re.MULTILINE)
    found = []
    for name, body in re.findall(r"^  (\w+):\n((?:    .*\n?|\n)+)", text, re.MULTILINE):
        (image,) = re.findall(r"^    image: (.*)$", body, re.MULTILINE)
        labels = {k: v.strip('"') for k, v in re.findall(r"^      (meshbox\.\w+): (.*)$", body, re.MULTILINE)}
        found.append(Composed(name, image, labels))
    return found


def test_compose_file_joins_as_it_stands(idle: Machine) -> None:
    """What examples/compose.yaml starts, before there is an appliance, joins without a restart once there is one.

    It is started as compose does: on a network of the project's, where each service has its name as an alias.
    """
    services = compose_file()
    assert [service.name for service in services] == ["apple", "flask", "redis"]
    containers = [f"example-{service.name}-1" for service in services]
    idle.docker("network", "create", "example_default")
    try:
        for service, container in zip(services, containers, strict=True):
            labels = [f"--label={key}={value}" for key, value in service.labels.items()]
            place = ("--network=example_default", f"--network-alias={service.name}")
            idle.docker("run", "--detach", f"--name={container}", *place, *labels, service.image)
        before = [idle.inspect(container)["State"] for container in containers]
        idle.start()
        wait_until(lambda: sum(row["ready"] for row in idle.show("workloads")) == len(services), "all are ready")
        call = ("exec", "example-flask-1")
        assert "Hello World" in idle.docker(*call, "wget", "-qO-", "http://apple.orange:8080")
        assert idle.docker(*call, "redis-cli", "-h", "redis.flask", "ping") == "PONG"
        own = idle.docker(*call, "python3", "-c", "import socket; print(socket.gethostbyname('redis'))")
        assert own == idle.address_of("example-redis-1")  # Docker's own name, at the container's own address
        refused = idle.docker(*call, "sh", "-c", "redis-cli -h redis ping 2>&1 || true")
        assert "Connection refused" in refused
        assert [idle.inspect(container)["State"] for container in containers] == before
    finally:
        idle.docker("rm", "--force", *containers)
        idle.docker("network", "rm", "example_default")
