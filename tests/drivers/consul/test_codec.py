"""What stands in Consul, and what it means."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import orjson
import pytest
from foreign import EVIL, HUGE, LARGE, TEXTS, check_shown, encode, json, put, spoilt, without
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.drivers.consul import cache, codec
from appliance.drivers.consul.codec import StoredSpec
from appliance.errors import HostError, InputError
from appliance.model.facts import Endpoint, Machine
from appliance.model.names import Allowance, Destination
from appliance.model.network import Registration
from appliance.model.privileges import EVERYTHING, Privileges
from appliance.model.spec import Container, Service

M1 = Machine(node="m1", address=IPv4Address("10.0.0.1"), meta=(("disk", "ssd"),))
WEB = Destination.parse("nginx.web:80")
SPEC = Service(name="web", containers=(Container(name="nginx", image="x"),))


def entry(arguments, *, status="passing", agent="passing", host="consul-1", **changes):
    """What Consul makes of a registration in a health query."""
    service = {
        "ID": arguments["service_id"],
        "Service": arguments["name"],
        "Address": arguments["address"],
        "Port": arguments.get("port", 0),
        "Meta": arguments["meta"],
    }
    return {
        "Node": {"Node": host, "Address": "192.0.2.9"},
        "Service": {**service, **changes},
        "Checks": [{"Status": agent, "ServiceID": ""}, {"Status": status, "ServiceID": arguments["service_id"]}],
    }


def serving(weight=2, machine=M1, destination=WEB):
    """The registration of something that a machine serves."""
    return codec.destination_service(machine, Registration(destination=destination, proxy_port=20000, weight=weight))


def test_machine_back_and_forth():
    """A machine is read as it was registered."""
    seen, complaints = codec.parse_machines([entry(codec.machine_service(M1))])
    assert complaints == ()
    assert seen == (codec.SeenMachine(machine=M1, host="consul-1"),)


def test_meta_that_consul_would_refuse():
    """Too much for one value of Consul's is refused before anything starts, with the limit."""
    codec.check_meta((("a", "x" * 504),))
    with pytest.raises(HostError, match="512 characters of it, as JSON, and it has 513: shorten it"):
        codec.check_meta((("a", "x" * 505),))


def test_gateway_back_and_forth():
    """That a machine runs no containers is told to the others; about the rest, as before, nothing is said."""
    gateway = replace(M1, gateway=True)
    ((seen,), _) = codec.parse_machines([entry(codec.machine_service(gateway))])
    assert seen.machine == gateway
    assert "gateway" not in codec.machine_service(M1)["meta"]


def test_what_a_machine_allows_back_and_forth():
    """It is told to the others; a machine of a version that does not tell it runs everything."""
    for allows in (Privileges(), Privileges(paths=frozenset({"/a b", "/c"}), capabilities=frozenset({"SYS_PTRACE"}))):
        arguments = codec.machine_service(replace(M1, allows=allows))
        ((seen,), _) = codec.parse_machines([entry(arguments)])
        assert seen.machine.allows == allows
    del arguments["meta"]["allows"]
    ((former,), _) = codec.parse_machines([entry(arguments)])
    assert former.machine.allows == EVERYTHING


@pytest.mark.parametrize(
    "said", ["7", "[]", "{}", '{"paths": 5, "capabilities": []}', '{"paths": [5], "capabilities": []}']
)
def test_what_a_machine_allows_is_not_understood(said):
    """The machine cannot be read, rather than trusted with everything."""
    arguments = codec.machine_service(M1)
    found, complaints = codec.parse_machines([entry(arguments, Meta={**arguments["meta"], "allows": said})])
    assert found == ()
    assert len(complaints) == 1


def test_more_paths_than_consul_stores():
    """That is said before anything starts."""
    allows = Privileges(paths=frozenset(f"/srv/{number:08}" for number in range(60)))
    with pytest.raises(HostError, match="allow_host_paths with allow_privileged is too long"):
        codec.check_meta((), allows)


def test_presence_port_back_and_forth():
    """Where a machine says that it is alive is told; that one of a former version has none is no fault."""
    open_one = replace(M1, presence_port=29999)
    arguments = codec.machine_service(open_one)
    ((seen,), _) = codec.parse_machines([entry(arguments)])
    assert seen.machine == open_one
    found = {"Service": "meshbox", "Address": "10.0.0.1", "Meta": arguments["meta"]}
    assert codec.same_service({**found, "Port": 29999}, arguments)
    assert not codec.same_service({**found, "Port": 29998}, arguments)
    assert codec.same_service({**found, "Port": 0}, codec.machine_service(M1))


