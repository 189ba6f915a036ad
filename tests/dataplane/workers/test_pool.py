"""Workers as they are: real processes, real sockets, real deaths."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tcpworld import (
    CALLER,
    DEADLINE,
    DESTINATION,
    World,
    backend_of,
    eventually,
    free_port,
    is_reset,
    listener_of,
    read_all,
)

from appliance.app import worker
from appliance.dataplane import api
from appliance.dataplane.workers.pool import WorkerPool
from appliance.dataplane.workers.priority import NICE
from appliance.model.names import Destination, Name
from appliance.model.network import Backend, Listener, Zone
from appliance.retry import Schedule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from appliance.model.stats import ListenerStats

OTHER = Destination.parse("db.shop:80")
UDP = Destination.parse("web.shop:80/udp")
QUESTION = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x04shop\x00\x00\x01\x00\x01"
COMMAND = worker.command(level="error", form="text")
ROOT = Path(__file__).resolve().parents[3]


class Server:
    """A backend that answers each connection with what it says, in threads of its own."""

    def __init__(self, world: World) -> None:
        self.sock = world.backend(backlog=1024)
        self.served = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self.sock.accept()
                threading.Thread(target=self._echo, args=(sock,), daemon=True).start()

    def _echo(self, sock: socket.socket) -> None:
        with sock, suppress(OSError):
            while data := sock.recv(4096):
                self.served += 1
                sock.sendall(data)


class WorkersWorld(World):
    """The world of the TCP tests with two workers beside it."""

    def __init__(self, number: int = 2) -> None:
        super().__init__()
        self.dns_port = free_port()
        self.refused: list[IPv4Address] = []
        self.workers: WorkerPool = self.call(
            WorkerPool,
            self.loop,
            number=number,
            command=COMMAND,
            dns_upstreams=list,
            dns_port=self.dns_port,
            refused=self.refused.append,
        )
        self.do("start")

    def do(self, what: str, *args: Any) -> Any:
        """Call a method of the workers on their loop."""
        return self.call(getattr(self.workers, what), *args)

    def ask(self, question: api.Question[Any]) -> Any:
        """Ask all workers and wait for the answer."""
        told = threading.Event()
        said: list[Any] = []

        def tell(value: Any) -> None:
            said.append(value)
            told.set()

        self.do("ask", question, tell)
        assert told.wait(DEADLINE)
        return said[0]

    def of(self, destination: Destination = DESTINATION) -> ListenerStats:
        """Return the counters of one listener."""
        return next(stats for stats in self.ask(api.STATS) if stats.destination == destination)

    def serve(self) -> tuple[int, Server]:
        """Open a listener before an echo server; return its port."""
        server, port = Server(self), free_port()
        self.do("open_listener", listener_of(port, backend_of(server.sock)))
        return port, server

    def joined(self, port: int) -> socket.socket:
        """Return a client that has talked to the echo server through that port."""
        client = self.client()
        client.connect((CALLER, port))
        client.sendall(b"ping")
        assert read_all(client, 4) == b"ping"
        return client

    def kill(self, slot: int) -> int:
        """Kill a worker; return its pid once another one has its place."""
        pid = self.workers.pids[slot]
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: self.workers.pids[slot] not in (pid, None))
        return pid

    def held(self, slot: int, port: int) -> int:
        """Return how many clients of a port one worker has, as the kernel tells it."""
        listing = subprocess.run(["ss", "-Htnp", f"sport = :{port}"], capture_output=True, text=True, check=True)
        return sum(f"pid={self.workers.pids[slot]}," in line for line in listing.stdout.splitlines())

    def _end(self) -> None:
        self.workers.close()
        super()._end()


@pytest.fixture
def world() -> Iterator[WorkersWorld]:
    """Two workers; no process may be left at the end."""
    made = WorkersWorld()
    yield made
    pids = made.workers.pids
    made.close()
    assert not [pid for pid in pids if pid and Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize("number", [1, 2])
def test_traffic_goes_before_planning(number: int) -> None:
    """A single worker takes the CPU from its parent, where the kernel lets it (root); several might take them all."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    wanted = NICE if os.geteuid() == 0 and number == 1 else own
    made = WorkersWorld(number)
    try:
        made.ask(api.LEFT)
        assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in made.workers.pids if pid} == {wanted}
    finally:
        made.close()


