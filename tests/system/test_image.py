"""The image: built from the Dockerfile as it stands, and at work with the commands that the Dockerfile names."""

from __future__ import annotations

import os
import re
import shutil
from functools import partial
from typing import TYPE_CHECKING

import orjson
import pytest
from cluster import Cluster, Kept, Server
from computer import SYSTEMD_WORK, Computer, without_limits
from debian import (
    COMPILED,
    Debian,
    Outlet,
    WholeMachine,
    by_way_of,
    clean_clone,
    client,
    example_answers,
    slim_root,
    world,
)
from documents import documented, quoted
from machine import IMAGE, IMAGES, ROOT, Program, Switch, run, wait_until
from stand_ins import BASE, STAND_INS, load
from test_bad_host import occupied
from test_tour import follow

from appliance import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

patiently = partial(wait_until, seconds=60.0)
"""A container of the image takes seconds to start where others build images meanwhile."""
HOLD = "import socket, threading; s = socket.create_connection(('apple.orange', 8080)); threading.Event().wait()"
"""Opens a connection and leaves it open."""
AT_WORK = re.compile(rf"{SYSTEMD_WORK.pattern}|/var/lib/(docker|containerd)/")
"""What systemd and Docker write while they run."""
CALL = (
    "import socket, sys\n"
    "print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).recv(100).decode().split()[0])"
)
"""Connects, and prints who answers."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean clone."""
    return clean_clone(tmp_path_factory.mktemp("image") / "meshbox")


@pytest.fixture(scope="module")
def built(switch: Switch, source: Path) -> Iterator[tuple[WholeMachine, str]]:
    """A machine where `make image` has been run, and the address of the package index that it was built from."""
    with WholeMachine(switch, 8) as machine, Outlet(machine.netns, "172.28.0.1") as outlet:
        machine.docker.import_tar(slim_root(), "debian:bookworm-slim")
        legacy = {"DOCKER_BUILDKIT": "0"}  # buildx is not in Debian; the file serves both builders
        machine.shell("make image", source, env={**os.environ, **by_way_of(outlet), **legacy}, timeout=500)
        yield machine, outlet.address


@pytest.fixture
def machine(built: tuple[WholeMachine, str]) -> Iterator[WholeMachine]:
    """The machine with the image; its containers are removed afterwards."""
    machine = built[0]
    yield machine
    machine.clear()
    machine.shell("rm -rf /var/lib/meshbox /run/meshbox")


@pytest.fixture
def kept(machine: WholeMachine) -> Iterator[None]:
    """The image gets another name, by which the test's end finds it again."""
    machine.docker("tag", "meshbox", "kept")
    yield
    # With only one name Docker would refuse to remove an image that a container still uses.
    assert machine.docker("ps", "--all", "--quiet", "--filter=ancestor=kept") == ""
    machine.docker("tag", "kept", "meshbox")
    machine.docker("rmi", "kept")


def test_image_is_small_and_holds_nothing_of_the_build(built: tuple[WholeMachine, str], source: Path) -> None:
    """At most 150 MB, compiled, no compiler, no pip, no name of the build host's index; and it says what it is."""
    machine, index = built
    commit = run("git", "-C", source, "rev-parse", "HEAD").stdout.strip()
    found = orjson.loads(machine.docker("image", "inspect", "meshbox"))[0]
    assert found["Size"] <= 150_000_000
    history = machine.docker("history", "--no-trunc", "meshbox")
    assert index not in history
    assert index.removeprefix("http://") not in str(found["Config"])
    search = f"grep -rlF '{index}' /etc /usr /var /root; ls /usr/bin | grep -xE 'pip.*|gcc|cc|g\\+\\+|as|ld'; true"
    assert machine.docker("run", "--rm", "--entrypoint=sh", "meshbox", "-c", search) == ""
    python = ("run", "--rm", "--entrypoint=/usr/lib/meshbox/bin/python", "meshbox")
    assert machine.docker(*python, "-c", COMPILED).split() == [".so"] * 2
    labels = found["Config"]["Labels"]
    assert labels["org.opencontainers.image.title"] == "meshbox"
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.revision"] == commit
    assert labels["org.opencontainers.image.licenses"] == "MIT"
    assert found["Config"]["Entrypoint"] + found["Config"]["Cmd"] == ["meshbox", "run"]
    assert machine.docker("run", "--rm", "meshbox", "--version") == f"meshbox {__version__} ({commit[:7]})"


