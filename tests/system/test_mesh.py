"""Three machines are one mesh, and stay one while machines and Consul servers come and go."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from cluster import Load
from machine import IMAGE, run, wait_until
from meshworld import TRIO, WHERE, heard, name_of, spread, wait_until_agreed

if TYPE_CHECKING:
    from cluster import Cluster, Member
    from machine import Switch

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]


def test_every_replica_gets_its_share(trio: Cluster) -> None:
    """3,000 connections by name: each of three replicas on three machines gets 28 to 39 %; UDP reaches them all too."""
    one = trio.machines[0]
    answers = heard(one, 3000)
    assert set(answers) == {name_of(machine) for machine in trio}
    assert all(840 <= count <= 1170 for count in answers.values()), answers
    echoes = Counter(found.get("answer", "").split(" ")[0] for found in one.client("client", "udp", *WHERE, "100"))
    assert set(echoes) == set(answers)


def test_deploy_waits_for_every_machine(trio: Cluster) -> None:
    """A change that is deployed on any machine has reached all of them when `meshbox deploy` returns."""
    two = trio.machines[1]
    try:
        said = two.deploy(TRIO.replace("ports=", 'env={"WORD": "new"}, ports=')).stdout
        assert said.splitlines()[-1] == f"ready: trio (3: {', '.join(f'1 on {machine.node}' for machine in trio)})"
        for machine in trio:
            containers = machine.containers("label=meshbox.service=trio", "status=running")
            assert any("WORD=new" in machine.inspect(one)["Config"]["Env"] for one in containers)
        (row,) = [row for row in two.show("services") if row["service"] == "trio"]
        replicas = row["containers"][0]["replicas"]
        assert {(one["machine"], one["state"]) for one in replicas} == {(machine.node, "ready") for machine in trio}
    finally:
        two.deploy(TRIO)


def test_local_replicas_are_preferred_while_one_lives(trio: Cluster) -> None:
    """With balance.prefer = "local" nothing leaves the machine, until its replica is gone."""
    one = trio.machines[0]
    one.stop()
    one.start(balance_prefer="local")
    try:
        assert heard(one, 300) == {name_of(one): 300}
        gone = name_of(one)
        one.docker("stop", "--time=0", *one.containers("label=meshbox.service=trio"))
        answers = heard(one, 30)
        assert len(answers.keys() - {gone}) >= 1
        assert all(len(answer) == 12 for answer in answers), answers
    finally:
        one.stop()
        one.start()


def test_registration_is_soon_usable_elsewhere(trio: Cluster) -> None:
    """What starts on one machine is reached from another that is trying already; when it stops, it is refused."""
    one, two, _ = trio.machines
    two.docker("create", "--name=late", *labels(service="late", container="server", ports="7000"), IMAGE)
    for _ in range(2):
        with ThreadPoolExecutor(1) as caller:
            first = caller.submit(one.client, "client", "until", "server.late", "7000", "30")
            two.docker("start", "late")
            assert first.result() is not None
        two.docker("stop", "--time=0", "late")
        wait_until(lambda: "error" in one.client("client", "tcp", "server.late", "7000", "1")[0], "it is refused")
        assert not two.consul.get("/v1/health/service/late")
    two.docker("rm", "--force", "late")


def labels(**found: str) -> list[str]:
    """Return the options that put a container into the mesh."""
    return [f"--label=meshbox.{key}={value}" for key, value in found.items()]


def test_machine_dies_and_returns(trio: Cluster) -> None:
    """Others lose no connection; it leaves names and rules; its replica runs elsewhere in 30 s; it comes back."""
    one, two, three = trio.machines
    lost = name_of(three)
    with Load(one, "client", *WHERE) as load:
        wait_until(lambda: load.count > 50, "there is load")
        begin = time.monotonic()
        three.power_off()
        end = time.monotonic()
        wait_until(lambda: three.node not in one.knows | two.knows, "it is known to be dead", seconds=25)
        left = end + 30 - time.monotonic()
        wait_until(lambda: len(set(heard(one)) - {lost}) == 3, "its replica answers elsewhere", seconds=left)
        assert sum(spread(trio)) == 3
        wait_until(lambda: three.address not in rules(one) and three.node not in shown(one), "it has left the rules")
        three.boot()
        wait_until(lambda: spread(trio) == [1, 1, 1], "it has its share again", seconds=40)
        wait_until_agreed(trio)
        wait_until(lambda: name_of(three) in heard(one), "it answers", seconds=20)
    assert load.unexcused((begin, end)) == []


def test_machine_without_its_agent(trio: Cluster) -> None:
    """A machine whose Consul agent is away goes on calling the others, though they use nothing of it any more.

    Unless that agent is a server and the other servers clean up after it: then it is not registered any more.
    """
    lost, two, three = trio.machines
    wait_until(trio.sound, "Consul can do without one server", seconds=40)
    cleanup = "/v1/operator/autopilot/configuration"
    two.consul.request("PUT", cleanup, {**two.consul.get(cleanup), "CleanupDeadServers": False})
    try:
        with Load(lost, "client", *WHERE) as load:
            lost.consul.stop()
            wait_until(lambda: lost.node not in two.knows | three.knows, "it is not heard of", seconds=40)
            wait_until(lambda: lost.node not in shown(two), "nothing of it is used")
            assert lost.address in rules(two)
            assert len(set(heard(lost, 100))) >= 3, "it still calls all others, and its own"
            trio.start_consul()
            wait_until(lambda: lost.node in two.knows & three.knows, "it is heard of", seconds=40)
            wait_until(lambda: spread(trio) == [1, 1, 1], "it has its share again", seconds=40)
            wait_until_agreed(trio)
        assert load.failures == []
    finally:
        two.consul.request("PUT", cleanup, {**two.consul.get(cleanup), "CleanupDeadServers": True})


def rules(machine: Member) -> str:
    """Return the table in the host's own namespace: whom it lets to the proxy."""
    return run("nsenter", f"--net=/run/netns/{machine.netns}", "nft", "list", "table", "inet", "meshbox").stdout


