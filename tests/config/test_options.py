from __future__ import annotations

import os
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from appliance.config import options as config
from appliance.config.values import node_from
from appliance.errors import InputError
from appliance.model.facts import Settings
from appliance.model.privileges import EVERYTHING, Privileges


@pytest.fixture
def write(tmp_path):
    """Write a configuration file and return its path as text."""

    def write(text):
        path = tmp_path / "meshbox.toml"
        path.write_text(text)
        return str(path)

    return write


def refused(file=None, environment=None, flags=None):
    """What loading says, on one line."""
    with pytest.raises(InputError) as caught:
        config.load(file, environment=environment or {}, flags=flags)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_defaults_are_those_of_plans():
    """Without any configuration, plans get the same defaults that the model has."""
    default = config.Config(node="h1")
    assert default.settings() == Settings(node="h1")
    assert default.admin_socket == "/run/meshbox/admin.sock"


def test_default_file_may_be_absent(monkeypatch, tmp_path):
    """A host without a configuration file runs with the defaults."""
    monkeypatch.setattr(config, "DEFAULT_FILE", str(tmp_path / "none.toml"))
    assert config.load(environment={}) == config.Config()


def test_file(write):
    """Every kind of value can be written in the file, in its own type."""
    found = config.load(
        write("""
            node = "h1"
            meta = { zone = "a", disk = "ssd" }
            vip_range = "10.99.0.0/16"
            proxy_ports = "30000-30999"
            dns_port = 5353
            dns_upstreams = ["9.9.9.9", "1.1.1.1:5300"]
            docker_subnet = "172.30.0.0/16"
            drain = "1m"
            [balance]
            prefer = "local"
            [consul]
            address = "unix:///run/consul.sock"
        """),
        environment={},
    )
    assert found.meta == (("disk", "ssd"), ("zone", "a"))
    assert found.dns_upstreams == (("9.9.9.9", 53), ("1.1.1.1", 5300))
    assert found.docker_subnet == IPv4Network("172.30.0.0/16")
    assert found.drain == 60.0
    assert found.consul.address == "unix:///run/consul.sock"
    assert found.settings() == Settings(
        node="h1",
        vip_range=IPv4Network("10.99.0.0/16"),
        proxy_ports=(30000, 30999),
        dns_port=5353,
        prefer_local=True,
        meta=(("disk", "ssd"), ("zone", "a")),
    )


def test_later_ones_win(write):
    """Variables win over the file, flags over both."""
    path = write('node = "file"\nsuffix = "file.test"\nlog_level = "debug"')
    environment = {"MESHBOX_NODE": "variable", "MESHBOX_SUFFIX": "variable.test", "PATH": "/bin"}
    found = config.load(path, environment=environment, flags={"node": "flag"})
    assert (found.node, found.suffix, found.log_level) == ("flag", "variable.test", "debug")


def test_variables_and_flags_are_text():
    """What the file has in types, variables and flags have as text."""
    found = config.load(
        environment={
            "MESHBOX_CONFIG": "/dev/null",
            "MESHBOX_DNS_PORT": "5353",
            "MESHBOX_DNS_UPSTREAMS": "9.9.9.9, 1.1.1.1:5300",
            "MESHBOX_DRAIN": "0.5",
            "MESHBOX_META": "zone=a,disk=ssd",
            "MESHBOX_BALANCE_PREFER": "local",
        },
        flags={"proxy_ports": "30000-30001", "consul.prefix": "mesh"},
    )
    assert (found.dns_port, found.drain, found.proxy_ports) == (5353, 0.5, (30000, 30001))
    assert found.dns_upstreams == (("9.9.9.9", 53), ("1.1.1.1", 5300))
    assert found.meta == (("disk", "ssd"), ("zone", "a"))
    assert (found.balance.prefer, found.consul.prefix) == ("local", "mesh")


