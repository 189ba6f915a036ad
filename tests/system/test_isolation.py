"""What was not declared is refused at once, whichever way it is tried; what has nothing to do with us goes on.

One village for all tests. Its own set-up needs no rules: a mesh whose rulesets are missing is caught by what its
containers then reach, since their bridge lets them talk to each other.
"""

from __future__ import annotations

import re
import sys
from contextlib import contextmanager
from itertools import product
from statistics import median
from typing import TYPE_CHECKING, Any

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.reversename
import orjson
import pytest
from machine import IMAGE, ROOT, Program, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from machine import Machine

pytestmark = pytest.mark.system

AT_ONCE = 100
"""Milliseconds within which TCP is refused (issue), as the dialling process sees it: the median of five dials, since
one may wait that long for a processor on a machine that is busy with other tests."""
SLOWEST = 500
"""Milliseconds that no dial takes, TCP or UDP: a processor is not waited for that long, and where the first packet got
no answer, the kernel sends the second after 1,000."""
REFUSED = {
    "tcp": {"ECONNREFUSED"},
    "udp": {"EPERM", "ECONNREFUSED", "EHOSTUNREACH"},  # refused by its own rules, or an ICMP error came back
}
DIALS = {"tcp": 5, "udp": 1}
"""Per target. The kernel sends six ICMP errors at a time to one address, then one a second."""
CAP_NET_RAW = 13
"""Its bit (linux/capability.h)."""
BRIDGE = "172.21.0.1"
UNDECLARED = (7000, 7002, 7003)
"""Ports at which `server` answers everybody that gets there."""


@pytest.fixture(scope="module")
def village(lasting_mesh: Machine) -> Iterator[Machine]:
    """`server` offers 7000 of its ports, `friend` declared it, `stranger` did not, `outsider` is not in the mesh.

    On a network of its own, `remote` declared it too. The service `isolated` is deployed.
    """
    mesh = lasting_mesh
    published = ("--publish=17001:7001", "--publish=17001:7001/udp")
    mesh.docker("network", "create", "quarter")
    try:
        mesh.run_container("server", IMAGE, options=published, service="far", container="server", ports="7000,7000/udp")
        mesh.run_container("friend", IMAGE, service="near", container="friend", connect_to="server.far")
        mesh.run_container("stranger", IMAGE, service="near", container="stranger")
        mesh.run_container("outsider", IMAGE)
        options = ("--network=quarter",)
        mesh.run_container(
            "remote", IMAGE, options=options, service="near", container="remote", connect_to="server.far"
        )
        mesh.deploy(
            f"""isolated = service("isolated", containers=[
                container("server", image="{IMAGE}", ports=[7000, "7000/udp"], connect_to=["server.far"])])"""
        )
        wait_until(
            lambda: {r["name"]: r["ready"] for r in mesh.show("workloads")}.get("server.far"), "server is a backend"
        )
        yield mesh
    finally:
        mesh.docker("rm", "--force", "remote")
        mesh.docker("network", "rm", "quarter")


@contextmanager
def resident(mesh: Machine, name: str, *options: str, **labels: str) -> Iterator[None]:
    """Run one container more."""
    mesh.run_container(name, IMAGE, options=options, **labels)
    try:
        yield
    finally:
        mesh.docker("rm", "--force", name)


def targets(addresses: list[str], ports: list[int] | tuple[int, ...], protocols: str = "tcp udp") -> list[str]:
    """Return what to dial, as client.py takes it."""
    every = product(protocols.split(), addresses, ports)
    return [f"{protocol}/{address}/{port}/{DIALS[protocol]}" for protocol, address, port in every]


def assert_refused(found: dict[str, list[dict[str, Any]]]) -> None:
    """Check that every dial was refused at once."""
    assert found
    for target, results in found.items():
        protocol = target.split("/")[0]
        assert {one.get("error") for one in results} <= REFUSED[protocol], (target, results)
        assert max(one["ms"] for one in results) < SLOWEST, (target, results)
        if protocol == "tcp":
            assert median(one["ms"] for one in results) < AT_ONCE, (target, results)


