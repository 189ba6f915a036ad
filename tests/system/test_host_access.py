"""Names of the mesh for processes of the host itself (`host_access`), and everything as before once it has stopped."""

from __future__ import annotations

import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from machine import IMAGE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from machine import Machine

pytestmark = pytest.mark.system

CALL = (
    "import socket, sys\n"
    "try: print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).recv(100).decode().split()[0])\n"
    "except OSError as error: print(type(error).__name__)"
)
DECLARED = {"host_access": "true", "host_connect_to": "server.far:7000,later.far"}


@pytest.fixture
def resolv_conf(tmp_path: Path, idle: Machine) -> Path:
    """A resolver file that stands for /etc/resolv.conf."""
    path = tmp_path / "resolv.conf"
    path.write_text(f"# mine\nsearch example.org\nnameserver {idle.switch.address}\n")
    path.chmod(0o640)
    return path


@contextmanager
def served(machine: Machine, resolv_conf: Path, **settings: str) -> Iterator[None]:
    """Two servers run, and the appliance serves the host."""
    machine.start(resolv_conf=str(resolv_conf), **{**DECLARED, **settings})
    machine.run_container("server", IMAGE, service="far", container="server", ports="7000,8000:7000")
    machine.run_container("other", IMAGE, service="far", container="other", ports="7000")
    wait_until(lambda: machine.meshbox("services", "--json").stdout.count('"ready": 1') == 2, "both are ready")
    yield


def call(machine: Machine, resolv_conf: Path, name: str, port: int) -> str:
    """Connect from a process of the host that reads this resolver file, and return the answer or the error."""
    enter = f'mount --bind "{resolv_conf}" /etc/resolv.conf && exec "$@"'
    command = ("unshare", "--mount", "sh", "-c", enter, "sh", sys.executable, "-c", CALL, name, str(port))
    return machine.exec(*command).stdout.strip()


def traces(machine: Machine) -> tuple[str, ...]:
    """Return everything of the host that host access changes."""
    rules = machine.exec("nft", "list", "table", "inet", "meshbox", check=False).stdout
    return tuple(word for word in ("host_routes", "guests") if word in rules), machine.exec(
        "ip", "route", "show", "dev", "lo"
    ).stdout


def test_host_reaches_what_is_declared(idle: Machine, resolv_conf: Path) -> None:
    """A process of the host reaches by name what host_connect_to names, is refused the rest, and stop undoes it."""
    before, text = traces(idle), resolv_conf.read_bytes()
    mode = resolv_conf.stat().st_mode
    with served(idle, resolv_conf):
        assert "nameserver 127.66.0.53\n" in resolv_conf.read_text()
        assert resolv_conf.stat().st_mode == mode
        answer = wait_until(lambda: call(idle, resolv_conf, "server.far", 7000), "the server answers")
        assert answer == idle.inspect("server")["Config"]["Hostname"]
        assert call(idle, resolv_conf, "server.far.mesh.internal", 7000) == answer
        assert call(idle, resolv_conf, "server.far", 8000) == "ConnectionRefusedError"
        assert call(idle, resolv_conf, "later.far", 7000) == "ConnectionRefusedError"
        assert call(idle, resolv_conf, "other.far", 7000) == "gaierror"
        assert idle.meshbox("check", resolv_conf=str(resolv_conf), **DECLARED).returncode == 0
        idle.stop()
    assert resolv_conf.read_bytes() == text
    assert traces(idle) == before


@pytest.mark.parametrize("end", ["start", "cleanup"])
def test_killed(idle: Machine, resolv_conf: Path, end: str) -> None:
    """After kill -9 the host still resolves other names; the next start or `meshbox cleanup` puts everything back."""
    before, text = traces(idle), resolv_conf.read_bytes()
    with served(idle, resolv_conf, host_connect_to="*"):
        assert call(idle, resolv_conf, "other.far", 7000) == idle.inspect("other")["Config"]["Hostname"]
        idle.stop(signal.SIGKILL)
    assert resolv_conf.read_bytes() != text
    assert call(idle, resolv_conf, "outside.example", 1) == "ConnectionRefusedError"
    if end == "start":
        idle.start(resolv_conf=str(resolv_conf))
        assert resolv_conf.read_bytes() == text
        assert traces(idle) == before
    else:
        said = idle.meshbox("cleanup", resolv_conf=str(resolv_conf)).stdout
        assert f"removed: route to virtual IPs\nremoved: nameserver in {resolv_conf}\n" in said
        assert resolv_conf.read_bytes() == text
        assert traces(idle) == before
