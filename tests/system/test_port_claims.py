"""A caller is what its port of the bridge says: whoever speaks, or answers, in another one's name is not heard.

One village for all tests, with the appliance as it is; in the end it starts once more on a kernel that has no bridge
family, as far as nft tells it, and the same attempts succeed: it is the claims that they fail of.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
import pytest
from machine import IMAGE, NEVER, ROOT, run, wait_until

from appliance.drivers.netns import netlink

if TYPE_CHECKING:
    from collections.abc import Iterator

    from machine import Machine

pytestmark = pytest.mark.system

FORGER = ROOT / "tests/images/forger.py"
GATEWAY, QUARTER, STRANGE = "172.21.0.1", "10.99.7", "172.21.77.1"
SIX, SERVED6 = "fd00:77:", "7100"
ADMIN = "--cap-add=NET_ADMIN"

REFUSING = """#!/bin/sh
# nft of a kernel without the bridge family
if [ "$*" = "-f -" ] || [ "$*" = "-c -f -" ]; then
    text=$(cat)
    case "$text" in *"table bridge"*) echo "Error: Could not process rule: Operation not supported" >&2; exit 1 ;; esac
    printf '%s\\n' "$text" | {nft} "$@"
else
    exec {nft} "$@"
fi
"""
BINDING = """
# The same for libnftables, in the helper
import sys
from pathlib import Path
mine = sys.modules.pop("nftables")
sys.path.remove(str(Path(__file__).parent))
import nftables as real
sys.modules["nftables"] = mine
class Nftables(real.Nftables):
    def cmd(self, text):
        if "table bridge" in Path(text.split('"')[1]).read_text():
            return 1, "", "Error: Could not process rule: Operation not supported"
        return super().cmd(text)
"""


@pytest.fixture(scope="module")
def village(machine: Machine) -> Iterator[Machine]:
    """`server` offers 7000, `friend` declared it, `stranger` did not; `outsider` and `remote` have no labels.

    `server` may make rules of its own, so the host dials it; `admin` may, too. The service `iso` is deployed, and
    declared `server.far`. On the IPv6 network `six` are `six1`, in the mesh, and `six2`.
    """
    mesh = machine
    mesh.stop()
    mesh.start()
    mesh.docker("network", "create", f"--subnet={QUARTER}.0/24", "quarter")
    mesh.docker("network", "create", "--ipv6", f"--subnet={SIX}:/64", "six")
    try:
        mesh.run_container("server", IMAGE, options=(ADMIN,), service="far", container="server", ports="7000,7000/udp")
        mesh.run_container("friend", IMAGE, service="near", container="friend", connect_to="server.far")
        mesh.run_container("stranger", IMAGE, service="near", container="stranger")
        mesh.run_container("admin", IMAGE, options=(ADMIN,), service="adm", container="admin")
        mesh.run_container("outsider", IMAGE)
        mesh.run_container("remote", IMAGE, options=("--network=quarter",))
        served6 = ("python3", "-m", "http.server", "--bind", "::", SERVED6)
        mesh.run_container("six1", IMAGE, *served6, options=("--network=six",), service="six", container="one")
        mesh.run_container("six2", IMAGE, options=("--network=six",))
        mesh.deploy(
            f"""iso = service("iso", containers=[container("good", image="{IMAGE}", connect_to=["server.far"]),
                container("bad", image="{IMAGE}", cap_add=["NET_RAW"])])"""
        )
        wait_until(lambda: "answer" in mesh.client("friend", "tcp", "server.far", "7000", "1")[0], "the server answers")
        yield mesh
    finally:
        mesh.clear()
        for name in ("quarter", "six"):
            mesh.docker("network", "rm", name)


@pytest.fixture(scope="module", autouse=True)
def plain_bridge(village: Machine) -> Iterator[None]:
    """What stays on a bridge passes none of the host's IP rules, as on a host that never loaded br_netfilter."""
    switches = [f"/proc/sys/net/bridge/bridge-nf-call-{name}tables" for name in ("ip", "ip6")]
    before = [village.exec("cat", path).stdout.strip() for path in switches]
    for path in switches:
        village.exec("sh", "-c", f"echo 0 > {path}")
    yield
    for path, value in zip(switches, before, strict=True):
        village.exec("sh", "-c", f"echo {value} > {path}")


