"""`why`: where the way of a connection ends, and what to write to change that."""

from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.model.facts import DockerName, RunState, Snapshot
from appliance.model.names import Allowance, Protocol
from appliance.model.state import Subject
from appliance.model.stats import BackendStats, ListenerStats
from appliance.plan.compile import compile_host
from appliance.plan.explain import find_client, why
from tests.plan.cases import BRIDGE, MEMBERS, SETTINGS, bound, container, endpoint, stopped

SERVER = container(2, "apple.orange", ports=(80, "53/udp"))
TCP = Protocol.TCP
CLIENT = container(3, "flask.flask", to=("apple.orange:80",))
OTHER = container(4, "pear.tree", ports=(80,))


def facts(*workloads) -> Snapshot:
    """A host with these containers."""
    return Snapshot(now=1.0, settings=SETTINGS, workloads=workloads, networks=(BRIDGE,))


def ask(client, wanted: str, *workloads, have=None, stats=(), cause=lambda _: None):
    """Return the way from `client` to `wanted` on a host that has what it should have."""
    s = facts(*workloads)
    return why(client, Allowance.parse(wanted), s, have or compile_host(s), stats, cause)


def test_whole_way() -> None:
    """All that a connection passes is named, down to the backend."""
    way = ask(CLIENT, "apple.orange:80", SERVER, CLIENT)
    assert all(station.passed for station in way)
    assert [s.station for s in way] == ["client", "name", "port", "may it", "rule", "listener", "backends"]
    assert "172.18.0.2:80" in way[-1].words


@pytest.mark.parametrize(
    ("wanted", "station", "remedy"),
    [
        ("pear.tree:80", "name", "add pear.tree:80 to the label meshbox.connect_to of c3"),
        ("apple.orange:81", "port", 'add "81/tcp" to its ports'),
        ("apple.orange:53/udp", "may it", "add apple.orange:53/udp to the label meshbox.connect_to of c3"),
        ("no.body:80", "name", 'deploy service "body" with a container "no"'),
    ],
)
def test_stops_where_the_way_ends(wanted, station, remedy) -> None:
    """The last station is the one that stops it, and it says what to write."""
    *before, last = ask(CLIENT, wanted, SERVER, CLIENT, OTHER)
    assert all(s.passed for s in before)
    assert (last.station, last.passed) == (station, False)
    assert remedy in last.remedy


def test_shared_namespace() -> None:
    """What one container of a namespace may, all in it may; it says whose declaration that is."""
    sidecar = container(5, "log.side", to=("apple.orange:53/udp",), netns=CLIENT.netns, attachments=CLIENT.attachments)
    way = ask(sidecar, "apple.orange:80", SERVER, CLIENT, sidecar)
    assert all(station.passed for station in way)
    assert 'flask.flask, whose network it shares: its connect_to has "apple.orange:80"' in [s.words for s in way]
    assert ask(CLIENT, "apple.orange:53/udp", SERVER, CLIENT, sidecar)[-1].passed
    assert ask(sidecar, "pear.tree:80", SERVER, CLIENT, sidecar, OTHER)[-1].station == "name"


def test_declared_but_absent_destination() -> None:
    """A name that is declared before it exists resolves, but offers nothing yet."""
    last = ask(CLIENT, "apple.orange:80", CLIENT)[-1]
    assert last.station == "port"
    assert "nothing called apple.orange offers a port yet" in last.words


def test_backend_that_is_not_ready() -> None:
    """It names the container and what it waits for."""
    starting = replace(SERVER, bound=frozenset())
    last = ask(CLIENT, "apple.orange:80", starting, CLIENT)[-1]
    assert last.station == "backends"
    assert not last.passed
    assert last.words.startswith("nothing serves apple.orange:80/tcp: connections are refused until something does")
    assert "c2 is waiting for port 80" in last.words


@pytest.mark.parametrize(
    ("server", "endpoints", "words"),
    [
        (replace(SERVER, state=RunState.PAUSED), (), "c2 at 172.18.0.2:80 (paused: callers wait until it goes on)"),
        (
            container(2, "apple.orange", ports=(80, 21), bound=bound(21)),
            (),
            "c2 at 172.18.0.2:80 (does not listen: dialled when a client comes, as another of its ports listens)",
        ),
        (
            replace(SERVER, bound=frozenset()),
            (endpoint("apple.orange:80", "m2", weight=0),),
            "m2 at 10.0.0.9:20000 (nothing is ready there: reached where nothing else is); c2 is waiting for port 80",
        ),
    ],
    ids=["paused", "on demand", "elsewhere"],
)
def test_spare_backends(server, endpoints, words) -> None:
    """The way goes on, and it says what the client finds there."""
    s = replace(facts(server, CLIENT), endpoints=endpoints)
    last = why(CLIENT, Allowance.parse("apple.orange:80"), s, compile_host(s), (), lambda _: None)[-1]
    assert (last.passed, last.words) == (True, words)


def test_paused_client() -> None:
    """It says what to do about it."""
    last = ask(replace(CLIENT, state=RunState.PAUSED), "apple.orange:80", SERVER, CLIENT)[-1]
    assert (last.station, last.passed, last.remedy) == ("client", False, "unpause it")


