"""The data plane inside workloads' namespaces: a real one, with the rules that lead to it and what opens the doors."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from doorworld import DIALLER, UNDECLARED, VIP, WEB, Mesh, eventually, packets, proxied
from nsworld import REFUSED, SECONDS, WORKLOAD, World, inside

from appliance.dataplane import api
from appliance.errors import NotYetError, RetryError
from appliance.model.names import Destination, Protocol
from appliance.model.network import Route
from appliance.render.ruleset import DOOR_PORT, render_workload
from appliance.retry import Schedule

if TYPE_CHECKING:
    from collections.abc import Iterator


pytestmark = pytest.mark.system


@pytest.fixture(params=[0, 2], ids=["", "workers"])
def mesh(request: pytest.FixtureRequest) -> Iterator[Mesh]:
    """Rules in both namespaces; no door is open yet."""
    with proxied(Mesh, request.param) as made:
        yield made


def test_both_ends_stay_in_their_namespaces(mesh: Mesh) -> None:
    """The client sees what it has dialled, the server an address of the mesh, and no packet crosses a link."""
    mesh.open()
    before = packets(mesh.world, "workload"), packets(mesh.world, "neighbour")
    with mesh.dial() as client:
        served, (peer, *_) = mesh.server.accept()
        with served:
            assert client.getpeername() == (VIP, 8080)
            assert client.getsockname()[0] == WORKLOAD
            assert peer == f"::ffff:{DIALLER}"
            client.sendall(b"x" * 100_000)
            client.shutdown(socket.SHUT_WR)
            got = b""
            while part := served.recv(65536):
                got += part
            assert len(got) == 100_000
            (connection,) = mesh.proxy.ask(api.CONNECTIONS)
            assert connection.client == f"{WORKLOAD}:{client.getsockname()[1]}"
    # IPv6 neighbour discovery may come by on its own
    after = packets(mesh.world, "workload"), packets(mesh.world, "neighbour")
    assert after[0] - before[0] < 10
    assert after[1] - before[1] < 10


def test_the_kernel_tracks_it_once(mesh: Mesh) -> None:
    """In the client's namespace, which is all that such a connection takes of the kernel's table."""
    mesh.open()

    def tracked() -> int:
        return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())

    with mesh.dial(), mesh.server.accept()[0]:
        counted = {name: inside(mesh.world.path(name), tracked) for name in ("workload", "host", "neighbour")}
    assert counted == {"workload": 1, "host": 0, "neighbour": 0}


def test_whoever_comes_through_is_the_workload(mesh: Mesh) -> None:
    """Whatever address of its own it calls from."""
    mesh.open()
    for source in ("127.0.0.1", WORKLOAD, "247.7.7.7"):
        with mesh.dial(source), mesh.server.accept()[0]:
            pass


def test_what_is_not_declared_is_refused_at_once(mesh: Mesh) -> None:
    """As without a door; the workload's own servers at that port do not answer in its place."""
    mesh.open()
    mesh.world.serve("the workload itself", "workload", "tcp", 8080)
    mesh.world.serve("the workload itself, UDP", "workload", "udp", 8080)
    for protocol in ("tcp", "udp"):
        assert mesh.world.probe("workload", protocol, UNDECLARED, 8080) == REFUSED
        assert mesh.world.probe("workload", protocol, VIP, 8081) == REFUSED
    assert mesh.world.probe("workload", "tcp", DIALLER, 8080) == REFUSED
    assert is_turned_away(mesh, "127.66.0.1", DOOR_PORT)
    assert mesh.world.probe("workload", "tcp", "127.0.0.1", 8080) == "the workload itself"
    assert mesh.world.probe("workload", "tcp", VIP, 8080) == "the server"


WAYS = ((), (socket.SO_REUSEADDR,), (socket.SO_REUSEPORT,))
"""Options with which programs listen."""


