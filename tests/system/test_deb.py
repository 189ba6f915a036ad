"""The Debian package in a clean Debian 12: installed, configured, upgraded, removed, purged, while containers run."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import signal
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from debian import Debian, PrivilegedMachine, client, example_answers, in_netns, wheels, world
from machine import IMAGE, ROOT, Program, Switch, run, wait_until
from typer.main import get_command

from appliance import __version__, config
from appliance.cli.commands import app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

BOOT = """
echo $$ >"$1/cgroup.procs"
exec unshare --mount --propagation private --pid --fork --kill-child --uts --ipc --cgroup sh -ec '
    mount --bind "$0" "$0"
    mount --rbind "$1" "$0/mnt"
    mount -t proc proc "$0/proc"
    mount -t sysfs -o ro sysfs "$0/sys"
    mount -t cgroup2 none "$0/sys/fs/cgroup"
    mount --rbind /dev "$0/dev"
    mount -t tmpfs tmpfs "$0/run"
    mkdir "$0/former"
    cd "$0"
    pivot_root . former
    umount -l /former
    container=test exec /lib/systemd/systemd --unit=multi-user.target
' "$0" "$2"
"""
"""Boots the root `$0` in the cgroup `$1`, with the folder `$2` at /mnt."""

COMMANDS: tuple[str, ...] = tuple(getattr(get_command(app), "commands"))  # noqa: B009 — typer has no type for it
DROP_IN = "[Service]\nWatchdogSec=5\n# What the test's computer may not do:\nLimitNOFILE=20000\nOOMScoreAdjust=0\n"


@pytest.fixture(scope="module")
def package() -> Path:
    """The package, built without any network from wheels alone."""
    env = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels()), "PIP_CONFIG_FILE": os.devnull}
    before = sorted(Path("/usr/lib").iterdir()), sorted(Path("/mnt").iterdir())
    run(ROOT / "packaging/deb/build.sh", env=env)
    assert (sorted(Path("/usr/lib").iterdir()), sorted(Path("/mnt").iterdir())) == before
    (built,) = (ROOT / "dist").glob(f"meshbox_{__version__}_*.deb")
    return built


@pytest.fixture(scope="module")
def unpacked(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is in the package."""
    folder = tmp_path_factory.mktemp("package")
    run("dpkg-deb", "--raw-extract", package, folder)
    return folder


@pytest.fixture
def machine(switch: Switch) -> Iterator[PrivilegedMachine]:
    """A machine of its own."""
    with PrivilegedMachine(switch, 9) as made:
        yield made


def test_build_installs_what_it_lacks(tmp_path: Path) -> None:
    """Where Python cannot make environments, `make deb` has apt-get bring that first, and names it to who may not."""
    for program in ("bash", "dirname", "sed", "sort", "touch", "id", "sh"):
        (tmp_path / program).symlink_to(shutil.which(program) or program)
    fakes = {
        "python3": f"#!/bin/sh\n[ \"$2\" != 'import ensurepip, venv' ] || [ -e {tmp_path}/installed ]\n",
        "apt-get": f"#!/bin/sh\n[ $1 = update ] || {{ echo $@; touch {tmp_path}/installed; }} >&2\n",
    }
    for program, text in fakes.items():
        (tmp_path / program).write_text(text)
        (tmp_path / program).chmod(0o755)
    command, env = (ROOT / "packaging/setup.sh", "--deb"), {"PATH": str(tmp_path), "PYTHON": "python3"}
    said = run(*command, env=env)
    assert said.stdout == "setup: installing python3-venv\n"
    assert (tmp_path / "installed").exists()
    assert run(*command, env=env).stdout == ""
    (tmp_path / "installed").unlink()
    (tmp_path / "id").unlink()
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    refused = run(*command, env=env, check=False)
    assert refused.returncode == 1
    assert "needs root to install: python3-venv" in refused.stderr


def test_lintian_finds_no_errors(package: Path) -> None:
    """Nor warnings; what is meant so is explained in packaging/deb/lintian-overrides."""
    done = run("lintian", "--allow-root", "--tag-display-limit=0", package, check=False)
    assert [line for line in done.stdout.splitlines() if line[:2] in {"E:", "W:"}] == []


