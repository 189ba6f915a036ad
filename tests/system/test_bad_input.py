"""What users get wrong: one clear line, exit status 2 or 1, and nothing is changed.

One appliance at work for all of it, with a service deployed; the command line runs in this process, as its entry
point calls it, and once as a program of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from foreign import EVIL, HUGE, LARGE
from machine import IMAGE, Program, wait_until

from appliance.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from machine import Machine

pytestmark = pytest.mark.system


class Said(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def town(lasting_mesh: Machine) -> Machine:
    """The service `base` is deployed, and a container of others is in the mesh."""
    lasting_mesh.deploy(f'base = service("base", containers=[container("db", image="{IMAGE}", ports=[7000])])')
    lasting_mesh.run_container("client", IMAGE, service="near", container="client", connect_to="db.base,server.far")
    wait_until(
        lambda: "answer" in lasting_mesh.client("client", "tcp", "db.base", "7000", "1")[0], "both are in the mesh"
    )
    return lasting_mesh


@pytest.fixture
def meshbox(town: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command."""
    for key, value in {**town.settings, "COLUMNS": "200", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(key, value)

    def meshbox(*words: str | Path) -> Said:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Said(code, *capsys.readouterr())

    return meshbox


@pytest.fixture
def unchanged(town: Machine) -> Iterator[None]:
    """Check that a test leaves the machine as it was: what is deployed and kept, containers, networks, rules, ports."""
    before = world(town)
    yield
    assert world(town) == before


def world(mesh: Machine) -> dict[str, object]:
    """Return all that a command could change."""
    state = Path(mesh.settings["MESHBOX_STATE_DIR"])
    return {
        "state": {path.name: path.read_bytes() for path in state.iterdir()},
        "containers": sorted(mesh.docker("ps", "--all", "--quiet", "--no-trunc").split()),
        "networks": sorted(mesh.docker("network", "ls", "--quiet").split()),
        "volumes": sorted(mesh.docker("volume", "ls", "--quiet").split()),
        "images": sorted(mesh.docker("image", "ls", "--all", "--quiet").split()),
        "routes": sorted(mesh.exec_in("client", "nft", "list", "map", "inet", "meshbox", "routes").stdout.split()),
        "ports": mesh.proxy_ports(),
    }


def spec(fields: str = "", *, service: str = '"shop"', name: str = '"web"', image: str = '"redis"') -> str:
    """Return a spec file of one service with one container."""
    return f"shop = service({service}, containers=[container({name}, image={image}, {fields})])\n"


HOLDER = 'shop = service("shop", containers={})\n'
WRONG = {
    # what the issue lists
    "unknown field": (spec("prots=[80]"), ("1: ", '"web"', '"prots" (did you mean "ports"?)')),
    "unknown field of a service": (spec(service='"shop", cuont=2'), ("1: ", '"cuont" (did you mean "count"?)')),
    "no label": (spec(service='"my_shop"'), ('"my_shop"', "RFC 1123")),
    "no label of a container": (spec(name='"my_web"'), ('"my_web"', "RFC 1123")),
    "label too long": (spec(service=f'"{"a" * 64}"'), ("64 characters", "63 is the most")),
    "container's label too long": (spec(name=f'"{"a" * 64}"'), ("64 characters", "63 is the most")),
    "duplicate service": (spec() + spec().replace("shop =", "again ="), ("2: ", '"shop"', "on line 1", "another name")),
    "duplicate container": (
        HOLDER.format('[container("web", image="redis"), container("web", image="redis")]'),
        ('"shop"', '"web"', "another name"),
    ),
    "duplicate port": (spec('ports=[80, "80/tcp"]'), ("port 80/tcp is listed twice",)),
    "port 0": (spec("ports=[0]"), ('ports: "0"', "from 1 to 65535")),
    "port 70000": (spec("ports=[70000]"), ('ports: "70000"', "from 1 to 65535")),
    "container's port 70000": (spec('ports=["80:70000"]'), ('ports: "70000"', "from 1 to 65535")),
    "no such protocol": (spec('ports=["8080/icmp"]'), ('"icmp"', "write tcp or udp")),
    "count 0": (spec(service='"shop", count=0'), ("count: 0", "at least 1")),
    "count -1": (spec(service='"shop", count=-1'), ("count: -1", "at least 1")),
    "too little memory": (spec("memory=5"), ("memory: 5", "at least 6 MiB")),
    "syntax error": ("shop = service(\n  'shop' 1)\n", ("spec.py:2: ", "syntax error")),
    "exception": ("x = 1\ny = 1 / 0\n", ("spec.py:2: ", "ZeroDivisionError")),
    # more of that kind
    "nothing in it": ("x = 1\n", ("spec.py: ", "declares no service", "write for example")),
    "no image": ('shop = service("shop", containers=[container("web")])', ("image is missing", "write for example")),
    "no containers": ('shop = service("shop")', ("containers is a list with at least one container",)),
    "number for a name": (spec(service='"10"'), ('"10" is a number',)),
    "too little CPU": (spec("cpu=9"), ("cpu: 9", "at least 10 thousandths of a core")),
    "port at the end of nothing": (spec('connect_to=["db.base:70000"]'), ("connect_to", "70000", "from 1 to 65535")),
    "name without a service": (spec('connect_to=["db"]'), ("connect_to", '"db" is not <container>.<service>')),
    "no such machine": (spec(service='"shop", constraint="node==nowhere"'), ("nowhere",)),
    # a value of the wrong type, or that makes no sense, for each field
    "service name": (spec(service="7"), ("service 7: name: ", "7 is not text")),
    "count text": (spec(service='"shop", count="2"'), ('count: "2" is not a whole number',)),
    "count half": (spec(service='"shop", count=1.5'), ("count: 1.5 is not a whole number",)),
    "count yes": (spec(service='"shop", count=True'), ("count: True is not a whole number",)),
    "constraint": (spec(service='"shop", constraint=5'), ("constraint: 5 is not text",)),
    "containers text": (HOLDER.format('"web"'), ('containers is a list with at least one container, not "web"',)),
    "containers of text": (HOLDER.format('["web"]'), ('a container is a mapping of fields, not "web"',)),
    "containers number": (HOLDER.format("3"), ("containers is a list with at least one container, not 3",)),
    "container name": (spec(name="7"), ("container 7: name: ", "7 is not text")),
    "image": (spec(image="7"), ("image: 7 is not an image reference", "write for example")),
    "image text": (spec(image='"Red Is"'), ('image: "Red Is" is not an image reference', "write for example")),
    "ports text": (spec('ports="8080"'), ('ports: "8080" is not a list', "write for example")),
    "ports number": (spec("ports=8080"), ("ports: 8080 is not a list", "write for example")),
    "ports of yes": (spec("ports=[True]"), ("ports: port True is neither a number nor text", "write 8080")),
    "ports of words": (spec('ports=["http"]'), ('ports: "http"', "from 1 to 65535")),
    "connect_to text": (spec('connect_to="db.base:7000"'), ("connect_to: ", "is not a list", "write for example")),
    "connect_to number": (spec("connect_to=[7000]"), ("connect_to: 7000 is not text", "write for example")),
    "cpu": (spec('cpu="much"'), ('cpu: "much" is not a whole number',)),
    "cpu half": (spec("cpu=0.5"), ("cpu: 0.5 is not a whole number", "write 10 or more thousandths of a core")),
    "memory": (spec('memory="256m"'), ('memory: "256m" is not a whole number', "write 6 or more MiB")),
    "command number": (spec("command=5"), ("command: 5 is not a list of texts", "write for example")),
    "command of numbers": (spec('command=["sleep", 5]'), ("command: ", "is not a list of texts", "write for example")),
    "command empty": (spec('command=""'), ("command: it is empty", "leave it out")),
    "command open": (spec('command="sh -c \'x"'), ("command: ", "no closing quotation")),
    "env text": (spec('env="A=1"'), ('env: "A=1" is not a list of texts', "write for example")),
    "env without a value": (spec('env=["A"]'), ('env: "A" has no "="', "write for example")),
    "env yes": (spec('env={"A": True}'), ("env: the value of A is True; write text",)),
    "env of lists": (spec('env={"A": [1]}'), ("env: the value of A is [1]; write text",)),
    "env number": (spec('env={1: "A"}'), ("env: 1 is not a variable name",)),
    "volumes text": (spec('volumes="data:/data"'), ("volumes: ", "is not a list of texts", "write for example")),
    "volumes number": (spec("volumes=[5]"), ("volumes: [5] is not a list of texts", "write for example")),
    "volumes nowhere": (spec('volumes=["data"]'), ('"data" is not an absolute path in the container',)),
    "health number": (spec("health=5"), ("health: ", "5 is not")),
    "health empty": (spec("health={}"), ("health: command is missing",)),
    "health field": (spec('health={"command": "x", "retires": 3}'), ('"retires" (did you mean "retries"?)',)),
    "health interval": (
        spec('health={"command": "x", "interval": "soon"}'),
        ("interval: ", '"soon" is not a duration'),
    ),
    "health retries": (spec('health={"command": "x", "retries": "3"}'), ('retries: "3" is not a whole number',)),
}
"""What is said in the one line, by what is wrong with a spec file."""


def assert_line(said: Said, code: int, *words: str, out: str = "") -> None:
    """Check that a command failed with this exit status and one line that says this."""
    assert (said.code, said.out) == (code, out), said
    (line,) = said.err.splitlines()
    assert line.startswith("meshbox: "), line
    assert [word for word in words if word not in line] == [], line


@pytest.mark.usefixtures("unchanged")
def test_wrong_specs(town: Machine, meshbox: Callable[..., Said]) -> None:
    """One line that names the file, the place and the remedy, exit status 2, and nothing happens."""
    path = town.root / "spec.py"
    for text, words in WRONG.values():
        path.write_text(text)
        assert_line(meshbox("deploy", path, "--detach"), 2, f"{path}:", *words)
    assert_line(meshbox("plan", path), 2, f"{path}:", *words)
    done = town.meshbox("deploy", path, check=False)
    assert_line(Said(done.returncode, done.stdout, done.stderr), 2, f"{path}:", *words)


@pytest.mark.usefixtures("unchanged")
def test_wrong_usage(town: Machine, meshbox: Callable[..., Said]) -> None:
    """Unknown commands and options, arguments that are missing or make no sense: exit status 2."""
    (town.root / "binary.py").write_bytes(b"\xff\x00")
    good = town.root / "good.py"
    good.write_text(spec())
    for words, expected in {
        ("frobnicate",): "No such command 'frobnicate'",
        ("servics",): "Did you mean 'services'?",
        ("deploy",): "Missing argument 'FILE'",
        ("deploy", "--no", good): "No such option: --no",
        ("deploy", good, "more"): "unexpected extra argument",
        ("deploy", good, "--timeout", "soon"): "Invalid value for '--timeout'",
        ("deploy", "/nowhere/app.py"): "/nowhere/app.py: cannot be read: No such file or directory",
        ("plan", "/nowhere/app.py"): "/nowhere/app.py: cannot be read: No such file or directory",
        ("deploy", town.root): f"{town.root}: cannot be read: Is a directory",
        ("deploy", town.root / "binary.py"): "binary.py",
        ("remove",): "Missing argument 'SERVICE...'",
        ("rules",): "Missing argument 'WORKLOAD'",
        ("resolve",): "Missing argument 'NAME'",
        ("why", "client.near"): "Missing argument 'DESTINATION'",
        ("why", "client.near", "no-destination"): '"no-destination" is not <container>.<service>',
        ("why", "client.near", "db.base"): 'write for example "db.base:8080"',
        ("--config", "/nowhere/meshbox.toml", "services"): "/nowhere/meshbox.toml: there is no such file",
        ("run", "--dns-prt", "53"): 'did you mean "--dns-port"?',
        ("run", "--dns-port", "99999"): '--dns-port: "99999" is not a whole number from 1 to 65535',
    }.items():
        assert_line(meshbox(*words), 2, expected)


@pytest.mark.usefixtures("unchanged")
def test_what_is_not_there(meshbox: Callable[..., Said]) -> None:
    """A service or a container of that name does not exist, or another appliance does: exit status 1."""
    for words, expected in {
        ("remove", "bass"): ('no service "bass" is deployed', 'did you mean "base"?'),
        ("remove", "base", "nothing"): ('no service "nothing" is deployed',),
        ("why", "clint.near", "db.base:7000"): ('"clint.near"', 'did you mean "client.near"?'),
        ("rules", "clint.near"): ('"clint.near"', 'did you mean "client.near"?'),
        ("run",): ("another meshbox (pid", "runs on this host"),
    }.items():
        assert_line(meshbox(*words), 1, *expected)


REGISTRY = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Empty(BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.path == "/v2/"
        self.send_response(200 if known else 404)
        self.end_headers()
        error = b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}'
        self.wfile.write(b"{}" if known else error)
    do_HEAD = do_GET
with HTTPServer(("127.0.0.1", 5000), Empty) as server:
    print("serving", flush=True)
    server.serve_forever()
"""


@pytest.mark.usefixtures("unchanged")
def test_image_that_is_not_there(town: Machine, meshbox: Callable[..., Said]) -> None:
    """The registry does not have it, or does not answer: exit status 1, and what to do."""
    path = town.root / "spec.py"
    log = town.root / "registry.log"
    registry = Program(town.netns, (sys.executable, "-c", REGISTRY), log)
    try:
        wait_until(lambda: "serving" in registry.tail(), "the registry serves")
        for image, cause in {
            "127.0.0.1:5000/nobody/has-this:1": "manifest unknown",
            "127.0.0.1:5001/nobody/has-this:1": "connection refused",
        }.items():
            path.write_text(spec(image=f'"{image}"'))
            words = ("nothing was changed", f'image "{image}"', cause, "pull or build it, or mend image=")
            assert_line(meshbox("deploy", path), 1, *words, out=f"image {image}: pulling\n")
    finally:
        registry.stop()


def test_destination_that_does_not_exist_yet(town: Machine, meshbox: Callable[..., Said]) -> None:
    """Allowed with a warning: it may come later, and then it works."""
    path = town.root / "spec.py"
    path.write_text(
        f'late = service("late", containers=[container("client", image="{IMAGE}", connect_to=["server.far"])])'
    )
    said = meshbox("deploy", path)
    assert said.code == 0
    (line,) = said.err.splitlines()
    assert line.startswith('warning: container "client" of service "late": connect_to "server.far" does not exist')
    (client,) = town.containers("label=meshbox.service=late")
    (result,) = town.client(client, "tcp", "server.far", "7000", "1")
    assert result["error"] == "ECONNREFUSED"
    path.write_text(f'far = service("far", containers=[container("server", image="{IMAGE}", ports=[7000])])')
    assert meshbox("deploy", path).code == 0
    (result,) = town.client(client, "tcp", "server.far", "7000", "1")
    assert result.get("answer"), result
    assert meshbox("remove", "late", "far").code == 0


def test_service_named_like_a_top_level_domain(town: Machine, meshbox: Callable[..., Said]) -> None:
    """Deployed, with a warning."""
    path = town.root / "spec.py"
    path.write_text(spec("ports=[6379]", service='"dev"'))
    said = meshbox("deploy", path)
    assert said.code == 0
    (line,) = said.err.splitlines()
    assert line.startswith('warning: service "dev" is named like a top-level domain')
    assert meshbox("remove", "dev").code == 0


def test_labels_that_are_wrong(town: Machine) -> None:
    """A container with bad labels stays out and is reported by name, the others are served."""
    town.run_container("odd", IMAGE, service="odd", container="odd", ports="http")
    try:
        lines = wait_until(
            lambda: [one for one in town.meshbox("workloads").stdout.splitlines() if "odd" in one], "it is shown"
        )
        assert len(lines) == 1
        assert "http" in lines[0]
        (result,) = town.client("client", "tcp", "db.base", "7000", "1")
        assert result.get("answer"), result
    finally:
        town.docker("rm", "--force", "odd")


HOSTILE = {
    "digits": {"ports": HUGE},
    "allowance": {"connect_to": f"a.b:{HUGE}"},
    "replica": {"replica": HUGE},
    "revision": {"revision": f"x:{LARGE} y"},
    "ports": {"ports": ",".join(map(str, range(1, 10_001)))},
    "escapes": {"ports": EVIL.replace("\n", "")},
}


def test_labels_that_mean_harm(town: Machine) -> None:
    """The appliance goes on, also over a restart of such a container; each is named in what prints, others are served.

    A label takes the place of Docker's own exit code in its events.
    """
    for name, labels in HOSTILE.items():
        options = ["--label=exitCode=²"]
        town.run_container(f"evil-{name}", IMAGE, service="evil", container=name, options=options, **labels)
    try:
        shown = wait_until(
            lambda: (
                lines
                if len(lines := [one for one in town.meshbox("workloads").stdout.splitlines() if "label" in one]) >= 6
                else None
            ),
            "they are shown",
        )
        assert all(line.isprintable() for line in shown)
        for name in HOSTILE:
            town.docker("restart", "--time=0", f"evil-{name}")
        (result,) = town.client("client", "tcp", "db.base", "7000", "1")
        assert result.get("answer"), result
        assert town.appliance is not None
        assert town.appliance.running
    finally:
        town.docker("rm", "--force", *(f"evil-{name}" for name in HOSTILE))
