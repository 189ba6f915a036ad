"""The image: built from the Dockerfile as it stands, and at work with the commands that the Dockerfile names."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import orjson
import pytest
from debian import Debian, Outlet, PrivilegedMachine, client, example_answers, slim_root, world
from machine import IMAGE, ROOT, Switch, run, wait_until

from appliance import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

HOLD = "import socket, threading; s = socket.create_connection(('apple.orange', 8080)); threading.Event().wait()"
"""Opens a connection and leaves it open."""
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def built(switch: Switch) -> Iterator[tuple[PrivilegedMachine, str]]:
    """A machine with the image, and the address of the package index that it was built from."""
    with PrivilegedMachine(switch, 8) as machine, Outlet(machine.netns) as outlet:
        machine.docker.import_tar(slim_root(), "debian:bookworm-slim")
        settings = (
            f"http_proxy={outlet.address}",
            "no_proxy=127.0.0.1",
            "PIP_NO_INDEX=1",
            f"PIP_FIND_LINKS={outlet.address}/",
            "PIP_TRUSTED_HOST=127.0.0.1",
            f"VERSION={__version__}",
            f"REVISION={COMMIT}",
        )
        arguments = [word for setting in settings for word in ("--build-arg", setting)]
        run(
            *("docker", "--host", f"unix://{machine.socket}", "build", "--network=host", "--tag=meshbox", *arguments),
            ROOT,
            env={**os.environ, "DOCKER_BUILDKIT": "0"},  # buildx is not in Debian; the file serves both builders
            timeout=280,
        )
        yield machine, outlet.address


@pytest.fixture
def machine(built: tuple[PrivilegedMachine, str]) -> Iterator[PrivilegedMachine]:
    """The machine with the image; its containers are removed afterwards."""
    yield built[0]
    built[0].clear()


def test_image_is_small_and_holds_nothing_of_the_build(built: tuple[PrivilegedMachine, str]) -> None:
    """At most 150 MB, no compiler, no pip, nothing that names the build host's index; and it says what it is."""
    machine, index = built
    found = orjson.loads(machine.docker("image", "inspect", "meshbox"))[0]
    assert found["Size"] <= 150_000_000
    history = machine.docker("history", "--no-trunc", "meshbox")
    assert index not in history
    assert index.removeprefix("http://") not in str(found["Config"])
    search = f"grep -rlF '{index}' /etc /usr /var /root; ls /usr/bin | grep -xE 'pip.*|gcc|cc|g\\+\\+|as|ld'; true"
    assert machine.docker("run", "--rm", "--entrypoint=sh", "meshbox", "-c", search) == ""
    labels = found["Config"]["Labels"]
    assert labels["org.opencontainers.image.title"] == "meshbox"
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.revision"] == COMMIT
    assert labels["org.opencontainers.image.licenses"] == "MIT"
    assert found["Config"]["Entrypoint"] + found["Config"]["Cmd"] == ["meshbox", "run"]
    assert machine.docker("run", "--rm", "meshbox", "--version") == f"meshbox {__version__} ({COMMIT[:7]})"


def logged(machine: PrivilegedMachine, container: str) -> str:
    """Return what a container has printed."""
    done = run("docker", "--host", f"unix://{machine.socket}", "logs", container)
    return done.stdout + done.stderr