def test_claims_back_and_forth():
    """However many and long they are, no value is longer than Consul takes; what is beyond its keys has to wait."""
    some = frozenset({"web/0/web", "web/12/" + "c" * 63})
    many = frozenset(f"{'s' * 60}-{number}/0/{'c' * 63}" for number in range(400))
    for claims in (some, many):
        meta = codec.machine_service(replace(M1, claims=claims))["meta"]
        assert len(meta) <= 64
        assert max(map(len, meta.values())) <= codec.MAX_META
        ((seen,), _) = codec.parse_machines([entry(codec.machine_service(replace(M1, claims=claims)))])
        assert seen.machine.claims == claims if claims is some else seen.machine.claims < claims
        assert seen.machine.claims


def test_endpoint_back_and_forth():
    """What a machine serves is read as it was registered, with the name in Consul's own terms."""
    arguments = serving()
    assert (arguments["name"], arguments["tags"]) == ("web", ["nginx"])
    assert arguments["check"]["AliasService"] == codec.machine_service(M1)["service_id"]
    endpoints, complaints = codec.parse_endpoints([entry(arguments)])
    assert complaints == ()
    assert endpoints == (Endpoint(destination=WEB, node="m1", address=IPv4Address("10.0.0.1"), port=20000, weight=2),)


def test_revisions_back_and_forth():
    """How many replicas have which revision is read as it was announced; words of another version hide nothing."""
    revisions = (("0a1b2c3d", 2), ("ffffffff", 1))
    r = Registration(destination=WEB, proxy_port=20000, weight=3, revisions=revisions)
    arguments = codec.destination_service(M1, r)
    ((found,), _) = codec.parse_endpoints([entry(arguments)])
    assert found.revisions == revisions
    odd = entry(arguments, Meta={**arguments["meta"], "revisions": "a:x b ffffffff:1"})
    ((found,), complaints) = codec.parse_endpoints([odd])
    assert (found.revisions, complaints) == ((("ffffffff", 1),), ())


@pytest.mark.parametrize(("status", "healthy"), [("passing", True), ("warning", True), ("critical", False)])
def test_health(status, healthy):
    """Only a critical check makes a machine unhealthy."""
    seen, _ = codec.parse_machines([entry(codec.machine_service(M1), status=status)])
    assert seen[0].machine.healthy is healthy
    assert seen[0].silent is not healthy


def test_agent_that_is_not_heard_of():
    """Then a machine is not healthy either, but nothing is known of its heartbeat."""
    for status in ("passing", "critical"):
        ((seen,), _) = codec.parse_machines([entry(codec.machine_service(M1), status=status, agent="critical")])
        assert not seen.machine.healthy
        assert not seen.silent


@pytest.mark.parametrize(
    "changes",
    [{"ID": "redis-1"}, {"ID": "meshbox:m2"}, {"Meta": None}, {"ID": "meshbox:m1:x", "Meta": {"node": "m1"}}],
)
def test_foreign_machines_are_not_ours(changes):
    """Somebody else's registrations, whatever they are called, are passed over in silence."""
    assert codec.parse_machines([entry(codec.machine_service(M1), **changes)]) == ((), ())


@pytest.mark.parametrize("changes", [{"ID": "redis-1"}, {"Meta": None}, {"Meta": {"node": "m1"}}])
def test_foreign_endpoints_are_not_ours(changes):
    """A service of the same name that something else registered is none of the mesh's."""
    assert codec.parse_endpoints([entry(serving(), **changes)]) == ((), ())
    assert codec.parse_endpoints([entry(codec.machine_service(M1))]) == ((), ())


@pytest.mark.parametrize(
    ("key", "value"), [("port", "0"), ("port", "x"), ("protocol", "icmp"), ("replicas", "many"), ("container", "A_B")]
)
def test_unreadable_endpoints(key, value):
    """One that is ours and cannot be read is named, and does not hide the others."""
    bad = entry(serving(), Meta={**serving()["meta"], key: value})
    endpoints, complaints = codec.parse_endpoints([bad, entry(serving())])
    assert len(endpoints) == 1
    assert len(complaints) == 1
    assert '"meshbox:m1:nginx.web:80/tcp" in Consul cannot be read' in complaints[0]


