"""A host that is not fit: `meshbox run` and `meshbox check` say in one line what is wrong and how to mend it."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from machine import MESHBOX, Program, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from machine import Machine

pytestmark = pytest.mark.system


def refuses(
    machine: Machine, *words: str, settings: Mapping[str, str] | None = None, before: Sequence[str] = ()
) -> None:
    """Check that `run` ends with one line and 1 or 2, that `check` sees it too, and that nothing is left behind."""
    env = {**os.environ, **machine.settings, **(settings or {}), "COLUMNS": "400"}
    command = [*before, str(MESHBOX)]
    tables, ports = machine.exec("nft", "list", "ruleset").stdout, machine.proxy_ports()
    done = machine.exec("env", "-i", *(f"{k}={v}" for k, v in env.items()), *command, "run", check=False)
    assert done.returncode in {1, 2}, done
    lines = [line for line in done.stderr.strip().splitlines() if line.startswith("meshbox: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0], lines[0]  # what is wrong, and what to do
    check = machine.exec("env", "-i", *(f"{k}={v}" for k, v in env.items()), *command, "check", check=False)
    assert check.returncode in {1, 2}, check
    for word in words:
        assert word in check.stdout + check.stderr
    assert machine.exec("nft", "list", "ruleset").stdout == tables
    assert machine.proxy_ports() == ports


@contextmanager
def occupied(machine: Machine, address: str, port: int, kind: str) -> Iterator[None]:
    """Hold a port."""
    program = (
        f"import socket; s = socket.socket(type=socket.SOCK_{kind}); s.bind(({address!r}, {port}))\n"
        f"if {kind == 'STREAM'}: s.listen()\n"
        "print('held', flush=True); __import__('threading').Event().wait()"
    )
    log = machine.root / "holder.log"
    log.unlink(missing_ok=True)
    holder = Program(machine.netns, ("python3", "-c", program), log)
    try:
        wait_until(lambda: "held" in holder.tail(), "the port is held")
        yield
    finally:
        holder.stop()


def test_fit_host(idle: Machine) -> None:
    """`check` ends with 0 here, with and without a running appliance."""
    assert idle.meshbox("check").returncode == 0
    idle.start()
    assert idle.meshbox("check").returncode == 0


def test_no_docker(idle: Machine) -> None:
    """Without Docker's socket."""
    remedy = ('start it ("systemctl start docker")', "name its socket in the configuration")
    refuses(idle, "/nowhere/docker.sock", *remedy, settings={"MESHBOX_DOCKER_SOCKET": "/nowhere/docker.sock"})


def test_not_root(idle: Machine) -> None:
    """As another user."""
    read = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")  # the project may lie in root's home
    drop = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *read)
    refuses(idle, "sudo", before=drop)


@pytest.mark.parametrize(
    ("absent", "answer", "words", "remedy"),
    [
        ("nft", None, "nft was not found", "apt-get install nftables"),
        ("nft", "nftables v0.8.3 (Old Doc Yak)", "nft is version 0.8.3", "install nftables 0.9.6 or later"),
        ("ip", None, "ip was not found", "apt-get install iproute2"),
        ("nsenter", None, "nsenter was not found", "apt-get install util-linux"),
    ],
    ids=["no nft", "old nft", "no ip", "no nsenter"],
)
def test_programs_that_are_missing(
    idle: Machine, tmp_path: Path, absent: str, answer: str | None, words: str, remedy: str
) -> None:
    """Without a program that is needed, and with one that is too old, its package is named."""
    for tool in {"nft", "nsenter", "ip", "python3", "setpriv", "env", "iptables", "conntrack"} - {absent}:
        found = next((Path(d) / tool for d in ("/usr/bin", "/usr/sbin") if (Path(d) / tool).exists()), None)
        if found is not None:
            (tmp_path / tool).symlink_to(found)
    if answer is not None:
        (tmp_path / absent).write_text(f'#!/bin/sh\necho "{answer}"\n')
        (tmp_path / absent).chmod(0o755)
    refuses(idle, words, remedy, settings={"PATH": str(tmp_path)}, before=("/usr/bin/env", f"PATH={tmp_path}"))