def test_consul_variable():
    """MESHBOX_CONSUL alone makes the machine a member of that Consul's mesh."""
    found = config.load("/dev/null", environment={"MESHBOX_CONSUL": "http://127.0.0.1:8500"})
    assert (found.registry, found.consul.address) == ("consul", "http://127.0.0.1:8500")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('nod = "x"', 'unknown key "nod" (did you mean "node"?)'),
        ('[balance]\npreferr = "x"', 'unknown key "balance.preferr" (did you mean "balance.prefer"?)'),
        ('[consul]\ntokn = "x"', 'unknown key "consul.tokn" (did you mean "consul.token"?)'),
        ("[consul.tls]\nca = 1", 'unknown key "consul.tls"'),
        ('balance = "local"', 'unknown key "balance" (did you mean "balance.prefer"?)'),
        ("xyzzy = 1", 'unknown key "xyzzy"; known are node, meta, vip_range'),
        ("node = 1", "node: 1 is not a machine name"),
        ('vip_range = "240.0.0.1/4"', 'vip_range: "240.0.0.1/4" is not an IPv4 network'),
        ('vip_range = "127.0.0.0/8"', "overlaps 127.0.0.0/8, which is not for this"),
        ('proxy_ports = "20000"', 'proxy_ports: "20000" is not a range of ports'),
        ('proxy_ports = "29999-20000"', "the lower one first"),
        ('proxy_ports = "80-90"', "write two ports from 1024 to 65535"),
        ("dns_port = 0", "dns_port: 0 is not a whole number from 1 to 65535"),
        (f"dns_port = {'1' * 5000}", "is not TOML"),
        ("dns_port = true", "dns_port: True is not a whole number"),
        ('dns_upstreams = ["dns.example"]', '"dns.example" is not an IPv4 address'),
        ('dns_upstreams = "9.9.9.9:x"', '"x" is not a whole number'),
        ("dns_upstreams = 9", "9 is not a list of texts"),
        ('suffix = "Mesh"', "not a host label"),
        ('run_dir = "run"', 'run_dir: "run" is not an absolute path'),
        ('drain = "soon"', 'drain: "soon" is not a duration'),
        ('registry = "etcd"', 'registry: "etcd" is not possible; write local or consul'),
        ('registry = "consule"', 'registry: "consule" is not possible (did you mean "consul"?)'),
        ('log_level = "warn"', 'did you mean "warning"?'),
        ('meta = "zone"', 'meta: "zone" has no "="'),
        ("meta = { zone = 1 }", 'meta: "zone" = 1 is not possible'),
        ('docker_subnet = "big"', "docker_subnet: "),
        (
            '[consul]\naddress = "127.0.0.1:8500"',
            "is not an address of Consul; write for example http://127.0.0.1:8500",
        ),
        ('[consul]\nprefix = ""', 'consul.prefix: "" is not a folder; write for example meshbox or team/meshbox'),
        ('[consul]\nprefix = "/mesh"', "is not a folder"),
        ('[consul]\nprefix = "mesh/"', "is not a folder"),
        ('[consul]\nprefix = "a/../b"', "is not a folder"),
        ('[consul]\ntoken = "a"\ntoken_file = "/b"', "are both set; keep one of them"),
        ("node = ", "is not TOML: "),
    ],
)
def test_bad_file(write, text, words):
    """A faulty file is refused in one line that names key and remedy, and the file unless two places contradict."""
    path = write(text)
    said = refused(path)
    assert words in said
    assert said.startswith(f"{path}: ") or "both set" in said


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"MESHBOX_NOD": "x"}, 'environment: unknown variable "MESHBOX_NOD" (did you mean "MESHBOX_NODE"?)'),
        ({"MESHBOX_DNS_PORT": "x"}, 'MESHBOX_DNS_PORT: "x" is not a whole number from 1 to 65535'),
        ({"MESHBOX_CONSUL": "x"}, 'MESHBOX_CONSUL: "x" is not an address of Consul'),
    ],
)
def test_bad_environment(environment, words):
    """A faulty variable is refused in one line that names it."""
    assert refused("/dev/null", environment).startswith(words)


def test_bad_flags():
    """A faulty flag is refused in one line that names it."""
    assert refused("/dev/null", flags={"dns_port": "70000"}).startswith('--dns-port: "70000" is not a whole number')
    assert refused("/dev/null", flags={"dns": "1"}).startswith('unknown option "dns"')


def test_file_that_was_asked_for_must_exist(tmp_path):
    """A file that the user names is there, and can be read."""
    assert refused(str(tmp_path / "none.toml")) == f"{tmp_path}/none.toml: there is no such file"
    assert "cannot be read" in refused(str(tmp_path))
    assert "there is no such file" in refused(environment={"MESHBOX_CONFIG": str(tmp_path / "none.toml")})


def test_file_that_only_root_may_read(write):
    """The package's file is one, since it may hold a token; others are told what to do."""
    path = write("")
    Path(path).chmod(0o640)
    os.seteuid(65534)
    try:
        assert refused(path) == f"{path}: only root may read it; run this with sudo"
    finally:
        os.seteuid(0)