def logged(machine: WholeMachine, container: str) -> str:
    """Return what a container has printed."""
    done = run("docker", "--host", f"unix://{machine.socket}", "logs", container)
    return done.stdout + done.stderr


def test_gateway(machine: WholeMachine) -> None:
    """`docker run --net=host --privileged meshbox` runs as a gateway, and one line says which options add the rest."""
    machine.docker("run", "--detach", "--name=bare", "--net=host", "--privileged", "meshbox")
    patiently(lambda: '"ready"' in logged(machine, "bare"), "it is ready")
    rest = "--pid=host -v /var/run/docker.sock:/var/run/docker.sock -v /var/lib/meshbox:/var/lib/meshbox"
    (line,) = [line for line in logged(machine, "bare").splitlines() if rest in line]
    assert "every name in Consul at http://127.0.0.1:8500" in line
    assert "MESHBOX_CONSUL=" in line
    rows = orjson.loads(machine.docker("exec", "bare", "meshbox", "check", "--json"))
    assert {row["subject"] for row in rows if row["level"] == "warning"} >= {"Docker", "Consul"}
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
        (["--privileged"], "run the container with --net=host"),
    ],
    ids=["not privileged", "own processes", "own network", "a gateway with a network of its own"],
)
def test_what_is_missing_is_named(machine: WholeMachine, options: list[str], words: str) -> None:
    """One line names the option to add, in the log and in `check`, which ends with 1."""
    given = ["--volume=/var/run/docker.sock:/var/run/docker.sock" if word == "SOCKET" else word for word in options]
    machine.docker("run", "--detach", "--name=weak", *given, "meshbox")
    patiently(lambda: words in logged(machine, "weak"), words)
    assert len(logged(machine, "weak").strip().splitlines()) <= 2
    client = ("docker", "--host", f"unix://{machine.socket}", "run", "--rm")
    check = run(*client, *given, "--env=COLUMNS=300", "meshbox", "check", check=False)
    assert check.returncode == 1
    assert words in check.stdout


def test_host_that_is_not_fit(machine: WholeMachine) -> None:
    """Where another program has port 53, the first command of the documents names the remedy; so does the log."""
    remedy = "or set dns_port to a free port"
    with occupied(machine, "0.0.0.0", 53, "DGRAM"):
        check = machine.shell(f"{documented('docker run --rm')} || echo it ended with $?")
        assert remedy in check
        assert "it ended with 1" in check
        machine.shell(documented("docker run -d"))
        (look,) = quoted(r"does not stay up, `([^`]*)` says why")
        patiently(lambda: remedy in machine.shell(f"{look} 2>&1"), "the log names the remedy")
    patiently(lambda: '"ready"' in logged(machine, "meshbox"), "with the port free again it runs")


def test_five_minutes(machine: WholeMachine, tmp_path: Path) -> None:
    """By the image the tour goes with the alias and the words for files that it gives."""
    machine.shell(documented("docker run -d"))
    patiently(lambda: '"ready"' in logged(machine, "meshbox"), "it is ready")
    (alias,) = quoted(r"`(alias meshbox=[^`]*)`")
    (file,) = quoted(r"Write `([^`]*)` for `app.py`")

    def shell(line: str) -> str:
        return machine.shell(f"{alias}\nexec 2>&1; {line.replace('app.py', file)}", tmp_path, check=False)

    follow(shell, tmp_path)


def test_stop_drains(machine: WholeMachine) -> None:
    """What is open when `docker stop` begins goes on until it is done, with the documents' options for longer ones."""
    setting, patience = quoted(r"`(-e MESHBOX_DRAIN=\d+)` and `(--stop-timeout \d+)`")
    machine.shell(documented("docker run -d").removesuffix(" meshbox") + f" {setting} {patience} meshbox")
    patiently(lambda: '"ready"' in logged(machine, "meshbox"), "it is ready")
    machine.run_container("apple", IMAGE, service="orange", container="apple", ports="8080:7000")
    machine.run_container("client", IMAGE, service="test", container="client", connect_to="apple.orange:8080")

    patiently(lambda: "answer" in machine.client("client", "tcp", "apple.orange", "8080", "1")[0], "it is reached")

    def passed() -> int:
        rows = orjson.loads(machine.docker("exec", "meshbox", "meshbox", "connections", "--json"))
        return sum(row["bytes_out"] for row in rows)

    with Kept(machine, "client", "apple.orange", "8080", tcp=1) as kept:
        stopping = Program(machine.netns, machine.inside("docker", "stop", "meshbox"), machine.root / "stop.log")
        patiently(lambda: '"draining"' in logged(machine, "meshbox"), "it drains")
        before = passed()
        patiently(lambda: passed() > before, "what is open goes on")
        assert stopping.running
    assert kept.broken() == []
    assert stopping.stop(0, seconds=60) == 0
    assert machine.docker("inspect", "--format", "{{.State.ExitCode}}", "meshbox") == "0"
    timeout, drain = (int(words.split()[-1].rpartition("=")[2]) for words in (patience, setting))
    assert machine.inspect("meshbox")["Config"]["StopTimeout"] == timeout > drain


