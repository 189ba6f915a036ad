"""Who gives way when descriptors or memory run short."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tcpworld import World, eventually, open_descriptors

from appliance.dataplane import shares
from appliance.dataplane.access import Caller
from appliance.dataplane.holding import CalledHolding
from appliance.dataplane.shares import PEER_WEIGHT, Shares, level

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GREEDY, MODEST, PEER = "127.0.0.1", "127.0.0.4", "127.0.0.2"


class Held:
    """A connection that a caller has. They are opened in the order of their numbers."""

    def __init__(
        self, host: str, number: float = 0, *, peer: bool = False, to: str = "web", carried: int = 0, stuck: int = 0
    ) -> None:
        self.caller = Caller(host, local_only=peer)
        self.number, self.to, self.bytes, self.memory = number, to, carried, stuck
        self.looks = 0
        self.closed = False
        self.shares: Shares | None = None
        self.holding = CalledHolding(self.give_up, self.carried, stuck=stuck)

    def count_in(self, it: Shares) -> None:
        """Begin to count."""
        self.shares = it
        it.add(self.holding, self.caller, self.to)
        if self.memory:
            it.begin_stuck(self.holding, self.memory)

    def carried(self) -> int:
        """Bytes so far."""
        self.looks += 1
        return self.bytes

    def give_up(self) -> None:
        """End it; once only."""
        assert not self.closed
        self.close()

    def close(self) -> None:
        """End."""
        assert self.shares is not None
        self.closed = True
        if self.memory:
            self.shares.end_stuck(self.holding, self.memory)
        self.shares.remove(self.holding)
        self.holding.release()


class Loop:
    """Keeps what is to be done in the next turn."""

    def __init__(self) -> None:
        self.soon: list[tuple[Callable[..., None], tuple[object, ...]]] = []

    def call_soon(self, call: Callable[..., None], *args: object) -> None:
        """Do it in the next turn."""
        self.soon.append((call, args))

    def turn(self) -> bool:
        """Do what is due; return whether there was anything."""
        now, self.soon = self.soon, []
        for call, args in now:
            call(*args)
        return bool(now)


def made(*held: Held, files: int = 1000, memory: int = 1 << 30) -> Shares:
    """Return shares of a process in which callers hold this."""
    it = Shares(Loop(), files=files, memory=memory)
    for one in sorted(held, key=lambda one: one.number):
        one.count_in(it)
    return it


def left(held: list[Held], host: str) -> list[float]:
    """Return when what this caller still has was opened."""
    return [one.number for one in held if one.caller.host == host and not one.closed]


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(1, 4)), max_size=8), st.integers(1, 1000))
def test_a_level_frees_enough_and_takes_no_more_than_it_must(held, excess) -> None:
    """The next higher level would not do; what nobody can free is freed as far as it goes."""

    def freed(at: int) -> int:
        return sum(max(0, total - at * weight) for total, weight in held)

    found = level(held, excess)
    assert found >= 0
    assert freed(found) >= min(excess, freed(0))
    if held and max(total // weight for total, weight in held) > found:
        assert freed(found + 1) < excess


def test_who_holds_most_gives_way_newest_first() -> None:
    """Those that hold less notice nothing, however new their connections are."""
    held = [Held(GREEDY, n) for n in range(100)] + [Held(MODEST, 1000 + n) for n in range(20)]
    it = made(*held)
    for _ in range(30):
        assert it.make_room(it.mark)
    assert left(held, GREEDY) == list(range(40))
    assert len(left(held, MODEST)) == 20


def test_two_that_hold_much_come_down_to_one_level() -> None:
    """Neither is better off for having come first."""
    held = [Held("10.0.0.1", n) for n in range(90)] + [Held("10.0.0.2", n) for n in range(60)]
    it = made(*held)
    for _ in range(40):
        it.make_room(it.mark)
    first, second = left(held, "10.0.0.1"), left(held, "10.0.0.2")
    assert len(first) + len(second) == 70
    assert abs(len(first) - len(second)) <= 90 // shares.SLACK


def test_who_held_most_once_is_not_the_one_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one may hold more when descriptors run short again."""
    clock = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    former, later = [Held("10.0.0.1", n) for n in range(60)], [Held("10.0.0.2", 100 + n) for n in range(500)]
    it = made(*former)
    it.make_room(it.mark)
    for one in later:
        one.count_in(it)
    clock[0] += 1
    it.make_room(it.mark)
    assert len(left(former, "10.0.0.1")) == 58
    assert len(left(later, "10.0.0.2")) == 498


