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
from debian import readme
from machine import ROOT, run

from bench import contenders, peers
from bench.contenders import TCP, Service, Target
from bench.figures import BenchError
from bench.lab import DIRECT_IP, PROXY, PROXY_IP, PYTHON, SERVER_IP, Lab, lab
from bench.works import WORKS

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def test_first_contact(tmp_path: Path) -> None:
    """README's command shows every contender with its figures, and leaves them as JSON and a plot."""
    results = (ROOT / "bench/RESULTS.md").read_text()
    line = readme("make bench").partition(" #")[0].strip()
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
    "rules": ("ruleset", "control", "churn*"),
    "machines": ("appliance", "mesh"),  # and not scale, which takes many minutes
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
