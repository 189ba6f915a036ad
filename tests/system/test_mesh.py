"""Three machines are one mesh, and stay one while machines and Consul servers come and go."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import TYPE_CHECKING

import pytest
from cluster import HTTP, Census, Kept, Load
from machine import IMAGE, NEVER, run, wait_until
from meshworld import SLACK, TRIO, WHERE, allowed, heard, name_of, names, peers, routes, spread, wait_until_agreed
from realconsul import consul_binary

from appliance.drivers.consul.codec import TTL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cluster import Cluster, Member
    from machine import Switch

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

UNEVEN = "server.uneven"


@pytest.fixture
def uneven(trio: Cluster) -> Iterator[tuple[str, str, str]]:
    """One replica of `uneven` on the first machine, two on the second; their names."""
    one, two, _ = trio.machines
    marks = {"service": "uneven", "container": "server", "ports": "7000"}
    places = ((one, "uneven0"), (two, "uneven1"), (two, "uneven2"))
    try:
        ids = [machine.run_container(name, IMAGE, **marks)[:12] for machine, name in places]
        wait_until(lambda: set(heard(one, host=UNEVEN)) == set(ids), "all three answer")
        yield ids[0], ids[1], ids[2]
    finally:
        for machine, name in places:
            machine.docker("rm", "--force", name)


def test_every_replica_gets_its_share(trio: Cluster) -> None:
    """3,000 connections by name: each of three replicas on three machines gets 28 to 39 %; UDP reaches them all too."""
    one = trio.machines[0]
    answers = heard(one, 3000)
    assert set(answers) == names(*trio)
    assert all(840 <= count <= 1170 for count in answers.values()), answers
    echoes = Counter(found.get("answer", "").split(" ")[0] for found in one.client("client", "udp", *WHERE, "100"))
    assert set(echoes) == set(answers)


def test_unequal_machines(trio: Cluster, uneven: tuple[str, ...]) -> None:
    """Where one machine has two replicas and another has one, all three get the same share."""
    answers = heard(trio.machines[0], 3000, host=UNEVEN)
    assert set(answers) == set(uneven)
    assert all(840 <= count <= 1170 for count in answers.values()), answers


def test_deploy_waits_for_every_machine(trio: Cluster) -> None:
    """What is deployed on any machine, more replicas too, is everywhere when `meshbox deploy` returns.

    No replica runs on two machines for longer than a death takes to be noticed, and no connection fails.
    """
    two, three = trio.machines[1:]
    with Census(trio, "trio") as census, Load(two, "client", *WHERE) as load:
        try:
            said = two.deploy(
                TRIO.replace("count=3", "count=5").replace("ports=", 'env={"WORD": "new"}, ports=')
            ).stdout
            assert all(spread(trio)), "each machine has its share"
            wait_until(lambda: sum(spread(trio)) == 5, "what was replaced has been stopped")
            shares = [f"{count} on {m.node}" for m, count in zip(trio, spread(trio), strict=True)]
            assert said.splitlines()[-1] == f"ready: trio (5: {', '.join(shares)})"
            for machine in trio:
                containers = machine.containers("label=meshbox.service=trio", "status=running")
                assert any("WORD=new" in machine.inspect(one)["Config"]["Env"] for one in containers)
            (row,) = [row for row in two.show("services") if row["service"] == "trio"]
            replicas = row["containers"][0]["replicas"]
            assert {(one["machine"], one["state"]) for one in replicas} == {(machine.node, "ready") for machine in trio}
        finally:
            three.deploy(TRIO)
        wait_until(lambda: spread(trio) == [1, 1, 1], "each has its own replica", seconds=40)
    assert set(census.replicas) == {"0", "1", "2", "3", "4"}
    assert census.longest() <= TTL, census.overlaps
    assert load.failures == []


def test_what_no_machine_serves_is_refused(trio: Cluster) -> None:
    """On every machine until the server listens, also by its own machine; while it is paused, callers wait for it."""
    one, two, _ = trio.machines
    wait = ("sh", "-c", "until [ -e /tmp/go ]; do sleep 0.02; done; exec python3 /srv/server.py")
    two.run_container("late", IMAGE, *wait, service="late", container="server", ports="7000")
    dial = "import socket, sys; print(socket.socket().connect_ex((sys.argv[1], int(sys.argv[2]))))"
    try:
        wait_until(
            lambda: any(row["destination"] == "server.late:7000/tcp" for row in two.show("routes")), "it is known"
        )
        for machine in (one, two):
            wait_until(lambda m=machine: heard(m, 1, host="server.late") == {"ECONNREFUSED": 1}, "it has its rules")
            assert heard(machine, 20, host="server.late") == {"ECONNREFUSED": 20}
        (port,) = (row["proxy_port"] for row in two.show("routes") if row["destination"] == "server.late:7000/tcp")
        said = one.exec(sys.executable, "-c", dial, two.address, str(port)).stdout
        assert said.strip() == str(errno.ECONNREFUSED), "machines that still believe in it are refused as well"
        two.docker("exec", "late", "touch", "/tmp/go")
        name = two.docker("exec", "late", "hostname")
        for machine in trio:
            wait_until(lambda m=machine: heard(m, 1, host="server.late") == {name: 1}, "it is reached")
        two.pause("late")
        wait_until(lambda: two.consul.get("/v1/health/service/late")[0]["Service"]["Meta"]["replicas"] == "0", "told")
        with ThreadPoolExecutor() as workers:
            waiting = [workers.submit(heard, m, 1, host="server.late") for m in trio]
            wait_until(lambda: len(two.show("connections")) >= len(waiting), "they wait")
            two.docker("unpause", "late")
            assert [found.result() for found in waiting] == [{name: 1}] * 3
    finally:
        two.docker("rm", "--force", "late")


def test_constraint_pins(trio: Cluster) -> None:
    """What asks for a machine by its meta, or by its name, runs there and nowhere else; all machines reach it."""
    one, two, three = trio.machines
    pinned = TRIO.replace("trio", "pinned").replace("count=3", 'count=2, constraint="{}"')
    try:
        for machine, constraint in ((two, "zone==b"), (one, one.node)):
            said = three.deploy(pinned.format(constraint)).stdout
            assert said.splitlines()[-1] == f"ready: pinned (2 on {machine.node})"
            others = [other for other in trio if other is not machine]
            wait_until(lambda o=others: not names(*o, service="pinned"), "it runs nowhere else")
            replicas = names(machine, service="pinned")
            assert len(replicas) == 2
            for client in trio:
                answers = heard(client, host="server.pinned")
                assert answers.keys() == replicas, f"from {client.node}"
    finally:
        three.meshbox("remove", "pinned", "--detach")
        wait_until(lambda: not names(*trio, service="pinned"), "it is removed")


def test_local_replicas_are_preferred_while_one_lives(trio: Cluster, uneven: tuple[str, ...]) -> None:
    """With balance.prefer = "local" nothing leaves the machine, but while its replica is gone."""
    one = trio.machines[0]
    own, *others = uneven
    one.stop()
    one.start(balance_prefer="local")
    try:
        assert heard(one, 300) == {name_of(one): 300}
        assert heard(one, 300, host=UNEVEN) == {own: 300}
        with Load(one, "client", UNEVEN, "7000") as load:
            wait_until(lambda: load.count, "there is load")
            begin = time.monotonic()
            one.docker("stop", "--time=0", "uneven0")
            wait_until(lambda: set(heard(one, 5, host=UNEVEN)) <= set(others), "the others are used")
            end = time.monotonic()
            answers = heard(one, 300, host=UNEVEN)
            assert set(answers) == set(others)
            assert all(100 <= count <= 200 for count in answers.values()), answers
            one.docker("start", "uneven0")
            wait_until(lambda: set(heard(one, 5, host=UNEVEN)) == {own}, "it is used again")
            assert heard(one, 300, host=UNEVEN) == {own: 300}
        assert load.unexcused((begin, end)) == []
    finally:
        one.stop()
        one.start()


def test_registration_is_soon_usable_elsewhere(trio: Cluster) -> None:
    """What starts on one machine is reached from the others within half a second; when it stops, it is refused there.

    The others are trying already. Half a second is the median; bench/RESULTS.md has the figures.
    """
    one, two, three = trio.machines
    delays = []
    two.docker("create", "--name=late", *labels(service="late", container="server", ports="7000"), IMAGE)
    try:
        for _ in range(5):
            with ThreadPoolExecutor(3) as workers:
                registered = workers.submit(two.consul.registered, "late")
                answers = [
                    workers.submit(m.client, "client", "until", "server.late", "7000", "30") for m in (one, three)
                ]
                two.docker("start", "late")
                for answer in answers:
                    first = answer.result()["at"]
                    assert first is not None, "it is reached at all"
                    delays.append(first - registered.result())
            two.docker("stop", "--time=0", "late")
            for machine in (one, three):
                wait_until(lambda m=machine: heard(m, 1, host="server.late") == {"ECONNREFUSED": 1}, "it is refused")
            assert not two.consul.get("/v1/health/service/late")
    finally:
        two.docker("rm", "--force", "late")
    assert median(delays) <= 0.5, delays


def labels(**found: str) -> list[str]:
    """Return the options that put a container into the mesh."""
    return [f"--label=meshbox.{key}={value}" for key, value in found.items()]


def test_machine_dies_and_returns(trio: Cluster) -> None:
    """Only connections to it are lost; after the TTL it is left out; its replica runs elsewhere in 30 s; it returns.

    Left out means: nothing leads to it, and it may call nobody, by the rules of the hosts and by their proxies.
    """
    one, two, three = trio.machines
    lost = name_of(three)
    with (
        Census(trio, "trio") as census,
        Load(one, "client", *WHERE) as load,
        Load(two, "client", *WHERE) as other,
        Load(one, "client", *WHERE, udp=True) as questions,
        Kept(one, "client", *WHERE, tcp=6, udp=4) as kept,
        Kept(two, "client", *WHERE, tcp=6, udp=4) as also,
    ):
        wait_until(lambda: load.count > 20 and other.count > 20 and questions.count > 20, "there is load")
        begin = time.monotonic()
        three.power_off()
        end = time.monotonic()
        for machine in (one, two):
            wait_until(lambda m=machine: three.node not in m.knows, f"{machine.node} knows it")
            wait_until(lambda m=machine: three.node not in routes(m), "nobody is sent there", seconds=SLACK)
            wait_until(lambda m=machine: three.address not in peers(m), "its host lets it in no more", seconds=SLACK)
            wait_until(lambda m=machine: three.address not in allowed(m), "nor does its proxy", seconds=SLACK)
        left = end + 30 - time.monotonic()
        replicas = wait_until(lambda: len(found := names(one, two)) == 3 and found, "there are three", seconds=left)
        left = end + 30 - time.monotonic()
        wait_until(lambda: heard(one).keys() == replicas, "its replica answers elsewhere", seconds=left)
        three.boot()
        wait_until(lambda: spread(trio) == [1, 1, 1], "it has its share again", seconds=40)
        wait_until_agreed(trio)
        for machine in trio:
            wait_until(lambda m=machine: name_of(three) in heard(m), "it answers", seconds=20)
        for machine in (one, two):
            assert three.address in peers(machine)
            assert three.address in allowed(machine)
    for machine in (one, two):
        assert census.left(machine.node, three.node, end) <= TTL + SLACK
    assert load.unexcused((begin, end)) == []
    assert other.unexcused((begin, end)) == []
    assert questions.failures == []
    assert kept.broken(lost) == []
    assert also.broken(lost) == []
    assert census.longest() <= TTL, census.overlaps
    assert all(waiting <= 64 for waiting in census.queries.values())


def test_stopping_takes_leave_first(trio: Cluster) -> None:
    """Told to end, an appliance is no longer dialled before it drains; what is open goes on until done or deadline.

    Its container is left alone; after the TTL another machine runs that replica too, until the appliance is back.
    """
    one, two, three = trio.machines
    own = name_of(two)
    two.stop()
    try:
        two.start(drain="60")
        wait_until_agreed(trio)
        with Load(one, "client", *WHERE) as load:
            with Kept(one, "client", *WHERE, tcp=24) as kept:
                assert two.appliance is not None
                os.kill(two.appliance.pid, signal.SIGTERM)
                wait_until(lambda: two.node not in routes(one), "nobody is sent there")
                registered = one.consul.get("/v1/catalog/service/trio")
                assert two.node not in {entry["ServiceMeta"]["node"] for entry in registered}
                assert heard(one, 100).keys() == names(one, three)
                told = time.monotonic()
                NEVER.wait(1.0)  # in which what is open is talked through
                assert two.appliance.running, "it waits for what is open"
            assert two.stop(0) == 0, "once that is done it ends"
            assert kept.broken() == []
            through = [found for found in kept.found if found["answer"] == own]
            assert through
            assert all(found["last"] > told for found in through)
            two.start(drain="1")
            wait_until_agreed(trio)
            with Kept(one, "client", *WHERE, tcp=24) as kept:
                assert two.stop() == 0
                NEVER.wait(1.0)  # in which each connection is talked over again, or found to have ended
            assert kept.broken(own) == []
            assert all(found["error"] for found in kept.found if found["answer"] == own)
            with Census(trio, "trio") as census:
                stopped = time.monotonic()
                wait_until(lambda: len(names(one, three)) == 3, "its replica runs elsewhere too", seconds=40)
                wait_until(lambda: heard(one).keys() == names(one, three), "that is used")
                started = time.monotonic()
                two.start()
                wait_until(lambda: spread(trio) == [1, 1, 1], "each has its own replica", seconds=40)
                wait_until(lambda: heard(one).keys() == names(*trio), "all answer")
            assert census.longest(cut=(stopped, started)) <= TTL, census.overlaps
            assert name_of(two) == own, "it was not replaced"
        assert load.failures == []
    finally:
        two.stop()
        two.start()


def test_others_are_refused(trio: Cluster, switch: Switch) -> None:
    """The proxy takes nobody but its containers that declared it and the hosts of registered machines (trusted)."""
    one, two, _ = trio.machines
    two.run_container("foreign", IMAGE)
    try:
        for protocol in ("tcp", "udp"):
            dial = ("python3", "-c", DIAL, protocol, one.address, proxy_port(one, protocol))
            assert two.exec(*dial).stdout.split() == [name_of(one)], "a registered machine gets what runs here only"
            assert switch.exec(*dial).stdout.split() == ["refused"], "an unregistered machine"
            assert one.docker("exec", "stranger", *dial) == "refused", "a container here that did not declare it"
            assert two.docker("exec", "stranger", *dial) == "refused", "a container of a registered machine"
            assert two.docker("exec", "foreign", *dial) == "refused", "the same, one that is not in the mesh"
    finally:
        two.docker("rm", "--force", "foreign")


def test_containers_do_not_join_consul(trio: Cluster) -> None:
    """A program of Consul's in a container, in the mesh or not, gets to no agent's gossip or RPC, here or elsewhere."""
    one, two, _ = trio.machines
    consul = f"--volume={consul_binary()}:/consul:ro"
    one.run_container("mole", IMAGE, options=(consul,))
    one.run_container("inmate", IMAGE, options=(consul,), service="mole", container="inmate")
    join = [f"-retry-join={machine.address}:{HTTP + 2}" for machine in (one, two)]
    agent = ["-bind={{ GetPrivateIP }}", "-data-dir=/tmp/consul", f"-serf-lan-port={HTTP + 2}", "-dns-port=-1"]
    try:
        for who in ("mole", "inmate"):
            for machine in (one, two):
                for protocol, port in (("tcp", HTTP + 1), ("tcp", HTTP + 2), ("udp", HTTP + 2)):
                    dial = ("python3", "-c", DIAL, protocol, machine.address, str(port))
                    assert one.docker("exec", who, *dial) == "refused", f"{who} at {machine.node} {protocol} {port}"
            command = ("exec", who, "/consul", "agent", *agent, *join, "-retry-max=1", "-retry-interval=1s")
            done = run("docker", f"--host=unix://{one.socket}", *command, check=False)
            assert "retry exhausted" in done.stdout + done.stderr
        members = {one["Name"] for one in two.consul.get("/v1/agent/members")}
        assert members == {machine.node for machine in trio}
    finally:
        one.docker("rm", "--force", "mole", "inmate")


def test_specs_get_nothing_of_a_host_that_it_does_not_allow(trio: Cluster, tmp_path: Path) -> None:
    """Refused in one line that names machines and paths; put into Consul by hand it is not run, but told."""
    one, two, _ = trio.machines
    taking = TRIO.replace("trio", "taker").replace(
        "ports=", f'volumes=["{tmp_path}:/host"], cap_add=["SYS_ADMIN"], ports='
    )
    done = one.deploy(taking, check=False)
    assert done.returncode == 2
    nodes = ", ".join(machine.node for machine in trio)
    assert f"no machine allows what it asks for: {tmp_path}, SYS_ADMIN on {nodes}" in done.stderr
    assert not one.consul.get("/v1/kv/meshbox/specs/taker")
    raw = {"name": "taker", "containers": [{"name": "server", "image": IMAGE, "volumes": [f"{tmp_path}:/host"]}]}
    key = "/v1/kv/meshbox/specs/taker"
    two.consul.request("PUT", key, {"schema": 1, "changed": time.time(), "service": raw})
    try:
        told = "('refused', 'taker')"
        wait_until(lambda: all(told in machine.ask("status")["faults"] for machine in trio), "all tell of it")
        assert str(tmp_path) in one.ask("status")["faults"][told]["cause"]
        assert not any(machine.containers("label=meshbox.service=taker") for machine in trio)
    finally:
        one.meshbox("remove", "taker", "--detach")
    wait_until(lambda: told not in one.ask("status")["faults"], "it is over")


def proxy_port(machine: Member, protocol: str) -> str:
    """Return where this machine's proxy listens for `trio`."""
    destination = f"server.trio:7000/{protocol}"
    (port,) = [row["proxy_port"] for row in machine.show("routes") if row["destination"] == destination]
    return str(port)