def shown(machine: Member) -> str:
    """Return all that is said of services and where their connections go."""
    return f"{machine.show('routes')} {machine.show('services')}"


def test_others_are_refused(trio: Cluster, switch: Switch) -> None:
    """The proxy takes nobody but its containers that declared it and the hosts of registered machines (trusted)."""
    one, two, _ = trio.machines
    (port,) = [row["proxy_port"] for row in one.show("routes") if row["destination"] == "server.trio:7000/tcp"]
    dial = ("python3", "-c", DIAL, one.address, str(port))
    assert two.exec(*dial).stdout.split() == [name_of(one)], "a registered machine gets what runs here, nothing else"
    assert "refused" in switch.exec(*dial).stdout, "an unregistered machine"
    assert "refused" in one.docker("exec", "stranger", *dial), "a container here that did not declare it"
    assert "refused" in two.docker("exec", "stranger", *dial), "a container of a registered machine, going around"
    two.run_container("foreign", IMAGE)
    assert "refused" in two.docker("exec", "foreign", *dial), "a container of a registered machine, not in the mesh"
    two.docker("rm", "--force", "foreign")


DIAL = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as s:
        print(s.recv(100).decode() or "refused")
except OSError:
    print("refused")
"""


def test_machine_with_several_addresses(trio: Cluster) -> None:
    """Where the kernel would take another address of this machine, others still see the one that is registered."""
    one = trio.machines[0]
    network = "10.77.0.0/24"
    one.exec("ip", "address", "add", "10.77.0.111/24", "dev", "eth0")
    one.exec("ip", "route", "change", network, "dev", "eth0", "src", "10.77.0.111")
    try:
        answers = heard(one, 100)
        assert set(answers) == {name_of(machine) for machine in trio}
        echoes = [found.get("answer") for found in one.client("client", "udp", *WHERE, "30")]
        assert all(echoes), "UDP too"
    finally:
        one.exec("ip", "route", "change", network, "dev", "eth0", "src", one.address)
        one.exec("ip", "address", "delete", "10.77.0.111/24", "dev", "eth0")


def test_bad_state_is_reported_and_left_alone(trio: Cluster) -> None:
    """No machine meets a constraint, a spec is not ours, another is of a newer version: said so, and all else works."""
    one, two, _ = trio.machines
    done = one.deploy(TRIO.replace("trio", "nowhere").replace("count=3", 'constraint="m14"'), check=False)
    assert done.returncode
    assert 'no machine meets the constraint "m14"' in done.stderr
    folder = "/v1/kv/meshbox/specs"
    two.consul.request("PUT", f"{folder}/alien", "no spec")
    two.consul.request("PUT", f"{folder}/newer", {"schema": 999, "changed": 1.0, "service": {}})
    wait_until(lambda: len(one.peers["problems"]) == 2, "both are reported")
    words = " ".join(one.peers["problems"])
    assert "alien" in words
    assert "newer" in words
    for name in ("alien", "newer"):
        assert two.consul.get(f"{folder}/{name}"), "it is left alone"
        two.consul.request("DELETE", f"{folder}/{name}")
    wait_until(lambda: not one.peers["problems"], "nothing is wrong any more")
    assert len(heard(one)) == 3


def test_consul_dies_and_loses_its_data(trio: Cluster) -> None:
    """Leader killed, then all servers, then empty ones: no connection fails, and the machines put everything back."""
    one, two, _ = trio.machines
    one.deploy(TRIO.replace("trio", "former").replace("count=3", "count=1"))
    one.meshbox("remove", "former", "--detach")
    wait_until(trio.sound, "Consul can do without one server", seconds=40)
    with Load(one, "client", *WHERE) as load:
        leader = next(machine for machine in trio if machine.consul.leads)
        leader.consul.stop()
        wait_until(lambda: any(m.consul.leads for m in trio if m is not leader), "there is a new leader")
        assert len(heard(one)) == 3
        for machine in trio:
            machine.consul.stop(wipe=True)
        wait_until(lambda: two.peers["held_since"] is not None, "the state is held", seconds=40)
        assert two.peers["held_why"]
        near = one.run_container("server", IMAGE, service="near", container="server", ports="7000")
        wait_until(lambda: "answer" in one.client("client", "tcp", "server.near", "7000", "1")[0], "local changes work")
        two.stop()
        two.start()
        assert two.peers["held_since"] is not None
        wait_until(lambda: len(heard(one)) == 3, "the one that restarted answers too", seconds=20)
        assert heard(two, 3, "stranger").keys() == {"EAI_NONAME"}, "a stranger still learns no name"
        trio.start_consul()
        wait_until(lambda: len(two.consul.get("/v1/health/service/meshbox?passing")) == 3, "the machines are back")
        wait_until(lambda: len(two.consul.get("/v1/health/service/trio?passing")) == 6, "what they serve is back")
        wait_until(lambda: two.consul.get("/v1/kv/meshbox/specs/trio"), "the spec is back")
        wait_until(lambda: two.consul.get("/v1/kv/meshbox/specs/former"), "the tombstone is back")
        one.docker("rm", "--force", near)
    assert load.failures == []
    assert [row["service"] for row in two.show("services") if row["deployed"]] == ["trio"]
    assert spread(trio) == [1, 1, 1]