def test_whole_appliance(machine: WholeMachine) -> None:
    """With Docker's socket and the host's processes it serves labelled containers, is healthy, and ends at SIGTERM."""
    machine.shell(documented("docker run -d").replace(" --net=host", " --health-interval=1s --net=host"))
    state = "{{.State.Status}} {{.State.Health.Status}}"
    patiently(lambda: machine.docker("inspect", "--format", state, "meshbox") == "running healthy", "it is healthy")
    machine.run_container("apple", IMAGE, service="orange", container="apple", ports="8080:7000")
    machine.run_container("client", IMAGE, service="test", container="client", connect_to="apple.orange:8080")
    machine.run_container("other", IMAGE, service="test2", container="other")
    said = ("exec", "meshbox", "meshbox")
    patiently(lambda: machine.docker(*said, "services", "--json").count('"ready": 1') == 3, "three are ready")
    results = machine.client("client", "tcp", "apple.orange", "8080", "20")
    assert all(result.get("answer") for result in results), results
    assert machine.client("other", "resolve", "apple.orange").get("addresses", []) == []
    assert "appliance" in machine.docker(*said, "check")
    machine.docker("exec", "--detach", "client", "python3", "-c", HOLD)
    patiently(lambda: "apple.orange" in machine.docker(*said, "connections"), "a connection is open")
    machine.docker("stop", "meshbox")
    draining, *_ = [line for line in logged(machine, "meshbox").splitlines() if '"draining"' in line]
    assert orjson.loads(draining)["seconds"] == 5
    assert machine.docker("inspect", "--format", "{{.State.ExitCode}}", "meshbox") == "0"
    clean = documented("docker stop meshbox").partition(" && ")[2]
    said = machine.shell(clean)
    assert "removed: port claims of this host's bridges\nremoved: rules of this host\n" in said
    assert "removed: rules in 3 containers\n" in said


def test_without_privileges(machine: WholeMachine) -> None:
    """With the capabilities that the documents name it does the same: rules, doors, names, and cleaning up."""
    machine.shell(documented("docker run --detach"))
    patiently(lambda: '"ready"' in logged(machine, "meshbox"), "it is ready")
    machine.run_container("apple", IMAGE, service="orange", container="apple", ports="8080:7000")
    machine.run_container("client", IMAGE, service="test", container="client", connect_to="apple.orange:8080")
    said = ("exec", "meshbox", "meshbox")

    def doors() -> list[object]:
        return [row["door"] for row in orjson.loads(machine.docker(*said, "workloads", "--json"))]

    patiently(lambda: doors() == ["open", "open"], "both doors are open")
    results = machine.client("client", "tcp", "apple.orange", "8080", "20")
    assert all(result.get("answer") for result in results), results
    assert "appliance" in machine.docker(*said, "check")
    assert [line for line in logged(machine, "meshbox").splitlines() if '"level":"error"' in line] == []
    machine.docker("stop", "meshbox")
    assert machine.docker("inspect", "--format", "{{.State.ExitCode}}", "meshbox") == "0"


def files(machine: WholeMachine) -> str:
    """Return the paths that bear our name, in the machine's own folders."""
    return machine.shell("find /etc /run /var/lib /usr -iname '*meshbox*' | sort")