@pytest.mark.parametrize("constraints", ["[]", "{", "3"])
def test_unreadable_machine(constraints):
    """A machine that cannot be read is named."""
    broken = entry(codec.machine_service(M1), Meta={"node": "m1", "constraints": constraints})
    seen, complaints = codec.parse_machines([broken])
    assert seen == ()
    assert '"meshbox:m1" in Consul cannot be read' in complaints[0]


@pytest.mark.parametrize("port", [-1, 65536, "29999", True])
def test_presence_port_that_is_none(port):
    """It is told; nothing is dialled there."""
    seen, complaints = codec.parse_machines([entry(codec.machine_service(M1), Port=port)])
    said = f'"{port}"' if isinstance(port, str) else port
    words = f"{said} is not a port number from 1 to 65535"
    assert (seen, complaints) == ((), (f'machine "meshbox:m1" in Consul cannot be read: {words}',))


def test_two_machines_of_one_name_or_address():
    """Both conflicts are told with all that an administrator needs; the first of one name counts."""
    double = Machine(node="m1", address=IPv4Address("10.0.0.2"))
    same = Machine(node="m3", address=IPv4Address("10.0.0.1"))
    seen, _ = codec.parse_machines(
        [entry(codec.machine_service(m), host=h) for m, h in ((double, "c2"), (M1, "c1"), (same, "c3"))]
    )
    found, clashes = codec.one_per_node(seen)
    assert found == {"m1": M1, "m3": same}
    assert [str(clash) for clash in clashes] == [
        (
            'two machines call themselves "m1": 10.0.0.1 (Consul node c1) and 10.0.0.2 (c2); '
            'give one of them another "node" in its configuration'
        ),
        "machines m1 and m3 both claim the address 10.0.0.1; give each a Consul agent of its own, whose address it has",
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_the_name_is_that_of_the_first(order):
    """Whoever comes later takes no name, whatever its Consul node is called; it is told of."""
    double = codec.machine_service(replace(M1, address=IPv4Address("10.0.0.66")))
    entries = [entry(codec.machine_service(M1), host="z", CreateIndex=7), entry(double, host="a", CreateIndex=90)]
    seen, _ = codec.parse_machines(entries[::order])
    found, (clash,) = codec.one_per_node(seen)
    assert found == {"m1": M1}
    assert clash.words.endswith("10.0.0.1 (Consul node z) and 10.0.0.66 (a)")


def test_the_first_keeps_its_name_while_it_lives():
    """A missed heartbeat is no reason to give its name away; where nothing of it lives, the other counts."""
    double = replace(M1, address=IPv4Address("10.0.0.66"))
    seen, _ = codec.parse_machines(
        [
            entry(codec.machine_service(M1), host="z", status="critical", CreateIndex=7),
            entry(codec.machine_service(double), host="a", CreateIndex=90),
        ]
    )
    found, (clash,) = codec.one_per_node(seen, lambda machine: machine.address == M1.address)
    assert found == {"m1": replace(M1, healthy=False)}
    assert clash.words.startswith('two machines call themselves "m1"')
    assert codec.one_per_node(seen) == ({"m1": double}, [])
    moved = codec.SeenMachine(machine=M1, host="new agent", created=99)
    assert codec.one_per_node((seen[0], moved), lambda _: True) == ({"m1": M1}, [])


def test_what_a_machine_left_behind():
    """A machine that moved to another host or address counts as it is now, without complaints about what it was."""
    former = codec.machine_service(replace(M1, address=IPv4Address("10.0.0.9")))
    heir = codec.machine_service(Machine(node="m2", address=IPv4Address("10.0.0.9")))
    seen, _ = codec.parse_machines(
        [
            entry(former, host="a", status="critical"),
            entry(codec.machine_service(M1), host="b"),
            entry(codec.machine_service(replace(M1, node="m0")), host="c", status="critical"),
            entry(heir, host="d"),
        ]
    )
    found, clashes = codec.one_per_node(seen)
    assert clashes == []
    assert found["m1"] == M1
    assert found["m2"].healthy
    assert not found["m0"].healthy


def test_ids():
    """Only ids that begin with this very node are its own."""
    assert codec.is_own("meshbox:m1", "m1")
    assert codec.is_own("meshbox:m1:nginx.web:80/tcp", "m1")
    assert not codec.is_own("meshbox:m10", "m1")
    assert not codec.is_own("meshbox:m10:nginx.web:80/tcp", "m1")
    assert not codec.is_own("redis", "m1")


@pytest.mark.parametrize(
    "change", [{"Address": "10.0.0.2"}, {"Port": 1}, {"Tags": []}, {"Meta": {}}, {"Weights": {"Passing": 1}}]
)
def test_same_service(change):
    """Any difference that others would see makes a registration stale."""
    arguments = serving()
    found = {
        "Service": "web",
        "Address": "10.0.0.1",
        "Port": 20000,
        "Tags": ["nginx"],
        "Meta": arguments["meta"],
        "Weights": {"Passing": 2, "Warning": 1},
    }
    assert codec.same_service(found, arguments)
    assert not codec.same_service({**found, **change}, arguments)


@pytest.mark.parametrize("stored", [StoredSpec(service=SPEC, changed=5.5), StoredSpec(service=None, changed=6.0)])
def test_spec_back_and_forth(stored):
    """Specs and tombstones are read as they were written."""
    assert codec.parse_spec("meshbox/specs/web", codec.dump_spec(stored), 0) == stored


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (b"", "no spec of ours"),
        (b"hello", "no spec of ours"),
        (b"[1]", "no spec of ours"),
        (b'{"schema": 1}', "no spec of ours"),
        (b'{"schema": 2, "changed": 1}', "written by a newer meshbox"),
        (b'{"schema": 1, "changed": 1}', "is left alone"),
        (b'{"schema": 1, "changed": 1, "service": {"name": "web"}}', "is left alone"),
        (
            orjson.dumps(
                {
                    "schema": 1,
                    "changed": 1,
                    "service": {
                        **orjson.loads(codec.dump_spec(StoredSpec(service=SPEC, changed=1)))["service"],
                        "name": "other",
                    },
                }
            ),
            'a service called "other"',
        ),
    ],
)
def test_foreign_specs(value, complaint):
    """A key that is not ours, or a newer version's, is named and left alone."""
    with pytest.raises(InputError, match=complaint):
        codec.parse_spec("meshbox/specs/web", value, 3)


