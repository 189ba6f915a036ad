"""What the tests of image and package are made in: a Debian 12 root, a way out for builds, a machine for --privileged.

The root is made by debootstrap from the Debian mirror that this computer uses, trimmed as Docker's own
`debian:bookworm-slim` is, and cached under build/images; wheels are fetched by pip as it is set up here and cached too.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import IMAGE, ROOT, Machine, Program, run, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from typing import Self

    from machine import Switch

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
    """Return a folder with everything that the lock files name, fetched when it is not in the cache."""
    locks = [ROOT / "packaging" / f"requirements{kind}.lock" for kind in ("", "-build", "-dev")]
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


def clean_clone(folder: Path) -> Path:
    """Clone this checkout, as a newcomer gets it; with the changes of tracked files that are not committed yet."""
    run("git", "clone", "--quiet", ROOT, folder)
    for name in run("git", "-C", ROOT, "diff", "--name-only", "-z", "HEAD").stdout.split("\0")[:-1]:
        (folder / name).unlink(missing_ok=True)
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


class Handler(SimpleHTTPRequestHandler):
    """Forwards what is asked of a proxy, and is a package index for pip otherwise."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, directory=str(wheels()))

    def do_GET(self) -> None:
        if self.path.startswith("http://"):
            self._forward()
        elif self.path.startswith("/simple/"):
            self._list(self.path.split("/")[2])
        else:
            super().do_GET()

    def _list(self, package: str) -> None:
        names = [path.name for path in wheels().iterdir()]
        of_it = [n for n in names if re.sub(r"[._]", "-", n.partition("-")[0]).lower() == package]
        body = "".join(f'<a href="/{name}">{name}</a>' for name in of_it).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

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


class Outlet:
    """An HTTP proxy that listens in a namespace without a way out and asks in this computer's own.

    Its own address also is a package index with the wheels.
    """

    def __init__(self, netns: str, host: str) -> None:
        self.host = host
        self._server = ThreadingHTTPServer((host, 0), Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = in_netns(netns, lambda: socket.create_server((host, 0), backlog=64))
        self.address = f"http://{host}:{self._server.socket.getsockname()[1]}"

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


OWN_WORK = re.compile(
    r"/var/lib/dpkg/(status|status-old|triggers/.*|lock|lock-frontend)|/var/lib/apt/extended_states|/var/cache/apt(/.*)?"
    r"|/var/lib/apt/lists(/.*)?|/var/log/(apt(/.*)?|dpkg\.log|alternatives\.log)|/var/cache/ldconfig/aux-cache"
)
"""What dpkg, apt and ldconfig themselves keep of their work, whatever package is installed or removed."""

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
        self, *command: str | Path, netns: str | None = None, check: bool = True, timeout: float = 200, typed: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, in a machine's network or, to fetch packages, in this computer's own.

        `typed` is what somebody answers to its questions.
        """
        network = ["nsenter", f"--net=/run/netns/{netns}"] if netns else []
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        return run(*network, *self.command(*command), check=check, env=env, timeout=timeout, input=typed)

    def contents(self) -> dict[str, tuple[object, ...]]:
        """Return every path with its type, mode, owner and content, but for what dpkg and apt write of their work."""
        found: dict[str, tuple[object, ...]] = {}
        for folder, folders, files in os.walk(self.root):
            for name in (*folders, *files):
                path = Path(folder, name)
                inside = f"/{path.relative_to(self.root)}"
                if OWN_WORK.fullmatch(inside):
                    continue
                status = path.lstat()
                content: object = None
                if stat.S_ISLNK(status.st_mode):
                    content = path.readlink()
                elif stat.S_ISREG(status.st_mode):
                    content = hashlib.sha256(path.read_bytes()).hexdigest()
                found[inside] = (oct(status.st_mode), status.st_uid, status.st_gid, content)
        return found

    def traces(self) -> set[str]:
        """Return everything that bears our name, but for what apt and dpkg write down of their own work."""
        found = run("find", self.root, "-xdev", "-iname", "*meshbox*").stdout.split()
        return {path for path in (p.removeprefix(str(self.root)) for p in found) if not path.startswith("/root/")}


RUNTIME = """#!/bin/sh
# runc without CAP_SYS_RESOURCE, where this computer itself lacks it and refuses --privileged therefore.
for word; do
    case $former in
        --bundle) sed -i 's/"CAP_SYS_RESOURCE",//g' "$word/config.json" ;;
        --process) sed -i 's/"CAP_SYS_RESOURCE",//g' "$word" ;;
    esac
    former=$word