def test_default_configuration_is_the_default(unpacked: Path, tmp_path: Path) -> None:
    """As it is installed the file sets nothing, and is root's, as it may get a token; each of its options is valid."""
    assert (unpacked / "etc/meshbox/meshbox.toml").stat().st_mode & 0o777 == 0o640
    text = (unpacked / "etc/meshbox/meshbox.toml").read_text()
    installed, whole = tmp_path / "installed.toml", tmp_path / "whole.toml"
    installed.write_text(text)
    assert config.load(str(installed), environment={}) == config.Config()
    names = re.findall(r"^#(\w+) = ", text, re.MULTILINE)
    assert names == [option.key.rpartition(".")[2] for option in config.options()]
    whole.write_text(
        re.sub(r"^#(token_file = .*\n)", "", text, flags=re.MULTILINE).replace("\n#", "\n").replace("\n ", "\n# ")
    )
    assert config.load(str(whole), environment={}).vip_range == config.Config().vip_range


def test_manuals_name_everything(unpacked: Path) -> None:
    """meshbox(1) has every command, meshbox.toml(5) every option, and man has nothing to complain of."""
    pages = unpacked / "usr/share/man"
    for page, words in (
        (
            "man1/meshbox.1.gz",
            ["meshbox deploy FILE", "meshbox why CLIENT DESTINATION", *(f"meshbox {name}" for name in COMMANDS)],
        ),
        ("man5/meshbox.toml.5.gz", [option.key for option in config.options()]),
    ):
        shown = gzip.decompress((pages / page).read_bytes()).decode().replace("\\-", "-")
        assert [word for word in words if word not in shown] == []
    for shell in (
        "bash-completion/completions/meshbox",
        "zsh/vendor-completions/_meshbox",
        "fish/vendor_completions.d/meshbox.fish",
    ):
        assert "_MESHBOX_COMPLETE" in (unpacked / "usr/share" / shell).read_text()


def test_life_of_an_installation(package: Path, unpacked: Path, machine: PrivilegedMachine, tmp_path: Path) -> None:
    """Install, configure, run, upgrade, remove, purge: containers go on all the time, and nothing is left then."""
    debian = Debian(tmp_path)
    former = older(package, unpacked, tmp_path / "root")
    shutil.copy(package, tmp_path / "root/meshbox.deb")
    untouched = debian.traces()
    debian("apt-get", "-qq", "install", "--no-install-recommends", f"/root/{former.name}")
    assert debian("meshbox", "--version").stdout.startswith(f"meshbox {__version__}")
    missing = debian("meshbox", "run", netns=machine.netns, check=False)
    assert missing.returncode == 1
    assert "docker_socket" in missing.stderr or "systemctl start docker" in missing.stderr

    settings = (
        f'docker_socket = "{machine.seen}{machine.socket}"\nnetns_dir = "{machine.seen}{machine.netns_dir}"\n'
        f'dns_upstreams = ["{machine.switch.address}"]\nnode = "{machine.node}"\n'
    )
    (tmp_path / "etc/meshbox/meshbox.toml").write_text(settings)
    appliance = start(debian, machine, unpacked)
    machine.run_container("server", IMAGE, service="far", container="server", ports="7000")
    machine.run_container("client", IMAGE, service="near", container="client", connect_to="server.far")
    address = wait_until(lambda: answers(machine), "the client reaches the server")
    started = {name: machine.inspect(name)["State"]["StartedAt"] for name in machine.containers()}

    said = debian("dpkg", "--install", "/root/meshbox.deb", netns=machine.netns).stdout
    assert f"former version still runs (pid {appliance.pid})" in said
    assert (tmp_path / "etc/meshbox/meshbox.toml").read_text() == settings
    assert answers(machine) == address
    assert appliance.stop() == 0
    appliance = start(debian, machine, unpacked)
    assert wait_until(lambda: answers(machine), "the client reaches the server again") == address

    assert (
        "rules of this host\nremoved: rules in 2 containers"
        in debian("dpkg", "--remove", "meshbox", netns=machine.netns).stdout
    )
    assert appliance.stop() == 0
    tables = [
        machine.exec("nft", "list", "tables"),
        *(machine.exec_in(name, "nft", "list", "tables") for name in started),
    ]
    assert [table.stdout for table in tables if "meshbox" in table.stdout] == []
    assert {name: machine.inspect(name)["State"]["StartedAt"] for name in machine.containers()} == started
    assert (tmp_path / "var/lib/meshbox/state.json").exists()
    assert not (tmp_path / "usr/lib/meshbox").exists()

    debian("dpkg", "--purge", "meshbox", netns=machine.netns)
    assert debian.traces() == untouched


