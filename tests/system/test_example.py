"""The example that meshbox was first designed for (examples/design.py), deployed on a real Docker Engine."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

import pytest
from machine import IMAGE, ROOT, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from machine import Machine

pytestmark = pytest.mark.system

VIRTUAL = IPv4Network("240.0.0.0/4")
DECLARED = "flask.flask:8080,redis.flask:8080,apple.orange:8080"


@pytest.fixture(scope="module")
def example(lasting_mesh: Machine) -> Machine:
    """examples/app.py is deployed, and a container that others started may reach all of it."""
    lasting_mesh.meshbox("deploy", ROOT / "examples/app.py")
    lasting_mesh.run_container("client", IMAGE, service="test", container="client", connect_to=DECLARED)
    return lasting_mesh


@pytest.fixture
def restored(example: Machine) -> Iterator[Machine]:
    """The example for a test that changes it; deployed as it was afterwards."""
    yield example
    example.meshbox("deploy", ROOT / "examples/app.py")


def started(mesh: Machine) -> set[str]:
    """Return flask's containers without those being created: Docker lists these before it lets them be inspected."""
    every = mesh.containers("label=meshbox.service=flask")
    return set(every) - set(mesh.containers("status=created"))


def test_design_example_is_taken_as_it_stands(lasting_mesh: Machine) -> None:
    """The unmodified example creates exactly its containers, with its image, command, limits and labels."""
    mesh = lasting_mesh
    mesh.meshbox("deploy", "--detach", ROOT / "examples/design.py")
    wait_until(lambda: len(started(mesh)) == 4, "four containers")
    for replica in ("0", "1"):
        found = mesh.containers("label=meshbox.container=flask", f"label=meshbox.replica={replica}")
        assert len(found) == 1
        flask = mesh.inspect(found[0])
        labels = flask["Config"]["Labels"]
        assert flask["Name"].startswith(f"/meshbox-flask-{replica}-flask-")
        assert flask["Config"]["Image"] == "crccheck/hello-world"
        assert flask["Config"]["Cmd"] == ["bash"]
        assert flask["HostConfig"]["NanoCpus"] == 500_000_000
        assert flask["HostConfig"]["Memory"] == 256 << 20
        assert flask["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
        assert labels["meshbox.connect_to"] == "apple.orange:8080"
        assert sorted(labels["meshbox.ports"].split(",")) == ["8080/tcp", "8080/udp"]
        (name,) = mesh.containers("label=meshbox.container=redis", f"label=meshbox.replica={replica}")
        redis = mesh.inspect(name)
        labels = redis["Config"]["Labels"]
        assert name.startswith(f"meshbox-flask-{replica}-redis-")
        assert redis["Config"]["Image"] == "redis"
        assert redis["Config"]["Cmd"] == mesh.inspect("redis")["Config"]["Cmd"], "the image's own"
        assert (redis["HostConfig"]["NanoCpus"], redis["HostConfig"]["Memory"]) == (0, 0)
        assert (labels["meshbox.service"], labels["meshbox.ports"]) == ("flask", "8080/tcp")
        assert labels["meshbox.connect_to"] == ""
    network = mesh.docker("network", "inspect", "meshbox", "--format", "{{.Options}}")
    assert "com.docker.network.bridge.enable_icc:false" in network
    mesh.meshbox("remove", "flask")


def test_names_answer_on_addresses_of_their_own(example: Machine) -> None:
    """Every declared name has one virtual IP, and they differ although the ports are the same."""
    names = ("flask.flask", "redis.flask", "apple.orange")
    found = [example.client("client", "resolve", name)["addresses"] for name in names]
    assert all(len(addresses) == 1 and IPv4Address(addresses[0]) in VIRTUAL for addresses in found), found
    assert len({addresses[0] for addresses in found}) == 3
    assert "Hello World" in example.docker("exec", "client", "wget", "-qO-", "http://flask.flask:8080/")


def test_redis_speaks_through_the_mesh(example: Machine) -> None:
    """Real Redis commands work by name."""
    call = ("exec", "client", "redis-cli", "-h", "redis.flask", "-p", "8080")
    stored = {example.docker(*call, "set", "key", f"value-{n}") for n in range(3)}
    assert stored == {"OK"}
    assert example.docker(*call, "ping") == "PONG"
    assert "redis_version:7" in example.docker(*call, "info", "server")


def assert_spread(answers: list[str], who: str) -> None:
    """Check that of 1,000 each of two replicas gave 40 to 60 %; `who` finds in an answer which one it was."""
    found = [re.search(who, answer) for answer in answers]
    assert all(found), next(answer for answer, match in zip(answers, found, strict=True) if not match)
    spread = Counter(match[1] for match in found if match)
    assert spread.total() == 1000
    assert len(spread) == 2, spread
    assert min(spread.values()) >= 400, spread


def test_connections_spread_over_the_replicas(example: Machine) -> None:
    """Of 1,000 connections each of two replicas gets 40 to 60 %: HTTP, Redis, and datagrams."""
    http = example.client("client", "talk", "flask.flask", "8080", "1000", "GET / HTTP/1.0", "")
    assert_spread(http, r"^HTTP/1\.1 200 (?s:.*)\r\n\r\nHello World from (\w+)\n$")
    redis = example.client("client", "talk", "redis.flask", "8080", "1000", "INFO server", "QUIT")
    assert_spread(redis, r"^\$(?s:.*)\r\nrun_id:(\w+)\r\n(?s:.*)\+OK\r\n$")
    datagrams = example.client("client", "udp", "flask.flask", "8080", "1000")
    assert_spread([one.get("answer") or one["error"] for one in datagrams], r"^(\w+) \d+$")


def test_udp_works_by_name(example: Machine) -> None:
    """apple.orange answers by UDP, and by TCP, from inside the flask container, which declared it."""
    flask = example.containers("label=meshbox.container=flask")[0]
    program = (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(5); "
        "s.connect(('apple.orange', 8080)); s.send(b'hello'); print(s.recv(100).decode()); "
        "print(socket.create_connection(('apple.orange', 8080), 5).recv(100).decode())"
    )
    udp, tcp = example.docker("exec", flask, "python3", "-c", program).splitlines()
    assert udp.endswith(" hello")
    assert tcp.strip() == udp.split()[0]


def test_deploying_twice_changes_nothing(example: Machine) -> None:
    """The same file again leaves every container as it is."""
    before = {name: example.inspect(name)["State"]["StartedAt"] for name in example.containers()}
    example.meshbox("deploy", ROOT / "examples/app.py")
    assert {name: example.inspect(name)["State"]["StartedAt"] for name in example.containers()} == before


def test_a_change_replaces_only_what_changed(restored: Machine) -> None:
    """More replicas and another image setting touch only the containers that they are about."""
    text = (ROOT / "examples/app.py").read_text()
    before = set(restored.containers("label=meshbox.revision"))
    restored.deploy(text.replace("count=2", "count=3"))
    grown = set(restored.containers("label=meshbox.revision"))
    assert grown > before
    assert len(grown) == len(before) + 2
    restored.deploy(text.replace("count=2", "count=3").replace("memory=256", "memory=128"))
    changed = {name for name in grown if "-flask-" in name.removeprefix("meshbox-flask-")}
    wait_until(lambda: not changed & set(restored.containers()), "the former flask containers are gone")
    assert grown - changed < set(restored.containers("label=meshbox.revision"))
    restored.deploy(text)
    wait_until(lambda: len(restored.containers("label=meshbox.revision")) == 5, "five containers again")


def test_connections_are_allowed_without_a_restart(restored: Machine) -> None:
    """Adding a port or a connect_to replaces no container; taking an allowance away ends what it had allowed."""
    apple = restored.containers("label=meshbox.container=apple")[0]
    text = (ROOT / "examples/app.py").read_text()
    wider = text.replace("ports=[8080,", 'connect_to=["redis.flask"], ports=[8080,')
    restored.deploy(wider)
    call = "import socket; print(socket.create_connection(('redis.flask', 8080), 5).send(b'PING'))"
    assert restored.docker("exec", apple, "python3", "-c", call) == "4"
    hold = (
        "import socket; s = socket.create_connection(('redis.flask', 8080), 5); print('open', flush=True)\n"
        "try: print(s.recv(10))\nexcept OSError as error: print(type(error).__name__)"
    )
    command = ["docker", "--host", f"unix://{restored.socket}", "exec", apple, "python3", "-c", hold]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        restored.deploy(text)
        assert holder.stdout.readline() == "ConnectionResetError\n"
    assert restored.containers("label=meshbox.container=apple") == [apple]
