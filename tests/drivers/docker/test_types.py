"""Docker's JSON into values."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address

import dockersays
import orjson
import pytest
from foreign import HUGE, LARGE, check_shown, encode, put, spoilt
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.drivers.docker import types
from appliance.errors import RetryError
from appliance.model.facts import RunState
from appliance.model.names import Protocol


def test_inspect_is_read_whole():
    """Every field that meshbox needs is found where Docker 20.10 puts it."""
    seen = types.parse_inspect(orjson.dumps(dockersays.inspect()))
    assert (seen.listed.id, seen.listed.docker_name, seen.listed.state) == (dockersays.ID, "t5", RunState.RUNNING)
    assert (seen.listed.image, seen.listed.network_mode) == ("meshbox-test:busybox", "meshbox")
    assert seen.listed.labels["meshbox.ports"] == "8080:80"
    assert seen.sandbox_key == "/var/run/docker/netns/2d55439f92b6"
    assert seen.published == {(Protocol.TCP, 80), (Protocol.UDP, 53)}
    assert seen.started_at == pytest.approx(1795480355.407754)
    assert (seen.healthy, seen.exit_code, seen.stop_timeout) == (None, None, 10)
    (joined,) = seen.joined
    assert joined == types.Joined(
        network="meshbox",
        address=IPv4Address("172.17.0.2"),
        gateway=IPv4Address("172.17.0.1"),
        address6=IPv6Address("fd00::2"),
        gateway6=IPv6Address("fd00::1"),
        names=("t5",),
    )


@pytest.mark.parametrize(
    ("status", "healthy"), [("starting", False), ("healthy", True), ("unhealthy", False), ("none", None)]
)
def test_health(status, healthy):
    """Only `healthy` is healthy; without a health check there is none."""
    said = dockersays.inspect(State__Health={"Status": status, "FailingStreak": 0, "Log": []})
    assert types.parse_inspect(orjson.dumps(said)).healthy is healthy


@pytest.mark.parametrize(
    ("changes", "own"),
    [
        ({}, False),
        ({"HostConfig__CapAdd": ["NET_RAW"]}, False),
        ({"HostConfig__CapAdd": ["NET_ADMIN"]}, True),
        ({"HostConfig__CapAdd": ["CAP_NET_ADMIN"]}, True),
        ({"HostConfig__CapAdd": ["ALL"]}, True),
        ({"HostConfig__Privileged": True}, True),
    ],
)
def test_who_may_have_rules_of_its_own(changes, own):
    """Docker names the right with and without its first part; a container that has all rights has this one."""
    assert types.parse_inspect(orjson.dumps(dockersays.inspect(**changes))).own_rules is own


def test_what_it_is_called_on_its_networks():
    """Docker adds the beginning of its id; older engines say nothing."""
    said = dockersays.inspect(
        NetworkSettings__Networks={
            "one": {"Aliases": ["web", "0123456789ab"]},
            "two": {"Aliases": None},
            "three": {"Aliases": ["other"]},
        }
    )
    assert types.parse_inspect(orjson.dumps(said)).listed.aliases == {"web", "0123456789ab", "other"}


def test_stopped_container():
    """A stopped container has an exit code, no address, and one that never ran has no start."""
    said = dockersays.inspect(
        State__Status="exited",
        State__ExitCode=137,
        State__StartedAt="0001-01-01T00:00:00Z",
        NetworkSettings__Ports=None,
        NetworkSettings__Networks={"meshbox": {"Gateway": "", "IPAddress": ""}, "odd": None},
        Config__Labels=None,
        Config__StopTimeout=3,
    )
    seen = types.parse_inspect(orjson.dumps(said))
    assert (seen.exit_code, seen.started_at, seen.stop_timeout) == (137, 0.0, 3)
    assert seen.joined == (types.Joined(network="meshbox", names=("t5",)),)
    assert seen.published == frozenset()
    assert seen.listed.labels == {}


def test_list():
    """The list tells name, labels, state and networks."""
    ((entry,), unreadable) = types.parse_list(orjson.dumps(dockersays.LIST))
    assert unreadable == ()
    assert entry.docker_name == "t5"
    assert entry.networks == ("meshbox",)
    assert entry.network_mode == "meshbox"
    assert entry.image_id == dockersays.LIST[0]["ImageID"]


def test_networks():
    """Subnets and gateways of both families, also where Docker writes a gateway with its prefix; some have none."""
    (meshbox, host), _ = types.parse_networks(orjson.dumps([dockersays.NETWORK, dockersays.HOST_NETWORK]))
    assert meshbox.subnets[0] == IPv4Network("172.17.0.0/16")
    assert meshbox.gateways == (IPv4Address("172.17.0.1"), IPv6Address("fd00::1"))
    assert (host.driver, host.subnets) == ("host", ())


def test_members():
    """A network tells what each on it has, perhaps nothing yet; one that cannot be read is named, the others count."""
    mac = {"MacAddress": "02:42:ac:11:00:09", "IPv4Address": "172.17.0.9/16", "IPv6Address": "fd00::9/64"}
    more = {"c" * 64: mac, "d" * 64: {"MacAddress": "none"}, "gateway_1a": {"IPv4Address": "172.17.0.8/16"}}
    said = dockersays.NETWORK | {"Containers": dockersays.NETWORK["Containers"] | more}
    found = types.parse_members(orjson.dumps(said))
    assert found.network.name == "meshbox"
    assert {one: (j.address, j.address6, j.mac) for one, j in found.joined.items()} == {
        dockersays.ID: (IPv4Address("172.17.0.2"), None, None),
        "e" * 64: (None, None, None),
        "c" * 64: (IPv4Address("172.17.0.9"), IPv6Address("fd00::9"), 0x0242AC110009),
        "gateway_1a": (IPv4Address("172.17.0.8"), None, None),
    }
    assert [one.id for one in found.unreadable] == ["d" * 64]


def test_the_bridge_of_a_network():
    """Docker names it after the network's id, unless told otherwise; other drivers have none."""
    network = types.parse_network(orjson.dumps(dockersays.NETWORK))
    assert network.bridge == f"br-{dockersays.NETWORK_ID[:12]}"
    named = dockersays.NETWORK | {"Options": {types.BRIDGE_NAME: "docker0"}}
    assert types.parse_network(orjson.dumps(named)).bridge == "docker0"
    assert types.parse_network(orjson.dumps(dockersays.HOST_NETWORK)).bridge == ""