def refused(mesh: Machine, who: str, dials: list[str]) -> None:
    """Check that a container is refused at once whatever it dials."""
    assert_refused(mesh.client(who, "dials", *dials))


def answered(found: dict[str, list[dict[str, Any]]], start: str) -> None:
    """Check that every dial was answered, by whom it should."""
    assert found
    for target, results in found.items():
        assert all(one.get("answer", "-").startswith(start) for one in results), (target, results)


def row(mesh: Machine, docker_name: str) -> dict[str, Any]:
    """Return what `meshbox workloads` says of a container, once it says something."""
    return wait_until(
        lambda: next((r for r in mesh.show("workloads") if r["docker_name"] == docker_name), None), docker_name
    )


def served_by(mesh: Machine, who: str, name: str) -> set[str]:
    """Return which containers answer ten connections."""
    return {one["answer"].split()[0] for one in mesh.client(who, "tcp", name, "7000", "10")}


def on_host(mesh: Machine, *args: str) -> Any:
    """Run client.py as a process of the host."""
    return orjson.loads(mesh.exec(sys.executable, ROOT / "tests/images/client.py", *args).stdout)


def outside(mesh: Machine, *args: str) -> Any:
    """Run client.py on another computer."""
    return orjson.loads(mesh.switch.exec(sys.executable, ROOT / "tests/images/client.py", *args).stdout)


def name_of(mesh: Machine, container: str) -> str:
    """Return the host name with which a container's server answers."""
    return str(mesh.inspect(container)["Config"]["Hostname"])


def proxies(mesh: Machine, *kinds: str) -> list[str]:
    """Return the proxy's listeners, of all kinds or of these, at the gateway and at the host's outside address."""
    addresses = [BRIDGE, mesh.address]
    return [t for kind in kinds or DIALS for t in targets(addresses, mesh.proxy_ports(kind), kind)]


def virtual_address(mesh: Machine) -> str:
    """Return the address of server.far."""
    (row,) = (row for row in mesh.show("services") if row["service"] == "far")
    return str(row["containers"][0]["vip"])


def test_own_address_of_a_container_is_refused(village: Machine) -> None:
    """Nobody goes around the proxy, neither to declared ports nor to others, also from outside the mesh.

    The bridge itself would let them: there, containers outside the mesh reach each other, and the server answers the
    host on the same ports.
    """
    server = village.address_of("server")
    answered(on_host(village, "dials", *targets([server], [7000])), name_of(village, "server"))
    assert on_host(village, "sum", server, "7002", "3")["answer"].startswith("3 ")
    with resident(village, "neighbour"):
        address = village.address_of("neighbour")
        wait_until(lambda: "answer" in village.client("outsider", "tcp", address, "7000", "1")[0], "it answers")
        answered(village.client("outsider", "dials", *targets([address], [7000])), name_of(village, "neighbour"))
    for who in ("friend", "stranger", "outsider", "remote"):
        refused(village, who, targets([server], UNDECLARED))
    others = [village.address_of(who) for who in ("stranger", "outsider", "remote")]
    refused(village, "server", targets(others, [7000]))
    bridged = "/proc/sys/net/bridge/bridge-nf-call-iptables"
    before = village.exec("cat", bridged).stdout.strip()
    village.exec("sh", "-c", f"echo 0 > {bridged}")  # the host's rules see nothing of what stays on the bridge
    try:
        refused(village, "outsider", targets([server], UNDECLARED))
    finally:
        village.exec("sh", "-c", f"echo {before} > {bridged}")


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_nobody_is_heard_in_anothers_name(village: Machine, protocol: str) -> None:
    """Not in that of a container that may call, nor in the host's; tests/system/test_port_claims.py tries all there is.

    The same forger is heard at once in a name that nobody has.
    """
    forger = (sys.executable, ROOT / "tests/images/forger.py")
    server, friend = village.address_of("server"), village.address_of("friend")
    (port,) = (r["proxy_port"] for r in village.show("routes") if r["destination"] == f"server.far:7000/{protocol}")
    for who, name, to, at in (("stranger", friend, BRIDGE, port), ("outsider", BRIDGE, server, 7000)):
        done = village.exec_in(who, *forger, protocol, name, to, str(at), "stolen")
        assert orjson.loads(done.stdout) in ({"met": "silence"}, {"answer": None}), who
    assert orjson.loads(village.exec_in("outsider", *forger, "claim", "172.21.99.9", BRIDGE).stdout)["mac"]


