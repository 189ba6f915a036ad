"""A host that is not fit: `meshbox run` and `meshbox check` say in one line what is wrong and how to mend it."""

from __future__ import annotations

import os
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
    env = {**os.environ, **machine.settings, **(settings or {}), "COLUMNS": "300"}
    command = [*before, str(MESHBOX)]
    tables, ports = machine.exec("nft", "list", "ruleset").stdout, machine.proxy_ports()
    done = machine.exec("env", "-i", *(f"{k}={v}" for k, v in env.items()), *command, "run", check=False)
    assert done.returncode in {1, 2}, done
    lines = [line for line in done.stderr.strip().splitlines() if line.startswith("meshbox: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0], lines[0]
    check = machine.exec("env", "-i", *(f"{k}={v}" for k, v in env.items()), *command, "check", check=False)
    assert check.returncode in {1, 2}, check
    assert words[0] in check.stdout + check.stderr
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
    refuses(idle, "/nowhere/docker.sock", settings={"MESHBOX_DOCKER_SOCKET": "/nowhere/docker.sock"})


def test_not_root(idle: Machine) -> None:
    """As another user."""
    read = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")  # the project may lie in root's home
    drop = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *read)
    refuses(idle, "root", before=drop)


@pytest.mark.parametrize(
    ("answer", "word"), [(None, "nft"), ("nftables v0.8.3 (Old Doc Yak)", "0.8.3")], ids=["missing", "too old"]
)
def test_nft_that_does_not_serve(idle: Machine, tmp_path: Path, answer: str | None, word: str) -> None:
    """Without nft, and with one that is too old."""
    for tool in ("nsenter", "ip", "python3", "setpriv", "env", "iptables", "conntrack"):
        found = next((Path(d) / tool for d in ("/usr/bin", "/usr/sbin") if (Path(d) / tool).exists()), None)
        if found is not None:
            (tmp_path / tool).symlink_to(found)
    if answer is not None:
        (tmp_path / "nft").write_text(f'#!/bin/sh\necho "{answer}"\n')
        (tmp_path / "nft").chmod(0o755)
    refuses(idle, word, settings={"PATH": str(tmp_path)}, before=("/usr/bin/env", f"PATH={tmp_path}"))


@pytest.mark.parametrize(("value", "word"), [("172.16.0.0/12", "172.16.0.0/12"), ("240.0.0.0/29", "240.0.0.0/29")])
def test_virtual_range(idle: Machine, value: str, word: str) -> None:
    """A range that overlaps a Docker network, and one that is too small."""
    refuses(idle, word, settings={"MESHBOX_VIP_RANGE": value})


def test_proxy_ports_in_use(idle: Machine) -> None:
    """Somebody holds the whole range."""
    with occupied(idle, "0.0.0.0", 23000, "STREAM"):
        refuses(idle, "23000", settings={"MESHBOX_PROXY_PORTS": "23000-23000"})


@pytest.mark.parametrize("kind", ["DGRAM", "STREAM"])
def test_dns_port_taken(idle: Machine, kind: str) -> None:
    """Somebody answers DNS at the gateway's address already."""
    with occupied(idle, "0.0.0.0", 53, kind):
        refuses(idle, "53")


def test_host_names_that_cannot_be_served(idle: Machine, tmp_path: Path) -> None:
    """Somebody has the address for the host's DNS; or its port is one that resolv.conf cannot name."""
    settings = {"MESHBOX_HOST_ACCESS": "true", "MESHBOX_RESOLV_CONF": str(tmp_path / "resolv.conf")}
    with occupied(idle, "127.66.0.53", 53, "DGRAM"):
        refuses(idle, "127.66.0.53:53", "dns_listen", settings=settings)
    refuses(idle, "dns_port is 5353", "set dns_port to 53", settings={**settings, "MESHBOX_DNS_PORT": "5353"})
    assert not (tmp_path / "resolv.conf").exists()


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
