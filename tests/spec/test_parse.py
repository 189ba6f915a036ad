from __future__ import annotations

import socket
from contextlib import nullcontext

import orjson
import pytest
from foreign import EVIL, HUGE, LARGE, check_shown, json
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.errors import InputError
from appliance.model.names import Allowance, Name, Port, Protocol
from appliance.model.spec import Container, Health, Service
from appliance.spec.constraint import parse_constraint
from appliance.spec.parse import (
    CONTAINER_FIELDS,
    HEALTH_FIELDS,
    SERVICE_FIELDS,
    check_services,
    parse_service,
    service_to_raw,
)


def raw_service(**fields):
    """One valid service whose only container has these fields besides."""
    return {"name": "flask", "containers": [{"name": "web", "image": "hello", **fields}]}


def refused(raw):
    """What the parser says about this input, on one line."""
    with pytest.raises(InputError) as caught:
        parse_service(raw, "app.py:3")
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("app.py:3: ")
    return text


def test_every_field():
    """All fields of the design are understood and come out as parsed values."""
    service = parse_service(
        {
            "name": "flask",
            "count": 2,
            "constraint": "node == h1",
            "open": True,
            "containers": [
                {
                    "name": "web",
                    "image": "registry.example.org:5000/team/web:1.2",
                    "ports": ["8080/udp", 8080, "80:8000"],
                    "connect_to": ["apple.orange:8080", "apple.pear", "apple.fig:1/udp"],
                    "cpu": 500,
                    "memory": 256,
                    "command": ["bash", "-c", "true"],
                    "env": {"A": "1", "B": 2},
                    "volumes": ["/srv:/data:ro", "cache:/cache", "/scratch"],
                    "health": {"command": "true", "interval": "1m30s", "timeout": 2, "retries": 5},
                    "cap_add": ["CAP_SYS_TIME", "net_admin"],
                    "cap_drop": ["ALL"],
                }
            ],
        }
    )
    assert service == Service(
        name="flask",
        count=2,
        constraint=parse_constraint("node == h1"),
        open=True,
        containers=(
            Container(
                name="web",
                image="registry.example.org:5000/team/web:1.2",
                ports=(
                    Port(mesh=8080, container=8080, protocol=Protocol.UDP),
                    Port(mesh=8080, container=8080, protocol=Protocol.TCP),
                    Port(mesh=80, container=8000, protocol=Protocol.TCP),
                ),
                connect_to=(
                    Allowance.parse("apple.orange:8080"),
                    Allowance.parse("apple.pear"),
                    Allowance.parse("apple.fig:1/udp"),
                ),
                cpu=500,
                memory=256,
                command=("bash", "-c", "true"),
                env=(("A", "1"), ("B", "2")),
                volumes=("/srv:/data:ro", "cache:/cache", "/scratch"),
                health=Health(command="true", interval=90.0, timeout=2.0, retries=5),
                cap_add=("NET_ADMIN", "SYS_TIME"),
                cap_drop=("ALL",),
            ),
        ),
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"imgae": "x"}, 'container "web": unknown field "imgae" (did you mean "image"?)'),
        ({"zzz": 1}, 'unknown field "zzz"; known are name, image, ports'),
        ({"image": 7}, "image: 7 is not an image reference"),
        ({"image": "Upper Case"}, 'image: "Upper Case" is not an image reference'),
        ({"image": None}, "image is missing"),
        ({"name": "web_1"}, 'name: container name "web_1" is not a host label (RFC 1123)'),
        ({"name": "Web"}, "is not a host label (RFC 1123)"),
        ({"name": "w" * 64}, "has 64 characters; 63 is the most"),
        ({"ports": "8080"}, 'ports: "8080" is not a list'),
        ({"ports": [0]}, '"0" in port "0" is not a port number from 1 to 65535'),
        ({"ports": [70000]}, '"70000" in port "70000" is not a port number from 1 to 65535'),
        ({"ports": ["8080/icmp"]}, '"icmp" in "8080/icmp" is not a protocol; write tcp or udp'),
        ({"ports": ["80:"]}, "is not a port number"),
        ({"ports": [True]}, "neither a number nor text"),
        ({"ports": [8080, "8080:90"]}, "port 8080/tcp is listed twice"),
        ({"connect_to": "apple.orange"}, 'connect_to: "apple.orange" is not a list'),
        ({"connect_to": ["apple"]}, '"apple" is not <container>.<service>'),
        ({"connect_to": ["apple.orange/udp"]}, "has a protocol but no port"),
        ({"connect_to": [8080]}, "8080 is not text"),
        ({"cpu": "500"}, 'cpu: "500" is not a whole number'),
        ({"cpu": 9}, "cpu: 9 is out of range; write at least 10 thousandths of a core"),
        ({"memory": 5}, "memory: 5 is out of range; write at least 6 MiB"),
        ({"memory": True}, "memory: True is not a whole number"),
        ({"memory": 256.5}, "memory: 256.5 is not a whole number"),
        ({"command": ""}, "command: it is empty"),
        ({"command": "bash -c 'x"}, 'command: "bash -c \'x": no closing quotation'),
        ({"command": ["a", 1]}, "command: ['a', 1] is not a list of texts"),
        ({"env": ["A"]}, 'env: "A" has no "="'),
        ({"env": {"A=B": "1"}}, 'env: "A=B" is not a variable name'),
        ({"env": {"A": True}}, "env: the value of A is True; write text"),
        ({"env": ["A=1", "A=2"]}, "env: A is set twice"),
        ({"env": "A=1"}, 'env: "A=1" is not a list of texts'),
        ({"volumes": ["data"]}, '"data" is not an absolute path in the container'),
        ({"volumes": ["./data:/data"]}, '"./data" is neither an absolute path nor the name of a volume'),
        ({"volumes": ["/a:/data:or"]}, 'unknown option "or"'),
        ({"volumes": ["/a:/data", "/b:/data"]}, 'two volumes are mounted at "/data"'),
        ({"volumes": ["a:/b:ro:x"]}, "is not source:target"),
        ({"cap_add": ["NET_ROW"]}, 'cap_add: "NET_ROW" is not a capability (did you mean "NET_RAW"?)'),
        ({"cap_add": ["CHOWN"], "cap_drop": ["chown"]}, 'cap_drop: "CHOWN" is in cap_add too'),
        ({"health": {"interval": 1}}, "health: command is missing"),
        ({"health": {"command": "true", "retires": 1}}, 'unknown field "retires" (did you mean "retries"?)'),
        ({"health": {"command": "true", "interval": "soon"}}, '"soon" is not a duration'),
        ({"health": {"command": "true", "timeout": 0}}, "timeout: 0 is not possible"),
        ({"health": {"command": "true", "timeout": -1}}, "-1 is not a duration"),
        ({"health": {"command": "true", "retries": 0}}, "retries: 0 is out of range"),
        ({"health": {"command": []}}, "it is empty"),
    ],
)
def test_bad_container(fields, words):
    """A bad field of a container is refused with its place, the fault, and what to write instead."""
    text = refused(raw_service(**fields))
    assert 'service "flask"' in text
    assert words in text


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ([], "a service is a mapping of fields, not []"),
        ({"containers": []}, 'service "?": name is missing'),
        ({"name": 7, "containers": []}, "service 7: name: service name 7 is not text"),
        ({"name": "flask"}, "containers is a list with at least one container, not None"),
        ({"name": "flask", "containers": "web"}, 'not "web"'),
        ({"name": "flask", "containers": ["web"]}, 'a container is a mapping of fields, not "web"'),
        ({**raw_service(), "cuont": 1}, 'unknown field "cuont" (did you mean "count"?)'),
        ({**raw_service(), "open": "yes"}, 'open: "yes" is neither True nor False'),
        ({**raw_service(), "open": 1}, "open: 1 is neither True nor False"),
        ({**raw_service(), "count": 0}, "count: 0 is out of range; write at least 1"),
        ({**raw_service(), "count": -1}, "count: -1 is out of range; write at least 1"),
        ({**raw_service(), "count": 10**6}, "write at most 1000"),
        ({**raw_service(), "count": "2"}, 'count: "2" is not a whole number'),
        ({**raw_service(), "name": "-x"}, "is not a host label (RFC 1123)"),
        ({**raw_service(), "name": "a\nb"}, "is not a host label (RFC 1123)"),
        ({**raw_service(), "name": "0"}, 'service name "0" is a number: programs take names that end in one for IPv4'),
        ({**raw_service(), "name": "0xff"}, 'service name "0xff" is a number'),
        ({**raw_service(), "constraint": 5}, "constraint: 5 is not text"),
        (
            {"name": "flask", "containers": [{"name": "web", "image": "a"}, {"name": "web", "image": "b"}]},
            'two containers are named "web"',
        ),
    ],
)
def test_bad_service(raw, words):
    """A bad service is refused with its place, the fault, and what to write instead."""
    assert words in refused(raw)