def test_declared_name_answers(village: Machine) -> None:
    """Who declared it gets there by name; `why` says the same, and to the others what to write."""
    wait_until(lambda: "answer" in village.client("friend", "tcp", "server.far", "7000", "1")[0], "the server answers")
    answered(village.client("friend", "dials", *targets(["server.far"], [7000])), name_of(village, "server"))
    assert village.client("friend", "resolve", "server.far") == {"addresses": [virtual_address(village)]}
    assert village.meshbox("why", "friend.near", "server.far:7000").returncode == 0
    refusal = village.meshbox("why", "stranger.near", "server.far:7000", check=False)
    assert refusal.returncode == 1
    assert "connect_to" in refusal.stdout
    assert "server.far:7000" in refusal.stdout


def ask(mesh: Machine, who: str, protocol: str, *questions: tuple[str, str]) -> list[dns.message.Message]:
    """Ask the resolver of a container, as its resolv.conf names it."""
    queries = [dns.message.make_query(name, kind, use_edns=0, payload=1232) for name, kind in questions]
    said = mesh.client(who, "question", protocol, *(query.to_wire().hex() for query in queries))
    assert all(re.fullmatch("[0-9a-f]+", one) for one in said), (who, said)
    answers = [dns.message.from_wire(bytes.fromhex(one)) for one in said]
    assert all(query.is_response(answer) for query, answer in zip(queries, answers, strict=True))
    return answers


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_every_kind_of_question_is_answered_inside(village: Machine, protocol: str) -> None:
    """By UDP and TCP, to containers on the default bridge and to those whose resolver is Docker's own."""
    vip = virtual_address(village)
    backwards = dns.reversename.from_address(vip).to_text()
    (deployed,) = village.containers("label=meshbox.service=isolated")
    for who in ("friend", "remote", deployed):
        plain, suffixed, back, outside_world, *nothing = ask(
            village,
            who,
            protocol,
            ("server.far", "A"),
            ("server.far.mesh.internal", "A"),
            (backwards, "PTR"),
            ("www.outside.example", "A"),
            *(("server.far", kind) for kind in ("AAAA", "TXT", "SRV", "HTTPS")),
        )
        for answer, said in (
            (plain, vip),
            (suffixed, vip),
            (back, "server.far."),
            (outside_world, village.switch.address),
        ):
            assert [str(record) for rrset in answer.answer for record in rrset] == [said], (who, answer)
        for answer in nothing:
            assert (answer.rcode(), answer.answer) == (dns.rcode.NOERROR, []), (who, answer)
            assert [rrset.rdtype for rrset in answer.authority] == [dns.rdatatype.SOA], (who, answer)
        below = (("_grpc_config.server.far", "TXT"), ("_grpclb._tcp.server.far.mesh.internal", "SRV"))
        for answer in ask(village, who, protocol, *below):
            assert (answer.rcode(), answer.answer) == (dns.rcode.NXDOMAIN, []), (who, answer)
            assert answer.flags & dns.flags.AA, (who, "nobody else was asked")
            assert [rrset.rdtype for rrset in answer.authority] == [dns.rdatatype.SOA], (who, answer)
    for who in ("stranger", deployed):
        (refusal,) = ask(village, who, protocol, ("stranger.near" if who == deployed else "server.far", "A"))
        assert refusal.rcode() == dns.rcode.NXDOMAIN, (who, refusal)
        (told,) = (option for option in refusal.options if isinstance(option, dns.edns.EDEOption))
        assert told.code == dns.edns.EDECode.PROHIBITED
        assert told.text is not None
        assert "is not in connect_to of" in told.text
        (zone,) = refusal.authority
        assert zone.rdtype == dns.rdatatype.SOA
        assert zone.ttl <= 10, "it may be declared soon"
    (large,) = ask(village, "friend", "tcp", ("large.outside.example", "TXT"))
    assert len(large.answer[0]) == 100