def test_connections_are_spread_over_the_workers(world: WorkersWorld) -> None:
    """Each worker gets a fair part of the connections, and what they counted is added up."""
    port, _ = world.serve()
    world.ask(api.STATS)  # both are up
    clients = [world.joined(port) for _ in range(60)]
    shares = [world.held(slot, port) for slot in (0, 1)]
    assert sum(shares) == 60
    assert min(shares) >= 6
    stats = world.of()
    assert (stats.accepted, stats.active, stats.backends[0].opened) == (60, 60, 60)
    assert stats.backends[0].bytes_in == stats.backends[0].bytes_out == 240
    assert len(world.ask(api.CONNECTIONS)) == world.ask(api.pairs_to(IPv4Address(CALLER))) == 60
    assert len(clients) == 60


def test_death_of_a_worker_fails_no_new_connection(world: WorkersWorld) -> None:
    """While one worker after the other is killed, each new connection is served; it only waits for a moment."""
    port, server = world.serve()
    world.joined(port)
    stopping = threading.Event()
    refused: list[OSError] = []
    cut: list[int] = []

    def load() -> None:
        while not stopping.is_set():
            try:
                sock = socket.create_connection((CALLER, port), timeout=DEADLINE)
            except OSError as error:
                refused.append(error)
                continue
            with sock, suppress(ConnectionResetError):
                sock.sendall(b"ping")
                if sock.recv(4) == b"ping":
                    continue
            cut.append(1)  # it was in the hands of the worker that died

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for slot in (0, 1, 0):
        served = server.served
        world.kill(slot)
        eventually(lambda served=served: server.served > served + 50)
    stopping.set()
    for thread in threads:
        thread.join()
    assert not refused
    assert len(cut) <= 3 * len(threads)
    assert world.workers.restarted == 3


def test_a_worker_that_stays_away_is_stood_in_for(world: WorkersWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """No client waits for one that cannot be replaced, at an old or new port, as long as there is another."""
    monkeypatch.setattr("appliance.dataplane.workers.process.AGAIN", Schedule((3600.0,)))
    port, _ = world.serve()
    world.ask(api.STATS)  # both are up
    pid = world.workers.pids[0]
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: world.workers.restarted == 1)
    for _ in range(2):
        clients = [world.joined(port) for _ in range(20)]
        assert world.held(1, port) == len(clients)
        world.do("close_listener", DESTINATION)
        port, _ = world.serve()


def test_ports_of_others_are_not_shared(world: WorkersWorld) -> None:
    """Workers have sockets of their own at a port; a program that would share it is not taken for one of them."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            world.do("open_listener", listener_of(port, backend_of(world.backend())))


def test_connections_wait_while_no_worker_is_there(world: WorkersWorld) -> None:
    """With every worker dead the sockets stay open: a client that connects meanwhile is served by the next worker."""
    port, _ = world.serve()
    world.joined(port)
    pids = world.workers.pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    world.joined(port)
    eventually(lambda: world.workers.restarted == 2)
    assert set(world.workers.pids).isdisjoint(pids)


def test_counters_never_go_back(world: WorkersWorld) -> None:
    """What a worker had reported still counts after its death; its open connections do not."""
    port, _ = world.serve()
    clients = [world.joined(port) for _ in range(20)]
    before = world.of()
    for slot in (0, 1):
        world.kill(slot)
    assert [client.recv(1) for client in clients] == [b""] * 20
    after = world.of()
    assert (before.accepted, after.accepted, after.active) == (20, 20, 0)
    assert after.backends[0].bytes_in == before.backends[0].bytes_in
    world.joined(port)
    assert world.of().accepted == 21


def test_withdrawn_allowance_ends_pairs_in_every_worker(world: WorkersWorld) -> None:
    """Once a caller may no longer, its connections are reset wherever they are, and new ones are refused."""
    port, server = world.serve()
    world.ask(api.STATS)
    clients = [world.joined(port) for _ in range(40)]
    assert min(world.held(slot, port) for slot in (0, 1)) > 0
    world.do("swap_listener", listener_of(port, backend_of(server.sock), callers=("127.0.0.9",)))
    assert all(is_reset(client) for client in clients)
    late = world.client()
    with suppress(ConnectionResetError):
        late.connect((CALLER, port))
        assert is_reset(late)
    assert world.of().refused == 1


def test_swap_leads_elsewhere_in_every_worker(world: WorkersWorld) -> None:
    """New backends count for all workers at once, and a replaced worker knows them too."""
    port, _ = world.serve()
    world.ask(api.STATS)
    other = Server(world)
    world.do("swap_listener", listener_of(port, backend_of(other.sock)))
    world.kill(0)
    for _ in range(20):
        world.joined(port)
    assert other.served == 20


def test_a_container_that_refuses_is_told_of(world: WorkersWorld) -> None:
    """Whatever worker was refused: whoever looks up the container's ports looks at once."""
    gone = world.backend("127.0.0.1")
    wanted = listener_of(free_port(), backend_of(gone))
    gone.close()
    world.do("open_listener", wanted)
    with world.client() as client:
        client.connect((CALLER, wanted.port))
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    eventually(lambda: world.refused == [IPv4Address("127.0.0.1")])


