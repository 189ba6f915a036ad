from __future__ import annotations

import re
import subprocess
import sys

import pytest

from appliance import __version__
from appliance.cli import commands, main, tables
from appliance.model.names import Destination
from appliance.model.stats import Connection

SHOP = """
shop = service("my-shop", containers=[
    container("web", image="hello", ports=[80], connect_to=["pg.base:5432"]),
    container("cache", image="redis", ports=["6379/tcp", "53/udp"]),
])
base = service("base", containers=[container("pg", image="postgres", ports=[5432])])
"""


@pytest.fixture
def shop(appliance, meshbox, spec):
    """Two services that are deployed."""
    assert meshbox("deploy", spec(SHOP)).code == 0
    return appliance


def test_version(meshbox):
    """The version stands alone on a line, in a checkout with its commit."""
    said = meshbox("--version")
    assert (said.code, said.err) == (0, "")
    assert re.fullmatch(rf"meshbox {re.escape(__version__)}( \([0-9a-f]{{7,}}\))?\n", said.out)


def test_commit(tmp_path):
    """What was built says from which commit, a checkout which one it is at, and anything else nothing."""
    package = tmp_path / "appliance"
    package.mkdir()
    assert commands._commit(package) == ""
    git = ("git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@localhost")
    subprocess.run([*git, "init", "--quiet"], check=True)
    assert commands._commit(package) == ""
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message=x"], check=True)
    assert re.fullmatch("[0-9a-f]{7,}", commands._commit(package))
    (package / "COMMIT").write_text("0123456\n")
    assert commands._commit(package) == "0123456"


def test_help_teaches(meshbox):
    """The help names every command, and those that need one have an example."""
    said = meshbox("--help")
    assert said.code == 0
    for command in (
        *("run", "deploy", "remove", "plan", "check", "services", "workloads", "routes", "peers"),
        *("connections", "rules", "resolve", "why", "cleanup"),
    ):
        assert f" {command} " in said.out
        assert "Usage: meshbox " + command in meshbox(command, "--help").out
    assert "Example" in meshbox("deploy", "--help").out
    assert "meshbox why web.shop redis.flask:8080" in meshbox("why", "-h").out


def test_no_arguments(meshbox):
    """Alone, the command shows its help and counts as wrong usage."""
    said = meshbox()
    assert said.code == 2
    assert "Usage: meshbox" in said.out + said.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("servics",), "Did you mean 'services'?"),
        (("services", "--jsn"), "No such option: --jsn"),
        (("deploy",), "Missing argument 'FILE'"),
        (("deploy", "app.py", "--timeout", "soon"), "Invalid value for '--timeout'"),
        (("why", "a.b"), "Missing argument 'DESTINATION'"),
        (("deploy", "/nowhere/app.py"), "/nowhere/app.py: cannot be read: No such file or directory"),
        (("--config", "/nowhere/meshbox.toml", "services"), "/nowhere/meshbox.toml: there is no such file"),
    ],
)
def test_wrong_usage(meshbox, words, expected):
    """Wrong usage is one line on standard error and exit code 2."""
    said = meshbox(*words)
    assert (said.code, said.out) == (2, "")
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("meshbox: ")
    assert expected in said.err


NOUNS = [
    ("services",),
    ("workloads",),
    ("routes",),
    ("peers",),
    ("connections",),
    ("rules", "web.my-shop"),
    ("resolve", "pg.base", "--from", "web.my-shop"),
    ("why", "web.my-shop", "pg.base:5432"),
]


@pytest.mark.parametrize("words", NOUNS, ids=lambda words: words[0])
def test_no_appliance(meshbox, tmp_path, words):
    """Without an appliance, every noun says how to start one."""
    expected = f"meshbox is not running here (no {tmp_path}/admin.sock); start it with: meshbox run\n"
    assert meshbox(*words) == (1, "", expected)


def test_dead_socket(meshbox, tmp_path):
    """The socket of an appliance that was killed tells nobody that it runs."""
    import socket

    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "admin.sock"))
    assert "meshbox is not running here" in meshbox("services").err


@pytest.mark.parametrize("words", NOUNS, ids=lambda words: words[0])
def test_nouns(shop, meshbox, show, words):
    """Every noun shows something to people, and JSON to scripts, and succeeds."""
    said = meshbox(*words)
    assert said.code == 0, said
    assert said.out.strip()
    assert said.err == ""
    assert isinstance(show(*words), list | dict)


def test_services(shop, meshbox, show):
    """One line a container, with the virtual IP, the ports, and how many are ready."""
    lines = meshbox("services").out.splitlines()
    assert lines[0].split()[:2] == ["NAME", "VIRTUAL"]
    (web,) = (line for line in lines if line.startswith("web.my-shop"))
    vip = show("services")[1]["containers"][0]["vip"]
    assert web.split() == ["web.my-shop", vip, "80/tcp", "1/1", "pg.base:5432", "hello", "h1:1"]


def test_hosts(shop, meshbox, show, monkeypatch):
    """Lines for /etc/hosts: each name once, with its virtual IP, short and with the suffix; and whether they work."""
    wanted = {c["name"]: c["vip"] for row in show("services") for c in row["containers"] if c["ports"]}
    assert wanted
    said = meshbox("hosts")
    lines = said.out.splitlines()
    assert said.err.count("\n") == 1
    assert "only containers reach these addresses: set host_access" in said.err
    assert {line.split()[1]: line.split()[0] for line in lines} == wanted
    assert all(line.split()[2] == f"{line.split()[1]}.mesh.internal" for line in lines)
    for key, value in (("HOST_ACCESS", "true"), ("GUESTS", "10.0.0.7"), ("GATEWAY", "yes")):
        with monkeypatch.context() as patch:
            patch.setenv(f"MESHBOX_{key}", value)
            assert meshbox("hosts") == (0, said.out, "")