def listens(world: World, name: str, port: int, *options: int) -> bool:
    """Return whether a program in a namespace can listen at a port of all its addresses."""
    with world.socket(name, "tcp") as sock:
        for option in options:
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        try:
            sock.bind(("0.0.0.0", port))
            sock.listen()
        except OSError:
            return False
        return True


def test_a_workload_listens_at_the_port_that_it_dials(mesh: Mesh) -> None:
    """With the usual options and without, during a connection and while the kernel remembers it.

    The server's end is closed first, so the door's end is what waits in here.
    """
    mesh.open()
    with mesh.dial() as client:
        with mesh.server.accept()[0]:
            assert all(listens(mesh.world, "workload", 8080, *way) for way in WAYS)
        assert client.recv(1) == b""
    with mesh.dial(), mesh.server.accept()[0]:
        assert all(listens(mesh.world, "workload", 8080, *way) for way in WAYS)
    mesh.world.serve("the workload itself", "workload", "tcp", 8080)
    assert mesh.world.probe("workload", "tcp", WORKLOAD, 8080) == "the workload itself"
    assert mesh.world.probe("workload", "tcp", VIP, 8080) == "the server"


def test_ports_of_one_name_are_told_apart(mesh: Mesh) -> None:
    """Also where a program dials both from one port of its own, one after another or at the same time."""
    second = replace(mesh.listener, destination=Destination.parse("web.shop:8090"), port=29003)
    other = mesh.world.serve("another server", "neighbour", "tcp", 82)
    other.settimeout(SECONDS)
    second = replace(second, backends=(replace(second.backends[0], port=82),))
    mesh.proxy.call(mesh.proxy.plane.open_listener, second)
    route = Route(vip=IPv4Address(VIP), port=8090, protocol=Protocol.TCP, proxy_port=29003)
    mesh.world.nft("workload", render_workload(replace(mesh.rules, routes=mesh.rules.routes | {route})))
    mesh.open()
    with (
        mesh.dial_from(45000, 8080) as one,
        mesh.server.accept()[0] as served,
        mesh.dial_from(45000, 8090) as two,
        other.accept()[0] as served_too,
    ):
        for client, server in ((one, served), (two, served_too)):
            client.sendall(b"question")
            assert server.recv(100) == b"question"
            server.sendall(b"answer")
            assert client.recv(100) == b"answer"
            assert client.getsockname() == (WORKLOAD, 45000)
        assert (one.getpeername(), two.getpeername()) == ((VIP, 8080), (VIP, 8090))


@pytest.mark.parametrize("address", [VIP, UNDECLARED, "127.0.0.1", "127.66.0.1", WORKLOAD])
def test_nobody_comes_in_by_the_doors_own_port(mesh: Mesh, address: str) -> None:
    """What was dialled is what the rules have led there, and nothing else."""
    mesh.open()
    assert is_turned_away(mesh, address, DOOR_PORT)
    assert mesh.passes()


def test_what_the_data_plane_does_not_allow_is_reset(mesh: Mesh) -> None:
    """The rules are not alone in deciding: a listener knows its callers; one without callers lets nobody in."""
    mesh.open()
    mesh.proxy.call(mesh.proxy.plane.swap_listener, replace(mesh.listener, callers=frozenset()))
    mesh.proxy.ask(api.LEFT)
    assert is_turned_away(mesh, VIP, 8080)
    mesh.proxy.call(mesh.proxy.plane.close_listener, WEB)
    mesh.proxy.ask(api.LEFT)
    assert is_turned_away(mesh, VIP, 8080)


def is_turned_away(mesh: Mesh, address: str, port: int) -> bool:
    """Return whether the workload's connection is refused, or reset after."""
    with mesh.world.socket("workload", "tcp") as client:
        try:
            client.connect((address, port))
            client.recv(1)
        except (ConnectionRefusedError, ConnectionResetError):
            return True
    return False