def test_names_of_addresses_are_told_to_those_that_declared_them(village: Machine) -> None:
    """For others an address of a service is as one that nobody has, in every way."""
    vip = virtual_address(village)
    nobody = "241.77.77.77" if vip != "241.77.77.77" else "241.77.77.78"
    questions = [(dns.reversename.from_address(address).to_text(), "PTR") for address in (vip, nobody)]
    shown = []
    for (name, _), answer in zip(questions, ask(village, "stranger", "udp", *questions), strict=True):
        assert answer.rcode() == dns.rcode.NXDOMAIN
        answer.id = 0
        shown.append(answer.to_text().replace(name.removesuffix(".in-addr.arpa."), ""))
    assert shown[0] == shown[1]
    assert "server" not in shown[0]


FLOOD = 2.0
"""Seconds that an attack on DNS lasts."""


@pytest.mark.parametrize(("attacker", "kind"), [("stranger", "foreign"), ("outsider", "made-up")])
def test_one_container_keeps_no_other_from_names(village: Machine, attacker: str, kind: str) -> None:
    """It asks at full speed, in its own name or in those of addresses that nobody has; a neighbour is answered."""
    script = (ROOT / "bench/attackers/dns.py").read_text()
    arguments = [kind, str(FLOOD), BRIDGE, "53", "10000"]
    command = ("docker", "--host", f"unix://{village.socket}", "exec", attacker, "python3", "-c", script, *arguments)
    vip = virtual_address(village)
    questions = [(name, "A") for name in ("server.far", "server.far.mesh.internal", "server.far", "Server.Far")] * 5
    attack = Program(village.netns, command, village.root / "attack.log")
    try:
        while attack.running:
            for answer in ask(village, "friend", "udp", *questions):
                assert [str(record) for rrset in answer.answer for record in rrset] == [vip]
    finally:
        assert attack.stop(seconds=20) == 0, attack.tail()


def test_undeclared_virtual_address_is_refused(village: Machine) -> None:
    """Who did not declare the name is not told it, and refused at its virtual address; who did, at its other ports."""
    vip = virtual_address(village)
    assert village.client("stranger", "resolve", "server.far")["error"] == "EAI_NONAME"
    refused(village, "stranger", targets([vip], UNDECLARED) + targets(["241.1.2.3"], [7000]))
    refused(village, "friend", targets([vip], [7001, 7002]) + targets(["241.1.2.3"], [7000]))


def test_own_address_of_a_deployed_container_is_refused(village: Machine) -> None:
    """On its isolated network, and from any other one, Docker drops it in silence; proxy and replies still pass."""
    (deployed,) = village.containers("label=meshbox.service=isolated")
    with resident(village, "beside", "--network=meshbox"):
        for who in ("beside", "outsider", "friend", "remote"):
            refused(village, who, targets([village.address_of(deployed)], [7000]))
        assert village.docker("exec", "beside", "wget", "-qO-", f"http://{village.switch.address}/")
    answered(village.client(deployed, "dials", *targets(["server.far"], [7000])), name_of(village, "server"))


def test_proxy_port_is_refused_to_others(village: Machine) -> None:
    """The proxy's ports answer who declared them, by name only: at the gateway and at the host's outside address."""
    ports = proxies(village)
    assert len(ports) == 8
    for who in ("friend", "stranger", "outsider", "remote"):
        refused(village, who, ports)


def test_all_is_refused_to_the_outside(village: Machine) -> None:
    """Another computer is refused at the proxy's ports; and, if it has a way to them, at containers' own addresses.

    Those Docker drops in silence, where it was Docker that made the host forward packets.
    """
    assert_refused(outside(village, "dials", *(t for t in proxies(village) if BRIDGE not in t)))
    (policy,) = re.findall("^-P FORWARD .*", village.exec("iptables", "--list-rules", "FORWARD").stdout, re.MULTILINE)
    route = ("ip", "-n", village.switch.netns, "route")
    village.switch.exec(*route, "add", "172.21.0.0/16", "via", village.address)
    try:
        village.exec("iptables", "-P", "FORWARD", "DROP")
        dials = targets([BRIDGE], village.proxy_ports(), "tcp") + targets([village.address_of("server")], UNDECLARED)
        assert_refused(outside(village, "dials", *dials))
    finally:
        village.exec("iptables", *policy.split())
        village.switch.exec(*route, "del", "172.21.0.0/16")