@pytest.mark.usefixtures("kept")
def test_from_nothing_to_names_and_back(machine: WholeMachine, source: Path) -> None:
    """By the documents' commands the example answers by name, and then everything is as before, containers running."""
    client(machine)
    before = world(machine), files(machine)
    machine.shell(documented("docker run --rm"))
    machine.shell(documented("docker run -d"))
    machine.shell(documented("docker exec -i meshbox"), source)
    example_answers(machine)
    machine.docker("exec", "meshbox", "meshbox", "remove", "flask", "orange")
    machine.shell(documented("docker stop meshbox"))
    machine.shell(documented("docker rm meshbox"))
    assert (world(machine), files(machine)) == before
    assert machine.docker("images", "--quiet", "meshbox") == ""


def call(machine: WholeMachine, name: str, port: int) -> str:
    """Connect from a process of the host, and return who answers; empty: nobody."""
    found = machine.shell(f"python3 -c '{CALL}' {name} {port}", check=False)
    return found.strip()


def test_names_for_the_host(machine: WholeMachine) -> None:
    """With the documents' options for `host_access` the host's own resolver file leads to the mesh, until it stops.

    After a crash `meshbox cleanup` with the same options puts the file back.
    """
    options = documented("-v /etc/resolv.conf:")
    looks = "cat /etc/resolv.conf; stat -c %a /etc/resolv.conf; ip -4 route show table all | sed 's/ linkdown//'"
    before = machine.shell(looks)
    machine.shell(documented("docker run -d").removesuffix(" meshbox") + f" {options} meshbox")
    machine.run_container("server", IMAGE, service="far", container="server", ports="7000")
    name = machine.inspect("server")["Config"]["Hostname"]
    patiently(lambda: call(machine, "server.far", 7000) == name, "the host reaches the server")
    machine.docker("exec", "meshbox", "meshbox", "check")
    machine.docker("kill", "meshbox")
    assert "nameserver 127.66.0.53" in machine.shell(looks)
    clean = documented("docker stop meshbox").partition(" && ")[2]
    machine.shell(clean.replace(" meshbox cleanup", f" {options} meshbox cleanup"))
    assert machine.shell(looks) == before
    machine.docker("start", "meshbox")
    patiently(lambda: call(machine, "server.far", 7000) == name, "the host reaches the server again")
    machine.docker("rm", "--force", "server")
    machine.docker("stop", "meshbox")
    assert machine.shell(looks) == before


def test_gateway_serves_the_registry(machine: WholeMachine, switch: Switch) -> None:
    """The same finds a Consul that comes to this machine later: the host reaches by name what another one serves."""
    with Cluster(switch, first=31, count=1) as cluster:
        (full,) = cluster
        full.run_container("server", IMAGE, service="far", container="server", ports="7000,7000/udp")
        name = full.inspect("server")["Config"]["Hostname"]
        consul = Server(machine, (full.address,))
        machine.docker("run", "--detach", "--name=gate", "--net=host", "--privileged", "meshbox")
        patiently(lambda: '"ready"' in logged(machine, "gate"), "it is ready without Consul")
        try:
            consul.start()
            resolver = (machine.root / "resolv.conf").read_text()
            (machine.root / "resolv.conf").write_text("nameserver 127.66.0.53\n")
            try:
                patiently(lambda: call(machine, "server.far", 7000) == name, "the host reaches the server")
                assert " server.far" in machine.docker("exec", "gate", "meshbox", "hosts")
                machine.docker("exec", "gate", "meshbox", "check")
            finally:
                (machine.root / "resolv.conf").write_text(resolver)
            machine.docker("stop", "gate")
            assert machine.docker("inspect", "--format", "{{.State.ExitCode}}", "gate") == "0"
            patiently(lambda: full.knows == {full.node}, "the other machine has forgotten it")
        finally:
            consul.stop()
    assert "meshbox" not in machine.exec("nft", "list", "ruleset").stdout


def test_demo(machine: WholeMachine) -> None:
    """`make demo` shows the example on the Docker that is there, and leaves nothing."""
    before = world(machine), files(machine)
    said = machine.shell("make demo", timeout=280)
    assert "Everything above was checked, and holds." in said
    assert (world(machine), files(machine)) == before