def test_without_the_appliance_all_is_refused(mesh: Mesh) -> None:
    """At once, and by nobody else, though rules and route stay."""
    mesh.open()
    mesh.world.serve("the workload itself", "workload", "tcp", 8080)
    mesh.proxy.close_door(mesh.workload.id)
    del mesh.proxy.doors.opened[mesh.workload.id]
    eventually(lambda: not listening(mesh.world, "workload", DOOR_PORT))
    assert mesh.world.probe("workload", "tcp", VIP, 8080) == REFUSED
    mesh.world.serve("one that took the door's port", "workload", "tcp", DOOR_PORT)
    assert mesh.world.probe("workload", "tcp", VIP, 8080) == REFUSED
    assert mesh.world.probe("workload", "tcp", "127.0.0.1", DOOR_PORT) == "one that took the door's port"


def test_a_namespace_that_leaves_the_mesh_keeps_nothing(mesh: Mesh) -> None:
    """Neither the door nor the route; until the rules go too, what is dialled goes to the host, as before the door."""
    mesh.open()
    host = mesh.world.serve("the proxy's port", "host", "tcp", 29001)
    mesh.proxy.drop(mesh.rules, mesh.served)
    assert mesh.world.probe("workload", "tcp", VIP, 8080) == "the proxy's port"
    mesh.proxy.ask(api.LEFT)
    assert not listening(mesh.world, "workload", DOOR_PORT)
    host.close()


def listening(world: World, name: str, port: int) -> bool:
    """Return whether something in a namespace has a port."""
    with world.socket(name, "tcp") as sock:
        try:
            sock.bind(("127.66.0.1", port))
        except OSError:
            return True
        return False


def test_a_connection_begun_before_the_door_goes_on(mesh: Mesh) -> None:
    """It was redirected to the host, and stays there when a route leads virtual IPs elsewhere."""
    host = mesh.world.serve("the proxy's port", "host", "tcp", 29001)
    host.settimeout(SECONDS)
    with mesh.dial() as client:
        accepted, _ = host.accept()
        accepted.settimeout(SECONDS)
        with accepted:
            mesh.open()
            for _ in range(3):
                client.sendall(b"question")
                assert accepted.recv(100) == b"question"
                accepted.sendall(b"answer")
                assert client.recv(100) == b"answer"
    assert mesh.passes()


def test_no_connection_is_refused_while_rules_are_replaced(mesh: Mesh) -> None:
    """The whole table in the client's namespace is exchanged again and again."""
    mesh.open()
    stop = threading.Event()
    text = render_workload(mesh.rules)

    def replace_rules() -> None:
        while not stop.is_set():
            mesh.world.nft("workload", text)

    thread = threading.Thread(target=replace_rules)
    thread.start()
    try:
        for _ in range(300):
            assert mesh.passes()
    finally:
        stop.set()
        thread.join()


def test_established_connections_outlive_their_route_and_new_ones_do_not(mesh: Mesh) -> None:
    """Ending them is up to the proxy, as the rules say."""
    mesh.open()
    with mesh.dial() as client, mesh.server.accept()[0] as served:
        mesh.world.nft("workload", render_workload(replace(mesh.rules, routes=frozenset())))
        client.sendall(b"question")
        assert served.recv(100) == b"question"
        assert mesh.world.probe("workload", "tcp", VIP, 8080) == REFUSED


def test_a_port_that_is_taken_leaves_the_longer_way(mesh: Mesh) -> None:
    """It is told, nothing leads to a door that is not there, and the door is opened when the port is free."""
    mesh.open()
    mesh.proxy.drop(mesh.rules, mesh.served)
    mesh.proxy.ask(api.LEFT)
    taken = mesh.world.serve("somebody", "workload", "tcp", DOOR_PORT)
    former = (
        "route",
        "add",
        "local",
        "240.0.0.0/4",
        "dev",
        "lo",
        "proto",
        "static",
    )  # as an appliance that was killed leaves it
    mesh.world.ip("-n", mesh.world._name("workload"), *former)
    mesh.world.serve("the proxy's port", "host", "tcp", 29001)
    with pytest.raises(RetryError, match=r"^cannot listen at its port 4: Address already in use$"):
        mesh.proxy.open_at_once(mesh.rules)
    assert mesh.workload.id not in mesh.proxy.doors.opened
    assert mesh.world.probe("workload", "tcp", VIP, 8080) == "the proxy's port"
    taken.close()
    mesh.open()
    assert mesh.passes()