SPEC_OF_0_1_0 = (
    b'{"schema":1,"changed":1000.5,"service":{"name":"web","count":2,"containers":'
    b'[{"name":"web","image":"x:1","connect_to":["db.data:5432"]}]}}'
)
TOMBSTONE_OF_0_1_0 = b'{"schema":1,"changed":1000.5,"removed":true}'
MACHINE_OF_0_1_0 = {
    "name": "meshbox",
    "service_id": "meshbox:m1",
    "address": "10.0.0.1",
    "port": 29999,
    "meta": {"node": "m1", "constraints": '{"disk":"ssd"}', "host": "here", "claims-1": "a.b/2 web.web/1"},
    "check": {
        "CheckID": "meshbox:m1",
        "Name": "appliance of m1",
        "TTL": "15s",
        "Status": "passing",
        "DeregisterCriticalServiceAfter": "72h",
    },
}
DESTINATION_OF_0_1_0 = {
    "name": "web",
    "service_id": "meshbox:m1:web.web:80/tcp",
    "address": "10.0.0.1",
    "port": 20000,
    "tags": ["web"],
    "meta": {
        "node": "m1",
        "container": "web",
        "port": "80",
        "protocol": "tcp",
        "replicas": "2",
        "revisions": "0a1b2c3d:2",
    },
    "weights": {"Passing": 2, "Warning": 1},
    "check": {
        "Name": "machine m1",
        "AliasService": "meshbox:m1",
        "Status": "passing",
        "DeregisterCriticalServiceAfter": "72h",
    },
}
"""What version 0.1.0 put into Consul."""


