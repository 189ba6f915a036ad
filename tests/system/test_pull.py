"""Images that are not here: pulled from a registry, not to be had there, and cut off half-way."""

from __future__ import annotations

import io
import os
import queue
import re
import signal
import subprocess
import tarfile
import threading
from typing import TYPE_CHECKING

import pytest
from machine import IMAGE, MESHBOX, wait_until
from realregistry import Registry
from stand_ins import root_file_system

if TYPE_CHECKING:
    from collections.abc import Iterator

    from machine import Machine

pytestmark = pytest.mark.system

SPEC = """
{name} = service("{name}", containers=[
    container("web", image="{image}", ports=[7000],
              command=["/busybox", "sh", "-c", "trap exit TERM; /busybox httpd -f -p 7000 & wait"]),
])
"""
HALF_WAY = re.compile(r"^image (\S+): pulling ([1-9]|[1-9]\d) %$")


@pytest.fixture(scope="module")
def registry(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry with `thing:1` and `thing:2`, 8 MiB each that nobody can compress, and nothing else."""
    with Registry(machine, tmp_path_factory.mktemp("registry")) as made:
        for name in ("thing:1", "thing:2"):
            machine.docker("import", "-", name, stdin=root_file(os.urandom(8 << 20)))
            made.push(name, name)
            machine.docker("rmi", name)
        yield made


def root_file(filler: bytes) -> bytes:
    """Return a tar file with busybox and something that takes time to fetch."""
    with tarfile.open(root_file_system()) as base:
        found = base.extractfile("./usr/bin/busybox")
        assert found is not None
        busybox = found.read()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in (("busybox", busybox), ("filler", filler), ("page", b"served")):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


@pytest.fixture
def absent(mesh: Machine, registry: Registry) -> Iterator[Registry]:
    """The registry, whose images the machine has not; the gate is open again afterwards."""
    yield registry
    registry.open_gate()
    mesh.clear()
    for image in mesh.docker("images", "--quiet", f"{registry.address}/thing").split():
        mesh.docker("rmi", "--force", image)


class Deploy:
    """A `meshbox deploy` under way, with the lines that it prints."""

    def __init__(self, mesh: Machine, text: str) -> None:
        path = mesh.root / "pulled.py"
        path.write_text(text)
        self._process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{mesh.netns}", str(MESHBOX), "deploy", str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **mesh.settings, "COLUMNS": "200"},
        )
        self.lines: list[str] = []
        self._news = queue.Queue[str]()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._news.put(line.rstrip("\n"))

    def until(self, pattern: re.Pattern[str]) -> None:
        """Wait for a line. Raises queue.Empty when none comes."""
        while not self.lines or not pattern.match(self.lines[-1]):
            self.lines.append(self._news.get(timeout=20))

    def ended(self) -> tuple[int, str]:
        """Wait for the end; return exit status and what went to standard error."""
        assert self._process.stderr is not None
        errors = self._process.stderr.read()
        self._reader.join()
        while not self._news.empty():
            self.lines.append(self._news.get())
        return self._process.wait(), errors


def networks(mesh: Machine) -> list[str]:
    """Return the names of Docker's networks."""
    return sorted(mesh.docker("network", "ls", "--format", "{{.Name}}").split())


def started(mesh: Machine) -> dict[str, str]:
    """Return the containers and when each was started."""
    return {name: mesh.inspect(name)["State"]["StartedAt"] for name in mesh.containers()}


def unfinished(mesh: Machine) -> list[str]:
    """Return what is in the state's folder beside the state; damaged ones of earlier tests do not count."""
    names = [path.name for path in (mesh.root / "state").iterdir()]
    return [name for name in names if name != "state.json" and ".damaged-" not in name]


def answers(mesh: Machine, name: str) -> bool:
    """Whether a container that may reach it gets a page from the service."""
    if not mesh.containers("name=^client$"):
        mesh.run_container("client", IMAGE, service="near", container="client", connect_to="web.one,web.two")
    return mesh.docker("exec", "client", "wget", "-qO-", f"http://web.{name}:7000/page") == "served"


def test_absent_image_is_pulled(mesh: Machine, absent: Registry) -> None:
    """Deploy shows how far the pull is, then starts the container, and it answers."""
    absent.close_gate()
    deploy = Deploy(mesh, SPEC.format(name="one", image=f"{absent.address}/thing:1"))
    deploy.until(HALF_WAY)
    assert mesh.show("services") == []
    assert mesh.containers() == []
    absent.open_gate()
    status, errors = deploy.ended()
    assert status == 0, errors
    told = [line for line in deploy.lines if line.startswith("image ")]
    assert told[0] == f"image {absent.address}/thing:1: pulling"
    assert told[-1] == f"image {absent.address}/thing:1: pulled"
    assert deploy.lines[-1].startswith("ready: one (1 on ")
    assert answers(mesh, "one")


@pytest.mark.timeout(240)
def test_image_that_is_not_there_changes_nothing(mesh: Machine, absent: Registry) -> None:
    """One line and exit 1: no network, no spec; what serves goes on. Detached, it is tried until it is there."""
    nowhere = f"{absent.address}/thing:3"
    before = networks(mesh)
    done = mesh.deploy(SPEC.format(name="one", image=nowhere), check=False)
    assert (done.returncode, done.stdout.splitlines()[1:]) == (1, [])
    (line,) = done.stderr.splitlines()
    assert line.startswith(f'meshbox: nothing was changed: image "{nowhere}" not found here and not pulled: ')
    assert "manifest unknown" in line
    assert (mesh.show("services"), mesh.containers(), networks(mesh)) == ([], [], before)
    mesh.deploy(SPEC.format(name="one", image=f"{absent.address}/thing:1"))
    serving, rows = started(mesh), mesh.show("services")
    done = mesh.deploy(SPEC.format(name="one", image=nowhere), check=False)
    assert done.returncode == 1
    assert "manifest unknown" in done.stderr
    assert (started(mesh), mesh.show("services")) == (serving, rows)
    mesh.deploy(SPEC.format(name="one", image=nowhere), "--detach")
    wait_until(lambda: "manifest unknown" in str(mesh.show("services")), "services say why")
    assert "manifest unknown" in mesh.log(20)
    assert started(mesh) == serving
    absent.push(f"{absent.address}/thing:1", "thing:3")
    wait_until(
        lambda: mesh.docker("ps", "--all", "--format={{.Image}}").split() == [nowhere],
        "the new version has taken its place",
        seconds=60,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_appliance_ends_during_a_pull(mesh: Machine, absent: Registry, number: int) -> None:
    """The deploy that waited is absent, the detached one is finished by the next start; nothing is half-done."""
    before = networks(mesh)
    absent.close_gate()
    mesh.deploy(SPEC.format(name="two", image=f"{absent.address}/thing:2"), "--detach")
    deploy = Deploy(mesh, SPEC.format(name="one", image=f"{absent.address}/thing:1"))
    deploy.until(re.compile(r"^image \S+: pulling"))
    wait_until(lambda: "pulling" in mesh.meshbox("services").stdout, "the detached one is pulled too")
    assert mesh.stop(number) == (0 if number == signal.SIGTERM else -number)
    status, errors = deploy.ended()
    assert status == 1
    (line,) = errors.splitlines()
    assert line.startswith("meshbox: nothing was changed: meshbox closed the connection")
    assert (mesh.containers(), networks(mesh)) == ([], before)
    assert mesh.exec("nft", "list", "tables").stdout.count("meshbox") == (number == signal.SIGKILL)
    mesh.start()
    assert unfinished(mesh) == []
    assert [row["service"] for row in mesh.show("services")] == ["two"]
    absent.open_gate()
    wait_until(lambda: mesh.show("services")[0]["containers"][0]["ready"], "the detached one is ready", seconds=30)
    mesh.deploy(SPEC.format(name="one", image=f"{absent.address}/thing:1"))
    assert answers(mesh, "one")
    assert answers(mesh, "two")
