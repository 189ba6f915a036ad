"""The Debian package in a clean Debian 12: installed, configured, upgraded, removed, purged, while containers run."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from debian import PrivilegedMachine, in_netns, slim_root, wheels
from machine import IMAGE, ROOT, Program, Switch, run, wait_until

from appliance import __version__, config

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

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
        self, *command: str | Path, netns: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, in a machine's network or, to fetch packages, in this computer's own."""
        network = ["nsenter", f"--net=/run/netns/{netns}"] if netns else []
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        return run(*network, *self.command(*command), check=check, env=env, timeout=200)

    def traces(self) -> set[str]:
        """Return everything that bears our name, but for what apt and dpkg write down of their own work."""
        found = run("find", self.root, "-xdev", "-iname", "*meshbox*").stdout.split()
        return {path for path in (p.removeprefix(str(self.root)) for p in found) if not path.startswith("/root/")}


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


def test_lintian_finds_no_errors(package: Path) -> None:
    """Nor warnings; the two things that are meant so are explained in packaging/deb/lintian-overrides."""
    done = run("lintian", "--allow-root", "--tag-display-limit=0", package, check=False)
    assert [line for line in done.stdout.splitlines() if line[:2] in {"E:", "W:"}] == []


def test_default_configuration_is_the_default(unpacked: Path, tmp_path: Path) -> None:
    """As it is installed the file sets nothing; with every option uncommented it is valid, and sets every one."""
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
            ["meshbox deploy FILE", "meshbox run", "meshbox cleanup", "meshbox why CLIENT DESTINATION"],
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
