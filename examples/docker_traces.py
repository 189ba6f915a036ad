"""What a Docker Engine leaves on its host when it ends: rules, a bridge, forwarding, folders in /run.

`Traces` notes how all that was before the engine starts, and restores it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
FOLDERS = (Path("/run/containerd"), Path("/run/docker"))
FAMILIES = {"ip": "iptables", "ip6": "ip6tables"}
"""As nft calls them, and the program of iptables for each."""
TABLES = ("filter", "nat", "raw", "mangle")
"""Those in which Docker writes."""


class Traces:
    """How the host was. Make it before the engine starts."""

    def __init__(self) -> None:
        self._rules = {program: _said(f"{program}-save") for program in FAMILIES.values()}
        self._tables = _said("nft", "list", "tables").splitlines()
        self._has_bridge = bool(_said("ip", "link", "show", "docker0"))  # a stopped engine leaves it
        self._forwarding = FORWARDING.read_text()
        self._folders = [folder for folder in FOLDERS if not folder.exists()]

    def take_back(self) -> None:
        """Restore everything, once the engine has ended."""
        if not self._has_bridge:
            _said("ip", "link", "delete", "docker0")
        for family, program in FAMILIES.items():
            for table in (f"table {family} {name}" for name in TABLES):
                if table not in self._tables:
                    _said("nft", "delete", *table.split())
            former = self._rules[program]
            _said(f"{program}-restore", typed=former + emptied(_said(f"{program}-save"), former))
        FORWARDING.write_text(self._forwarding)
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)


def emptied(rules: str, former: str) -> str:
    """Return the tables of `rules` that the former ones lack, as they are without any rule.

    Both are what iptables-save prints. iptables-restore leaves a table as it is that its input does not name, and
    where iptables is the legacy one a table cannot be deleted.
    """
    found = ""
    for table, body in re.findall(r"^(\*\w+\n)(.*?)^COMMIT$", rules, re.MULTILINE | re.DOTALL):
        if table not in former:
            chains = re.findall(r"^:(\S+) (?:ACCEPT|DROP) ", body, re.MULTILINE)
            found += table + "".join(f":{chain} ACCEPT [0:0]\n" for chain in chains) + "COMMIT\n"
    return found


def _said(*command: str, typed: str | None = None) -> str:
    """Return what a command prints; one that is not there or fails says nothing."""
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, input=typed, check=False, capture_output=True, text=True).stdout