def test_nothing_yet(appliance, meshbox):
    """Empty nouns say what to do."""
    assert "meshbox deploy FILE" in meshbox("services").out
    assert "label containers" in meshbox("workloads").out
    assert meshbox("routes").out == "no destinations yet\n"
    assert meshbox("connections").out == "no open connections\n"


def test_workloads(shop, meshbox):
    """One line a container, with its state in words."""
    (line,) = (line for line in meshbox("workloads").out.splitlines() if "cache" in line)
    assert "ready" in line
    assert "6379/tcp 53/udp" in line
    assert "in place" in line


def test_connections(shop, meshbox):
    """One line a connection, sizes in units."""
    client = shop.snapshot().workloads[0]
    shop.open_connections = (
        Connection(
            destination=Destination.parse("pg.base:5432"),
            client=f"{client.addresses[0]}:4000",
            backend="172.30.0.9:5432",
            label="somebody",
            bytes_in=5,
            bytes_out=7 * 2**20,
            age=61.0,
            draining=True,
        ),
    )
    line = meshbox("connections").out.splitlines()[1]
    assert client.docker_name in line
    assert "somebody 172.30.0.9:5432" in line
    assert line.split()[-7:] == ["5", "B", "7.0", "MiB", "61", "s", "draining"]


def test_why(shop, meshbox):
    """An open way is exit code 0; a closed one 1, with what to write to open it."""
    said = meshbox("why", "web.my-shop", "pg.base:5432")
    assert said.code == 0
    assert "ENDS" not in said.out
    said = meshbox("why", "pg.base", "web.my-shop:80")
    assert said.code == 1
    last = said.out.splitlines()[-2:]
    assert last[0].startswith("ENDS")
    assert 'to change that: add "web.my-shop:80" to connect_to of container "pg" in service "base"' in last[1]


def test_why_of_nobody(shop, meshbox):
    """A client that does not exist is exit code 1; a destination that is none is 2."""
    said = meshbox("why", "wep.my-shop", "pg.base:5432")
    assert (said.code, said.out) == (1, "")
    assert '(did you mean "web.my-shop"?)' in said.err
    assert meshbox("why", "web.my-shop", "pg").code == 2


def test_resolve(shop, meshbox):
    """The answer of the DNS server, also where it is that there is no such name."""
    assert meshbox("resolve", "pg.base").code == 0
    assert meshbox("resolve", "example.org").out == "upstream  (no mesh name: the server that is asked answers)\n"
    said = meshbox("resolve", "web.my-shop", "--from", "pg.base")
    assert said.code == 1
    assert said.out == 'NXDOMAIN  (pg.base did not declare it: add "web.my-shop" to its connect_to)\n'


def test_rules(shop, meshbox, show):
    """The rules are printed as they are."""
    assert meshbox("rules", "pg.base").out.startswith("table inet meshbox {")
    assert show("rules", "pg.base")["rules"] == meshbox("rules", "pg.base").out


def test_pipe_that_closes():
    """A reader that has seen enough is no error to talk about."""
    code = "import sys; from appliance.cli import main; sys.stdout.reconfigure(line_buffering=True); main(['--help'])"
    done = subprocess.run(
        f'{sys.executable} -c "{code}" | true', shell=True, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr


def test_completion(monkeypatch, capsys):
    """The shell gets commands and options to complete."""
    monkeypatch.setenv("_MESHBOX_COMPLETE", "complete_bash")
    for typed, expected in (("meshbox w", "workloads"), ("meshbox run --dns-p", "--dns-port")):
        monkeypatch.setenv("COMP_WORDS", typed)
        monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
        with pytest.raises(SystemExit, match="0"):
            main([])
        assert expected in capsys.readouterr().out.split()


def test_certificates_play_no_part(appliance, meshbox, monkeypatch):
    """A minimal host that has none, or names a file that is gone, can still talk to its own appliance."""
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    assert meshbox("services").code == 0


def test_services_by_machine_and_state(capsys):
    """People see how many containers are ready on each machine, and what the others there wait for."""
    waiting = {"replica": 1, "machine": "m2", "state": "waiting for port 80", "ready": False, "failed": False}
    ready = {"replica": 0, "machine": "m1", "state": "ready", "ready": True, "failed": False}
    shown = {"name": "web.shop", "vip": "240.0.0.1", "ports": ["80/tcp"], "connect_to": [], "image": "x"}
    container = {**shown, "ready": 1, "running": 1, "machines": {"m1": 1}, "replicas": [ready, waiting]}
    tables.services([{"service": "shop", "deployed": True, "count": 2, "containers": [container]}])
    assert "1/2" in (out := capsys.readouterr().out)
    assert "m1:1, m2:0 (1 waiting for port 80)" in out


def test_peers_say_since_when_and_why(capsys):
    """While Consul cannot be heard, people see since when facts are held, and why."""
    row = {"registry": "consul", "held_since": 0.0, "held_why": "no [leader]", "open_queries": 3, "problems": []}
    dead = {"node": "m2", "address": "10.0.0.2", "meta": {}, "self": False, "healthy": False, "destinations": []}
    lost, gone = {**dead, "answers": True}, {**dead, "node": "m3", "answers": False}
    tables.peers({**row, "machines": [lost, gone]})
    out = capsys.readouterr().out
    assert "held as last known since 19" in out
    assert "no [leader]; 3 open queries" in out
    assert "m2 (unhealthy, answers itself)" in out
    assert "m3 (unhealthy, does not answer)" in out