def test_gateway(machine: PrivilegedMachine) -> None:
    """`docker run --net=host --privileged meshbox` runs as a gateway, and one line says which options add the rest."""
    machine.docker("run", "--detach", "--name=bare", "--net=host", "--privileged", "meshbox")
    wait_until(lambda: '"ready"' in logged(machine, "bare"), "it is ready")
    rest = "--pid=host -v /var/run/docker.sock:/var/run/docker.sock -v /var/lib/meshbox:/var/lib/meshbox"
    assert len([line for line in logged(machine, "bare").splitlines() if rest in line]) == 1
    assert "there is nothing to serve" in logged(machine, "bare")
    rows = orjson.loads(machine.docker("exec", "bare", "meshbox", "check", "--json"))
    assert {row["subject"] for row in rows if row["level"] == "warning"} >= {"Docker", "registry"}
    assert [row for row in rows if row["level"] == "failed"] == []
    machine.docker("stop", "bare")
    assert machine.docker("inspect", "--format", "{{.State.ExitCode}}", "bare") == "0"
    assert "meshbox" not in machine.exec("nft", "list", "ruleset").stdout
    assert machine.exec("ip", "route", "show", "dev", "lo").stdout == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--net=host"], "run the container with --privileged"),
        (["--net=host", "--privileged", "SOCKET"], "run the container with --pid=host"),
        (["--privileged", "--pid=host", "SOCKET"], "run the container with --net=host"),
    ],
    ids=["not privileged", "own processes", "own network"],
)
def test_what_is_missing_is_named(machine: PrivilegedMachine, options: list[str], words: str) -> None:
    """One line names the option to add, in the log and in `check`, which ends with 1."""
    given = [f"--volume={machine.socket}:/var/run/docker.sock" if word == "SOCKET" else word for word in options]
    machine.docker("run", "--detach", "--name=weak", *given, "meshbox")
    wait_until(lambda: words in logged(machine, "weak"), words)
    assert len(logged(machine, "weak").strip().splitlines()) <= 2
    client = ("docker", "--host", f"unix://{machine.socket}", "run", "--rm")
    check = run(*client, *given, "--env=COLUMNS=300", "meshbox", "check", check=False)
    assert check.returncode == 1
    assert words in check.stdout


def test_whole_appliance(machine: PrivilegedMachine) -> None:
    """With Docker's socket and the host's processes it serves labelled containers, is healthy, and ends at SIGTERM."""
    machine.docker(
        *("run", "--detach", "--name=meshbox", "--net=host", "--privileged", "--pid=host"),
        *(f"--volume={machine.socket}:/var/run/docker.sock", f"--volume={machine.root}/state:/var/lib/meshbox"),
        # The host's own root is closed on test computers; the engine has the same one.
        *("--env", f"MESHBOX_NETNS_DIR={machine.seen}{machine.netns_dir}", "--health-interval=1s"),
        *("--env", f"MESHBOX_DNS_UPSTREAMS={machine.switch.address}", "meshbox"),
    )
    state = "{{.State.Status}} {{.State.Health.Status}}"
    wait_until(lambda: machine.docker("inspect", "--format", state, "meshbox") == "running healthy", "it is healthy")
    machine.run_container("apple", IMAGE, service="orange", container="apple", ports="8080:7000")
    machine.run_container("client", IMAGE, service="test", container="client", connect_to="apple.orange:8080")
    machine.run_container("other", IMAGE, service="test2", container="other")
    said = ("exec", "meshbox", "meshbox")
    wait_until(lambda: machine.docker(*said, "services", "--json").count('"ready": 1') == 3, "three are ready")
    results = machine.client("client", "tcp", "apple.orange", "8080", "20")
    assert all(result.get("answer") for result in results), results
    assert machine.client("other", "resolve", "apple.orange").get("addresses", []) == []
    assert "appliance" in machine.docker(*said, "check")
    machine.docker("exec", "--detach", "client", "python3", "-c", HOLD)
    wait_until(lambda: "apple.orange" in machine.docker(*said, "connections"), "a connection is open")
    machine.docker("stop", "meshbox")
    assert machine.docker("inspect", "--format", "{{.State.ExitCode}}", "meshbox") == "0"
    assert machine.docker(
        *("run", "--rm", "--net=host", "--privileged", "--pid=host", f"--volume={machine.socket}:/var/run/docker.sock"),
        *("--env", f"MESHBOX_NETNS_DIR={machine.seen}{machine.netns_dir}", "meshbox", "cleanup"),
    ).startswith("removed: rules of this host\nremoved: rules in 3 containers")