def forge(mesh: Machine, who: str, *words: object) -> Any:
    """Let a container send frames made by hand."""
    done = mesh.exec_in(who, sys.executable, FORGER, *map(str, words))
    return orjson.loads(done.stdout)


def address6(mesh: Machine, container: str) -> str:
    """Return a container's IPv6 address."""
    return str(mesh.inspect(container)["NetworkSettings"]["Networks"]["six"]["GlobalIPv6Address"])


def mac_of(mesh: Machine, container: str) -> str:
    """Return a container's MAC."""
    networks = mesh.inspect(container)["NetworkSettings"]["Networks"]
    return str(next(iter(networks.values()))["MacAddress"])


def dial(mesh: Machine, host: str, port: str, source: str = "", container: str = "") -> bool:
    """Return whether a program of the host, or in a container's namespace, gets a connection within a second."""
    code = (
        "import socket, sys; host, port, source = sys.argv[1:];"
        "socket.create_connection((host, int(port)), 1, (source, 0) if source else None)"
    )
    command = (sys.executable, "-c", code, host, port, source)
    done = mesh.exec_in(container, *command, check=False) if container else mesh.exec(*command, check=False)
    return done.returncode == 0


def listing(mesh: Machine, family: str) -> str:
    """Return a table of the host's; an empty text where there is none."""
    return mesh.exec("nft", "list", "table", family, "meshbox", check=False).stdout


def counted(mesh: Machine, family: str, words: str) -> int:
    """Return how many packets the host's rule of that comment has met."""
    found = re.findall(rf'counter packets (\d+) .*comment "{words}"', listing(mesh, family))
    return sum(map(int, found))


class Scene(NamedTuple):
    """What the attempts need to know."""

    friend: str
    server: str
    tcp: int
    udp: int
    deployed: tuple[str, str]
    """Docker's names of `good` and `bad`."""


def scene_of(mesh: Machine) -> Scene:
    """Look it up."""
    ports = {row["destination"]: row["proxy_port"] for row in mesh.show("routes")}
    (good,), (bad,) = (mesh.containers(f"label=meshbox.container={name}") for name in ("good", "bad"))
    where = (mesh.address_of("friend"), mesh.address_of("server"))
    return Scene(*where, ports["server.far:7000/tcp"], ports["server.far:7000/udp"], (good, bad))


def stolen(mesh: Machine, who: str, *words: object) -> bool:
    """Return whether the server, or the proxy for it, has said something to a forger."""
    found = forge(mesh, who, *words)
    return bool(found.get("got") or found.get("answer") or found.get("mac"))


def answered_for(mesh: Machine, who: str, name: str, asker: str, port: str) -> bool:
    """Return whether the host, while it dials one that is there, comes to another who answers in its place."""
    met: list[int] = []
    taking = threading.Thread(target=lambda: met.append(forge(mesh, who, "take", name, asker, port)["asked"]))
    taking.start()
    while taking.is_alive():
        dial(mesh, name, port)
    taking.join()
    return met[0] > 0


def by_second_address(mesh: Machine, s: Scene) -> bool:
    """Let one with CAP_NET_ADMIN take an address as a second one, and undo the mark on what goes to proxy ports."""
    undo = "table ip mine { chain out { type filter hook postrouting priority 300; ip ttl 213 ip ttl set 64; }; }"
    mesh.exec_in("admin", "ip", "address", "add", f"{s.friend}/32", "dev", "eth0")
    try:
        mesh.exec_in("admin", "nft", undo)
        mesh.exec_in("admin", "ip", "neighbour", "flush", "dev", "eth0")
        return dial(mesh, GATEWAY, str(s.tcp), s.friend, "admin")
    finally:
        mesh.exec_in("admin", "ip", "address", "del", f"{s.friend}/32", "dev", "eth0")
        mesh.exec_in("admin", "nft", "delete", "table", "ip", "mine", check=False)