def test_from_nothing_to_names_and_back(package: Path, machine: PrivilegedMachine, tmp_path: Path) -> None:
    """By the README's commands the example answers by name, and then everything is as before, containers running."""
    debian = Debian(tmp_path)
    client(machine)
    before, untouched = world(machine), debian.traces()
    shutil.copy(package, tmp_path / "root")
    debian("apt", "install", "-y", f"/root/{package.name}")
    shutil.copy(ROOT / "examples/app.py", tmp_path / "root/app.py")
    (tmp_path / "etc/meshbox/meshbox.toml").write_text(
        f'docker_socket = "{machine.seen}{machine.socket}"\nnetns_dir = "{machine.seen}{machine.netns_dir}"\n'
        f'dns_upstreams = ["{machine.switch.address}"]\n'
    )
    appliance = Program(machine.netns, debian.command("meshbox", "run"), machine.root / "meshbox.log")
    wait_until(lambda: '"ready"' in appliance.tail(), "it is ready")
    debian("meshbox", "check", netns=machine.netns)
    debian("meshbox", "deploy", "/root/app.py", netns=machine.netns)
    example_answers(machine)
    debian("meshbox", "remove", "flask", "orange", netns=machine.netns)
    debian("apt", "purge", "-y", "meshbox", netns=machine.netns)
    assert appliance.stop() == 0
    assert world(machine) == before
    assert debian.traces() == untouched


def test_from_source_and_back(machine: PrivilegedMachine, tmp_path: Path) -> None:
    """So it is from source: `make setup`, `.venv/bin/meshbox`, `meshbox cleanup`, `make clean`."""
    debian = Debian(tmp_path)
    client(machine)
    before, untouched = world(machine), debian.traces()
    (tmp_path / "srv/source").mkdir()
    tracked = run("git", "-C", ROOT, "ls-files", "-z").stdout.rstrip("\0").replace("\0", "\n")
    archive = ("tar", "--create", f"--directory={ROOT}", "--files-from=-", f"--file={tmp_path}/srv/source.tar")
    run(*archive, input=tracked)
    run("tar", "--extract", f"--file={tmp_path}/srv/source.tar", f"--directory={tmp_path}/srv/source")
    debian("apt-get", "-qq", "install", "--no-install-recommends", "make")
    # This computer's own authorities, which installing ca-certificates would otherwise replace.
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", tmp_path / "srv/authorities.crt")
    debian("env", "PIP_CERT=/srv/authorities.crt", "make", "-C", "/srv/source", "setup", timeout=280)
    settings = {
        "MESHBOX_DOCKER_SOCKET": f"{machine.seen}{machine.socket}",
        "MESHBOX_NETNS_DIR": f"{machine.seen}{machine.netns_dir}",
        "MESHBOX_DNS_UPSTREAMS": machine.switch.address,
    }
    meshbox = ("env", *(f"{key}={value}" for key, value in settings.items()), "/srv/source/.venv/bin/meshbox")
    appliance = Program(machine.netns, debian.command(*meshbox, "run"), machine.root / "meshbox.log")
    wait_until(lambda: '"ready"' in appliance.tail(), "it is ready")
    debian(*meshbox, "check", netns=machine.netns)
    debian(*meshbox, "deploy", "/srv/source/examples/app.py", netns=machine.netns)
    example_answers(machine)
    debian(*meshbox, "remove", "flask", "orange", netns=machine.netns)
    assert appliance.stop() == 0
    debian(*meshbox, "cleanup", "--state", netns=machine.netns)
    assert world(machine) == before
    debian("make", "-C", "/srv/source", "clean")
    left = {path for path in debian.traces() if not path.startswith("/srv/source")}
    assert left == untouched
    assert not (tmp_path / "srv/source/.venv").exists()