@pytest.mark.parametrize(
    ("value", "command"),
    [
        ("curl -f localhost", "curl -f localhost"),
        (["redis-cli", "ping"], ("redis-cli", "ping")),
        (["CMD", "redis-cli", "ping"], ("redis-cli", "ping")),
        (["CMD-SHELL", "curl -f localhost"], "curl -f localhost"),
    ],
)
def test_health_shorthand(value, command):
    """A health check may be its command alone, also in Docker's own list forms."""
    service = parse_service(raw_service(health=value))
    assert service.containers[0].health == Health(command=command)


def test_null_is_absent():
    """A field that is null counts as left out, as JSON has no other word for it."""
    assert parse_service(raw_service(cpu=None, env=None, health=None)) == parse_service(raw_service())


def parsed(name, *, ports=(), connect_to=()):
    """A service with one container `web`."""
    return parse_service(
        {
            "name": name,
            "containers": [{"name": "web", "image": "x", "ports": list(ports), "connect_to": list(connect_to)}],
        }
    )


def test_no_warning():
    """Destinations that are declared together, are deployed already, or were started by others exist."""
    service = parsed("alpha", connect_to=["web.beta:80", "web.gamma", "x.labelled:9"])
    names = {Name.parse("x.labelled")}
    assert check_services([service, parsed("beta", ports=[80])], others=[parsed("gamma")], names=names) == ()


