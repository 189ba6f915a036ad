from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import contenders, rules
from bench.contenders import BULK, CONTENDERS, PORT_DIALLED, SOURCE, TCP, TWO, UDP, Service, Target, proxies
from bench.errors import BenchError
from bench.lab import DIRECT_IP, PROXY_IP, SERVER_IP, Build, Lab

SERVICES = (Service(port=8080), Service(port=53, protocol="udp"))


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """A lab without namespaces."""
    return Lab(tmp_path, seconds=1.0, quick=True)


def test_every_name_in_a_list_is_a_contender() -> None:
    """Or the work that has it would end with an error, after an hour."""
    assert {*TCP, *UDP, *BULK, *SOURCE, *TWO, *PORT_DIALLED} <= CONTENDERS.keys()


def test_no_proxy_is_the_server_itself(lab: Lab) -> None:
    """Its traffic does not come through the proxy's namespace, and that is no fault."""
    with contenders.direct(lab, SERVICES) as target:
        assert (target.host, target.ports) == (DIRECT_IP, (8080, 53))
        target.prove("direct", contenders.Use(), 1000)


def test_the_kernel_rewrites_each_port(lab: Lab) -> None:
    """The rules are there in its turns only, and go as they came."""
    with contenders.dnat(lab, SERVICES) as target:
        (table,) = target.tables
    assert f"ip daddr {PROXY_IP} tcp dport {target.ports[0]} dnat to {SERVER_IP}:8080\n" in table.text
    assert f"ip daddr {PROXY_IP} udp dport {target.ports[1]} dnat to {SERVER_IP}:53\n" in table.text
    assert table.text.startswith(table.remove)


def test_contenders_share_no_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them listen at once in one namespace, and each data plane with doors at a port of its own."""
    lab = Lab(tmp_path, seconds=1.0, quick=True, builds=(Build(label="old"), Build(label="again")))
    seen: list[tuple[str, str]] = []

    @contextmanager
    def process(name: str, _namespace: str, _command: list[str], *, cpu: object, ready: str) -> Iterator[None]:
        assert cpu in (lab.proxy_cpu, lab.proxy_cpus)
        seen.append((name, ready))
        yield

    monkeypatch.setattr(lab, "process", process)
    names = tuple(name for name in CONTENDERS if name != "docker-proxy")
    with proxies(lab, names, *SERVICES) as targets:
        ready = [port for _, ports in seen for port in ports.split()]
        assert len({name for name, _ in seen}) == len(seen)
        assert len(set(ready)) == len(ready)
        assert {"meshbox, old", "meshbox, again"} <= targets.keys()
        doors = [
            line
            for target in targets.values()
            for table in target.tables
            if table.namespace == rules.CLIENT
            for line in table.text.splitlines()
            if line.startswith("define door_port")
        ]
        assert len(doors) == len(set(doors)) == 5


def test_bytes_that_come_back_otherwise_name_their_contender(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is measured."""

    def client(_command: list[str]) -> str:
        raise BenchError("3 of 5 bytes came back")

    @contextmanager
    def process(*_: object, **__: object) -> Iterator[None]:
        yield

    monkeypatch.setattr(lab, "client", client)
    monkeypatch.setattr(lab, "process", process)
    monkeypatch.setattr(rules, "run", lambda *_, **__: "")
    with pytest.raises(BenchError, match="broken did not carry 5 bytes there and back: 3 of 5 bytes came back"):
        contenders.mirror(lab, {"broken": Target(host=PROXY_IP, ports=(1,))}, 8080, "tcp", 5)


def test_connections_are_as_many_as_files_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files each, and some beside; more than 50,000 say nothing new."""
    monkeypatch.setattr(contenders, "FILES", 20_000)
    assert contenders._most() == 9_000
    monkeypatch.setattr(contenders, "FILES", 1 << 20)
    assert contenders._most() == 50_000