def test_taken_port_is_told(world: WorkersWorld) -> None:
    """A port that another program holds is an error of opening, as without workers, and of nothing else."""
    taken = world.backend("0.0.0.0").getsockname()[1]
    with pytest.raises(OSError, match="in use") as caught:
        world.do("open_listener", listener_of(taken))
    assert caught.value.errno == errno.EADDRINUSE
    assert world.ask(api.STATS) == ()


def test_closed_listener_refuses_and_its_pairs_go_on(world: WorkersWorld) -> None:
    """Closing ends no connection; the port is free for another program once the workers have heard of it."""
    port, _ = world.serve()
    client = world.joined(port)
    world.do("close_listener", DESTINATION)
    eventually(lambda: _refuses(port))
    client.sendall(b"more")
    assert read_all(client, 4) == b"more"
    assert world.ask(api.STATS) == ()
    eventually(lambda: world.ask(api.LEFT) == 1)  # those that asked too early have ended
    assert [connection.draining for connection in world.ask(api.CONNECTIONS)] == [True]
    world.do("end_pairs", DESTINATION)
    assert is_reset(client)


def test_port_goes_to_another_destination_at_once(world: WorkersWorld) -> None:
    """A destination may take the port of one that was closed a moment ago, before the workers have heard of that."""
    port, server = world.serve()
    world.ask(api.STATS)
    for destination in (OTHER, DESTINATION, OTHER):
        world.do("close_listener", DESTINATION if destination == OTHER else OTHER)
        world.do("open_listener", replace(listener_of(port, backend_of(server.sock)), destination=destination))
    world.ask(api.LEFT)  # all have heard; a client that connects before is still served as the former destination
    world.joined(port)
    assert world.of(OTHER).accepted == 1
    assert world.workers.restarted == 0


def test_destination_may_move_to_another_port(world: WorkersWorld) -> None:
    """It is closed and opened: the new port serves and the former one refuses; the connection goes on."""
    port, server = world.serve()
    client = world.joined(port)
    second = free_port()
    world.do("close_listener", DESTINATION)
    world.do("open_listener", listener_of(second, backend_of(server.sock)))
    world.joined(second)
    eventually(lambda: _refuses(port))
    client.sendall(b"more")
    assert read_all(client, 4) == b"more"


def test_udp_sessions_stay_with_one_worker(world: WorkersWorld) -> None:
    """Datagrams of one client reach the same backend socket, whatever happens to the other worker."""
    backend = world.keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    backend.bind((CALLER, 0))
    port = free_port()
    backends = (Backend(address=IPv4Address(CALLER), port=backend.getsockname()[1], local=True),)
    world.do(
        "open_listener",
        Listener(destination=UDP, port=port, callers=frozenset({IPv4Address(CALLER)}), backends=backends),
    )
    client = world.keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    client.connect((CALLER, port))
    seen = set()
    for turn in range(20):
        if turn == 10:
            world.kill((port + 1) % 2)
        client.send(b"ping")
        _, where = backend.recvfrom(10)
        seen.add(where)
        backend.sendto(b"pong", where)
        assert client.recv(10) == b"pong"
    assert len(seen) == 1
    assert world.of(UDP).accepted == 1
    world.kill(port % 2)
    client.send(b"ping")
    assert backend.recvfrom(10)[1] not in seen