def test_from_nothing_to_names_and_back(machine: PrivilegedMachine) -> None:
    """By the README's commands the example answers by name, and then everything is as before, containers running."""
    client(machine)
    before = world(machine)
    machine.docker(
        *("run", "-d", "--name", "meshbox", "--net=host", "--privileged", "--pid=host", "--restart", "unless-stopped"),
        *("-v", f"{machine.socket}:/var/run/docker.sock"),
        *("-v", f"{machine.root}/state:/var/lib/meshbox"),
        *("-e", f"MESHBOX_NETNS_DIR={machine.seen}{machine.netns_dir}"),
        *("-e", f"MESHBOX_DNS_UPSTREAMS={machine.switch.address}", "meshbox"),
    )
    said = ("exec", "-i", "meshbox", "meshbox")
    wait_until(lambda: '"ready"' in logged(machine, "meshbox"), "it is ready")
    assert '"failed"' not in machine.docker(*said, "check", "--json")
    machine.docker(*said, "deploy", "/dev/stdin", stdin=(ROOT / "examples/app.py").read_bytes())
    example_answers(machine)
    machine.docker(*said, "remove", "flask", "orange")
    machine.docker("stop", "meshbox")
    machine.docker(
        *("run", "--rm", "--net=host", "--privileged", "--pid=host", "-v", f"{machine.socket}:/var/run/docker.sock"),
        *("-e", f"MESHBOX_NETNS_DIR={machine.seen}{machine.netns_dir}", "meshbox", "cleanup"),
    )
    machine.docker("rm", "meshbox")
    assert world(machine) == before


def test_compose(machine: PrivilegedMachine, tmp_path: Path) -> None:
    """packaging/compose.yaml runs the appliance, and what examples/compose.yaml labels answers by name."""
    debian = Debian(tmp_path)
    debian("apt-get", "-qq", "install", "--no-install-recommends", "docker-compose")
    # The host's own places are not the test's: mounts to the same targets take theirs.
    (tmp_path / "srv/places.yaml").write_text(
        "services:\n  meshbox:\n    volumes:\n"
        f"      - {machine.socket}:/var/run/docker.sock\n      - {machine.root}/state:/var/lib/meshbox\n"
        f"      - {machine.root}/run:/run/meshbox\n"
        f"    environment:\n      MESHBOX_NETNS_DIR: {machine.seen}{machine.netns_dir}\n"
        f"      MESHBOX_DNS_UPSTREAMS: {machine.switch.address}\n"
    )
    for source in ("packaging", "examples"):
        (tmp_path / "srv" / source).mkdir()
        shutil.copy(ROOT / source / "compose.yaml", tmp_path / "srv" / source)

    def compose(*words: str) -> str:
        # Without the docker command beside it, it talks to the engine itself.
        env = (f"DOCKER_HOST=unix://{machine.seen}{machine.socket}", "COMPOSE_INTERACTIVE_NO_CLI=1")
        client = ("env", *env, "docker-compose")
        return debian(*client, *words, netns=machine.netns).stdout.strip()

    appliance = ("-f", "/srv/packaging/compose.yaml", "-f", "/srv/places.yaml")
    services = ("-f", "/srv/examples/compose.yaml")
    compose(*appliance, "up", "--detach", "--no-build")
    said = (*appliance, "exec", "-T", "meshbox", "meshbox")
    wait_until(lambda: '"ready"' in compose(*appliance, "logs", "--no-color"), "the appliance is ready")
    compose(*services, "up", "--detach")
    wait_until(lambda: compose(*said, "services", "--json").count('"ready": 1') == 3, "three are ready")
    apple = compose(*services, "ps", "-q", "apple")[:12]
    fetch = (*services, "exec", "-T", "flask", "wget", "-qO-", "http://apple.orange:8080/")
    assert compose(*fetch) == f"Hello World from {apple}"
    ping = (*services, "exec", "-T", "redis", "redis-cli", "-h", "redis.flask", "ping")
    assert compose(*ping) == "PONG"
    compose(*services, "down")
    compose(*appliance, "down")
    assert "meshbox" not in machine.exec("nft", "list", "ruleset").stdout