def test_a_door_waits_for_the_workloads_address(mesh: Mesh) -> None:
    """Docker gives it one only after the rules are in place. Without one there is no door, and that is told."""
    mesh.world.ip("-n", mesh.world._name("workload"), "addr", "del", f"{WORKLOAD}/16", "dev", "eth0")
    with pytest.raises(NotYetError, match=f"does not have the address {WORKLOAD}"):
        mesh.proxy.open_at_once(mesh.rules)
    assert mesh.workload.id not in mesh.proxy.doors.opened
    timer = threading.Timer(
        0.2, mesh.world.ip, ("-n", mesh.world._name("workload"), "addr", "add", f"{WORKLOAD}/16", "dev", "eth0")
    )
    timer.start()
    mesh.open()
    timer.join()
    assert mesh.passes()


def test_without_its_route_a_server_is_dialled_from_the_host(mesh: Mesh) -> None:
    """Somebody took away what makes the mesh's address one of its own: the door is no use there, and says so."""
    mesh.open()
    for _ in range(2):
        mesh.world.ip("-n", mesh.world._name("neighbour"), "route", "del", "local", "240.0.0.0/4", "dev", "lo")
    moved = replace(mesh.listener, backends=(replace(mesh.listener.backends[0], address=IPv4Address("127.0.0.1")),))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(SECONDS)
        port = server.getsockname()[1]
        moved = replace(moved, backends=(replace(moved.backends[0], port=port),))
        mesh.proxy.call(mesh.proxy.plane.swap_listener, moved)
        mesh.proxy.ask(api.LEFT)
        with mesh.dial(), server.accept()[0]:
            pass


AWAY = "172.31.0.9"
"""The workload's address on another network."""


@pytest.mark.parametrize("moving", ["workload", "neighbour"])
def test_nothing_fails_while_an_end_moves_to_another_network(mesh: Mesh, moving: str) -> None:
    """Neither of both ends needs the network: their address may go before anybody knows, and what is open goes on."""
    mesh.open()
    host, name = mesh.world._name("host"), mesh.world._name(moving)
    mesh.world.ip("-n", host, "link", "add", "aaa", "type", "veth", "peer", "name", "eth1", "netns", name)
    mesh.world.ip("-n", name, "link", "set", "eth1", "up")
    mesh.world.ip("-n", name, "addr", "add", f"{AWAY}/16", "dev", "eth1")
    both = frozenset(map(IPv4Address, (WORKLOAD, AWAY)))
    mesh.proxy.call(mesh.proxy.plane.swap_listener, replace(mesh.listener, callers=both))
    with mesh.dial() as kept, mesh.server.accept()[0] as served:
        for _ in range(3):
            assert mesh.passes()
        mesh.world.ip("-n", name, "link", "del", "eth0")
        for _ in range(3):
            assert mesh.passes()
            assert goes_on(kept, served)
        rules = mesh.rules if moving == "workload" else mesh.served
        mesh.proxy.open(replace(rules, address=IPv4Address(AWAY)))
        mesh.proxy.ask(api.LEFT)
        assert mesh.passes()
        assert goes_on(kept, served)
        here = frozenset({IPv4Address(AWAY if moving == "workload" else WORKLOAD)})
        moved = replace(mesh.listener, callers=here)
        if moving == "neighbour":
            moved = replace(moved, backends=(replace(moved.backends[0], address=IPv4Address(AWAY)),))
        mesh.proxy.call(mesh.proxy.plane.swap_listener, moved)
        mesh.proxy.ask(api.LEFT)
        assert mesh.passes()
        assert goes_on(kept, served)
    with mesh.dial() as client, mesh.server.accept()[0]:
        assert client.getsockname()[0] == (AWAY if moving == "workload" else WORKLOAD)


