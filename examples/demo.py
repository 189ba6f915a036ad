"""`make demo`: the example on this machine's Docker, from nothing to answers by name and back to nothing.

Uses the Docker Engine that runs here; where none does, it starts one and stops it again. The appliance gets state
and run directories of its own, and the defaults for everything else. Ends with 0 only if all that it shows was
checked and holds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from docker_traces import Traces
from stand_ins import BASE, STAND_INS, Docker, DockerError, load

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parent.parent
APP = ROOT / "examples/app.py"
MESHBOX = ROOT / ".venv/bin/meshbox"
SERVICES = ("flask", "orange")
CLIENT = "meshbox-demo-client"
NETWORK = "meshbox"
PYTHON = "python:3.11-slim"
NEVER = threading.Event()

# Run inside a container: each prints one line per answer.
HTTP = """
import http.client
for _ in range({count}):
    connection = http.client.HTTPConnection("flask.flask", 8080, timeout=5)
    connection.request("GET", "/")
    response = connection.getresponse()
    print(response.status, response.read().decode().strip().splitlines()[0])
"""
REDIS = """
import socket
for _ in range({count}):
    with socket.create_connection(("redis.flask", 8080), 5) as connection:
        connection.sendall(b"INFO server\\r\\nQUIT\\r\\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    print(next(line for line in answer.splitlines() if line.startswith("run_id:")))
"""
UDP = """
import socket
with socket.socket(type=socket.SOCK_DGRAM) as s:
    s.settimeout(5)
    s.connect(("apple.orange", 8080))
    s.send(b"heard over UDP")
    print(s.recv(1000).decode())
"""
REFUSED = """
import socket
try:
    socket.create_connection(("{address}", 8080), 5)
    print("connected")
except OSError as error:
    print(error)
"""


class Failure(Exception):  # noqa: N818 — what it is
    """The demo did not show what it should; the text says what."""


class Engine:
    """The Docker Engine: the one that runs, or one of our own for as long as the demo lasts."""

    def __init__(self) -> None:
        self.docker = Docker()
        self.settings: dict[str, str] = {}
        self._traces: Traces | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._root = ROOT / "build/demo-docker"

    def start(self) -> None:
        """Find it or start it."""
        try:
            say(f"using the Docker Engine that runs here, {self.docker('version', '--format', '{{.Server.Version}}')}")
        except DockerError:
            say("no Docker Engine runs here: starting one, for this demo only")
        else:
            return
        self._traces = Traces()
        # Docker's sockets need short paths.
        run = tempfile.mkdtemp(prefix="meshbox-demo-", dir="/run")
        socket = Path(run, "docker.sock")
        self._root.mkdir(parents=True, exist_ok=True)
        with (self._root / "dockerd.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *("dockerd", "--host", f"unix://{socket}", "--data-root", str(self._root / "data")),
                    *("--exec-root", f"{run}/exec", "--pidfile", f"{run}/docker.pid", "--log-level", "warn"),
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.docker = Docker(socket)
        self.settings = {"MESHBOX_DOCKER_SOCKET": str(socket), "MESHBOX_NETNS_DIR": f"{run}/exec/netns"}
        wait_until(self._answers, "the Docker Engine answers", 60)
        if containers := self.docker("ps", "--all", "--quiet"):  # of a demo that was killed: this engine runs no others
            self.docker("rm", "--force", "--volumes", *containers.split())

    def stop(self) -> None:
        """Stop it if it is ours, and take back what it did to the host."""
        if self._process is None or self._traces is None:
            return
        self._process.terminate()
        self._process.wait(60)
        self._traces.take_back()
        run = Path(self.settings["MESHBOX_DOCKER_SOCKET"]).parent
        subprocess.run(["rm", "-rf", "--one-file-system", str(run)], check=False, capture_output=True)
        say("stopped the Docker Engine that the demo had started")

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            log = (self._root / "dockerd.log").read_text(errors="replace")
            raise Failure(f"dockerd ended:\n{log}")
        try:
            self.docker("version")
        except DockerError:
            return False
        return True


class Appliance:
    """`meshbox run` with directories of its own, and the command line to it."""

    def __init__(self, directory: Path, settings: dict[str, str]) -> None:
        self._log = directory / "meshbox.log"
        # What this machine's own appliance is told, by file or variables, is not meant for this one.
        others = {name: value for name, value in os.environ.items() if not name.startswith("MESHBOX_")}
        own = {"MESHBOX_RUN_DIR": str(directory / "run"), "MESHBOX_STATE_DIR": str(directory / "state")}
        self._env = {"COLUMNS": "120", **others, "MESHBOX_CONFIG": os.devnull, **own, **settings}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(MESHBOX), "run"], stdout=log, stderr=log, env=self._env, start_new_session=True
            )

    def wait(self) -> None:
        """Wait until it answers."""
        wait_until(self._answers, "the appliance answers", 30)

    def stop(self) -> None:
        """End it as a service manager does."""
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(60)
        if status:
            raise Failure(f"the appliance ended with {status}:\n{self._log.read_text()}")

    def show(self, *args: str) -> str:
        """Show a command and what it says."""
        print(f"\n$ meshbox {' '.join(args).replace(f'{ROOT}/', '')}", flush=True)
        done = self.command(*args)
        print(done.stdout.rstrip(), flush=True)
        if done.returncode and args[0] != "why":  # why ends with 1 where the way ends
            raise Failure(f"meshbox {args[0]} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def command(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        return subprocess.run([str(MESHBOX), *args], env=self._env, capture_output=True, text=True, check=False)

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise Failure(f"the appliance ended:\n{self._log.read_text()}")
        return self.command("services", "--json").returncode == 0


def say(text: str) -> None:
    """Tell what happens."""
    print(f"· {text}", flush=True)


def step(text: str) -> None:
    """Begin a chapter."""
    print(f"\n── {text} {'─' * max(3, 100 - len(text))}", flush=True)


def expect(truth: object, text: str) -> None:
    """Say what was seen. Raises Failure where it was not."""
    if not truth:
        raise Failure(f"this was not so: {text}")
    print(f"✓ {text}", flush=True)


def wait_until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    """Poll. Raises Failure after that many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Failure(f"after {seconds:.0f} s still not: {what}")
        NEVER.wait(0.1)


def provide_images(docker: Docker, undo: ExitStack) -> None:
    """Pull what is not there; build stand-ins of what cannot be pulled, for as long as the demo lasts."""
    wanted = {}
    for name, stand_in in STAND_INS.items():
        if docker.has_image(name):
            continue
        say(f"pulling {name}")
        try:
            docker("pull", "--quiet", name)
        except DockerError as error:
            say(f"it cannot be pulled ({str(error).splitlines()[-1]})")
            wanted[name] = stand_in
    if wanted:
        say(f"building stand-ins of the same names from Debian packages: {', '.join(wanted)}")
        undo.callback(lambda: docker("rmi", "--force", *wanted, BASE))
        load(docker, wanted)


def run_inside(docker: Docker, container: str, program: str) -> list[str]:
    """Run Python in a container and return the lines that it printed."""
    return docker("exec", container, "python3", "-c", program).splitlines()


def show_answers(docker: Docker, meshbox: Appliance) -> None:
    """Show requests by name, and how they spread."""
    step("Requests by name, from inside a container that declared what it may reach")
    answers = run_inside(docker, CLIENT, HTTP.format(count=100))
    good = sum(answer.startswith("200 ") for answer in answers)
    expect(good == 100, f"{good} of 100 requests succeed: http://flask.flask:8080/ answers: {answers[0]}")
    answers = run_inside(docker, CLIENT, UDP)
    expect("heard over UDP" in answers[0], f"apple.orange:8080/udp answers: {answers[0]}")
    count = 200
    spread = Counter(run_inside(docker, CLIENT, REDIS.format(count=count)))
    for replica, seen in spread.items():
        print(f"  {replica}  {'█' * (seen // 4)} {seen}")
    lot = 0.3 * count
    expect(len(spread) == 2 and min(spread.values()) > lot, f"{count} connections to redis.flask:8080 met two replicas")
    meshbox.show("routes")


def show_refusal(docker: Docker, meshbox: Appliance) -> None:
    """Show that what was not declared is refused, and that the reason can be asked for."""
    step("apple.orange declared no connect_to: it cannot reach redis.flask:8080")
    address = run_inside(docker, CLIENT, "import socket; print(socket.gethostbyname('redis.flask'))")[0]
    apple = docker("ps", "--quiet", "--filter", "label=meshbox.service=orange")
    answer = run_inside(docker, apple, REFUSED.format(address=address))[0]
    expect("refused" in answer, f"inside apple.orange, connect to {address}:8080: {answer}")
    reason = meshbox.show("why", "apple.orange", "redis.flask:8080")
    expect("connect_to" in reason, "the reason names what to write")


def demo() -> None:
    """Show it all. Raises Failure."""
    with ExitStack() as undo:
        step("Docker and images")
        engine = Engine()
        undo.callback(engine.stop)
        engine.start()
        check_free(engine.docker)
        provide_images(engine.docker, undo)

        step("The appliance")
        directory = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="meshbox-demo-")))
        meshbox = Appliance(directory, engine.settings)
        undo.callback(meshbox.stop)
        meshbox.wait()
        say("`meshbox run` is ready")

        undo.callback(remove_services, engine.docker, meshbox)
        meshbox.show("deploy", str(APP))
        meshbox.show("services")
        undo.callback(engine.docker, "rm", "--force", "--volumes", CLIENT)
        start_client(engine.docker)
        meshbox.show("workloads")
        show_answers(engine.docker, meshbox)
        show_refusal(engine.docker, meshbox)
        step("Clean up")
    left = leftovers()
    expect(not left, f"nothing is left behind{left}")


