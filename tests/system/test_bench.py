"""`make bench` itself: it installs what it compares with, measures, and says what it found."""

from __future__ import annotations

import math
import re
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest
from documents import documented
from machine import ROOT, run

from appliance.render.ruleset import DOOR_PORT
from bench import contenders, peers, rules
from bench.contenders import TCP, Service, Target
from bench.errors import BenchError
from bench.lab import CLIENT, DIRECT_IP, PROXY, PROXY_IP, PYTHON, SERVER, SERVER_IP, Lab, lab
from bench.works import WORKS, http, idle

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def test_first_contact(tmp_path: Path) -> None:
    """The documents' command shows every contender with its figures, and leaves them as JSON and a plot."""
    results = (ROOT / "bench/RESULTS.md").read_text()
    line = documented("make bench ARGS='--quick")
    said = run("sh", "-c", line.replace("ARGS='", f"ARGS='--out {tmp_path} --rounds 1 "), cwd=ROOT, timeout=280).stdout
    shown = {name: float(p50) for name, p50 in re.findall(r"^  (\S+) +p50 µs ([\d.]+) \|", said, re.MULTILINE)}
    assert set(shown) == set(TCP)
    assert min(shown.values()) > 0
    (written,) = tmp_path.glob("*.json")
    assert str(written) in said
    works = orjson.loads(written.read_bytes())["works"]
    assert {name: set(samples) for name, samples in works.items()} == {"echo": set(TCP)}
    assert (tmp_path / "echo.png").exists()
    assert (ROOT / "bench/RESULTS.md").read_text() == results, "which is for a run of all works"
    assert "mbb-" not in run("ip", "netns", "list").stdout


BATCHES = {
    "requests": ("keepalive-*", "connections", "two-*"),
    "bulk": ("bulk-*",),
    "echo": ("echo", "udp-*"),
    "services": ("redis-*", "idle*", "conntrack", "dns-*"),
    "rules": ("ruleset", "control", "churn*", "workers"),
    "machines": ("appliance", "mesh"),  # and not scale, which takes many minutes
    "shares": ("shares",),
}


@pytest.mark.parametrize("batch", BATCHES)
def test_every_work_has_all_its_figures_of_every_contender(tmp_path: Path, batch: str) -> None:
    """Each carries its traffic, and is measured in all that the report shows."""
    command = (PYTHON, "-m", "bench", "--quick", "--rounds", "1", "--out", tmp_path, "--only", *BATCHES[batch])
    run("timeout", "270", *command, cwd=ROOT, timeout=290)  # SIGTERM, at which it leaves nothing running
    (written,) = tmp_path.glob("*.json")
    works = orjson.loads(written.read_bytes())["works"]
    wanted = [work for work in WORKS if any(Path(work.name).match(pattern) for pattern in BATCHES[batch])]
    assert list(works) == [work.name for work in wanted]
    for work in wanted:
        assert work.reference in works[work.name]
        for contender, (sample,) in works[work.name].items():
            assert all(math.isfinite(sample[figure.name]) for figure in work.figures), (work.name, contender)


def test_every_work_is_in_a_batch() -> None:
    """A new one too."""
    names = {w.name for w in WORKS for patterns in BATCHES.values() if any(Path(w.name).match(p) for p in patterns)}
    assert {work.name for work in WORKS} - names == {"scale"}


@contextmanager
def _broken(it: Lab, services: tuple[Service, ...], *, fault: str) -> Iterator[Target]:
    (service,) = services
    program = str(Path(__file__).with_name("brokenproxy.py"))
    words = ("sound" if fault == "bypass" else fault, service.protocol, "25000", SERVER_IP, str(service.port))
    ready = f"{service.protocol}:25000"
    with it.process("broken", PROXY, [sys.executable, program, *words], cpu=it.proxy_cpu, ready=ready) as process:
        if fault == "bypass":
            yield Target(host=DIRECT_IP, ports=(service.port,), process=process)
        else:
            yield Target(host=PROXY_IP, ports=(25000,), process=process)