DIAL = """
import errno, socket, sys, time

def dial():
    tcp = sys.argv[1] == "tcp"
    try:
        with socket.socket(type=socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as s:
            s.settimeout(5)
            s.connect((sys.argv[2], int(sys.argv[3])))
            if not tcp:
                s.send(b"")
            return s.recv(100).decode().strip() or "ended"
    except ConnectionRefusedError:
        return "refused"
    except ConnectionResetError:
        return "reset"
    except OSError as error:
        return "refused" if not tcp and error.errno == errno.EHOSTUNREACH else str(error)

seen = {dial()}
end = time.monotonic() + float(sys.argv[4] if len(sys.argv) > 4 else 0)
while time.monotonic() < end and seen == {"refused"}:
    seen.add(dial())
print(*sorted(seen))
"""
"""Prints what a dial came to: an answer, refused by a rule, or accepted by the kernel and reset by the proxy. With a
time to spend, dials on for so long while it is refused."""


def test_proxy_refuses_without_the_rules_too(trio: Cluster, switch: Switch) -> None:
    """In the moment without the host's table, the proxy itself resets an unregistered machine."""
    one = trio.machines[0]
    dial = ("python3", "-c", DIAL, "tcp", one.address, proxy_port(one, "tcp"), "20")
    command = ("nsenter", f"--net=/run/netns/{switch.netns}", *dial)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as dialling:
        while dialling.poll() is None:  # the table is back within milliseconds each time
            one.exec("nft", "delete table inet meshbox", check=False)
        assert dialling.stdout is not None
        assert set(dialling.stdout.read().split()) | {"refused"} == {"refused", "reset"}
    table = ("nft", "list", "table", "inet", "meshbox")
    wait_until(lambda: one.exec(*table, check=False).returncode == 0, "the table is back")
    assert heard(one).keys() == names(*trio)


def test_machine_with_several_addresses(trio: Cluster) -> None:
    """Where the kernel would take another address of this machine, others still see the one that is registered."""
    one = trio.machines[0]
    network = "10.77.0.0/24"
    one.exec("ip", "address", "add", "10.77.0.111/24", "dev", "eth0")
    one.exec("ip", "route", "change", network, "dev", "eth0", "src", "10.77.0.111")
    try:
        answers = heard(one, 100)
        assert set(answers) == names(*trio)
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
    assert heard(one).keys() == names(*trio)
