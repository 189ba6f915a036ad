"""What the tests of image and package are made in: a Debian 12 root, a way out for builds, a machine for --privileged.

The root is made by debootstrap from the Debian mirror that this computer uses, trimmed as Docker's own
`debian:bookworm-slim` is, and cached under build/images; wheels are fetched by pip as it is set up here and cached too.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import socket
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import IMAGE, ROOT, Machine, run

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from typing import Self

CACHE = ROOT / "build" / "images"
SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
LEFT_OUT = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "var/lib/apt/lists",
    "var/cache/apt",
)
LEFT_OUT += ("var/log/apt", "var/log/bootstrap.log", "var/log/dpkg.log", "usr/share/lintian", "usr/share/linda")


def slim_root() -> Path:
    """Return the tar file of a clean Debian 12, made when it is not in the cache (about 40 s)."""
    tar = CACHE / "bookworm-slim.tar"
    if tar.exists():
        return tar
    CACHE.mkdir(parents=True, exist_ok=True)
    text = SOURCES.read_text()
    mirror = next(line.split()[1] for line in text.splitlines() if line.startswith("URIs:"))
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        root = Path(scratch) / "root"
        run("debootstrap", "--variant=minbase", "bookworm", root, mirror, timeout=300)
        for place in LEFT_OUT:
            shutil.rmtree(root / place, ignore_errors=True)
            (root / place).unlink(missing_ok=True)
        for place in ("usr/share/doc", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/log/apt"):
            (root / place).mkdir(parents=True)
        (root / "etc/apt/sources.list").unlink(missing_ok=True)
        (root / "etc/apt/sources.list.d/debian.sources").write_text(text)
        # As in Docker's image: what packages bring that nobody reads there is not unpacked.
        (root / "etc/dpkg/dpkg.cfg.d/docker").write_text(
            "".join(f"path-exclude /{place}/*\n" for place in LEFT_OUT if place.startswith("usr/share/"))
        )
        made = Path(scratch) / "root.tar"
        run("tar", "--create", "--numeric-owner", "--xattrs", f"--file={made}", f"--directory={root}", ".")
        made.rename(tar)
    return tar


def wheels() -> Path:
    """Return a folder with everything that the lock files name for building, fetched when it is not in the cache."""
    locks = [ROOT / "packaging" / f"requirements{kind}.lock" for kind in ("", "-build")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in locks)).hexdigest()[:16]
    folder = CACHE.parent / f"wheels-{digest}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            for path in locks:
                run(
                    *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
                    *("--require-hashes", "--requirement", path, "--dest", scratch),
                )
            shutil.copytree(scratch, folder)
    return folder


class Outlet:
    """An HTTP proxy that listens in a namespace without a way out and asks in this computer's own.

    Its own address also serves the wheels, as `pip --find-links` reads them.
    """

    def __init__(self, netns: str) -> None:
        folder = str(wheels())

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args, directory=folder)

            def do_GET(self) -> None:
                if self.path.startswith("http://"):
                    self._forward()
                else:
                    super().do_GET()

            def _forward(self) -> None:
                wanted = {k: v for k, v in self.headers.items() if k.lower() in {"user-agent", "range", "accept"}}
                try:
                    answer = urllib.request.urlopen(urllib.request.Request(self.path, headers=wanted), timeout=60)
                except urllib.error.HTTPError as error:
                    answer = error
                with answer:
                    body = answer.read()
                self.send_response(answer.status)
                for name in ("Content-Type", "Last-Modified", "ETag", "Content-Range"):
                    if name in answer.headers:
                        self.send_header(name, answer.headers[name])
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = in_netns(netns, lambda: socket.create_server(("127.0.0.1", 0), backlog=64))
        self.address = f"http://127.0.0.1:{self._server.socket.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def in_netns(netns: str, make: Callable[[], Any]) -> Any:
    """Call `make` in a thread that has entered the namespace, and return what it made."""
    made: list[Any] = []

    def enter() -> None:
        with Path(f"/run/netns/{netns}").open("rb") as handle:
            assert ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), 0) == 0
        made.append(make())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return made[0]


ENTER = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"'


class Debian:
    """A root file system to change into. Its mounts last as long as a command."""

    def __init__(self, root: Path) -> None:
        self.root = root
        run("tar", "--extract", "--xattrs", f"--file={slim_root()}", f"--directory={root}")
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        run("sh", "-c", f"cp -r /etc/ssl/certs {root}/etc/ssl/", check=False)  # for https mirrors
        self("apt-get", "-qq", "update")

    def command(self, *command: str | Path) -> list[str]:
        """Return what runs a command inside."""
        return ["unshare", "--mount", "sh", "-c", ENTER, str(self.root), *map(str, command)]

    def __call__(
        self, *command: str | Path, netns: str | None = None, check: bool = True, timeout: float = 200
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, in a machine's network or, to fetch packages, in this computer's own."""
        network = ["nsenter", f"--net=/run/netns/{netns}"] if netns else []
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        return run(*network, *self.command(*command), check=check, env=env, timeout=timeout)

    def traces(self) -> set[str]:
        """Return everything that bears our name, but for what apt and dpkg write down of their own work."""
        found = run("find", self.root, "-xdev", "-iname", "*meshbox*").stdout.split()
        return {path for path in (p.removeprefix(str(self.root)) for p in found) if not path.startswith("/root/")}


