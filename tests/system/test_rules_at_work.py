"""Rules while the appliance runs: nft refuses a change for a while, and somebody deletes what is there."""

from __future__ import annotations

import os
import re
import shutil
import threading
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from machine import IMAGE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from machine import Machine

pytestmark = pytest.mark.system

WRAPPER = """#!/bin/sh
# nft, but in the namespace that the file names each transaction ends with a line that it refuses
if [ "$*" = "-f -" ] && [ "$(readlink /proc/self/ns/net)" = "$(cat {where} 2>/dev/null)" ]; then
    (cat; echo; echo "add element inet meshbox nowhere {{ 1 }}") | {nft} "$@"
else
    exec {nft} "$@"
fi
"""
BINDING = """
# The same for libnftables, in the helper
import os, sys
from pathlib import Path
mine = sys.modules.pop("nftables")
sys.path.remove(str(Path(__file__).parent))
import nftables as real
sys.modules["nftables"] = mine
where = Path("{where}")
class Nftables(real.Nftables):
    def cmd(self, text):
        refused = where.exists() and os.readlink("/proc/thread-self/ns/net") == where.read_text()
        if refused:
            with Path(text.split('"')[1]).open("a") as transaction:
                transaction.write("\\nadd element inet meshbox nowhere {{ 1 }}\\n")
        return super().cmd(text)
"""
REFUSED = "push ruleset failed; will try again"


def answers(machine: Machine, name: str) -> bool:
    """Whether the client is answered by that name."""
    (result,) = machine.client("client", "tcp", name, "7000", "1")
    return "answer" in result


def populate(machine: Machine) -> None:
    """Start `server.far`, and a client that may reach it and `server.late`, which is not there yet."""
    machine.run_container("server", IMAGE, service="far", container="server", ports="7000")
    machine.run_container("client", IMAGE, service="near", container="client", connect_to="server.far,server.late")
    wait_until(lambda: answers(machine, "server.far"), "the server answers")


def events(machine: Machine) -> list[dict[str, Any]]:
    """Return what the appliance logged, line by line."""
    return [orjson.loads(line) for line in machine.log().splitlines() if line.startswith("{")]


@pytest.fixture
def refusing(idle: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An appliance whose nft refuses everything in the namespace that this file names, as `net:[…]`."""
    nft = shutil.which("nft", path=f"{os.environ['PATH']}:/usr/sbin")
    assert nft is not None
    where = tmp_path / "where"
    wrapper = tmp_path / "bin" / "nft"
    wrapper.parent.mkdir()
    wrapper.write_text(WRAPPER.format(where=where, nft=nft))
    wrapper.chmod(0o755)
    binding = tmp_path / "lib" / "nftables.py"
    binding.parent.mkdir()
    binding.write_text(BINDING.format(where=where))
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
        patch.setenv("PYTHONPATH", str(binding.parent))
        idle.start()
    populate(idle)
    return where


def test_refused_change(idle: Machine, refusing: Path) -> None:
    """The former rules and names stay, the log has nft's own words, it is counted, and works when nft does."""
    neighbour = idle.address_of("server")
    failed, logged = idle.metric("meshbox_rulesets_failed_total"), len(events(idle))
    refusing.write_text(idle.exec_in("client", "readlink", "/proc/self/ns/net").stdout.strip())
    idle.run_container("late", IMAGE, service="late", container="server", ports="7000")
    wait_until(lambda: idle.metric("meshbox_rulesets_failed_total") >= failed + 3, "it is tried again and again")
    assert answers(idle, "server.far")
    (result,) = idle.client("client", "tcp", neighbour, "7000", "1")
    assert result["error"] == "ECONNREFUSED"
    assert not answers(idle, "server.late")
    told = [event["cause"] for event in events(idle)[logged:] if event["event"] == REFUSED]
    assert all("No such file or directory in `add element inet meshbox nowhere { 1 }`" in cause for cause in told)
    assert 1 <= len(told) == len(set(told)) <= 4, (
        "once for each text: a change, and the whole, before and after it serves"
    )
    (fault,) = [row for row in orjson.loads(idle.meshbox("check", "--json").stdout) if row["subject"] == "fault"]
    assert "push ruleset" in fault["words"]
    assert "No such file or directory" in fault["words"]
    refusing.unlink()
    wait_until(lambda: answers(idle, "server.late"), "the change is made", seconds=30)
    assert any(event["event"] == "works again" for event in events(idle)[logged:])
    assert answers(idle, "server.far")


@pytest.fixture
def firewall(mesh: Machine) -> Iterator[Machine]:
    """The machine, whose own rules are put back afterwards: Docker's are flushed too."""
    saved = mesh.exec("iptables-save").stdout
    (mesh.root / "iptables").write_text(saved)
    populate(mesh)
    yield mesh
    mesh.exec("iptables-restore", mesh.root / "iptables")


def test_flushed_rules(firewall: Machine) -> None:
    """What somebody deletes on the host or in a container is back within 2 s, and connections by name go on."""

    def table(container: str = "") -> list[str]:
        command = ("nft", "--stateless", "list", "table", "inet", "meshbox")
        done = firewall.exec_in(container, *command, check=False) if container else firewall.exec(*command, check=False)
        return sorted(re.split(r"[\s,]+", done.stdout))  # the kernel lists elements in any order

    whole = table()
    assert "guard" in whole
    met: dict[str, Any] = {}
    load = threading.Thread(
        target=lambda: met.update(firewall.client("client", "loop", "server.far", "7000", "6", "5"))
    )
    load.start()
    for command in ("delete table inet meshbox", "flush table inet meshbox", "flush ruleset"):
        firewall.exec("nft", *command.split())
        wait_until(lambda: table() == whole, f"the host's table is back after `{command}`", seconds=2, pause=0.01)
    load.join()
    assert met["failures"] == []
    whole = table("client")
    firewall.exec_in("client", "nft", "flush", "ruleset")
    wait_until(lambda: table("client") == whole, "the container's table is back", seconds=2, pause=0.01)
    assert answers(firewall, "server.far")