def attempts(mesh: Machine) -> dict[str, bool]:
    """Try all there is; return which attempts succeeded, by what they are."""
    s = scene_of(mesh)
    good, bad = s.deployed
    own_gateway = mesh.inspect(good)["NetworkSettings"]["Networks"]["meshbox"]["Gateway"]
    gateway6, six1 = f"{SIX}:1", address6(mesh, "six1")
    call = ("tcp", s.friend, GATEWAY, s.tcp, "stolen")
    found = {
        "a neighbour's name, TCP": stolen(mesh, "stranger", *call),
        "a neighbour's name, UDP": stolen(mesh, "stranger", "udp", s.friend, GATEWAY, s.udp, "stolen"),
        "its name with its MAC": stolen(mesh, "stranger", f"--mac={mac_of(mesh, 'friend')}", "claim", STRANGE, GATEWAY),
        "its name, by one without labels": stolen(mesh, "outsider", *call),
        "its name behind an empty VLAN tag": stolen(mesh, "stranger", "--tags=0", *call),
        "its name behind two": stolen(mesh, "stranger", "--tags=0,0", *call),
        "on a deployed service's network": stolen(
            mesh, bad, "tcp", mesh.address_of(good), own_gateway, s.tcp, "stolen"
        ),
        "the gateway's name, TCP": stolen(mesh, "outsider", "tcp", GATEWAY, s.server, 7003, "who\n"),
        "the gateway's name, UDP": stolen(mesh, "outsider", "udp", GATEWAY, s.server, 7000, "stolen"),
        "the gateway's name, IPv6": stolen(mesh, "six2", "tcp", gateway6, six1, SERVED6, "GET / HTTP/1.0\r\n\r\n"),
        "a virtual IP": stolen(mesh, "stranger", "claim", "240.0.0.1", GATEWAY),
        "in a backend's place": answered_for(mesh, "stranger", s.server, GATEWAY, "7000"),
        "in a backend's place, IPv6": answered_for(mesh, "six2", six1, gateway6, SERVED6),
        "a second address": by_second_address(mesh, s),
    }
    for name in ("friend", "server", "six1"):  # what the host learnt of them in vain, or not, is forgotten
        mesh.exec("ip", "neighbour", "flush", "to", mesh.address_of(name), check=False)
    return found


def test_nobody_is_heard_in_anothers_name(village: Machine) -> None:
    """Container, gateway or virtual IP; ARP, IP or neighbour discovery; it is counted, and nobody else notices."""
    assert [what for what, succeeded in attempts(village).items() if succeeded] == []
    s, mac = scene_of(village), forge(village, "stranger", "--mac=own", "claim", STRANGE, GATEWAY)["mac"]
    forge(village, "stranger", f"--to={mac}", "udp", s.friend, GATEWAY, s.udp, "one way")
    for words in ("the IPv4 address of another port", "ARP: a virtual IP", "the MAC of another port"):
        assert counted(village, "bridge", words), words
    assert all("answer" in one for one in village.client("friend", "tcp", "server.far", "7000", "3"))


def test_what_nobody_claims_passes(village: Machine) -> None:
    """One's own address and one that is nobody's, with one's own MAC and a made-up one; so it is on a plain bridge."""
    own = village.address_of("stranger")
    for mac, address in (("own", own), ("02:be:ef:00:00:02", own), ("02:be:ef:00:00:02", STRANGE), ("own", STRANGE)):
        assert forge(village, "stranger", f"--mac={mac}", "claim", address, GATEWAY)["mac"], (mac, address)
    village.exec("ip", "neighbour", "flush", "dev", "docker0")
    assert forge(village, "six2", "--mac=own", "claim", f"{SIX}:77", f"{SIX}:1")["mac"]