@pytest.mark.usefixtures("kept")
def test_compose(machine: WholeMachine, tmp_path: Path) -> None:
    """packaging/compose.yaml runs the appliance, what examples/compose.yaml labels answers, and all goes again."""
    debian = Debian(tmp_path)
    debian("apt-get", "-qq", "install", "--no-install-recommends", "docker-compose")
    for source in ("packaging", "examples"):
        (tmp_path / "srv" / source).mkdir()
        shutil.copy(ROOT / source / "compose.yaml", tmp_path / "srv" / source)
    before = world(machine), files(machine)

    def compose(words: str) -> str:
        # Debian 12 has no `docker compose`, only its former name. Without docker beside it, it asks the engine itself.
        env = (f"DOCKER_HOST=unix://{machine.seen}/run/docker.sock", "COMPOSE_INTERACTIVE_NO_CLI=1")
        return debian("env", "--chdir=/srv", *env, "docker-compose", *words.split(), netns=machine.netns).stdout.strip()

    (up,) = quoted(r"`docker compose (-f packaging/compose.yaml [^`]*)`")
    compose(up)
    patiently(lambda: '"ready"' in logged(machine, "meshbox"), "the appliance is ready")
    services = "-f examples/compose.yaml"
    compose(f"{services} up -d")
    said = ("exec", "meshbox", "meshbox", "services", "--json")
    patiently(lambda: machine.docker(*said).count('"ready": 1') == 3, "three are ready")
    apple = compose(f"{services} ps -q apple")[:12]
    assert compose(f"{services} exec -T flask wget -qO- http://apple.orange:8080/") == f"Hello World from {apple}"
    assert compose(f"{services} exec -T redis redis-cli -h redis.flask ping") == "PONG"
    compose(f"{services} down")
    machine.shell(documented("docker stop meshbox"))
    machine.shell(documented("docker rm meshbox"))
    assert (world(machine), files(machine)) == before


def test_nothing_is_left_of_the_build(machine: WholeMachine) -> None:
    """By the documents' lines the image goes, and with it its base and all that the stages of the build left."""
    others = {name if ":" in name else f"{name}:latest" for name in (BASE, *machine.images)}
    machine.docker("create", "--name=meshbox", "meshbox")
    machine.shell(documented("docker rm meshbox"))
    machine.shell(documented("docker image prune"))
    assert set(machine.docker("images", "--all", "--format={{.Repository}}:{{.Tag}}").splitlines()) == others


def test_newcomer(switch: Switch, tmp_path: Path) -> None:
    """On a Debian with its own systemd and nothing else, the documents' commands alone lead to the example, and away.

    What they install is all that it has; images that would be pulled have stand-ins. Its client goes on all the time.
    """
    debian = Debian(tmp_path)
    debian("apt-get", "-qq", "install", "--no-install-recommends", "systemd", "dbus")
    source = clean_clone(tmp_path / "root/meshbox")
    (source / "examples/app.py").write_text(without_limits(source / "examples/app.py"))
    with Computer(switch, 10, tmp_path) as computer, Outlet(computer.netns, computer.address) as outlet:
        env = [f"{name}={value}" for name, value in by_way_of(outlet).items()]

        def typed(line: str, *, check: bool = True) -> str:
            command = ("env", "--chdir=/root/meshbox", *env, "sh", "-c", f"exec 2>&1; {line}")
            return computer.inside(*command, input="y\n", timeout=280, check=check).stdout

        (first,) = quoted(r"as root, with `(apt-get install [^`]*)` done")
        (second,) = quoted(r"Where there is no Docker, run `(apt-get install [^`]*)`")
        typed(first)
        assert f"needs Docker; {second}" in typed("make image", check=False)
        typed(second)
        load(computer.docker, {name: IMAGES[name] for name in (IMAGE, *STAND_INS)})
        client(computer)

        def state() -> dict[str, object]:
            images = computer.docker("images", "--all", "--format={{.ID}} {{.Repository}}").splitlines()
            running = computer.inside("find", "/run", "-iname", "*meshbox*").stdout
            return {**world(computer), "images": sorted(images), "in /run": running}

        before, untouched = state(), debian.contents()
        computer.docker.import_tar(slim_root(), "debian:bookworm-slim")
        typed("make image")
        typed(documented("docker run --rm"))
        typed(documented("docker run -d"))
        typed(documented("docker exec -i meshbox"))
        example_answers(computer)
        (alias,) = quoted(r"`(alias meshbox=[^`]*)`")
        typed(f"{alias}\nmeshbox remove flask orange")
        for begin in ("docker stop meshbox", "docker rm meshbox", "docker image prune"):
            typed(documented(begin))
        assert state() == before
        left = debian.contents()
    changed = {path for path in {*left, *untouched} if left.get(path) != untouched.get(path)}
    assert sorted(path for path in changed if not AT_WORK.match(path)) == []