def test_all_backends_left_out() -> None:
    """Backends that refused are shown as left out, and what to look at."""
    s = facts(SERVER, CLIENT)
    have = compile_host(s)
    listener = next(x for d, x in have.listeners.items() if d.port == 80)
    stats = ListenerStats(
        destination=listener.destination,
        port=listener.port,
        accepted=1,
        refused=0,
        failed=1,
        active=0,
        backends=(
            BackendStats(
                backend=listener.backends[0], opened=0, failed=1, active=0, bytes_in=0, bytes_out=0, ejected=1.5
            ),
        ),
    )
    last = why(CLIENT, Allowance.parse("apple.orange:80"), s, have, [stats], lambda _: None)[-1]
    assert not last.passed
    assert "left out for 1.5 s" in last.words


def test_rule_that_is_not_in_place() -> None:
    """A namespace that could not be given its rules is where the way ends."""
    s = facts(SERVER, CLIENT)
    last = ask(CLIENT, "apple.orange:80", SERVER, CLIENT, have=replace(compile_host(s), rulesets={}))[-1]
    assert last.station == "rule"


@pytest.mark.parametrize(
    ("wanted", "through_door"),
    [
        ("apple.orange:80", "its door is open: the proxy accepts {vip}:80 inside its namespace"),
        (
            "apple.orange:53/udp",
            "its door is open: datagrams to {vip}:53 are rewritten to the proxy's own address inside its namespace",
        ),
    ],
)
def test_way_through_the_door_or_past_it(wanted, through_door) -> None:
    """It tells what is: a door that is open, the host instead and why, or the host where no door is wanted."""
    client = container(3, "flask.flask", to=("apple.orange",))
    s = facts(SERVER, client)
    have = compile_host(s)
    destination = Allowance.parse(wanted)
    vip = have.zone.names[destination.name]
    routes = have.rulesets[client.netns.id].routes
    (port,) = (r.proxy_port for r in routes if r.protocol is (destination.protocol or TCP))
    past = f"its namespace redirects {vip}:{destination.port} to 172.18.0.1:{port}"

    def rule(have, cause=lambda _: None) -> str:
        way = ask(client, wanted, SERVER, client, have=have, cause=cause)
        return next(station.words for station in way if station.station == "rule")

    assert rule(have) == through_door.format(vip=vip)
    closed = replace(have, doors={})
    cause = {Subject("open door", str(client.netns.id)): "Address already in use"}.get
    assert rule(closed, cause) == f"{past}, on the host; its door is not open: Address already in use"
    assert rule(closed) == f"{past}, on the host; its door is not open: it is not open yet"
    waiting = {Subject("add route", str(client.netns.id)): "no interface leads there"}.get
    assert rule(closed, waiting) == f"{past}, on the host; its door is not open: no interface leads there"
    bare = replace(closed, rulesets={netns: replace(r, door=False) for netns, r in have.rulesets.items()})
    assert rule(bare) == past


def test_listener_that_is_not_in_place() -> None:
    """A listener that could not be opened, or does not know the client yet, is where the way ends."""
    s = facts(SERVER, CLIENT)
    have = compile_host(s)
    (port,) = (listener.port for d, listener in have.listeners.items() if d.port == 80)
    last = ask(CLIENT, "apple.orange:80", SERVER, CLIENT, have=replace(have, listeners={}))[-1]
    assert (last.station, last.passed) == ("listener", False)
    assert last.words == "no listener is open for apple.orange:80/tcp"
    strangers = {d: replace(listener, callers=frozenset()) for d, listener in have.listeners.items()}
    last = ask(CLIENT, "apple.orange:80", SERVER, CLIENT, have=replace(have, listeners=strangers))[-1]
    assert (last.station, last.passed) == ("listener", False)
    assert last.words == f"the listener on port {port} does not know this caller yet"


def test_client_that_is_not_in_the_mesh() -> None:
    """A stopped or impossible client is told at once."""
    assert ask(stopped(CLIENT), "apple.orange:80", SERVER)[-1].remedy == "start it"
    impossible = replace(CLIENT, problem="it uses the host's network")
    assert "host's network" in ask(impossible, "apple.orange:80", SERVER)[-1].remedy


def test_find_client_by_any_of_its_names() -> None:
    """Mesh name, Docker name, id and address all mean the same container."""
    s = facts(SERVER, CLIENT, stopped(OTHER, RunState.EXITED))
    for text in ("flask.flask", "c3", CLIENT.id[:62] + "03", "172.18.0.3"):
        assert find_client(text, s) == (CLIENT,)
    assert find_client("nobody", s) == ()


def test_a_name_that_docker_answers_itself() -> None:
    """The way ends at the name: what Docker says is the container's own address, which is refused."""
    client = replace(CLIENT, attachments=tuple(replace(a, network="lan") for a in CLIENT.attachments))
    lan = replace(BRIDGE, name="lan")
    called = frozenset({DockerName("lan", "apple.orange", "apple.orange")})
    s = replace(facts(SERVER, client), networks=(BRIDGE, lan), members=(replace(MEMBERS[0], called=called),))
    have = replace(compile_host(s), doors={})
    last = why(client, Allowance.parse("apple.orange:80"), s, have, (), lambda _: None)[-1]
    assert (last.station, last.passed) == ("name", False)
    assert "Docker's own DNS (127.0.0.11) answers apple.orange on network lan" in last.words
    assert last.remedy == "give container apple.orange another name in Docker"


def test_a_reserved_name_is_told() -> None:
    """It resolves, and still some programs do not ask for it."""
    server = container(2, "web.localhost", ports=(80,))
    client = container(3, "flask.flask", to=("web.localhost:80",))
    way = ask(client, "web.localhost:80", server, client)
    assert 'service name "localhost" is reserved' in next(s.words for s in way if s.station == "name")
    assert all(s.passed for s in way)