def test_whose_network_it_is():
    """One with our label is ours; Docker keeps containers apart only where its option says so."""
    found = types.parse_network(orjson.dumps(dockersays.NETWORK))
    assert (found.ours, found.apart) == (True, True)
    for options in (None, {}, {types.ICC: "true"}):
        other = types.parse_network(orjson.dumps(dockersays.NETWORK | {"Labels": None, "Options": options}))
        assert (other.ours, other.apart) == (False, False)


def test_event():
    """An event has its time to the nanosecond, its container, and that one's labels."""
    event = types.parse_event(orjson.dumps(dockersays.DIE))
    assert (event.kind, event.action, event.id) == ("container", "die", dockersays.ID)
    assert event.time == pytest.approx(1795480352.499882)
    assert event.listed().docker_name == "t1"
    assert event.listed().labels["meshbox.service"] == "a"


@pytest.mark.parametrize("text", [b"", b"null", b"[]", b'{"Id": 3}', b"{", b"\xff", b'{"Type":"container"}'])
def test_nonsense_is_a_passing_fault(text):
    """Whatever Docker sends, the outcome is a value or a RetryError that says what was wrong with it."""
    for parser in (types.parse_inspect, types.parse_event, types.parse_network):
        with pytest.raises(RetryError, match="not what its API promises"):
            parser(text)


