"""`make demo` itself, where no Docker Engine runs: it starts one, shows everything, and takes it all back.

Where one runs already is shown with the image (test_image.py).
"""

from __future__ import annotations

import pytest
from machine import ROOT, environment, run
from stand_ins import root_file_system

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

COMPUTER = """
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir /run/lock
ip link set lo up
nft add table ip mine
echo 0 >/proc/sys/net/ipv4/ip_forward
look() {
    cat /proc/sys/net/ipv4/ip_forward
    ip -o link | sed 's/^[0-9]*: //'
    ip route
    nft list ruleset
    find /run /var/lib/docker* /var/lib/meshbox /etc/meshbox -maxdepth 1 ! -name xtables.lock 2>/dev/null || true
}
look >"$0/before"
make demo
look >"$0/after"
"""
"""Runs as process 1 of a computer with a network, processes and /run of its own, whose notes are kept below `$0`."""


def test_demo_without_an_engine(tmp_path) -> None:
    """Exit 0, what it shows is so, and rules, links and files are as before; nothing runs on."""
    root_file_system()  # that computer has no way out to fetch packages
    alone = ("unshare", "--net", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child")
    done = run(*alone, "sh", "-ec", COMPUTER, tmp_path, cwd=ROOT, env=environment(), timeout=280)
    assert "no Docker Engine runs here: starting one" in done.stdout
    assert "stopped the Docker Engine that the demo had started" in done.stdout
    assert done.stdout.splitlines()[-1] == "Everything above was checked, and holds."
    assert (tmp_path / "after").read_text() == (tmp_path / "before").read_text()