def test_a_peer_is_not_one_caller() -> None:
    """A machine's proxy speaks for many: a workload gives way before it that holds less than all of these together."""
    held = [Held(PEER, n, peer=True) for n in range(100)] + [Held(GREEDY, n) for n in range(60)]
    it = made(*held)
    for _ in range(10):
        it.make_room(it.mark)
    assert len(left(held, PEER)) == 100
    assert len(left(held, GREEDY)) == 40


def test_a_peers_connections_to_one_destination_are_one_share() -> None:
    """What somebody piles up there at one destination is not taken from those who call another."""
    piled = [Held(PEER, n, peer=True, to="other") for n in range(PEER_WEIGHT * 50)]
    held = [*piled, *(Held(PEER, n, peer=True) for n in range(40)), *(Held(MODEST, n) for n in range(20))]
    it = made(*held)
    for _ in range(20):
        it.make_room(it.mark)
    assert len([one for one in piled if one.closed]) == 40
    assert len(left(held, MODEST)) == 20


def test_of_a_peer_those_go_that_are_not_used() -> None:
    """Others may be behind what is used, and behind what has just been opened."""
    used = [Held(PEER, n, peer=True, carried=100) for n in range(50)]
    idle = [Held(PEER, 50 + n, peer=True) for n in range(50)]
    fresh = [Held(PEER, 100 + n, peer=True) for n in range(10)]
    it = made(*idle, *used, *fresh)
    for _ in range(20):
        it.make_room(it.mark)
    assert sum(one.closed for one in idle) == 40
    assert not any(one.closed for one in (*used, *fresh))


def test_of_a_peer_something_goes_though_all_is_used() -> None:
    """What was used once has a second chance, and not one after the other."""
    used = [Held(PEER, n, peer=True, carried=100) for n in range(200)]
    it = made(*used)
    it.make_room(it.mark)
    assert sum(one.closed for one in used) == shares.AT_A_TIME


def test_the_reserve_is_for_others() -> None:
    """Where nothing gives way no client gets a descriptor of the control plane's; where something does, it may."""
    nobody, somebody = made(files=800), made(*[Held(GREEDY, n) for n in range(10)], files=800)
    assert nobody.most == somebody.most == 700
    assert nobody.make_room(699)
    assert not nobody.make_room(700)
    assert somebody.make_room(700)
    assert not somebody.make_room(somebody.last)


def test_what_has_ended_meanwhile_gives_no_way() -> None:
    """Callers also close connections by themselves, and all of them at last."""
    held = [Held(GREEDY, n) for n in range(100)]
    it = made(*held)
    it.make_room(it.mark)
    for one in held[50:98]:
        one.close()
    it.make_room(it.mark)
    assert left(held, GREEDY) == list(range(48))
    for one in held[:48]:
        one.close()
    assert not it.make_room(it.most)
    late = Held(MODEST)
    late.count_in(it)
    it.make_room(it.mark)
    assert late.closed


def test_a_caller_that_gave_way_is_told_once_and_shown() -> None:
    """One line in the log, and how much it lost."""
    held = [Held(GREEDY, n) for n in range(100)] + [Held(MODEST, n) for n in range(5)]
    it = made(*held)
    with capture_logs() as logs:
        for _ in range(20):
            it.make_room(it.mark)
    (line,) = logs
    assert line["event"] == "a caller holds more than its share of open files; its newest connections are reset"
    assert (line["caller"], line["held"]) == (GREEDY, 100)
    (shown,) = it.stats()
    assert (shown.caller, shown.held, shown.given_up) == (GREEDY, 60, 40)