done
exec runc "$@"
"""


def runtime(folder: Path) -> Path:
    """Write the runtime that engines of tests start containers with, and return where it is."""
    wrapper = folder / "runtime"
    wrapper.write_text(RUNTIME)
    wrapper.chmod(0o755)
    return wrapper


class PrivilegedMachine(Machine):
    """A machine whose engine runs `docker run --privileged` also where the test's computer lacks capabilities."""

    def _start(self, *command: str | Path) -> None:
        super()._start(*(self._privileged(*command) if command[0] == "dockerd" else command))

    def _privileged(self, *command: str | Path) -> tuple[str | Path, ...]:
        return (*command, "--add-runtime", f"tests={runtime(self.root)}", "--default-runtime", "tests")

    @property
    def seen(self) -> str:
        """The root directory as processes see it that have another one."""
        return f"/proc/{self._engine[-1].pid}/root"


INIT = """
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir /run/lock "$1/work"
mount -t tmpfs tmpfs "$1/work"
mkdir "$1/work/upper" "$1/work/work"
mount -t overlay -o "lowerdir=/var/lib,upperdir=$1/work/upper,workdir=$1/work/work" overlay /var/lib
echo "nameserver $2" >"$1/resolv.conf"
mount --bind "$1/resolv.conf" /etc/resolv.conf
touch "$1/up"
sleep infinity & wait
"""
"""Runs as process 1 of a computer whose files are below `$1` and whose resolver is `$2`."""


class WholeMachine(PrivilegedMachine):
    """A machine with processes and mounts of its own: all is where it usually is, Docker and process 1 too."""

    def __init__(self, switch: Switch, number: int) -> None:
        super().__init__(switch, number)
        self.netns_dir = Path("/run/docker/netns")

    def start_docker(self) -> None:
        """Start process 1, then the engine."""
        # What unshare itself ignores is SIGTERM, also that for the end of the test run.
        command = ("setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--propagation=private", "--pid", "--fork")
        words = ("--kill-child", "sh", "-ec", INIT, "init", self.root, self.switch.address)
        self._outer = Program(self.netns, (*command, *words), self.root / "init.log")
        wait_until((self.root / "up").exists, "process 1 is up")
        self._init = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()[0]
        super().start_docker()

    def stop_docker(self) -> None:
        """End the engine, and then all processes."""
        super().stop_docker()
        self._outer.stop(signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{self._init}").exists(), "its processes have ended")

    def inside(self, *command: str | Path) -> list[str]:
        """Return what runs a command among its processes and files."""
        return ["nsenter", f"--target={self._init}", "--mount", "--pid", *map(str, command)]

    def shell(self, line: str, folder: Path = ROOT, **options: Any) -> str:
        """Run a line as somebody would type it there, in a folder; return what it prints."""
        network = ("nsenter", f"--net=/run/netns/{self.netns}")
        return run(*network, *self.inside("sh", "-c", f"cd {folder} && {line}"), **options).stdout

    @property
    def seen(self) -> str:
        """Its root directory as other processes see it."""
        return f"/proc/{self._init}/root"

    def exec_in(self, container: str, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of this host's programs in a container's network namespace."""
        path = self.inspect(container)["NetworkSettings"]["SandboxKey"].replace("/var/run/", "/run/")
        return run("nsenter", f"--net={self.seen}{path}", *command, check=check)

    def _start(self, *command: str | Path) -> None:
        if command[0] == "dockerd":
            usual = ("--host", "unix:///run/docker.sock", "--exec-root", "/run/docker")
            command = self._privileged(*command, *usual)
        Machine._start(self, *self.inside(*command))


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


EXAMPLE = "flask.flask:8080,redis.flask:8080,apple.orange:8080"
"""What `example_answers` asks, as `connect_to` of the container "client"."""


def client(machine: Machine) -> None:
    """Start the container that will look at the example, before there is a mesh."""
    machine.run_container("client", IMAGE, service="test", container="client", connect_to=EXAMPLE)


def example_answers(machine: Machine) -> None:
    """Check that the example, which is deployed, answers by name."""
    assert "Hello World" in machine.docker("exec", "client", "wget", "-qO-", "http://flask.flask:8080/")
    assert machine.docker("exec", "client", "redis-cli", "-h", "redis.flask", "-p", "8080", "ping") == "PONG"
    (result,) = machine.client("client", "udp", "apple.orange", "8080", "1")
    assert result["answer"], result


COMPILED = (
    "import pathlib, appliance.dataplane.tcp.relay as relay, appliance.dataplane.udp.listener as datagram\n"
    "for module in (relay, datagram): print(pathlib.Path(module.__file__).suffix)"
)
"""Prints of what kind the files are that the data plane's hot modules are loaded from."""


def by_way_of(outlet: Outlet) -> dict[str, str]:
    """Return what tells apt and pip of a way out, as somebody has it in the environment."""
    return {
        "http_proxy": outlet.address,
        "no_proxy": outlet.host,
        "PIP_INDEX_URL": f"{outlet.address}/simple/",
        "PIP_TRUSTED_HOST": outlet.host,
    }
