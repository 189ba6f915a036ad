"""The configuration: `/etc/meshbox/meshbox.toml`, then `MESHBOX_…` variables, then flags; the later one wins.

`Config` is the one place where each field, its default and its meaning stand. The page docs/reference/configuration.md,
the default file and the flags of `meshbox run` are made from `options()`.
"""

from __future__ import annotations

import os
import socket
import tomllib
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.config import values
from appliance.errors import InputError, did_you_mean
from appliance.model.facts import Settings
from appliance.model.privileges import EVERYTHING, Privileges
from appliance.model.visitors import Visitors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from ipaddress import IPv4Address, IPv4Network

    from appliance.model.names import Protocol
    from appliance.model.visitors import ConnectTo

DEFAULT_FILE = "/etc/meshbox/meshbox.toml"
PREFIX = "MESHBOX_"
FILE_VARIABLE = "MESHBOX_CONFIG"
CONSUL_VARIABLE = "MESHBOX_CONSUL"
"""Short for `registry = "consul"` and `consul.address`."""


def _option(default: Any, parse: Callable[[Any], Any], words: str, *, shown: str | None = None) -> Any:
    """Make a field with what documents it. `default` is written as a user would; `shown` stands in for it in tables."""
    metadata = {"parse": parse, "words": words, "shown": str(default) if shown is None else shown}
    return field(default=parse(default), metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """Table `[balance]`."""

    prefer: str = _option(
        "any", values.choice("any", "local"), "any: every replica alike; local: those of this machine while one serves"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Consul:
    """Table `[consul]`: used with `registry = "consul"`."""

    address: str = _option("http://127.0.0.1:8500", values.consul_address, "its HTTP API: http://, https:// or unix://")
    datacenter: str = _option("", values.text, "datacenter; empty: that of the agent")
    token: str = field(default="", repr=False, metadata={"parse": values.text, "words": "ACL token", "shown": ""})
    token_file: str = _option("", values.optional_path, "file with the ACL token, in place of token")
    ca: str = _option("", values.optional_path, "file with the authority that signed Consul's certificate")
    cert: str = _option("", values.optional_path, "file with our client certificate")
    key: str = _option("", values.optional_path, "file with the key of our client certificate")
    prefix: str = _option("meshbox", values.key_folder, "folder in Consul's key/value store")
    consistency: str = _option(
        "default", values.choice("default", "consistent", "stale"), "consistency mode of what is read from Consul"
    )
    refuse: frozenset[str | tuple[Protocol, int]] = _option(
        "gossip, rpc, grpc",
        values.consul_ports,
        "ports of Consul that containers may not dial, here and on other machines; a word means the port that the agent"
        " names",
    )
    agents: frozenset[IPv4Address] = _option(
        "", values.addresses, "containers of this host that run a Consul agent and may dial these ports"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All that can be set. Valid by construction when it comes from `load()`."""

    node: str = _option(values.node_from(socket.gethostname()), values.node, "name of this machine", shown="host name")
    meta: tuple[tuple[str, str], ...] = _option(
        "", values.meta, 'what a service\'s constraint may ask of this machine, for example { zone = "a" }', shown="{}"
    )
    vip_range: IPv4Network = _option("240.0.0.0/4", values.virtual_range, "where virtual IPs come from")
    proxy_ports: tuple[int, int] = _option("20000-29999", values.port_range, "ports of this host for the proxy")
    dns_port: int = _option(
        53, values.integer(1, 65535), "port of the DNS server, at this host's address on each Docker network"
    )
    dns_upstreams: tuple[tuple[str, int], ...] = _option(
        "",
        values.upstreams,
        "resolvers for other names, where the appliance itself is asked",
        shown="those of /etc/resolv.conf",
    )
    suffix: str = _option(
        "mesh.internal", values.suffix, "domain in which names answer too, as redis.flask.mesh.internal"
    )
    docker_socket: str = _option("/var/run/docker.sock", values.path, "Docker's socket")
    netns_dir: str = _option("/var/run/docker/netns", values.path, "where Docker keeps the namespaces of containers")
    image_labels: bool = _option(
        "false", values.boolean, "true: meshbox.* labels count also where a container has them from its image"
    )
    docker_network: str = _option("meshbox", values.node, "network for the containers that meshbox creates")
    docker_subnet: IPv4Network | None = _option(
        "", values.optional_network, "subnet of that network", shown="Docker's choice"
    )
    state_dir: str = _option("/var/lib/meshbox", values.path, "what survives a restart")
    run_dir: str = _option("/run/meshbox", values.path, "admin socket and lock")
    drain: float = _option(10, values.seconds, "seconds that open connections get before a container is stopped")
    workers: int = _option(
        0, values.integer(0, 64), "processes that carry the traffic; 0: the one that also plans and watches"
    )
    doors: bool = _option(
        "true",
        values.boolean,
        "true: connections are accepted and made inside containers' namespaces, which is faster; false: on the host",
    )
    registry: str = _option(
        "local",
        values.choice("local", "consul"),
        "local: this machine alone, kept in state_dir; consul: many machines, and the default of a gateway",
    )
    allow_host_paths: frozenset[str] | None = _option(
        None,
        values.host_paths,
        "host paths that specs may mount here, with all below them; / is all",
        shown="/ with registry local, none with consul",
    )
    allow_privileged: frozenset[str] | None = _option(
        None,
        values.capabilities,
        "capabilities beyond Docker's default that specs may add here; ALL is all",
        shown="ALL with registry local, none with consul",
    )
    host_access: bool = _option(
        "false",
        values.boolean,
        "true: processes of this host use names of the mesh too; undone when the appliance stops",
    )
    host_connect_to: ConnectTo = _option(  # noqa: RUF009 — frozen, as the others
        "*", values.connect_to, "what processes of this host may reach: a list like connect_to, or * for everything"
    )
    guests: frozenset[IPv4Address] = _option(
        "", values.addresses, "other computers, by address or network, that may use the mesh through this one"
    )
    guest_connect_to: ConnectTo = _option(  # noqa: RUF009 — frozen, as the others
        "", values.connect_to, "what guests may reach, as host_connect_to"
    )
    dns_listen: frozenset[IPv4Address] = _option(
        "127.66.0.53", values.addresses, "where DNS answers this host and guests, beside the Docker networks"
    )
    resolv_conf: str = _option(
        "/etc/resolv.conf", values.optional_path, "file to which host_access adds that server; empty: none"
    )
    gateway: str = _option(
        "no",
        values.choice("no", "auto", "yes"),
        "yes: serve the host and guests, without Docker; auto: where docker_socket does not exist",
    )
    log_level: str = _option("info", values.choice("debug", "info", "warning", "error"), "least level that is logged")
    log_format: str = _option("auto", values.choice("auto", "text", "json"), "auto: text on a terminal, JSON elsewhere")
    balance: Balance = field(default_factory=Balance)
    consul: Consul = field(default_factory=Consul)

    @property
    def admin_socket(self) -> str:
        """Where the appliance listens for the command line."""
        return f"{self.run_dir}/admin.sock"

    @property
    def is_gateway(self) -> bool:
        """Whether it serves without Docker, judged by what is there now."""
        return self.gateway == "yes" or (self.gateway == "auto" and not Path(self.docker_socket).exists())

    @property
    def allows(self) -> Privileges:
        """What specs may ask of this machine: with a registry that others write to, only what is named."""
        default = Privileges() if self.registry == "consul" else EVERYTHING
        return Privileges(
            paths=default.paths if self.allow_host_paths is None else self.allow_host_paths,
            capabilities=default.capabilities if self.allow_privileged is None else self.allow_privileged,
        )

    def visitors(self, *, gateway: bool) -> Visitors:
        """Return who may use the mesh from outside it. A gateway always serves its own host."""
        if not (self.host_access or gateway or self.guests):
            return Visitors()
        return Visitors(
            host=self.host_connect_to if self.host_access or gateway else None,
            guests=self.guests,
            guests_to=self.guest_connect_to,
            dns_listen=self.dns_listen,
        )

    def settings(self, *, gateway: bool = False) -> Settings:
        """Return the part that plans depend on."""
        return Settings(
            node=self.node,
            vip_range=self.vip_range,
            proxy_ports=self.proxy_ports,
            dns_port=self.dns_port,
            suffix=self.suffix,
            docker_network=self.docker_network,
            prefer_local=self.balance.prefer == "local",
            doors=self.doors,
            meta=self.meta,
            allows=self.allows,
            gateway=gateway,
            visitors=self.visitors(gateway=gateway),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One field, as tables and flags show it. `key` is dotted: `consul.address`."""

    key: str
    default: str
    words: str
    parse: Callable[[Any], Any]

    @property
    def accepts(self) -> str:
        """Which values it takes: what the docstring of its parser says after "Accept"."""
        return (self.parse.__doc__ or "").removeprefix("Accept ").removesuffix(".")

    @property
    def table(self) -> str:
        """The table of the file in which it stands; empty where it stands before all tables."""
        return self.key.rpartition(".")[0]

    @property
    def variable(self) -> str:
        """The variable that sets it."""
        return PREFIX + self.key.replace(".", "_").upper()

    @property
    def flag(self) -> str:
        """The flag of `meshbox run` that sets it."""
        return "--" + self.key.replace(".", "-").replace("_", "-")


def options() -> tuple[Option, ...]:
    """Return every field, in the order of the default file."""
    return tuple(_options(Config, ""))


def _options(table: Any, before: str) -> Iterator[Option]:
    for item in fields(table):
        if "parse" in item.metadata:
            yield Option(
                key=before + item.name,
                default=item.metadata["shown"],
                words=item.metadata["words"],
                parse=item.metadata["parse"],
            )
        elif is_dataclass(item.default_factory):
            yield from _options(item.default_factory, f"{item.name}.")


def load(
    file: str | None = None, *, environment: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None
) -> Config:
    """Read file, variables and flags (by dotted key). The default file may be absent. Raises InputError.

    A gateway for which nobody chose a registry takes Consul: without Docker nothing gets into the local one.
    """
    environment = os.environ if environment is None else environment
    known = {option.key: option for option in options()}
    chosen = file or environment.get(FILE_VARIABLE)
    found = dict(_from_file(Path(chosen or DEFAULT_FILE), known, needed=chosen is not None))
    found.update(_from_environment(environment, known))
    found.update(_from_flags(flags or {}, known))
    nested: dict[str, dict[str, Any]] = {"": {}, "balance": {}, "consul": {}}
    for key, value in found.items():
        table, _, name = key.rpartition(".")
        nested[table][name] = value
    if nested["consul"].get("token") and nested["consul"].get("token_file"):
        raise InputError("consul.token and consul.token_file are both set; keep one of them")
    made = Config(**nested[""], balance=Balance(**nested["balance"]), consul=Consul(**nested["consul"]))
    return replace(made, registry="consul") if made.is_gateway and "registry" not in found else made


def _from_file(path: Path, known: Mapping[str, Option], *, needed: bool) -> Iterator[tuple[str, Any]]:
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if needed:
            raise InputError(f"{path}: there is no such file") from None
        return
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, PermissionError) and os.geteuid() != 0:  # the package's file may hold a token
            raise InputError(f"{path}: only root may read it; run this with sudo") from None
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except (ValueError, RecursionError) as error:  # a number of 4,301 digits is a ValueError of Python's own
        raise InputError(f"{path}: is not TOML: {error}") from None
    for key, value in _flat(raw, known, ""):
        if key not in known:
            raise InputError(f'{path}: unknown key "{key}"{_near(key, known)}')
        yield key, _parsed(known[key], value, f"{path}: {key}")


def _flat(raw: Mapping[str, Any], known: Mapping[str, Option], before: str) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys; a table whose own name is a key (`meta`) is a value."""
    for name, value in raw.items():
        key = before + name
        if isinstance(value, dict) and key not in known and any(k.startswith(f"{key}.") for k in known):
            yield from _flat(value, known, f"{key}.")
        else:
            yield key, value


def _from_environment(environment: Mapping[str, str], known: Mapping[str, Option]) -> Iterator[tuple[str, Any]]:
    variables = {option.variable: option for option in known.values()}
    for variable in sorted(environment):
        value = environment[variable]
        if not variable.startswith(PREFIX) or variable == FILE_VARIABLE:
            continue
        if variable == CONSUL_VARIABLE:
            yield "registry", "consul"
            yield "consul.address", _parsed(known["consul.address"], value, variable)
        elif variable in variables:
            option = variables[variable]
            yield option.key, _parsed(option, value, variable)
        else:
            near = did_you_mean(variable, (*variables, CONSUL_VARIABLE, FILE_VARIABLE))
            raise InputError(f'environment: unknown variable "{variable}"{near or "; unset it"}')


def _from_flags(flags: Mapping[str, Any], known: Mapping[str, Option]) -> Iterator[tuple[str, Any]]:
    for key, value in flags.items():
        if key not in known:
            raise InputError(f'unknown option "{key}"{_near(key, known)}')
        yield key, _parsed(known[key], value, known[key].flag)


def _near(key: str, known: Mapping[str, Option]) -> str:
    return did_you_mean(key, known) or f"; known are {', '.join(known)}"


def _parsed(option: Option, value: Any, where: str) -> Any:
    try:
        return option.parse(value)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
