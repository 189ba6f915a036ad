"""A machine without Docker beside one with containers: it serves its own host, and computers that use it as gateway."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import orjson
import pytest
from cluster import Cluster
from machine import IMAGE, run, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cluster import Member
    from machine import Switch

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

CALL = (
    "import socket, sys\n"
    "kind = socket.SOCK_DGRAM if sys.argv[3:] else socket.SOCK_STREAM\n"
    "s = socket.socket(type=kind); s.settimeout(5)\n"
    "try:\n"
    "    s.connect((sys.argv[1], int(sys.argv[2])))\n"
    "    if kind == socket.SOCK_DGRAM: s.send(b'hello')\n"
    "    print(s.recv(100).decode().split()[0])\n"
    "except OSError as error: print(type(error).__name__)"
)


@pytest.fixture(scope="module")
def cluster(switch: Switch) -> Iterator[Cluster]:
    """Two machines with Consul and appliances."""
    with Cluster(switch, first=21, count=2) as made:
        yield made


@pytest.fixture
def gateway(cluster: Cluster, switch: Switch, tmp_path: Path) -> Iterator[Member]:
    """The second machine as a gateway without Docker, which serves the host and the outside world."""
    full, gate = cluster.machines
    full.run_container("server", IMAGE, service="far", container="server", ports="7000,7000/udp")
    full.run_container("other", IMAGE, service="far", container="other", ports="7000")
    gate.stop()
    text = f"nameserver {switch.address}\n"
    (tmp_path / "resolv.conf").write_text(text)
    gate.start(
        gateway="auto",
        docker_socket=f"{tmp_path}/none.sock",
        resolv_conf=f"{tmp_path}/resolv.conf",
        guests=switch.address,
        guest_connect_to="server.far",
        dns_listen=f"127.66.0.53,{gate.address}",
    )
    switch.exec("ip", "route", "add", "240.0.0.0/4", "via", gate.address)
    yield gate
    switch.exec("ip", "route", "delete", "240.0.0.0/4")
    gate.stop()
    assert (tmp_path / "resolv.conf").read_text() == text
    assert "meshbox" not in gate.exec("nft", "list", "ruleset").stdout
    full.clear()


def call(netns: str, resolver: str, folder: Path, *words: str, hosts: str = "") -> str:
    """Connect from a process in a namespace that has this resolver and /etc/hosts; return the answer or the error."""
    (folder / "asked").write_text(f"nameserver {resolver}\n")
    (folder / "hosts").write_text(hosts)
    files = (("asked", "/etc/resolv.conf"), ("hosts", "/etc/hosts"))
    enter = " && ".join([*(f'mount --bind "{folder}/{name}" {path}' for name, path in files), 'exec "$@"'])
    command = ("unshare", "--mount", "sh", "-c", enter, "sh", sys.executable, "-c", CALL, *words)
    return run("nsenter", f"--net=/run/netns/{netns}", *command).stdout.strip()


def test_gateway(cluster: Cluster, gateway: Member, switch: Switch, tmp_path: Path) -> None:
    """The host reaches every name of the registry; a guest what it may, by DNS or the lines of `meshbox hosts`.

    A deploy there runs where Docker is.
    """
    full = cluster.machines[0]
    name = full.inspect("server")["Config"]["Hostname"]
    for words in (("server.far", "7000"), ("server.far", "7000", "udp")):
        wait_until(
            lambda words=words: call(gateway.netns, "127.66.0.53", tmp_path, *words) == name, "the host is served"
        )
        assert call(switch.netns, gateway.address, tmp_path, *words) == name
    other = full.inspect("other")["Config"]["Hostname"]
    assert wait_until(lambda: call(gateway.netns, "127.66.0.53", tmp_path, "other.far", "7000") == other, "all names")
    assert call(switch.netns, gateway.address, tmp_path, "other.far", "7000") == "gaierror"
    lines = gateway.meshbox("hosts").stdout
    hosts = dict(reversed(line.split()[:2]) for line in lines.splitlines())
    assert set(hosts) == {"server.far", "other.far"}
    nobody = "127.0.0.1"  # there is no DNS server
    assert call(switch.netns, nobody, tmp_path, "server.far", "7000", hosts=lines) == name
    assert call(switch.netns, nobody, tmp_path, "server.far.mesh.internal", "7000", hosts=lines) == name
    assert call(switch.netns, nobody, tmp_path, "other.far", "7000", hosts=lines) == "ConnectionRefusedError"
    assert call(switch.netns, gateway.address, tmp_path, hosts["other.far"], "7000") == "ConnectionRefusedError"
    gateway.deploy(f"two = service('two', count=2, containers=[container('server', image='{IMAGE}', ports=[7000])])")
    assert len(full.containers("label=meshbox.service=two")) == 2
    assert gateway.containers("label=meshbox.service=two") == []


def test_check_says_what_is_missing(gateway: Member, tmp_path: Path) -> None:
    """`check` ends with 0, and says which options add the rest; so does the log, in one line."""
    settings = {"gateway": "auto", "docker_socket": f"{tmp_path}/none.sock", **gateway.registry}
    done = gateway.meshbox("check", "--json", **settings)
    assert done.returncode == 0
    rest = "--pid=host -v /var/run/docker.sock:/var/run/docker.sock -v /var/lib/meshbox:/var/lib/meshbox"
    (docker,) = [row for row in orjson.loads(done.stdout) if row["subject"] == "Docker"]
    assert docker["level"] == "warning"
    assert rest in docker["remedy"]
    said = [line for line in gateway.log().splitlines() if rest in line]
    assert len(said) >= 1
    assert "this is a gateway" in said[0]