PARSERS = (
    (types.parse_inspect, dockersays.inspect(Config__StopTimeout=3, State__Health={"Status": "healthy"})),
    (types.parse_event, dockersays.DIE),
    (types.parse_network, dockersays.NETWORK),
    (types.parse_members, dockersays.NETWORK),
)
EXAMPLES = (
    dockersays.inspect(NetworkSettings__Ports={f"{HUGE}/tcp": [{}]}),
    dockersays.inspect(Config__StopTimeout=10**400),
    dockersays.inspect(State__StartedAt="yesterday"),
    dockersays.inspect(NetworkSettings__Networks__meshbox__IPAddress="300.0.0.1"),
    put(dockersays.DIE, ("timeNano",), 10**400),
    put(dockersays.DIE, ("time",), 10**5000),
    put(dockersays.NETWORK, ("IPAM", "Config", 0, "Subnet"), "dhcp"),
    put(dockersays.NETWORK, ("IPAM", "Config", 0, "Gateway"), LARGE),
    put(dockersays.NETWORK, ("Containers", dockersays.ID, "IPv4Address"), "none"),
)


def with_examples(test):
    """Begin with what once ended the appliance."""
    for document in EXAMPLES:
        test = example(document)(test)
    return test


@with_examples
@given(st.sampled_from([document for _, document in PARSERS]).flatmap(spoilt))
def test_whatever_docker_says_of_one_thing(document):
    """The outcome is a value or a RetryError that can be shown, never anything else."""
    for parser, _ in PARSERS:
        try:
            parser(encode(document))
        except RetryError as error:
            check_shown(error, 1000)


@given(spoilt([dockersays.LIST[0]]))
@example(put(dockersays.LIST, (0, "State"), "levitating"))
@example(put(dockersays.LIST, (0, "Labels"), {"a": 10**5000}))
@example(put(dockersays.LIST, (0, "Id"), 7))
def test_a_bad_entry_of_the_list_hides_no_other(document):
    """The good one is read; the bad one is named by its id where it has one."""
    good = put(dockersays.LIST[0], ("Id",), "e" * 64)
    if not isinstance(document, list):
        document = [document]
    found, unreadable = types.parse_list(encode([*document, good]))
    assert found[-1].id == "e" * 64
    assert len(found) + len(unreadable) == len(document) + 1
    for one in unreadable:
        check_shown(one.cause, 1000)


@given(spoilt([dockersays.NETWORK]))
@example([put(dockersays.NETWORK, ("IPAM", "Config", 0, "Subnet"), "dhcp")])
@example([put(dockersays.NETWORK, ("Name",), None)])
def test_a_bad_network_hides_no_other(document):
    """Containers on the other networks keep their rules; the bad one is named where it has a name."""
    if not isinstance(document, list):
        document = [document]
    found, unreadable = types.parse_networks(encode([*document, dockersays.HOST_NETWORK]))
    assert found[-1].name == "host"
    assert len(found) + len(unreadable) == len(document) + 1
    assert all(one.id in {"meshbox", ""} or not one.id.startswith("mesh") for one in unreadable)


def test_names_in_dockers_own_dns():
    """Its own first, aliases and what newer engines say; each once, and not without end."""
    there = {"Aliases": ["Web.Shop", "0123456789ab"], "DNSNames": ["web-1", "Web.Shop", "host"]}
    many = {"Aliases": [f"a{n}" for n in range(1000)]}
    networks = {"lan": there, "old": {"Aliases": None}, "big": many}
    found = types.parse_inspect(orjson.dumps(dockersays.inspect(Name="/Web-1", NetworkSettings__Networks=networks)))
    lan, old, big = found.joined
    assert lan.names == ("Web-1", "Web.Shop", "0123456789ab", "web-1", "host")
    assert old.names == ("Web-1",)
    assert len(big.names) == types.MOST_NAMES