RUNTIME = """#!/usr/bin/python3
# runc without CAP_SYS_RESOURCE, where this computer itself lacks it and refuses --privileged therefore.
import json, os, pathlib, sys

def without(value):
    for names in (value.get("capabilities") or {}).values():
        names[:] = [name for name in names if name != "CAP_SYS_RESOURCE"]

words = sys.argv[1:]
for flag, name, key in (("--bundle", "config.json", "process"), ("--process", "", "")):
    if flag in words:
        path = pathlib.Path(words[words.index(flag) + 1], name)
        value = json.loads(path.read_text())
        without(value[key] if key else value)
        path.write_text(json.dumps(value))
os.execvp("runc", ["runc", *words])
"""


class PrivilegedMachine(Machine):
    """A machine whose engine runs `docker run --privileged` also where the test's computer lacks capabilities."""

    def _start(self, *command: str | Path) -> None:
        if command[0] == "dockerd":
            wrapper = self.root / "runtime"
            wrapper.write_text(RUNTIME)
            wrapper.chmod(0o755)
            command = (*command, "--add-runtime", f"tests={wrapper}", "--default-runtime", "tests")
        super()._start(*command)

    @property
    def seen(self) -> str:
        """The root directory as processes see it that have another one."""
        return f"/proc/{self._engine[-1].pid}/root"


def world(machine: Machine) -> dict[str, object]:
    """Return all of a machine that installing and removing must leave as it was, its containers' insides included."""
    running = machine.docker("ps", "--format={{.Names}}").split()
    inside = {name: machine.exec_in(name, "nft", "list", "ruleset").stdout for name in running}
    return {
        "rules": re.sub(r"counter packets \d+ bytes \d+", "counter", machine.exec("nft", "list", "ruleset").stdout),
        "links": re.findall(r"^\d+: ([^:@]+)", machine.exec("ip", "-o", "link").stdout, re.MULTILINE),
        "routes": re.sub(r" linkdown", "", machine.exec("ip", "route").stdout),
        "networks": machine.docker("network", "ls", "--format={{.ID}} {{.Name}}"),
        "containers": {name: machine.inspect(name)["State"]["StartedAt"] for name in running},
        "their rules": inside,
    }


def client(machine: Machine) -> None:
    """Start the container that will look at the example, before there is a mesh."""
    words = "flask.flask:8080,redis.flask:8080,apple.orange:8080"
    machine.run_container("client", IMAGE, service="test", container="client", connect_to=words)


def example_answers(machine: Machine) -> None:
    """Check that the example, which is deployed, answers by name."""
    assert "Hello World" in machine.docker("exec", "client", "wget", "-qO-", "http://flask.flask:8080/")
    assert machine.docker("exec", "client", "redis-cli", "-h", "redis.flask", "-p", "8080", "ping") == "PONG"
    (result,) = machine.client("client", "udp", "apple.orange", "8080", "1")
    assert result["answer"], result