def test_warns_of_what_does_not_exist():
    """An unknown destination, or an unknown port of a known one, is allowed with a warning."""
    warnings = check_services([parsed("alpha", connect_to=["web.betta:80", "web.beta:81"]), parsed("beta", ports=[80])])
    assert len(warnings) == 2
    assert 'connect_to "web.betta:80" does not exist (did you mean "web.beta"?)' in warnings[0]
    assert "web.beta offers 80/tcp" in warnings[1]


def test_replaced_service_is_judged_as_it_will_be():
    """Of a service that is deployed anew, the new ports count and not the old ones."""
    new = [parsed("beta", ports=[81]), parsed("alpha", connect_to=["web.beta:80"])]
    assert "web.beta offers 81/tcp" in check_services(new, others=[parsed("beta", ports=[80])])[0]


def test_container_that_a_deploy_drops_is_gone():
    """Of a service that is deployed anew, a container that it no longer has does not exist."""
    before = parse_service({"name": "beta", "containers": [{"name": "old", "image": "x"}]})
    new = [parsed("beta", ports=[80]), parsed("alpha", connect_to=["old.beta"])]
    assert 'connect_to "old.beta" does not exist' in check_services(new, others=[before])[0]


@pytest.mark.parametrize("name", ["localhost", "local", "internal", "arpa", "onion", "invalid", "alt"])
def test_refuses_reserved_names(name):
    """At a deploy; what was deployed earlier is still read, and stays."""
    service = parsed(name)
    with pytest.raises(InputError, match=f'^service "{name}": name: .* is reserved: .*; give it another name$'):
        check_services([service])
    assert check_services([parsed("flask")], others=[service]) == ()


@pytest.mark.parametrize("name", ["com", "dev", "test", "example"])
def test_warns_of_top_level_domains(name):
    """A service named like a top-level domain is allowed with a warning."""
    assert "top-level domain" in check_services([parsed(name)])[0]


@pytest.mark.parametrize(("name", "address"), [("10.0", True), ("8.0xff", True), ("10.a1", False), ("0.1a", False)])
def test_no_name_is_read_as_an_address(name, address):
    """What getaddrinfo takes for an IPv4 address never asks a DNS server."""
    with pytest.raises(InputError, match="is a number") if address else nullcontext():
        Name.parse(name)
    with nullcontext() if address else pytest.raises(OSError, match="illegal IP"):
        socket.inet_aton(name)


