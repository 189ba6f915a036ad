"""`meshbox cleanup` leaves a host as it was before meshbox came."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from machine import IMAGE

if TYPE_CHECKING:
    from machine import Machine

pytestmark = pytest.mark.system

SPEC = f'kept = service("kept", containers=[container("server", image="{IMAGE}", ports=[7000])])'


def rulesets(machine: Machine) -> list[str]:
    """Return our tables on the host and in the namespaces of all its containers."""
    places = [machine.exec("nft", "list", "tables").stdout]
    places += [machine.exec_in(name, "nft", "list", "tables").stdout for name in machine.containers()]
    return [place for place in places if "meshbox" in place]


def led_inside(machine: Machine, name: str) -> bool:
    """Return whether virtual IPs are led to a container's own loopback interface."""
    return "240.0.0.0/4" in machine.exec_in(name, "ip", "route", "show", "table", "local").stdout


def folders(machine: Machine) -> list[str]:
    """Return which of meshbox's folders there are."""
    return [name for name in ("run", "state") if (machine.root / name).exists()]


def test_nothing_is_left_but_containers(mesh: Machine) -> None:
    """Rules go from host and containers, the network when unused; containers keep running, and state unless told."""
    mesh.deploy(SPEC)
    mesh.docker("network", "create", "--internal", "inside")
    mesh.run_container("labelled", IMAGE, service="a", container="labelled", connect_to="server.kept")
    mesh.run_container("inner", IMAGE, options=["--network=inside"], service="a", container="inner", ports="7000")
    (managed,) = mesh.containers("label=meshbox.revision")
    refused = mesh.meshbox("cleanup", check=False)
    assert refused.returncode == 1
    assert "stop it first" in refused.stderr
    mesh.meshbox("resolve", "server.kept", "--from", "labelled")
    mesh.stop()
    assert len(rulesets(mesh)) == 4
    assert [led_inside(mesh, name) for name in mesh.containers()] == [True] * 3
    started = {name: mesh.inspect(name)["State"]["StartedAt"] for name in mesh.containers()}

    said = mesh.meshbox("cleanup").stdout
    assert "removed: rules of this host\nremoved: rules in 3 containers\n" in said
    assert f"left: containers that meshbox made: docker rm --force {managed}\n" in said
    assert "left: Docker network meshbox, which containers use" in said
    assert rulesets(mesh) == []
    assert [led_inside(mesh, name) for name in mesh.containers()] == [False] * 3
    assert "240.0.0.0" not in mesh.exec_in("inner", "ip", "route").stdout
    assert {name: mesh.inspect(name)["State"]["StartedAt"] for name in mesh.containers()} == started
    assert folders(mesh) == ["state"]

    mesh.docker("rm", "--force", managed)
    said = mesh.meshbox("cleanup", "--state").stdout
    assert f"removed: Docker network meshbox\nremoved: {mesh.root}/run\nremoved: {mesh.root}/state\n" == said
    assert "meshbox" not in mesh.docker("network", "ls")
    assert folders(mesh) == []
    mesh.docker("rm", "--force", "inner")
    mesh.docker("network", "rm", "inside")


def test_works_without_docker(idle: Machine, tmp_path) -> None:
    """Where Docker does not answer, all else is removed and the line says what to do about the network."""
    idle.start()
    idle.stop(signal.SIGKILL)  # stopped in order it would leave nothing
    said = idle.meshbox("cleanup", docker_socket=str(tmp_path / "none.sock"))
    assert "removed: rules of this host\n" in said.stdout
    assert "docker network rm meshbox" in said.stdout
    assert rulesets(idle) == []