@contextmanager
def inner(mesh: Machine, container: str, bridge: bool = False) -> Iterator[str]:
    """Make a namespace behind a container: routed by it, at 10.66.0.2, or on a bridge with its interface, at .210."""
    name = f"{mesh.netns}in"
    run("ip", "netns", "add", name)
    ip = ("ip", "-n", name)
    try:
        mesh.exec_in(container, "ip", "link", "add", "inside", "type", "veth", "peer", "eth0", "netns", name)
        run(*ip, "link", "set", "eth0", "up")
        if bridge:
            address, route = f"{QUARTER}.210", "default dev eth0"
            script = (
                f"ip link add nest type bridge && ip link set nest address {mac_of(mesh, container)} up &&"
                f" ip address flush dev eth0 && ip link set eth0 master nest && ip link set inside master nest up &&"
                f" ip address add {mesh.address_of(container)}/24 dev nest"
            )
        else:
            address, route = "10.66.0.2", "default via 10.66.0.1"
            script = (
                "ip address add 10.66.0.1/24 dev inside && ip link set inside up &&"
                " echo 1 > /proc/sys/net/ipv4/ip_forward"
            )
        mesh.exec_in(container, "sh", "-c", script)
        run(*ip, "address", "add", f"{address}/24", "dev", "eth0")
        run(*ip, "route", "replace", *route.split())
        yield name
    finally:
        run("ip", "netns", "delete", name)


def reaches(netns: str, host: str) -> bool:
    """Return whether a program in a namespace is answered by a container's server."""
    code = "import socket, sys; print(socket.create_connection((sys.argv[1], 7000), 2).recv(10).decode())"
    return run("ip", "netns", "exec", netns, sys.executable, "-c", code, host, check=False).returncode == 0


def test_routers_vpns_and_virtual_addresses_work(village: Machine) -> None:
    """A container that routes for what is behind it, one with a bridge in it, and one that takes over an address."""
    mesh = village
    options = ("--network=quarter", ADMIN)
    names = ("router", "nest", "first", "second")
    try:
        for name in names:
            mesh.run_container(name, IMAGE, options=options)
        for name in names:
            wait_until(lambda name=name: dial(mesh, mesh.address_of(name), "7000"), f"{name} serves")
        remote = mesh.address_of("remote")
        mesh.exec_in("remote", "ip", "route", "add", "10.66.0.0/24", "via", mesh.address_of("router"))
        with inner(mesh, "router") as behind:
            assert reaches(behind, remote)
        with inner(mesh, "nest", bridge=True) as behind:
            assert reaches(behind, remote)
            assert dial(mesh, mesh.address_of("nest"), "7000", container="remote")
        virtual = f"{QUARTER}.200"
        for holder, other in (("first", "second"), ("second", "first")):
            with suppress(AssertionError):
                mesh.exec_in(other, "ip", "link", "del", "vrrp")
            script = (
                "ip link add vrrp link eth0 address 00:00:5e:00:01:33 type macvlan mode bridge &&"
                f" ip address add {virtual}/24 dev vrrp && ip link set vrrp up"
            )
            mesh.exec_in(holder, "sh", "-c", script)
            mesh.exec_in("remote", "ip", "neighbour", "flush", "dev", "eth0")
            code = f"import socket; print(socket.create_connection(('{virtual}', 7000), 2).recv(100).decode())"
            said = mesh.exec_in("remote", sys.executable, "-c", code).stdout
            assert said.split()[0] == mesh.inspect(holder)["Config"]["Hostname"]
    finally:
        mesh.docker("rm", "--force", *names)


