"""Single values of the configuration: what each accepts, what it says of everything else, and its words."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from foreign import EVIL, HUGE, check_shown, json
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.config import values
from appliance.config.options import options
from appliance.errors import InputError
from appliance.model.names import Allowance, Protocol
from appliance.model.visitors import ConnectTo

PORT = next(option for option in options() if option.key == "dns_port")
APPLE = Allowance.parse("apple.orange:8080")


@pytest.mark.parametrize(
    ("parse", "given", "found"),
    [
        (values.text, "", ""),
        (values.node, "h1.example_a", "h1.example_a"),
        (values.path, "/run/x", "/run/x"),
        (values.optional_path, "", ""),
        (values.integer(1, 9), "9", 9),
        (values.integer(1, 9), 1, 1),
        (values.seconds, "1.5", 1.5),
        (values.seconds, "1m30s", 90.0),
        (values.seconds, 10, 10.0),
        (values.choice("a", "b"), "b", "b"),
        (values.virtual_range, "240.0.0.0/4", IPv4Network("240.0.0.0/4")),
        (values.optional_network, "", None),
        (values.optional_network, "10.9.0.0/24", IPv4Network("10.9.0.0/24")),
        (values.port_range, " 20000 - 29999 ", (20000, 29999)),
        (values.upstreams, "9.9.9.9, 1.1.1.1:5300", (("9.9.9.9", 53), ("1.1.1.1", 5300))),
        (values.upstreams, ["9.9.9.9"], (("9.9.9.9", 53),)),
        (values.suffix, "mesh.internal.", "mesh.internal"),
        (values.boolean, "true", True),
        (values.boolean, False, False),
        (values.connect_to, "*", ConnectTo(everything=True)),
        (values.connect_to, "apple.orange:8080", ConnectTo(allowances=(APPLE,))),
        (values.addresses, "10.0.0.7, 10.0.1.0/31", frozenset(map(IPv4Address, ("10.0.0.7", "10.0.1.0", "10.0.1.1")))),
        (values.meta, "zone=a,disk=ssd", (("disk", "ssd"), ("zone", "a"))),
        (values.meta, {"zone": "a"}, (("zone", "a"),)),
        (values.consul_address, "http://127.0.0.1:8500/", "http://127.0.0.1:8500"),
        (values.consul_address, "unix:///run/consul.sock", "unix:///run/consul.sock"),
        (values.host_paths, "/srv, /data/x", frozenset({"/srv", "/data/x"})),
        (values.capabilities, ["cap_net_admin", "ALL"], frozenset({"NET_ADMIN", "ALL"})),
        (values.consul_ports, "", frozenset()),
        (values.consul_ports, "gossip, 8300/tcp", frozenset({"gossip", (Protocol.TCP, 8300)})),
        (values.consul_ports, ["8301"], frozenset({(Protocol.TCP, 8301), (Protocol.UDP, 8301)})),
        (values.key_folder, "team/meshbox", "team/meshbox"),
    ],
)
def test_accepted(parse, given, found) -> None:
    """Values come from TOML's types and from text alike."""
    assert parse(given) == found


@pytest.mark.parametrize(
    ("parse", "given", "words"),
    [
        (values.text, "a\nb", "is not text"),
        (values.node, "-h1", "is not a machine name"),
        (values.node, "h" * 64, "is not a machine name"),
        (values.path, "run/x", "is not an absolute path"),
        (values.integer(1, 9), 10, "10 is not a whole number from 1 to 9"),
        (values.integer(0, 9), True, "True is not a whole number"),
        (values.integer(0, 9), "9" * 19, "is not a whole number"),
        (values.seconds, "soon", "is not a duration"),
        (values.choice("local", "consul"), "locla", '(did you mean "local"?)'),
        (values.choice("local", "consul"), "x", "write local or consul"),
        (values.virtual_range, "224.0.0.0/3", "overlaps 224.0.0.0/4"),
        (values.network, "240.0.0.1/4", "is not an IPv4 network"),
        (values.port_range, "29999-20000", "the lower one first"),
        (values.port_range, "20000", "is not a range of ports"),
        (values.upstreams, "dns.example", "is not an IPv4 address"),
        (values.upstreams, "9.9.9.9:0", "is not a whole number from 1 to 65535"),
        (values.suffix, "Mesh", "is not a host label"),
        (values.boolean, "yes", "is neither true nor false"),
        (values.connect_to, "apple", "is not <container>.<service>"),
        (values.addresses, "10.0.0.0/8", f"more than {values.MOST_ADDRESSES} addresses"),
        (values.addresses, "fd00::1", "is not an IPv4 address or network"),
        (values.meta, "zone", 'has no "="'),
        (values.meta, {"a b": "c"}, "is not possible"),
        (values.consul_address, "127.0.0.1:8500", "is not an address of Consul"),
        (values.host_paths, "srv", 'is not an absolute path without ".."'),
        (values.host_paths, "/srv/../etc", 'is not an absolute path without ".."'),
        (values.capabilities, "NET_ADMN", '(did you mean "NET_ADMIN"?)'),
        (values.consul_ports, "gosip", "write for example 8301/udp"),
        (values.consul_ports, "8301/sctp", "is neither a port nor one of gossip, rpc, grpc, http, dns"),
        (values.consul_ports, ["9" * 5000], "is neither a port"),
        (values.key_folder, "/meshbox", "is not a folder"),
    ],
)
def test_refused(parse, given, words) -> None:
    """The error says what was given and what to write, and leaves the place to who reads the file."""
    with pytest.raises(InputError) as caught:
        parse(given)
    assert words in str(caught.value)


@given(st.sampled_from(options()), json())
@example(PORT, HUGE)
@example(PORT, 10**5000)
@example(PORT, EVIL)
def test_whatever_is_configured(option, value) -> None:
    """Each option takes a value or says in one printing line why not."""
    try:
        option.parse(value)
    except InputError as error:
        check_shown(error, 400)


@pytest.mark.parametrize(("host", "node"), [("h1", "h1"), ("", "localhost"), ("a b", "a-b"), ("-x-", "x")])
def test_name_from_any_host_name(host, node) -> None:
    """Whatever the host is called, the name can be used."""
    assert values.node_from(host) == node
    assert values.node(node) == node


def test_every_option_says_what_it_accepts() -> None:
    """The reference page has words for the values of each option."""
    said = {option.key: option.accepts for option in options()}
    assert all(said.values())
    assert not [key for key, words in said.items() if words.startswith(("Return", "Accept")) or words.endswith(".")]
    assert said["workers"] == "a whole number from 0 to 64"
    assert said["registry"] == "one of: local, consul"
    assert said["consul.token"] == "any text, also an empty one"