@pytest.mark.parametrize(("value", "word"), [("172.16.0.0/12", "172.16.0.0/12"), ("240.0.0.0/29", "240.0.0.0/29")])
def test_virtual_range(idle: Machine, value: str, word: str) -> None:
    """A range that overlaps a Docker network, and one that is too small."""
    refuses(idle, word, "choose", "such as 240.0.0.0/4", settings={"MESHBOX_VIP_RANGE": value})


def test_proxy_ports_in_use(idle: Machine) -> None:
    """Somebody holds the whole range."""
    with occupied(idle, "0.0.0.0", 23000, "STREAM"):
        refuses(idle, "23000", "set proxy_ports to a free range", settings={"MESHBOX_PROXY_PORTS": "23000-23000"})


@pytest.mark.parametrize("kind", ["DGRAM", "STREAM"])
def test_dns_port_taken(idle: Machine, kind: str) -> None:
    """Somebody answers DNS at the gateway's address already."""
    with occupied(idle, "0.0.0.0", 53, kind):
        refuses(idle, ":53/", "stop the DNS server there", "ss -lnp sport = 53", "set dns_port to a free port")


def test_host_names_that_cannot_be_served(idle: Machine, tmp_path: Path) -> None:
    """Somebody has the address for the host's DNS; or its port is one that resolv.conf cannot name."""
    settings = {"MESHBOX_HOST_ACCESS": "true", "MESHBOX_RESOLV_CONF": str(tmp_path / "resolv.conf")}
    with occupied(idle, "127.66.0.53", 53, "DGRAM"):
        refuses(idle, "127.66.0.53:53", "dns_listen", settings=settings)
    refuses(idle, "dns_port is 5353", "set dns_port to 53", settings={**settings, "MESHBOX_DNS_PORT": "5353"})
    assert not (tmp_path / "resolv.conf").exists()


def test_files_that_cannot_be_used(idle: Machine, tmp_path: Path) -> None:
    """A state of a newer version, folders that are none, and files of Consul that are missing."""
    (tmp_path / "state.json").write_text('{"schema": 99}')
    refuses(idle, "state.json", "newer meshbox", "install that", settings={"MESHBOX_STATE_DIR": str(tmp_path)})
    folder = f"{tmp_path}/state.json/run"
    refuses(idle, f"cannot write {folder}", "set run_dir", settings={"MESHBOX_RUN_DIR": folder})
    for key in ("TOKEN_FILE", "CA", "CERT"):
        missing = {"MESHBOX_CONSUL": "https://127.0.0.1:1", f"MESHBOX_CONSUL_{key}": "/nowhere/file"}
        refuses(idle, f"consul.{key.lower()} /nowhere/file", "No such file", settings=missing)


def test_hung_appliance(idle: Machine) -> None:
    """One that holds the lock and does not answer is named with its pid."""
    idle.start()
    assert idle.appliance is not None
    pid = idle.appliance.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        refuses(idle, f"another meshbox (pid {pid}) runs on this host")
    finally:
        os.kill(pid, signal.SIGCONT)


def test_unknown_setting(idle: Machine, tmp_path: Path) -> None:
    """An unknown key names the nearest known one, in the environment and in the file."""
    refuses(idle, "MESHBOX_PROXY_PROTS", "MESHBOX_PROXY_PORTS", settings={"MESHBOX_PROXY_PROTS": "1-2"})
    file = tmp_path / "meshbox.toml"
    file.write_text("dns_prot = 53\n")
    refuses(idle, "dns_prot", "dns_port", settings={"MESHBOX_CONFIG": str(file)})


def test_command_line_without_an_appliance(idle: Machine) -> None:
    """The nouns say that nothing runs and how to start it."""
    done = idle.meshbox("services", check=False)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "meshbox run" in done.stderr