@pytest.mark.parametrize("name", ["keepalive-1", "bulk-1-down", "udp-echo"])
def test_a_contender_that_does_not_carry_its_traffic_is_no_contender(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """One that alters a byte, that keeps the last to itself, and one that all goes past; one without fault is fine."""
    (work,) = (work for work in WORKS if work.name == name)
    peers.install()
    with lab(seconds=1.0, quick=True) as it:
        carried = "broken (did not carry|delivered|did not deliver)"
        for fault, told in (("flip", carried), ("short", carried), ("bypass", "came by the proxy")):
            monkeypatch.setitem(contenders.CONTENDERS, "broken", partial(_broken, fault=fault))
            with (
                pytest.raises(BenchError, match=told),
                partial(work.open, names=("broken",))(it) as measures,
            ):
                measures["broken"]()
        monkeypatch.setitem(contenders.CONTENDERS, "broken", partial(_broken, fault="sound"))
        with partial(work.open, names=("broken",))(it) as measures:
            assert measures["broken"]()


def test_what_a_machine_more_costs_is_measured() -> None:
    """With the host's rules in a namespace of its own: those of this machine are let be."""
    program = "from bench import grow; print(grow._mesh(3))"
    before = run("nft", "list", "tables").stdout
    row = run(PYTHON, "-c", program, cwd=ROOT).stdout
    assert run("nft", "list", "tables").stdout == before
    assert re.fullmatch(
        r"3 other machines: one comes or goes: [\d.]+ ms to read them, [\d.]+ ms to plan, longest turn [\d.]+ ms,"
        r" [\d.]+ ms to compare, [\d.]+ ms for 100 listeners, [\d.]+ ms for the host's rules, which take [\d.]+ ms at"
        r" first; facts, plans and listeners -?\d+ KiB\n",
        row,
    )


def inside(namespace: str, *command: str) -> str:
    """Run a command in a namespace of the lab."""
    return run("ip", "netns", "exec", namespace, *command).stdout


def tracked(namespace: str) -> int:
    """Return how many connections the kernel remembers there."""
    return int(inside(namespace, "cat", "/proc/sys/net/netfilter/nf_conntrack_count"))


def test_meshbox_is_measured_as_it_is_deployed() -> None:
    """The client is redirected from a virtual IP, reaches no port of the proxy itself, others have none of that."""
    peers.install()
    with lab(seconds=1.0, quick=True) as it, http.server(it), contenders.meshbox(it, (Service(port=8080),)) as target:
        port = rules.PROXY_PORTS[0] + 50
        with target.in_place():
            assert http._fetch(it, target.host, target.port, "/")["text"] == "hello"
            for namespace, counts in ((CLIENT, 1), (PROXY, 0), (SERVER, 0)):
                assert "chain refused" in inside(namespace, "nft", "list", "table", "inet", "meshbox")
                assert (namespace, tracked(namespace)) == (namespace, counts)
            for host, refused in ((PROXY_IP, port), (SERVER_IP, 8080)):
                with pytest.raises(BenchError, match="refused"):
                    http._fetch(it, host, refused, "/")
        assert not any(tracked(namespace) for namespace in (CLIENT, PROXY, SERVER))
        with pytest.raises(BenchError, match="refused"):
            http._fetch(it, target.host, target.port, "/")
        assert http._fetch(it, PROXY_IP, port, "/")["text"] == "hello"
        for namespace in (CLIENT, SERVER):
            assert inside(namespace, "nft", "list", "tables").split("\n") == ["table ip nat", ""]


@pytest.mark.parametrize(
    ("routes", "door", "told"),
    [([], 0, "meshbox, interpreted did not deliver"), ([("tcp", 8080, 20050)], 1, "carried without its process")],
    ids=["nowhere", "another's door"],
)
def test_a_redirect_that_leads_elsewhere_yields_no_figures(
    monkeypatch: pytest.MonkeyPatch, routes: list[tuple[str, int, int]], door: int, told: str
) -> None:
    """Neither where the rules lack the virtual IP, nor where another contender carries what is dialled there."""
    (work,) = (work for work in WORKS if work.name == "keepalive-1")
    tables = rules.deployed(routes, DOOR_PORT + door)
    monkeypatch.setattr(rules, "deployed", lambda *_: tables)
    peers.install()
    with (
        lab(seconds=1.0, quick=True) as it,
        pytest.raises(BenchError, match=told),
        partial(work.open, names=("meshbox, interpreted", "meshbox"))(it) as measures,
    ):
        measures["meshbox"]()


def test_idle_connections_are_spread_over_as_many_ports_as_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """One port of the server has room for those of one address only; each contender takes all."""
    (work,) = (work for work in WORKS if work.name == "idle-most")
    monkeypatch.setattr(idle, "EACH", 400)
    peers.install()
    with lab(seconds=1.0, quick=True) as it, work.open(it) as measures:
        assert len(inside(SERVER, "ss", "-Hltn").splitlines()) == 3
        assert [measure()["connections"] for measure in measures.values()] == [1000] * len(idle.NAMES)