def test_service_under_systemd(package: Path, machine: PrivilegedMachine, tmp_path: Path) -> None:
    """It starts at boot within the unit's sandbox, is started again when it hangs, and ends with the package."""
    debian = Debian(tmp_path)
    shutil.copy(package, tmp_path / "root/meshbox.deb")
    debian(
        "apt-get",
        "-qq",
        "install",
        "--no-install-recommends",
        "systemd",
        "dbus",
        "systemd-resolved",
        "/root/meshbox.deb",
    )
    (tmp_path / "etc/meshbox/meshbox.toml").write_text(
        'docker_socket = "/mnt/docker.sock"\nnetns_dir = "/mnt/exec/netns"\n'
        f'dns_upstreams = ["{machine.switch.address}"]\nhost_access = true\nhost_connect_to = ["server.far"]\n'
    )
    (tmp_path / "etc/systemd/system/meshbox.service.d").mkdir()
    (tmp_path / "etc/systemd/system/meshbox.service.d/test.conf").write_text(DROP_IN)
    # Their namespaces must be there before: the test's computer does not pass mounts on.
    machine.run_container("server", IMAGE, service="far", container="server", ports="7000")
    machine.run_container("client", IMAGE, service="near", container="client", connect_to="server.far")
    with booted(tmp_path, machine) as inside:

        def shown(name: str) -> str:
            return inside("systemctl", "show", "meshbox", "--value", "--property", name).stdout.strip()

        wait_until(lambda: shown("ActiveState") == "active", "the service runs", seconds=40)
        wait_until(lambda: answers(machine), "the client reaches the server")
        call = "import socket; print(socket.create_connection(('server.far', 7000), 5).recv(100).decode())"
        assert inside("python3", "-c", call).stdout.split()[0] == machine.inspect("server")["Config"]["Hostname"]
        assert "~server.far" in inside("resolvectl", "domain").stdout
        inside("systemctl", "kill", "--kill-whom=main", "--signal=STOP", "meshbox")
        again = ("1", "active")
        wait_until(lambda: (shown("NRestarts"), shown("ActiveState")) == again, "it is started again", seconds=60)
        wait_until(lambda: answers(machine), "the client reaches the server again")
        assert "rules in 2 containers" in inside("dpkg", "--remove", "meshbox").stdout
        assert shown("ActiveState") == "inactive"
        assert "~server.far" not in inside("resolvectl", "domain").stdout
        assert inside("ip", "route", "show", "dev", "lo").stdout == ""
    assert "meshbox" not in machine.exec_in("client", "nft", "list", "tables").stdout


@contextmanager
def booted(root: Path, machine: PrivilegedMachine) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Boot a root file system in namespaces and a cgroup of its own; give what runs commands there."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    cgroup = Path(next(place for _, place, kind, *_ in mounts if kind == "cgroup2")) / f"meshbox-test-{os.getpid()}"
    cgroup.mkdir()
    program = Program(machine.netns, ("sh", "-ec", BOOT, root, cgroup, machine.root), machine.root / "systemd.log")
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children")
    try:
        first = wait_until(lambda: children.read_text().split(), "systemd is started")[0]
        enter = ("nsenter", f"--target={first}", "--mount", "--pid", "--net", "--uts", "--ipc")
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        state = (*enter, "systemctl", "is-system-running")
        up = {"running", "degraded"}  # the latter, since the test's computer refuses some of systemd's own units
        wait_until(lambda: run(*state, check=False, env=env).stdout.strip() in up, "it is booted", seconds=60)
        yield lambda *command: run(*enter, *command, env=env)
    finally:
        program.stop(signal.SIGKILL)
        for folder in sorted((path for path in cgroup.rglob("*") if path.is_dir()), reverse=True):
            wait_until(lambda folder=folder: not (folder / "cgroup.procs").read_text(), f"{folder} is empty")
            folder.rmdir()
        wait_until(lambda: not (cgroup / "cgroup.procs").read_text(), "the cgroup is empty")
        cgroup.rmdir()


def older(package: Path, unpacked: Path, folder: Path) -> Path:
    """Make the same package with a lower version."""
    control = unpacked / "DEBIAN/control"
    text = control.read_text()
    control.write_text(text.replace(f"Version: {__version__}\n", "Version: 0.0.1\n"))
    try:
        made = folder / package.name.replace(__version__, "0.0.1")
        run("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", unpacked, made)
    finally:
        control.write_text(text)
    return made


def start(debian: Debian, machine: PrivilegedMachine, unpacked: Path) -> Program:
    """Start the appliance as systemd would, with the rights that its unit gives it, until it says that it is ready."""
    unit = (unpacked / "lib/systemd/system/meshbox.service").read_text()
    rights = re.findall(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)[0].lower().replace("cap_", "+").split()
    name = f"meshbox-test-{os.getpid()}"
    with in_netns(machine.netns, lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(30)
        command = ("setpriv", f"--bounding-set=-all,{','.join(rights)}", "--no-new-privs", "meshbox", "run")
        env = {"NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": "30000000"}
        appliance = Program(machine.netns, debian.command(*command), machine.root / "meshbox.log", env)
        try:
            assert {manager.recv(100).decode() for _ in range(2)} == {"READY=1", "WATCHDOG=1"}
        except TimeoutError:
            raise AssertionError(f"not ready:\n{appliance.tail()}") from None
    return appliance


def answers(machine: PrivilegedMachine) -> str | None:
    """Return the server's virtual address if the client reaches it by name."""
    (result,) = machine.client("client", "tcp", "server.far", "7000", "1")
    found = machine.client("client", "resolve", "server.far").get("addresses", [])
    return found[0] if found and result.get("answer") else None
