"""A real Consul for tests: fetched once from the bullseye suite of this machine's own Debian archive, started at will.

Debian 12 has no consul package; that of Debian 11 (1.8.7) needs nothing but libc. Nothing under /etc is touched: apt
works on lists, caches and sources of its own below the cache folder.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import orjson
from documents import PAGES

if TYPE_CHECKING:
    from collections.abc import Callable

CACHE = Path(os.environ.get("MESHBOX_TEST_CACHE", "/var/cache/meshbox-tests"))
"""Where the binary stays from one test run to the next."""
SUITE = "bullseye"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
(ACL_RULES,) = re.findall(r"^```hcl\n(.*?)^```", PAGES["docs/reference/consul-acl.md"], re.MULTILINE | re.DOTALL)
"""The rules that the documents give for our token."""
START = 20.0
"""Seconds that a leader may take to appear."""


def consul_binary() -> Path:
    """Return the path of a Consul binary, fetching it the first time."""
    on_path = shutil.which("consul")
    if on_path is not None:
        return Path(on_path)
    return debian_package("consul", SUITE) / "usr" / "bin" / "consul"


def debian_package(name: str, suite: str) -> Path:
    """Return the folder with the files of a package that needs no others, fetching it the first time."""
    there = CACHE / name
    if not there.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="fetch-") as folder:
            unpacked = _fetch(Path(folder), name, suite)
            with suppress(OSError):  # another test run was faster
                unpacked.rename(there)
    return there


def _archive() -> str:
    """Return the URI of the Debian archive that this machine uses."""
    sources = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for text in (path.read_text() for path in sources if path.is_file()):
        for uri in re.findall(r"^(?:URIs:\s*|deb\s+(?:\[[^]]*\]\s*)?)(\S+)", text, re.MULTILINE):
            if uri.rstrip("/").endswith("/debian"):
                return uri
    raise RuntimeError("no Debian archive is configured on this machine: the tests fetch Consul and a registry there")


def _fetch(folder: Path, name: str, suite: str) -> Path:
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True)
    (folder / "sources.list").write_text(f"deb [signed-by={KEYRING}] {_archive()} {suite} main\n")
    (folder / "apt.conf").write_text(
        f'Dir::Etc::SourceList "{folder}/sources.list";\n'
        f'Dir::Etc::SourceParts "{folder}/none";\n'
        f'Dir::State::Lists "{folder}/lists";\n'
        f'Dir::Cache "{folder}/cache";\n'
        f'Acquire::Check-Valid-Until "false";\n'
        f'APT::Sandbox::User "root";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(folder / "apt.conf")}
    for command in (["apt-get", "-q", "update"], ["apt-get", "-q", "download", name]):
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=110)
    (package,) = folder.glob(f"{name}_*.deb")
    unpacked = folder / "unpacked"
    subprocess.run(["dpkg-deb", "-x", package, unpacked], check=True, capture_output=True)
    return unpacked


class ConsulAgent:
    """One `consul agent` process, by default a server of its own on 127.0.0.1 with default limits.

    `prefix` are words in front of the command, to run it in a network namespace for example.
    """

    def __init__(
        self,
        folder: Path,
        *,
        node: str = "consul-1",
        bind: str = "127.0.0.1",
        client: str = "127.0.0.1",
        join: tuple[str, ...] = (),
        servers: int = 1,
        server: bool = True,
        prefix: tuple[str, ...] = (),
        base_port: int = 18500,
        https_port: int = -1,
        dns_port: int = -1,
        hcl: str = "",
        token: str = "",
    ) -> None:
        self.folder = folder
        self.node = node
        self.base_port = base_port
        self.token = token
        self.address = f"http://{client}:{base_port}"
        self.process: subprocess.Popen[bytes] | None = None
        settings = f"""
            disable_update_check = true
            performance {{ raft_multiplier = 1 }}
            ports {{
              http = {base_port}
              https = {https_port}
              dns = {dns_port}
              grpc = -1
              server = {base_port + 1}
              serf_lan = {base_port + 2}
              serf_wan = -1
            }}
            {hcl}
        """
        self._command = [
            *prefix,
            str(consul_binary()),
            *("agent", "-node", node, "-bind", bind, "-client", client),
            *(("-server", f"-bootstrap-expect={servers}") if server else ()),
            *("-data-dir", str(folder / "data"), "-hcl", settings, "-log-level", "info"),
            *(f"-retry-join={other}" for other in join),
            "-retry-interval=1s",
        ]

    def start(self) -> ConsulAgent:
        """Start it and wait until it has a leader."""
        self.launch()
        self.wait_for_leader()
        return self

    def launch(self) -> None:
        """Start it and do not wait."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)

    def wait_for_leader(self) -> None:
        """Wait until it answers and knows a leader, also for writing."""
        wait_until(self._has_leader, f"{self.node} has a leader; see {self.folder / 'log'}")

    def _has_leader(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"consul ended: {(self.folder / 'log').read_text()[-2000:]}")
        try:
            return bool(self.request("GET", "/v1/status/leader").json())
        except (httpx2.HTTPError, ValueError):
            return False

    def stop(self, *, wipe: bool = False) -> None:
        """Kill it. With `wipe` all its data go too."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        if wipe:
            shutil.rmtree(self.folder / "data", ignore_errors=True)

    def request(self, method: str, path: str, body: Any = None) -> httpx2.Response:
        """Make a call to its API."""
        return httpx2.request(
            method,
            f"{self.address}{path}",
            content=None if body is None else orjson.dumps(body),
            headers={"X-Consul-Token": self.token} if self.token else {},
            timeout=10.0,
            trust_env=False,
            verify=False,
        )

    def get(self, path: str) -> Any:
        """Return the JSON value at a path; None where there is nothing."""
        response = self.request("GET", path)
        return orjson.loads(response.content) if response.status_code == 200 else None


def wait_until(condition: Callable[[], Any], what: str, seconds: float = START) -> None:
    """Wait until the condition holds. Raises TimeoutError after so many seconds."""
    pause = threading.Event()
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"after {seconds} s still not: {what}")
        pause.wait(0.05)


def free_ports(count: int) -> int:
    """Return the first of so many consecutive ports that are free on 127.0.0.1 now."""
    for first in random.sample(range(15000, 19000), 200):
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                        stack.enter_context(socket.socket(socket.AF_INET, kind)).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise RuntimeError("no free ports")