def test_other_program_of_the_host_is_left_alone(village: Machine) -> None:
    """A program whose port lies among the proxy's (a database) is reached by all as without meshbox."""
    greeter = (
        "import socketserver\n"
        "class Greet(socketserver.BaseRequestHandler):\n"
        "    def handle(self): self.request.sendall(b'database')\n"
        "with socketserver.TCPServer(('', 27017), Greet) as server: server.serve_forever()"
    )
    database = Program(village.netns, (sys.executable, "-c", greeter), village.root / "database.log")
    try:
        wait_until(lambda: 27017 in village.proxy_ports(), "the database listens")
        dials = targets([BRIDGE, village.address], [27017], "tcp")
        for who in ("friend", "stranger", "outsider"):
            answered(village.client(who, "dials", *dials), "database")
        answered(outside(village, "dials", *targets([village.address], [27017], "tcp")), "database")
    finally:
        database.stop()


def test_outside_world_stays_in_reach(village: Machine) -> None:
    """A container of the mesh reaches what is outside, TCP and UDP, by address and by a name that is not ours."""
    address = village.switch.address
    for who, hosts in {
        "friend": [address, "www.outside.example"],
        "stranger": [address],
        "outsider": [address],
    }.items():
        for host in hosts:
            assert village.docker("exec", who, "wget", "-qO-", f"http://{host}/").startswith("outside ")
        answered(village.client(who, "dials", *targets(hosts, [9000], "udp")), village.address)


def test_published_ports_still_work(village: Machine) -> None:
    """What Docker publishes of a container in the mesh is reachable by everybody: outside, host, other containers."""
    dials, server = targets([village.address], [17001]), name_of(village, "server")
    answered(outside(village, "dials", *dials), server)
    answered(on_host(village, "dials", *dials, *targets(["127.0.0.1"], [17001])), server)
    dials = targets([village.address], [17001], "tcp")  # for UDP, Docker's proxy answers from the gateway
    answered(village.client("outsider", "dials", *dials, *targets([BRIDGE], [17001], "udp")), server)
    with resident(village, "afar", "--network=quarter"):
        answered(village.client("afar", "dials", *dials), server)


def test_containers_of_one_service_reach_each_other(village: Machine) -> None:
    """Without any connect_to."""
    with resident(village, "sibling", service="far", container="sibling"):
        answered(village.client("sibling", "dials", *targets(["server.far"], [7000])), name_of(village, "server"))


def test_user_defined_network(village: Machine) -> None:
    """On a network with Docker's own DNS, mesh names work beside container names."""
    answered(village.client("remote", "dials", *targets(["server.far"], [7000])), name_of(village, "server"))
    assert village.client("remote", "resolve", "remote") == {"addresses": [village.address_of("remote")]}
    for who in ("friend", "stranger", "outsider"):
        refused(village, who, targets([village.address_of("remote")], [7000]))


def test_rules_that_somebody_removes_come_back(village: Machine) -> None:
    """A ruleset that is deleted or emptied inside a container is put back within 2 s."""

    def rules() -> list[str]:
        listing = village.exec_in("stranger", "nft", "--stateless", "list", "table", "inet", "meshbox", check=False)
        return sorted(re.split(r"[\s,]+", listing.stdout))  # the kernel lists elements in any order

    whole = rules()
    for damage in ("delete table inet meshbox", "flush table inet meshbox", "flush chain inet meshbox leaving"):
        village.exec_in("stranger", "nft", *damage.split())
        wait_until(lambda: rules() == whole, f"the rules are back after `{damage}`", seconds=2)
        refused(village, "stranger", targets([virtual_address(village)], [7000]))