def start_client(docker: Docker) -> None:
    """Start a container as anybody would, with labels; it joins the mesh."""
    labels = ("service=demo", "container=client", "connect_to=flask.flask:8080,redis.flask:8080,apple.orange:8080")
    say("starting a client with `docker run --label meshbox.service=demo …`: a container that meshbox did not create")
    docker(
        *("run", "--detach", "--init", "--name", CLIENT),
        *(f"--label=meshbox.{label}" for label in labels),
        *(PYTHON, "sleep", "600"),
    )


def check_free(docker: Docker) -> None:
    """Raise Failure where the demo's appliance would take over containers that are not the demo's."""
    if found := in_docker(docker):
        words = "this Docker has containers or a network of the mesh, which the demo would take over"
        raise Failure(f"{words}: {', '.join(found)}; remove them first, or run the demo on another machine")


def in_docker(docker: Docker) -> list[str]:
    """Return the containers of the mesh, the client and the network, by name."""
    names = {
        *docker("ps", "--all", "--format={{.Names}}", "--filter=label=meshbox.service").split(),
        *docker("ps", "--all", "--format={{.Names}}", f"--filter=name=^{CLIENT}$").split(),
    }
    networks = docker("network", "ls", "--format={{.Name}}", f"--filter=name=^{NETWORK}$").split()
    return [*sorted(names), *(f"network {name}" for name in networks)]