def test_claims_follow_networks(village: Machine) -> None:
    """What a container gets with `network connect` is its own from then on, and nobody's after `disconnect`."""
    village.docker("network", "connect", f"--ip={QUARTER}.99", "quarter", "friend")
    try:
        claim = ("claim", f"{QUARTER}.99", f"{QUARTER}.1")
        wait_until(lambda: f". {QUARTER}.99" in listing(village, "bridge"), "it is claimed", seconds=5)
        assert forge(village, "remote", *claim) == {"mac": None}
        assert forge(village, "friend", "--iface=eth1", "--mac=own", *claim)["mac"]
        both = re.findall(rf'"(\S+)" \. {QUARTER}\.99', listing(village, "bridge"))
        assert len(both) == 2, "each of its addresses from each of its ports"
    finally:
        village.docker("network", "disconnect", "quarter", "friend")
    wait_until(lambda: f". {QUARTER}.99" not in listing(village, "bridge"), "it is nobody's", seconds=5)
    assert forge(village, "remote", *claim)["mac"]


def test_claims_stand_before_the_first_instruction(village: Machine) -> None:
    """Also of a container that somebody else starts, without labels."""
    path = f"/run/netns/{village.netns}"
    added: list[tuple[float, bytes]] = []
    with netlink.socket_in(path, netlink.NETLINK_NETFILTER) as told:
        netlink.join(told, 7)
        told.setblocking(True)
        told.settimeout(0.2)
        ended = threading.Event()

        def listen() -> None:
            while not ended.is_set():
                with suppress(TimeoutError):
                    data = told.recv(1 << 16)
                    added.append((time.time(), data))

        listening = threading.Thread(target=listen)
        listening.start()
        try:
            village.run_container(
                "fresh",
                IMAGE,
                "python3",
                "-I",
                "-S",
                "-c",
                "import time; print(time.time())",
                options=(f"--ip={QUARTER}.123", "--network=quarter"),
            )
            began = float(wait_until(lambda: village.docker("logs", "fresh"), "it has begun"))
        finally:
            ended.set()
            listening.join()
            village.docker("rm", "--force", "fresh")
    address = bytes(map(int, f"{QUARTER}.123".split(".")))
    first = min(at for at, data in added if b"port_addresses\0" in data and address in data)
    assert first < began


def test_somebody_removes_the_claims(village: Machine) -> None:
    """They are back within 2 s; a lease that somebody ends is back too."""
    whole = "arriving"
    for command in ("delete table bridge meshbox", "flush set bridge meshbox lease", "flush table bridge meshbox"):
        village.exec("nft", *command.split())
        wait_until(
            lambda: whole in listing(village, "bridge") and "host timeout 1m" in listing(village, "bridge"),
            f"the claims are back after `{command}`",
            seconds=2,
        )


def test_claims_end_while_the_appliance_is_away(village: Machine) -> None:
    """A container that gets another one's address is refused no longer than the lease lasts."""
    mesh = village
    options = ("--network=quarter", f"--ip={QUARTER}.50")
    mesh.run_container("former", IMAGE, options=options)
    wait_until(lambda: f". {QUARTER}.50" in listing(mesh, "bridge"), "it is claimed")
    try:
        mesh.stop(signal.SIGKILL)
        mesh.docker("rm", "--force", "former")
        mesh.run_container("heir", IMAGE, options=options)
        assert not dial(mesh, f"{QUARTER}.50", "7000", container="remote"), "nobody has renewed the lease yet"
        renew = "from appliance.drivers.nft import lease; lease.renew(0.3)"
        mesh.exec("env", f"PYTHONPATH={ROOT}", sys.executable, "-c", renew)
        wait_until(lambda: dial(mesh, f"{QUARTER}.50", "7000", container="remote"), "it works once the lease has ended")
        mesh.appliance = None
        mesh.start()
        assert "host timeout 1m" in listing(mesh, "bridge")
        assert dial(mesh, f"{QUARTER}.50", "7000", container="remote")
        mesh.stop()
        assert "elements" not in mesh.exec("nft", "list", "set", "bridge", "meshbox", "lease").stdout
    finally:
        mesh.docker("rm", "--force", "former", "heir")
        if mesh.appliance is None:
            mesh.start()