def test_impossible_containers_are_reported(village: Machine) -> None:
    """A container on the host's network cannot be isolated; `workloads` says so by name."""

    def shown() -> list[str]:
        return [line for line in village.meshbox("workloads").stdout.splitlines() if "hosty" in line]

    with resident(village, "hosty", "--network=host", service="odd", container="hosty"):
        lines = wait_until(shown, "it is shown")
        assert any("host" in line.replace("hosty", "") for line in lines), lines


@pytest.fixture(scope="module")
def evil(village: Machine) -> Iterator[str]:
    """An image whose author wrote labels into it."""
    labels = ("service=far", "container=server", "ports=7000", "connect_to=server.far")
    village.docker("create", "--name=author", IMAGE)
    village.docker("commit", *(f"--change=LABEL meshbox.{label}" for label in labels), "author", "evil")
    village.docker("rm", "author")
    yield "evil"
    village.docker("rmi", "evil")


def test_labels_of_an_image_give_nothing(village: Machine, evil: str) -> None:
    """Neither rights nor connections of others, at its start or a restart; the words say why."""
    honest = served_by(village, "friend", "server.far")
    village.docker("run", "--detach", "--name=plain", evil)
    try:
        for again in (False, True):
            if again:
                village.docker("restart", "--time=0", "plain")
            assert "come from its image and do not count" in row(village, "plain")["problem"]
            refused(village, "plain", proxies(village, "tcp"))
            assert served_by(village, "friend", "server.far") == honest
    finally:
        village.docker("rm", "--force", "plain")


def test_labels_beside_those_of_an_image(village: Machine, evil: str) -> None:
    """What was given at the start counts, and nothing of what the image adds."""
    village.run_container("mine", evil, service="near", container="mine")
    try:
        found = row(village, "mine")
        assert (found["problem"], found["ports"], found["connect_to"]) == (None, [], [])
        assert "labels meshbox.connect_to, meshbox.ports come from its image" in found["note"]
        refused(village, "mine", targets([virtual_address(village)], [7000]))
    finally:
        village.docker("rm", "--force", "mine")


def test_a_label_makes_no_part_of_a_deployed_service(village: Machine) -> None:
    """It gives neither connections nor the rights of a sibling; with `open` in the spec it gives both."""
    spec = f"""isolated = service("isolated", %s containers=[
        container("server", image="{IMAGE}", ports=[7000, "7000/udp"], connect_to=["server.far"])])"""
    with (
        resident(village, "asker", service="asker", container="asker", connect_to="server.isolated"),
        resident(village, "usurper", service="isolated", container="server", ports="7000"),
    ):
        assert 'service "isolated" is deployed and takes no container' in row(village, "usurper")["problem"]
        wait_until(lambda: "answer" in village.client("asker", "tcp", "server.isolated", "7000", "1")[0], "an answer")
        assert len(served_by(village, "asker", "server.isolated")) == 1
        refused(village, "usurper", proxies(village, "tcp"))
        assert "open=True" in village.meshbox("why", "usurper", "server.isolated:7000", check=False).stdout
        village.deploy(spec % "open=True,")
        try:
            wait_until(lambda: row(village, "usurper")["ready"], "it belongs to the service")
            wait_until(lambda: len(served_by(village, "asker", "server.isolated")) == 2, "both serve")
            assert "addresses" in village.client("usurper", "resolve", "server.isolated")
        finally:
            said = village.deploy(spec % "").stderr
        assert "usurper would leave the mesh" in said
        wait_until(lambda: row(village, "usurper")["problem"], "it is out again")
        assert len(served_by(village, "asker", "server.isolated")) == 1


def test_what_is_deployed_makes_no_packets_of_its_own(village: Machine) -> None:
    """It has no NET_RAW, which Docker gives to all others."""
    (deployed,) = village.containers("label=meshbox.service=isolated")
    assert village.inspect(deployed)["HostConfig"]["CapDrop"] in (["NET_RAW"], ["CAP_NET_RAW"])
    for who, may in ((deployed, False), ("stranger", True)):
        (bounds,) = re.findall(r"CapBnd:\s*([0-9a-f]+)", village.docker("exec", who, "cat", "/proc/1/status"))
        assert bool(int(bounds, 16) >> CAP_NET_RAW & 1) is may, who