def remove_services(docker: Docker, meshbox: Appliance) -> None:
    """Remove what was deployed, as anybody would. Raises Failure when that does not work or leaves something."""
    for service in SERVICES:
        done = meshbox.command("remove", service)
        say(f"meshbox remove {service}")
        if done.returncode and "is deployed" not in done.stderr:  # the demo ended before it was
            raise Failure(f"meshbox remove {service} ended with {done.returncode}: {done.stderr.strip()}")
    wait_until(lambda: not in_docker(docker), "no container and no network is left in Docker", 20)


def leftovers() -> str:
    """Return what of ours the host still has, or nothing."""
    rules = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False).stdout
    links = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=False).stdout
    return ", ".join(line for line in (rules + links).splitlines() if "meshbox" in line)


def main() -> int:
    """Run it and say how it went."""
    if os.geteuid() != 0:
        print("The demo needs root: it starts containers and enters their network namespaces.", file=sys.stderr)
        return 1
    try:
        demo()
    except (Failure, DockerError, subprocess.SubprocessError) as error:
        if isinstance(error.__context__, Failure | DockerError):  # what went wrong first, before cleaning up did too
            print(f"\n✗ {error.__context__}", file=sys.stderr)
        print(f"\n✗ {error}", file=sys.stderr)
        return 1
    print("\nEverything above was checked, and holds.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