def test_twins():
    """Two services of one name are refused."""
    with pytest.raises(InputError, match='service "alpha" is declared twice'):
        check_services([parsed("alpha"), parsed("alpha")])


labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
ports = st.builds(
    Port,
    mesh=st.integers(1, 65535),
    container=st.integers(1, 65535),
    protocol=st.sampled_from(Protocol),
)
words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(str.strip)
containers = st.builds(
    Container,
    name=labels,
    image=st.sampled_from(["redis", "a/b:c", "h:5/a"]),
    ports=st.lists(ports, max_size=4, unique_by=lambda p: (p.mesh, p.protocol)).map(tuple),
    connect_to=st.lists(st.sampled_from(["a.b", "a.b:1", "a.b:1/udp"]).map(Allowance.parse), unique=True).map(tuple),
    cpu=st.none() | st.integers(10, 10**6),
    memory=st.none() | st.integers(6, 10**6),
    command=st.none() | st.just("a 'b c'") | st.lists(words, min_size=1).map(tuple),
    env=st.dictionaries(labels, st.text(st.characters(exclude_characters="\0"))).map(lambda d: tuple(d.items())),
    volumes=st.sampled_from([(), ("/a:/b",), ("x1:/b:ro", "/c")]),
    health=st.none() | st.builds(Health, command=words, interval=st.floats(0.001, 999), retries=st.integers(1, 9)),
    cap_add=st.sampled_from([(), ("NET_RAW",), ("NET_ADMIN", "SYS_TIME")]),
    cap_drop=st.sampled_from([(), ("ALL",), ("CHOWN",)]),
)
services = st.builds(
    Service,
    name=labels.map(lambda label: f"s{label}"),
    count=st.integers(1, 1000),
    containers=st.lists(containers, min_size=1, max_size=3, unique_by=lambda c: c.name).map(tuple),
    constraint=st.none() | words.map(parse_constraint),
    open=st.booleans(),
)


@given(services)
def test_round_trip(service):
    """What is written for the wire or the disk parses to the same service again."""
    assert parse_service(service_to_raw(service)) == service


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_any_json(value):
    """Whatever JSON arrives, the answer is a service or an InputError."""
    for raw in (value, {"name": "a", "containers": value}, raw_service(ports=value, env=value, health=value)):
        try:
            parse_service(raw)
        except InputError:
            continue


HOSTILE = json()


def field_names():
    """Every place in a service where a value may stand."""
    health = st.fixed_dictionaries({}, optional=dict.fromkeys(HEALTH_FIELDS, HOSTILE))
    return st.tuples(
        st.fixed_dictionaries({}, optional=dict.fromkeys((*SERVICE_FIELDS, EVIL), HOSTILE)),
        st.fixed_dictionaries({}, optional={**dict.fromkeys(CONTAINER_FIELDS, HOSTILE), "health": health | HOSTILE}),
    )


@given(field_names())
@example(({}, {"ports": [HUGE]}))
@example(({}, {"ports": [10**5000]}))
@example(({}, {"connect_to": [f"a.b:{HUGE}"]}))
@example(({"count": 10**5000}, {}))
@example(({}, {"env": {"A": 10**5000}}))
@example(({}, {"health": {"command": "x", "interval": f"{LARGE}h"}}))
@example(({}, {"name": EVIL}))
@example(({EVIL: 1}, {}))
def test_whatever_stands_in_a_field(changes):
    """A service that Docker and the registry can take, or an InputError that can be shown."""
    of_service, of_container = changes
    (container,) = raw_service()["containers"]
    raw = {**raw_service(), "containers": [{**container, **of_container}], **of_service}
    try:
        service = parse_service(raw)
    except InputError as error:
        check_shown(error, 5000)
    else:
        assert parse_service(orjson.loads(orjson.dumps(service_to_raw(service)))) == service
        health = service.containers[0].health
        assert health is None or all(s < 10**6 for s in (health.interval, health.timeout, health.start_period))