def test_a_share_of_memory() -> None:
    """Nobody is over while there is room; then those are who have more than their part of it."""
    greedy, modest = Held(GREEDY), Held(MODEST)
    it = made(greedy, modest, memory=3200)
    it.begin_stuck(greedy.holding, it.room)
    assert not it.is_over(greedy.holding)
    it.begin_stuck(modest.holding, 10)
    assert it.is_over(greedy.holding)
    assert not it.is_over(modest.holding)
    assert [(one.caller, one.stuck) for one in it.stats()] == [(GREEDY, 100)]
    it.end_stuck(greedy.holding, it.room)
    assert not it.is_over(greedy.holding)
    assert it.stats() == ()


def test_memory_that_runs_short_is_freed_by_who_holds_most() -> None:
    """Its newest stuck connections are reset, some in a turn, until less is held."""
    held = [Held(GREEDY, n, stuck=10) for n in range(80)] + [Held(MODEST, 80 + n, stuck=10) for n in range(3)]
    fine = Held(GREEDY, 1000)
    it = made(*held, fine, memory=6400)
    assert it.most_stuck == 800
    assert not any(one.closed for one in held)
    while it._loop.turn():
        pass
    assert it.stuck <= 800
    assert left(held, GREEDY) == list(range(72))
    assert len(left(held, MODEST)) == 3
    assert not fine.closed


def test_holding_costs_the_same_however_much_is_held() -> None:
    """No look at all connections: what gives way is at one end of a list."""
    held = [Held(PEER, n, peer=True) for n in range(1000)]
    it = made(*held)
    it.make_room(it.mark)
    assert sum(one.looks for one in held) == shares.AT_A_TIME


# In a process of its own: what a test's clients hold would count among the data plane's descriptors.
HOLDER = """
import socket, sys
host, port, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
socks = []
for _ in range(number):
    sock = socket.create_connection((host, port), source_address=(host, 0))
    socks.append(sock)
print("held", flush=True)
sys.stdin.readline()
ended = []
for at, sock in enumerate(socks):
    sock.setblocking(False)
    try:
        sock.recv(1)
        ended.append(at)
    except BlockingIOError:
        pass
    except OSError:
        ended.append(at)
print(*ended, flush=True)
"""


@pytest.fixture
def world() -> Iterator[World]:
    """A data plane whose process may have 400 descriptors more."""
    made = World(files=open_descriptors() + 400)
    yield made
    made.close()


def test_one_caller_can_take_everything_and_nobody_notices(world: World) -> None:
    """Beyond the mark its newest connections are reset, and each of the others' succeeds at once."""
    silent, echo = world.backend(backlog=1000), world.backend()
    first = world.open(silent)
    second = world.open(echo, callers=(MODEST,))
    command = [sys.executable, "-ISc", HOLDER, GREEDY, str(first.port), "600"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        for _ in range(50):
            with socket.create_connection((GREEDY, second.port), 2, (MODEST, 0)) as client:
                server, _ = echo.accept()
                with server:
                    client.sendall(b"?")
                    assert server.recv(1) == b"?"
        eventually(lambda: world.call(first.stats).accepted == 600)
        assert open_descriptors() < world.context.shares.most
        holder.stdin.write("\n")
        holder.stdin.flush()
        ended = [int(word) for word in holder.stdout.readline().split()]
        holder.stdin.close()
    stats = world.call(first.stats), world.call(second.stats)
    assert 400 < len(ended) <= stats[0].given_up
    assert (stats[1].given_up, stats[1].failed, stats[1].starved) == (0, 0, 0)
    assert set(range(100)).isdisjoint(ended), "the oldest stay"


def test_the_limit_is_that_of_the_process() -> None:
    """Without one it is as good as endless."""
    it = Shares(uvloop.new_event_loop())
    assert 0 < it.mark < it.most < it.last