def test_names_are_answered_across_a_death(world: WorkersWorld) -> None:
    """DNS goes on after the worker that serves it was killed, from the same zone, and its counters with it."""
    asker, name = IPv4Address(CALLER), Name.parse("web.shop")
    world.do("set_dns_addresses", frozenset({asker, IPv4Address("127.0.0.2"), IPv4Address("127.0.0.3")}))
    zone = Zone(suffix="mesh.internal", names={name: IPv4Address("240.1.2.3")}, views={asker: frozenset({name})})
    world.do("set_zone", zone)
    client = world.keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    client.connect((CALLER, world.dns_port))
    for _ in range(3):
        client.send(QUESTION)
        assert client.recv(512).endswith(bytes((240, 1, 2, 3)))
    assert world.ask(api.DNS_STATS)["questions"] == 3
    os.kill(world.workers.pids[0], signal.SIGKILL)
    client.send(QUESTION)
    assert client.recv(512).endswith(bytes((240, 1, 2, 3)))
    assert world.ask(api.DNS_STATS)["questions"] in (3, 4)  # the question may have been in the dying worker's hands
    world.do("set_dns_addresses", frozenset())
    world.ask(api.LEFT)
    client.send(QUESTION)
    with pytest.raises(ConnectionRefusedError):
        client.recv(512)


def test_dns_port_that_is_taken_is_told(world: WorkersWorld) -> None:
    """The error names address and port; the other addresses are served."""
    taken = world.keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    taken.bind(("127.0.0.2", world.dns_port))
    with pytest.raises(OSError, match=f"127.0.0.2:{world.dns_port}"):
        world.do("set_dns_addresses", frozenset({IPv4Address("127.0.0.2"), IPv4Address(CALLER)}))
    with socket.create_connection((CALLER, world.dns_port)):
        pass


def test_stop_refuses_and_drains(world: WorkersWorld) -> None:
    """After stop nothing is accepted by any worker, and how many connections are left can be asked."""
    port, _ = world.serve()
    world.ask(api.STATS)
    clients = [world.joined(port) for _ in range(10)]
    world.do("stop")
    assert world.ask(api.LEFT) == 10
    assert _refuses(port)
    for client in clients:
        client.close()
    eventually(lambda: world.ask(api.LEFT) == 0)


def test_signals_to_the_group_leave_workers_alone(world: WorkersWorld) -> None:
    """Ctrl-C and systemd's SIGTERM reach every process of a service: draining is the parent's decision."""
    port, _ = world.serve()
    client = world.joined(port)
    world.ask(api.STATS)  # both are up
    for pid in world.workers.pids:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    client.sendall(b"more")
    assert read_all(client, 4) == b"more"
    assert world.workers.restarted == 0


PARENT = """
import sys, uvloop
sys.path.insert(0, "tests/dataplane")
from tcpworld import listener_of
import appliance.app.worker as worker
from appliance.dataplane import api
from appliance.dataplane.workers.pool import WorkerPool
loop = uvloop.new_event_loop()
command = worker.command(level="error", form="text")
workers = WorkerPool(loop, number=2, command=command, dns_upstreams=list, dns_port=1)
workers.start()
workers.open_listener(listener_of(int(sys.argv[1])))
workers.ask(api.LEFT, lambda _: print(*workers.pids, flush=True))
loop.run_forever()
"""


def test_workers_end_with_their_parent() -> None:
    """After kill -9 of the parent nothing of it runs on, and its ports are free for the next one."""
    port = free_port()
    with subprocess.Popen([sys.executable, "-c", PARENT, str(port)], stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout is not None
        pids = parent.stdout.readline().split()
        assert len(pids) == 2
        parent.kill()
    eventually(lambda: not any(_runs(pid.decode()) for pid in pids))
    with socket.create_server(("0.0.0.0", port)):
        pass


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _refuses(port: int) -> bool:
    try:
        socket.create_connection((CALLER, port), timeout=DEADLINE).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        return False
    return False