def test_keys_of_version_0_1_0():
    """Its specs and tombstones are read, and written back to the byte."""
    container = Container(name="web", image="x:1", connect_to=(Allowance.parse("db.data:5432"),))
    stored = StoredSpec(service=Service(name="web", count=2, containers=(container,)), changed=1000.5, index=3)
    assert codec.parse_spec("meshbox/specs/web", SPEC_OF_0_1_0, 3) == stored
    assert codec.dump_spec(stored) == SPEC_OF_0_1_0
    tombstone = StoredSpec(service=None, changed=1000.5, index=3)
    assert codec.parse_spec("meshbox/specs/web", TOMBSTONE_OF_0_1_0, 3) == tombstone
    assert codec.dump_spec(tombstone) == TOMBSTONE_OF_0_1_0


def test_registrations_of_version_0_1_0():
    """Its machines and endpoints are read, and registered in the same words."""
    machine = replace(M1, presence_port=29999, claims=frozenset({"web.web/1", "a.b/2"}))
    ((seen,), _) = codec.parse_machines([entry(MACHINE_OF_0_1_0)])
    assert seen.machine == machine
    assert codec.machine_service(machine, "here") == MACHINE_OF_0_1_0
    registration = Registration(
        destination=Destination.parse("web.web:80"), proxy_port=20000, weight=2, revisions=(("0a1b2c3d", 2),)
    )
    ((endpoint,), _) = codec.parse_endpoints([entry(DESTINATION_OF_0_1_0)])
    assert endpoint == Endpoint(
        destination=registration.destination,
        node="m1",
        address=M1.address,
        port=20000,
        weight=2,
        revisions=(("0a1b2c3d", 2),),
    )
    assert codec.destination_service(machine, registration) == DESTINATION_OF_0_1_0


def test_a_missed_heartbeat_is_excused():
    """Where only heartbeats are missed, machines stay as they were known; a dead agent, or a newcomer, counts."""
    silent, dead, new, well = (
        replace(M1, node=node, address=IPv4Address(f"10.0.0.{number}"), healthy=node == "well")
        for number, node in enumerate(("silent", "dead", "new", "well"), start=1)
    )
    seen = [codec.SeenMachine(machine=m, host="h", silent=m in (silent, new)) for m in (silent, dead, new, well)]
    found = {s.machine.node: s.machine for s in seen}
    known = {node: replace(machine, healthy=True) for node, machine in found.items() if node != "new"}
    assert codec.excuse_silent(found, seen, known) == {**found, "silent": replace(silent, healthy=True)}
    unwell = {**known, "silent": silent}
    assert codec.excuse_silent(found, seen, unwell) == found


SERVING = entry(serving())
MACHINE_ENTRY = entry(codec.machine_service(replace(M1, presence_port=29999, claims=frozenset({"web/0/nginx"}))))
GOOD_ONE = entry(serving(machine=replace(M1, node="m2")))
META = ("Service", "Meta")


@given(spoilt(SERVING, json()))
@example(put(SERVING, (*META, "replicas"), LARGE))
@example(put(SERVING, (*META, "replicas"), HUGE))
@example(put(SERVING, (*META, "replicas"), "1_0"))
@example(put(SERVING, (*META, "replicas"), "٣"))
@example(put(SERVING, (*META, "revisions"), f"a:{LARGE}"))
@example(put(SERVING, (*META, "revisions"), f"a:{HUGE}"))
@example(put(SERVING, (*META, "revisions"), "²:²"))
@example(put(SERVING, (*META, "port"), HUGE))
@example(put(SERVING, (*META, "node"), EVIL))
@example(put(SERVING, ("Service", "Port"), 99999))
@example(put(SERVING, ("Service", "Port"), -1))
@example(put(SERVING, ("Service", "Port"), 10**5000))
@example(put(SERVING, ("Service", "Address"), 7))
@example(put(SERVING, ("Service", "ID"), None))
@example(without(SERVING, ("Service", "Port")))
@example(without(SERVING, ("Service",)))
@example(None)
def test_any_registration_of_an_endpoint(bad):
    """Whatever is registered, the outcome can be dialled, stored and shown, and the good one beside it counts."""
    endpoints, complaints = codec.parse_endpoints([bad, GOOD_ONE])
    assert endpoints[-1].node == "m2"
    assert len(endpoints) + len(complaints) <= 2
    for e in endpoints:
        assert 1 <= e.port <= 65535
        assert 0 <= e.weight <= 1000
        assert all(0 <= count <= 1000 for _, count in e.revisions)
        check_shown(e.node)
    cache.dump(cache.CachedFacts(endpoints=endpoints))
    for words in complaints:
        check_shown(words)


