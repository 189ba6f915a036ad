"""Whole machines for system tests, several on one computer.

A `Machine` is a network namespace with an address of its own on a bridge, its own containerd and dockerd (own data,
sockets and namespaces' directory) and its own appliance. The bridge stands in a namespace too (`Switch`), which also
plays the outside world; nothing touches the host's own network. Every process dies with the test run, and everything
is removed by what was noted when it was made, also after a failure.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import orjson

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))

from stand_ins import STAND_INS, Docker, DockerError, StandIn, load  # noqa: E402 — examples/ is no package

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Self

MESHBOX = ROOT / ".venv/bin/meshbox"
DATA = Path("/var/tmp")  # docker's layers want a real file system; its sockets want short paths
NEVER = threading.Event()
LASTING = ThreadPoolExecutor(max_workers=1)
"""The death signal comes when the *thread* that started a process ends, so one that lasts starts them all."""

IMAGE = "meshbox-test"
"""Runs tests/images/server.py; client.py lies beside it in /srv."""

IMAGES = {
    **STAND_INS,
    IMAGE: StandIn(
        command=("python3", "/srv/server.py"),
        files={
            f"srv/{name}": (ROOT / "tests/images" / name).read_bytes()
            for name in ("server.py", "client.py", "first.py")
        },
    ),
}


def environment() -> dict[str, str]:
    """Return that of the test run, without what is meant for an appliance of this computer's own, or a make within."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MESHBOX_", "MAKE", "MFLAGS"))}


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 20.0, pause: float = 0.05) -> Any:
    """Return the first true value of `condition`. Raises AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        NEVER.wait(pause)


def run(*command: str | Path, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command and capture what it says. Raises AssertionError with all of that when it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        check=False,
        capture_output=True,
        text=True,
        timeout=options.pop("timeout", 100),
        **options,
    )
    if check and done.returncode:
        raise AssertionError(f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


class Program:
    """A process in a namespace, writing to a log file; it ends when the test run does."""

    def __init__(
        self, netns: str, command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        self._process = LASTING.submit(self._start, netns, command, env).result()
        self.pid = self._process.pid

    def _start(
        self, netns: str, command: Sequence[str | Path], env: Mapping[str, str] | None
    ) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as output:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig=TERM", "nsenter", f"--net=/run/netns/{netns}", *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**environment(), **(env or {})},
            )

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def stop(self, number: int = signal.SIGTERM, seconds: float = 20.0) -> int:
        """Send the signal and return the exit status; kill what does not end in time."""
        if self.running:
            self._process.send_signal(number)
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"pid {self.pid} did not end in {seconds} s; its log:\n{self.tail()}") from None

    def tail(self, lines: int = 40) -> str:
        """Return the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Switch:
    """The bridge that joins machines, and the outside world: an HTTP server and a resolver at `address`."""

    address = "10.77.0.254"

    def __init__(self) -> None:
        self.prefix = f"mb{os.getpid()}"
        self.netns = f"{self.prefix}sw"
        self.root = DATA / f"meshbox-{os.getpid()}"
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self.root.mkdir()
            undo.callback(shutil.rmtree, self.root, ignore_errors=True)
            run("ip", "netns", "add", self.netns)
            undo.callback(run, "ip", "netns", "delete", self.netns)
            ip = ("ip", "-n", self.netns)
            run(*ip, "link", "set", "lo", "up")
            run(*ip, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
            run(*ip, "link", "set", "br0", "up")
            run(*ip, "address", "add", f"{self.address}/24", "dev", "br0")
            outside = Program(self.netns, (sys.executable, ROOT / "tests/images/outside.py"), self.root / "outside.log")
            undo.callback(outside.stop)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def exec(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run something in the outside world."""
        return run("nsenter", f"--net=/run/netns/{self.netns}", *command, check=check)


class Machine:
    """One computer of the mesh. `number` (1 to 99) makes its names and addresses."""

    def __init__(self, switch: Switch, number: int) -> None:
        self.switch = switch
        self.netns = f"{switch.prefix}m{number}"
        self.node = f"m{number}"
        self.address = f"10.77.0.{number}"
        self.root = switch.root / self.node
        self.socket = self.root / "docker.sock"
        self.netns_dir = self.root / "exec/netns"
        self.docker = Docker(self.socket)
        self.images: Mapping[str, StandIn] = IMAGES
        self.settings: dict[str, str] = {
            "MESHBOX_CONFIG": os.devnull,
            "MESHBOX_NODE": self.node,
            "MESHBOX_RUN_DIR": str(self.root / "run"),
            "MESHBOX_STATE_DIR": str(self.root / "state"),
            "MESHBOX_DOCKER_SOCKET": str(self.socket),
            "MESHBOX_NETNS_DIR": str(self.netns_dir),
            "MESHBOX_DNS_UPSTREAMS": switch.address,
        }
        self.appliance: Program | None = None
        self._number = number
        self._engine: list[Program] = []
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self.root.mkdir()
            undo.callback(self._remove_files)
            run("ip", "netns", "add", self.netns)
            undo.callback(run, "ip", "netns", "delete", self.netns)
            self._plug_in()
            undo.callback(self.stop_docker)
            self.start_docker()
            undo.callback(self._remove_containers)
            self._fill()
            undo.callback(self.stop)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    # The appliance

    def start(self, *, open_files: str = "1024:", **settings: str) -> None:
        """Start the appliance and wait until it is ready. `settings` are more of MESHBOX_…, in lower case.

        `open_files` is soft:hard; the default has as few as a login shell gives.
        """
        extra = {f"MESHBOX_{key.upper()}": value for key, value in settings.items()}
        command = ("prlimit", f"--nofile={open_files}", MESHBOX, "run")
        self.appliance = Program(self.netns, command, self.root / "meshbox.log", {**self.settings, **extra})
        wait_until(self._ready, "the appliance answers", pause=0.02)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the appliance if it runs; return its exit status."""
        appliance, self.appliance = self.appliance, None
        return appliance.stop(number) if appliance else 0

    def meshbox(self, *args: str | Path, check: bool = True, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        extra = {f"MESHBOX_{key.upper()}": value for key, value in settings.items()}
        env = {**environment(), **self.settings, "COLUMNS": "200", "NO_COLOR": "1", **extra}
        return run("nsenter", f"--net=/run/netns/{self.netns}", MESHBOX, *args, check=check, env=env)

    def show(self, *args: str) -> Any:
        """Return what a noun says as JSON."""
        return orjson.loads(self.meshbox(*args, "--json").stdout)

    def metric(self, name: str) -> float:
        """Return the value of one of the appliance's metrics that has no labels."""
        socket = f"{self.settings['MESHBOX_RUN_DIR']}/admin.sock"
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=socket), base_url="http://meshbox") as http:
            (value,) = re.findall(rf"^{name} (\S+)$", http.get("/metrics").text, re.MULTILINE)
        return float(value)

    def deploy(self, text: str, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Deploy a spec file of this text."""
        path = self.root / "spec.py"
        path.write_text(text)
        return self.meshbox("deploy", path, *args, check=check)

    def log(self, lines: int = 1000) -> str:
        """Return the end of what the appliance logged, over all its starts."""
        path = self.root / "meshbox.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def clear(self) -> None:
        """Remove every service and every container, whatever state they are in."""
        state = Path(self.settings["MESHBOX_STATE_DIR"]) / "state.json"
        if self.appliance is None or not self.appliance.running:
            state.unlink(missing_ok=True)
        else:
            kept = orjson.loads(state.read_bytes())["specs"] if state.exists() else []
            created = {name.split("-")[1] for name in self.containers("label=meshbox.revision")}
            for service in created | {spec["name"] for spec in kept}:
                self.meshbox("remove", service, "--detach", check=False)
        self._remove_containers()

    def _ready(self) -> bool:
        assert self.appliance is not None
        assert self.appliance.running, f"the appliance ended:\n{self.appliance.tail()}"
        return self.meshbox("services", "--json", check=False).returncode == 0

    # Docker

    def start_docker(self) -> None:
        """Start containerd and dockerd and wait until they answer."""
        settings = self.root / "containerd.toml"
        settings.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
        containerd = self.root / "containerd.sock"
        self._start(
            *("containerd", "--config", settings, "--address", containerd, "--log-level", "warn"),
            *("--root", self.root / "containerd", "--state", self.root / "containerd-state"),
        )
        wait_until(containerd.exists, "containerd listens")
        self._start(
            *("dockerd", "--host", f"unix://{self.socket}", "--containerd", containerd, "--log-level", "warn"),
            *("--data-root", self.root / "data", "--exec-root", self.root / "exec"),
            *("--pidfile", self.root / "docker.pid", "--bip", f"172.{self._number % 10 + 20}.0.1/16"),
            *("--default-address-pool", f"base=10.{self._number + 100}.0.0/16,size=24", "--dns", Switch.address),
        )
        wait_until(self._docker_answers, "dockerd answers", seconds=60)

    def stop_docker(self) -> None:
        """End dockerd and containerd. Containers end with dockerd."""
        for program in reversed(self._engine):
            program.stop(seconds=60)
        self._engine.clear()

    def _start(self, *command: str | Path) -> None:
        self._engine.append(Program(self.netns, command, self.root / f"{Path(command[0]).name}.log"))

    def check_docker(self) -> None:
        """Raise AssertionError with its log when Docker ended by itself."""
        for program in self._engine:
            assert program.running, f"Docker ended:\n{program.tail()}"

    def _docker_answers(self) -> bool:
        self.check_docker()
        try:
            self.docker("version")
        except DockerError:
            return False
        return True

    def run_container(self, name: str, image: str, *command: str, options: Sequence[str] = (), **labels: str) -> str:
        """`docker run --detach`; `labels` get the prefix `meshbox.`. Return the container's id."""
        marks = [f"--label=meshbox.{key}={value}" for key, value in labels.items()]
        return self.docker("run", "--detach", f"--name={name}", *marks, *options, image, *command)

    def pause(self, container: str) -> None:
        """`docker pause`. On a busy machine runc gives up at times ("unable to freeze"), and undoes it."""

        def paused() -> bool:
            with suppress(DockerError):
                self.docker("pause", container)
            return str(self.inspect(container)["State"]["Status"]) == "paused"

        wait_until(paused, f"{container} is paused")

    def inspect(self, container: str) -> dict[str, Any]:
        """Return what Docker knows of a container."""
        found: dict[str, Any] = orjson.loads(self.docker("inspect", container))[0]
        return found

    def containers(self, *filters: str) -> list[str]:
        """Return the names of all containers that match `docker ps --filter …`."""
        options = [f"--filter={word}" for word in filters]
        return self.docker("ps", "--all", "--format={{.Names}}", *options).split()

    def client(self, container: str, *args: str) -> Any:
        """Run tests/images/client.py in a container and return its answer."""
        return orjson.loads(self.docker("exec", container, "python3", "/srv/client.py", *args))

    # The namespace

    def exec(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run something on this machine."""
        return run("nsenter", f"--net=/run/netns/{self.netns}", *command, check=check)

    def proxy_ports(self, protocol: str = "tcp") -> list[int]:
        """Return the ports on which the proxy listens, as the kernel tells it."""
        listing = self.exec("ss", "-H", "-n", "-l", "-t" if protocol == "tcp" else "-u").stdout
        ports = {int(line.split()[3].rpartition(":")[2]) for line in listing.splitlines()}
        return sorted(port for port in ports if 20000 <= port <= 29999)

    def address_of(self, container: str) -> str:
        """Return a container's own address."""
        networks = self.inspect(container)["NetworkSettings"]["Networks"]
        return str(next(iter(networks.values()))["IPAddress"])

    def exec_in(self, container: str, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of this host's programs in a container's network namespace."""
        path = self.inspect(container)["NetworkSettings"]["SandboxKey"]
        return run("nsenter", f"--net={path}", *command, check=check)

    def _fill(self) -> None:
        load(self.docker, self.images)

    def _plug_in(self) -> None:
        port = f"p{self._number}"
        ip = ("ip", "-n", self.netns)
        run("ip", "-n", self.switch.netns, "link", "add", port, "type", "veth", "peer", "eth0", "netns", self.netns)
        run("ip", "-n", self.switch.netns, "link", "set", port, "master", "br0", "up")
        run(*ip, "link", "set", "lo", "up")
        run(*ip, "link", "set", "eth0", "up")
        run(*ip, "address", "add", f"{self.address}/24", "dev", "eth0")
        run(*ip, "route", "add", "default", "via", self.switch.address)

    def _remove_containers(self) -> None:
        def gone() -> bool:
            names = self.docker("ps", "--all", "--quiet").split()
            with suppress(DockerError):  # the appliance may be removing it too
                self.docker("rm", "--force", "--volumes", *names)
            return not names

        wait_until(gone, "all containers are removed", seconds=40)

    def _remove_files(self) -> None:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        places = [re.sub(r"\\040", " ", line.split()[1]) for line in mounts]
        for place in sorted((p for p in places if p.startswith(f"{self.root}/")), reverse=True):
            run("umount", "--lazy", place, check=False)
        shutil.rmtree(self.root, ignore_errors=True)