@pytest.fixture(scope="module")
def bare(village: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The same village, from now on with an appliance whose nft knows no bridge family."""
    nft = shutil.which("nft", path=f"{os.environ['PATH']}:/usr/sbin")
    folder = tmp_path_factory.mktemp("bare")
    wrapper, binding = folder / "bin" / "nft", folder / "lib" / "nftables.py"
    for path, text in ((wrapper, REFUSING.format(nft=nft)), (binding, BINDING)):
        path.parent.mkdir()
        path.write_text(text)
    wrapper.chmod(0o755)
    village.stop()
    village.exec("nft", "delete", "table", "bridge", "meshbox")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
        patch.setenv("PYTHONPATH", f"{binding.parent}:{os.environ.get('PYTHONPATH', ROOT)}")
        village.start()
        yield village
        village.stop()


def test_without_claims_all_of_it_succeeds(bare: Machine) -> None:
    """`check` says in one line what that means; the host still takes an address from its own bridge only."""
    (row,) = [row for row in orjson.loads(bare.meshbox("check", "--json").stdout) if row["subject"] == "kernel"]
    assert row["level"] == "warning"
    assert "call in the name of another one" in row["words"]
    assert listing(bare, "bridge") == ""
    wait_until(lambda: "answer" in bare.client("friend", "tcp", "server.far", "7000", "1")[0], "the server answers")
    assert [what for what, succeeded in attempts(bare).items() if not succeeded] == []
    s = scene_of(bare)
    forge(bare, "remote", "udp", s.friend, f"{QUARTER}.1", s.udp, "stolen")
    assert counted(bare, "inet", "a workload's address from another bridge")


def test_a_standstill_gives_nobody_anothers_rights(bare: Machine) -> None:
    """What a container has begun, with the address of one that ended meanwhile, is judged by what Docker has done."""
    mesh = bare
    options = ("--network=quarter", f"--ip={QUARTER}.60")
    program = (
        "import socket, sys, time; said, end = [], time.monotonic() + 3\n"
        "while time.monotonic() < end:\n"
        "    try:\n"
        "        with socket.create_connection((sys.argv[1], int(sys.argv[2])), 2) as c:\n"
        "            said.append(c.recv(100).decode())\n"
        "    except OSError: said.append('')\n"
        "    time.sleep(0.05)\n"
        "print(len(said), len([one for one in said if one]))"
    )
    labels = {"service": "near", "container": "former", "connect_to": "server.far"}
    port = str(scene_of(mesh).tcp)
    mesh.run_container("former", IMAGE, options=options, **labels)
    try:
        wait_until(lambda: "answer" in mesh.client("former", "tcp", "server.far", "7000", "1")[0], "it is let in")
        assert mesh.appliance is not None
        os.kill(mesh.appliance.pid, signal.SIGSTOP)
        try:
            mesh.docker("kill", "former")
            wait_until(lambda: not mesh.inspect("former")["State"]["Running"], "it has ended")
            command = ("python3", "-c", program, f"{QUARTER}.1", port)
            mesh.run_container("heir", IMAGE, *command, options=options)
            NEVER.wait(1.0)  # the standstill itself
        finally:
            os.kill(mesh.appliance.pid, signal.SIGCONT)
        said = wait_until(lambda: mesh.docker("logs", "heir"), "it has tried")
        tried, heard = map(int, said.split())
        assert tried > 0
        assert heard == 0
        assert all("answer" in one for one in mesh.client("friend", "tcp", "server.far", "7000", "3"))
    finally:
        mesh.docker("rm", "--force", "former", "heir")