@given(spoilt(MACHINE_ENTRY, json()))
@example(put(MACHINE_ENTRY, (*META, "node"), EVIL))
@example(put(MACHINE_ENTRY, (*META, "constraints"), "[" * 5000))
@example(put(MACHINE_ENTRY, (*META, "constraints"), '{"a": ' + HUGE + "}"))
@example(put(MACHINE_ENTRY, ("Service", "Port"), 10**5000))
@example(put(MACHINE_ENTRY, ("Checks",), None))
@example(without(MACHINE_ENTRY, ("Node", "Node")))
@example(without(MACHINE_ENTRY, ("Service",)))
@example(None)
def test_any_registration_of_a_machine(bad):
    """The others are found, and what is said of this one can be shown."""
    good = entry(codec.machine_service(replace(M1, node="m2", address=IPv4Address("10.0.0.2"))))
    seen, complaints = codec.parse_machines([bad, good])
    assert seen[-1].machine.node == "m2"
    machines, clashes = codec.one_per_node(seen)
    cache.dump(cache.CachedFacts(machines=tuple(machines.values())))
    for words in (*complaints, *clashes):
        check_shown(words)


SPEC_VALUE = {
    "schema": 1,
    "changed": 5.5,
    "service": {
        "name": "web",
        "count": 2,
        "containers": [{"name": "nginx", "image": "x", "ports": ["80/tcp"], "health": {"command": "x", "interval": 1}}],
    },
}
IN_SPEC = ("service", "containers", 0)


@given(spoilt(SPEC_VALUE), TEXTS.map(lambda text: f"meshbox/specs/{text}") | st.just("meshbox/specs/web"))
@example(put(SPEC_VALUE, (*IN_SPEC, "ports"), [HUGE]), "meshbox/specs/web")
@example(put(SPEC_VALUE, (*IN_SPEC, "health", "interval"), f"{LARGE}h"), "meshbox/specs/web")
@example(put(SPEC_VALUE, ("schema",), 10**400), "meshbox/specs/web")
@example(put(SPEC_VALUE, ("changed",), 10**400), "meshbox/specs/web")
@example(put(SPEC_VALUE, ("changed",), "nan"), "meshbox/specs/web")
@example(put(SPEC_VALUE, ("service",), [7]), "meshbox/specs/web")
@example(SPEC_VALUE, f"meshbox/specs/{EVIL}")
@example([], "meshbox/specs/web")
def test_any_value_of_a_key(value, key):
    """It is a spec that can be stored and run, or left alone with words that can be shown."""
    try:
        stored = codec.parse_spec(key, encode(value), 1)
    except InputError as error:
        check_shown(error, 5000)
    else:
        assert replace(codec.parse_spec(key, codec.dump_spec(stored), 1)) == stored


def test_many_bad_registrations_are_counted():
    """Whoever writes thousands of them fills no log."""
    _, complaints = codec.parse_endpoints([put(SERVING, ("Service", "Port"), 0)] * 60)
    assert len(complaints) == 51
    assert complaints[-1] == "10 more entries in Consul cannot be read"


def test_more_revisions_than_consul_stores():
    """A value is never longer than Consul takes, and what is told of it is whole."""
    many = tuple(sorted((f"{number:064x}", 7) for number in range(20)))
    r = Registration(destination=WEB, proxy_port=20000, weight=3, revisions=many)
    arguments = codec.destination_service(M1, r)
    assert len(arguments["meta"]["revisions"]) <= codec.MAX_META
    ((found,), _) = codec.parse_endpoints([entry(arguments)])
    assert len(found.revisions) == 7
    assert set(found.revisions) < set(many)


def test_what_only_spares_serve_is_announced_with_no_replicas():
    """Consul wants a weight of 1 at least, but nobody asks it to balance; others read the number of replicas."""
    service = serving(weight=0)
    assert (service["meta"]["replicas"], service["weights"]["Passing"]) == ("0", 1)
    ((endpoint,), problems) = codec.parse_endpoints([entry(service)])
    assert (endpoint.weight, problems) == (0, ())


def test_more_replicas_than_are_read():
    """A machine announces no more than the others accept."""
    assert serving(weight=5000)["meta"]["replicas"] == "1000"