def goes_on(client: socket.socket, server: socket.socket) -> bool:
    """Return whether an open connection still carries something there and back."""
    server.settimeout(SECONDS)
    client.sendall(b"question")
    heard = server.recv(100)
    server.sendall(b"answer")
    return (heard, client.recv(100)) == (b"question", b"answer")


def test_a_former_address_is_given_up(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another container may have it by then. Nothing of a door stays behind when it closes."""
    name = mesh.world._name("workload")
    before = local_routes(mesh.world, "workload")
    mesh.open()
    mesh.world.ip("-n", name, "addr", "add", f"{AWAY}/16", "dev", "eth0")
    mesh.proxy.open(replace(mesh.rules, address=IPv4Address(AWAY)))
    held = {f"local {address} dev lo" for address in (WORKLOAD, AWAY)}
    assert {route for route in local_routes(mesh.world, "workload") if route in held} == held
    monkeypatch.setattr("appliance.control.doors.LOOK", 0.01)
    held = f"local {WORKLOAD} dev lo"
    mesh.proxy.look(until=lambda: held not in local_routes(mesh.world, "workload"))
    mesh.world.ip("-n", name, "addr", "del", f"{AWAY}/16", "dev", "eth0")
    mesh.proxy.drop(replace(mesh.rules, address=IPv4Address(AWAY)))
    assert local_routes(mesh.world, "workload") == before


def local_routes(world: World, name: str) -> set[str]:
    """Return the routes to a namespace's own addresses, each without what it says of its source and maker."""
    command = ["ip", "-n", world._name(name), "route", "show", "table", "local"]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return {" ".join(line.split()[:4]) for line in found}


def test_a_gone_namespace_is_no_fault_to_drop(mesh: Mesh) -> None:
    """Docker removes its file with the container; the door let it live until then."""
    mesh.open()
    mesh.world.delete("workload")
    mesh.proxy.drop(mesh.rules)
    assert mesh.workload.id not in mesh.proxy.doors.opened


def test_a_gone_namespace_is_let_go(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nobody says so: an open door would keep it alive for ever, with its link and its addresses."""
    monkeypatch.setattr("appliance.control.doors.LOOK", 0.01)
    mesh.open()
    with mesh.dial(), mesh.server.accept()[0]:
        pass
    mesh.world.delete("workload")
    mesh.proxy.look(until=lambda: mesh.workload.id not in mesh.proxy.doors.opened)
    mesh.proxy.ask(api.LEFT)
    eventually(lambda: not mesh.world.has_link("host", "workload"))


@pytest.mark.parametrize("mesh", [2], ids=["workers"], indirect=True)
def test_a_worker_that_dies_costs_no_new_connection(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one also accepts from its socket inside the namespace, as long as it is not replaced."""
    monkeypatch.setattr("appliance.dataplane.workers.process.AGAIN", Schedule((3600.0,)))
    mesh.open()
    os.kill(mesh.proxy.plane.pids[0], signal.SIGKILL)
    for _ in range(50):
        assert mesh.passes()


@pytest.mark.parametrize("mesh", [2], ids=["workers"], indirect=True)
def test_a_worker_that_is_replaced_has_the_doors(mesh: Mesh) -> None:
    """The next one is told of them; with both replaced nobody else is left to accept."""
    mesh.open()
    former = mesh.proxy.plane.pids
    for pid in former:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: None not in mesh.proxy.plane.pids and not set(former) & set(mesh.proxy.plane.pids))
    for _ in range(50):
        assert mesh.passes()