def test_secrets_are_not_shown():
    """The token does not appear where a configuration is printed."""
    found = config.load("/dev/null", environment={"MESHBOX_CONSUL_TOKEN": "secret"})
    assert found.consul.token == "secret"
    assert "secret" not in repr(found)


def test_options_document_everything():
    """Each field has words, a variable of its own, and a default that it accepts."""
    options = config.options()
    assert len({o.variable for o in options}) == len({o.flag for o in options}) == len(options) > 25
    described = {"host name", "{}", "those of /etc/resolv.conf", "Docker's choice"}
    described |= {"/ with registry local, none with consul", "ALL with registry local, none with consul"}
    for option in options:
        assert option.words
        if option.default not in described:
            option.parse(option.default)


@pytest.mark.parametrize(
    ("host", "node"), [("h1", "h1"), ("my host_1!", "my-host_1"), ("", "localhost"), ("a" * 70, "a" * 63)]
)
def test_node_from_host_name(host, node):
    """Any host name makes a name of a machine."""
    assert node_from(host) == node


def test_visitors(tmp_path) -> None:
    """Visitors, and what they may reach, are written like connect_to; a gateway serves its host."""
    some = config.load(
        None,
        environment={
            "MESHBOX_HOST_ACCESS": "true",
            "MESHBOX_HOST_CONNECT_TO": "redis.flask:8080, apple.orange",
            "MESHBOX_GUESTS": "10.0.0.7,10.0.1.0/31",
            "MESHBOX_GUEST_CONNECT_TO": "*",
        },
    ).settings()
    assert [str(a) for a in some.visitors.host.allowances] == ["redis.flask:8080", "apple.orange"]
    assert sorted(map(str, some.visitors.guests)) == ["10.0.0.7", "10.0.1.0", "10.0.1.1"]
    assert some.visitors.guests_to.everything
    assert config.load(None, environment={}).settings().visitors.host is None
    alone = config.load(None, environment={"MESHBOX_GATEWAY": "auto", "MESHBOX_DOCKER_SOCKET": f"{tmp_path}/none"})
    assert alone.is_gateway
    assert alone.settings(gateway=True).visitors.host.everything
    (tmp_path / "none").touch()
    assert not alone.is_gateway


def test_a_gateway_takes_consul_unless_told(write, tmp_path) -> None:
    """Without Docker nothing comes into the local registry, so only a user that asks for that one gets it."""

    def chosen(text="", **settings):
        found = config.load(write(text), environment={f"MESHBOX_{key.upper()}": v for key, v in settings.items()})
        return found.registry, found.consul.address

    usual = "http://127.0.0.1:8500"
    here, none = str(tmp_path), str(tmp_path / "none.sock")
    assert chosen(gateway="yes") == chosen(gateway="auto", docker_socket=none) == ("consul", usual)
    assert chosen(gateway="auto", docker_socket=here) == chosen(docker_socket=none) == ("local", usual)
    assert chosen(gateway="yes", registry="local") == chosen('registry = "local"', gateway="yes") == ("local", usual)
    assert chosen(gateway="yes", consul_address="http://c:8500") == ("consul", "http://c:8500")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("HOST_ACCESS", "yes", "neither true nor false"),
        ("HOST_CONNECT_TO", "redis", "<container>.<service>"),
        ("GUESTS", "10.0.0.0/8", "more than 4096"),
        ("GUESTS", "ten", "not an IPv4 address or network"),
        ("GATEWAY", "on", "write no or auto or yes"),
    ],
)
def test_visitors_that_are_wrong(variable, value, words) -> None:
    """One line says what was expected."""
    with pytest.raises(InputError, match=words):
        config.load(None, environment={f"MESHBOX_{variable}": value})


@pytest.mark.parametrize(
    ("environment", "allows"),
    [
        ({}, EVERYTHING),
        ({"MESHBOX_REGISTRY": "consul"}, Privileges()),
        ({"MESHBOX_CONSUL": "http://127.0.0.1:8500"}, Privileges()),
        ({"MESHBOX_ALLOW_HOST_PATHS": ""}, replace(EVERYTHING, paths=frozenset())),
        (
            {"MESHBOX_REGISTRY": "consul", "MESHBOX_ALLOW_HOST_PATHS": "/srv", "MESHBOX_ALLOW_PRIVILEGED": "cap_bpf"},
            Privileges(paths=frozenset({"/srv"}), capabilities=frozenset({"BPF"})),
        ),
    ],
)
def test_what_specs_may_ask_for(environment, allows):
    """Alone, everything; where others may write to the registry, only what is named."""
    assert config.load("/dev/null", environment=environment).settings().allows == allows
