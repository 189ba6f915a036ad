"""The Debian package in a clean Debian 12: installed, configured, upgraded, removed, purged, while containers run."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from computer import SYSTEMD_WORK, Computer, booted, drop_in, without_limits
from debian import (
    COMPILED,
    EXAMPLE,
    Debian,
    Outlet,
    PrivilegedMachine,
    by_way_of,
    clean_clone,
    client,
    example_answers,
    in_netns,
    wheels,
    world,
)
from documents import documented, quoted
from machine import IMAGE, IMAGES, ROOT, Program, Switch, run, wait_until
from stand_ins import STAND_INS, load
from test_bad_host import occupied
from typer.main import get_command

from appliance import __version__
from appliance.cli.commands import app
from appliance.config import options as config

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

COMMANDS: tuple[str, ...] = tuple(getattr(get_command(app), "commands"))  # noqa: B009 — typer has no type for it
ENABLED = "/var/lib/systemd/deb-systemd-helper-enabled"
OF_DEBIAN = re.compile(r"/etc/g(roup|shadow)-?|/run/adduser|/var/lib/dpkg/info/.*|/var/cache/debconf/.*-old")
"""What purging any package leaves: Docker's group, as Debian never removes one, and notes of dpkg and debconf."""
OF_DOCKER = re.compile(r"/(etc/(cni|docker)|var/lib/(containerd|docker))(/|$)")
"""What purging Docker leaves."""
STANDARD = ("dbus-user-session", "gettext-base", "libnss-systemd", "libpam-systemd", "systemd-sysv", "xz-utils")
"""What computers with Debian have, and would keep if it came with Docker: their other packages recommend it."""
HAD = "iproute2 nftables"
"""What most computers have. Then dpkg configures meshbox before Docker, which has to wait for more."""
LIMIT = 5
"""How often systemd starts a unit within its interval, where that does not say otherwise."""
DROP_IN = "[Service]\nWatchdogSec=5\n# What the test's computer may not do:\nLimitNOFILE=20000\nOOMScoreAdjust=0\n"


WHEELS = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
"""With PIP_FIND_LINKS, what builds without any network."""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make deb` builds in a clean clone."""
    source = clean_clone(tmp_path_factory.mktemp("deb") / "meshbox")

    def here() -> tuple[object, ...]:
        changed = run("git", "-C", source, "status", "--porcelain", "--untracked-files").stdout
        return sorted(Path("/usr/lib").iterdir()), sorted(Path("/mnt").iterdir()), changed

    before = here()
    settings = {**WHEELS, "PIP_FIND_LINKS": str(wheels())}
    run("make", "-C", source, "deb", env={**os.environ, **settings}, timeout=280)
    assert here() == before
    (built,) = (source / "dist").glob(f"meshbox_{__version__}_*.deb")
    return built


def version_of(package: Path) -> str:
    """Return what `meshbox --version` says of a package that a clone has in dist."""
    commit = run("git", "-C", package.parents[1], "rev-parse", "--short", "HEAD").stdout
    return f"meshbox {__version__} ({commit.strip()})\n"


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as its first commit built it. Versions were not counted then, so it gets a lower one."""
    first = run(
        "git", "-C", ROOT, "log", "--diff-filter=A", "--format=%H", "--", "packaging/deb/build.sh"
    ).stdout.split()
    assert first, "the history of this checkout does not reach back to the first package: git fetch --unshallow"
    folder = tmp_path_factory.mktemp("former")
    run("git", "-C", ROOT, "archive", f"--output={folder}/source.tar", first[-1])
    run("tar", "--extract", f"--file={folder}/source.tar", f"--directory={folder}")
    version = folder / "appliance/__init__.py"
    version.write_text(re.sub(r'(?m)^__version__ = ".*"', '__version__ = "0.0.1"', version.read_text()))
    settings = {**WHEELS, "PIP_FIND_LINKS": str(wheels())}
    run(folder / "packaging/deb/build.sh", env={**os.environ, **settings}, timeout=280)
    (built,) = (folder / "dist").glob("meshbox_0.0.1_*.deb")
    return built


@pytest.fixture(scope="module")
def unpacked(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is in the package."""
    folder = tmp_path_factory.mktemp("package")
    run("dpkg-deb", "--raw-extract", package, folder)
    return folder


class Passing(PrivilegedMachine):
    """A machine whose engine mounts namespaces where others see it."""

    def start_docker(self) -> None:
        """Start it below a mount that is shared."""
        place = self.root / "exec"
        place.mkdir()
        run("mount", "--bind", "--make-shared", place, place)
        super().start_docker()


@pytest.fixture(scope="module")
def host(switch: Switch) -> Iterator[PrivilegedMachine]:
    """A machine for all."""
    with Passing(switch, 9) as made:
        yield made


@pytest.fixture
def machine(host: PrivilegedMachine) -> Iterator[PrivilegedMachine]:
    """The machine; an appliance that still runs there is ended afterwards, and containers are removed."""
    yield host
    host.stop(signal.SIGKILL)
    host.clear()
    host.docker("network", "prune", "--force")


@pytest.fixture(scope="module")
def needed(unpacked: Path) -> list[str]:
    """The packages that ours depends on."""
    (line,) = re.findall(r"^Depends: (.*)$", (unpacked / "DEBIAN/control").read_text(), re.MULTILINE)
    return sorted({part.split()[0] for part in line.split(",")})


def test_build_installs_what_it_lacks(tmp_path: Path) -> None:
    """`make deb` first has apt-get install compilers and Python's venv, or names them to a user that may not."""
    for program in ("bash", "dirname", "sed", "sort", "ln", "id", "sh", "mkdir"):
        (tmp_path / program).symlink_to(shutil.which(program) or program)
    fakes = {
        "python3": f"#!/bin/sh\ncase $2 in *ensurepip*|*Python.h*) [ -e {tmp_path}/gcc ] ;; esac\n",
        "apt-get": f"#!/bin/sh\n[ $1 = update ] || {{ echo $@; ln -s sh {tmp_path}/gcc; }} >&2\n",
    }
    for program, text in fakes.items():
        (tmp_path / program).write_text(text)
        (tmp_path / program).chmod(0o755)
    script = tmp_path / "clone/packaging/setup.sh"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / "packaging/setup.sh", script)
    command, env = (script, "--deb"), {"PATH": str(tmp_path), "PYTHON": "python3"}
    said = run(*command, env=env)
    assert said.stdout == "setup: installing gcc python3-dev python3-venv\n"
    assert (tmp_path / "gcc").exists()
    assert (tmp_path / "clone/build/installed-packages").read_text() == "gcc\npython3-dev\npython3-venv\n"
    assert run(*command, env=env).stdout == ""
    (tmp_path / "gcc").unlink()
    (tmp_path / "id").unlink()
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    refused = run(*command, env=env, check=False)
    assert refused.returncode == 1
    assert "needs root to install: gcc python3-dev python3-venv" in refused.stderr


def test_lintian_finds_no_errors(package: Path) -> None:
    """Nor warnings; what is meant so is explained in packaging/deb/lintian-overrides, and is no error either."""
    lintian = ("lintian", "--allow-root", "--tag-display-limit=0")
    done = run(*lintian, package, check=False)
    assert [line for line in done.stdout.splitlines() if line[:2] in {"E:", "W:"}] == []
    overridden = run(*lintian, "--no-override", package, check=False).stdout.splitlines()
    assert [line for line in overridden if line.startswith("E:")] == []
    assert [line for line in overridden if line.startswith("W:")] != []


def test_the_service_is_as_closed_as_documented(unpacked: Path) -> None:
    """By the judgement of systemd itself, and each of its capabilities is explained."""
    unit = unpacked / "lib/systemd/system/meshbox.service"
    said = run("systemd-analyze", "security", "--offline=yes", "--no-pager", unit).stdout
    (exposure,) = quoted(r"`systemd-analyze security meshbox` shows an exposure of ([0-9.]+);")
    assert f"exposure level for meshbox.service: {exposure} " in said.splitlines()[-1]
    (rights,) = re.findall(r"^CapabilityBoundingSet=(.*)$", unit.read_text(), re.MULTILINE)
    explained = re.findall(r"^\| `(CAP_\w+)` \|", (ROOT / "docs/guide/operating.md").read_text(), re.MULTILINE)
    assert sorted(rights.split()) == sorted(explained)


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
        formatted = ("--warnings", "--local-file", "--encoding=UTF-8", "-Tutf8", "--ditroff", pages / page)
        assert run("man", *formatted, env={**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "80"}).stderr == ""
    for shell in (
        "bash-completion/completions/meshbox",
        "zsh/vendor-completions/_meshbox",
        "fish/vendor_completions.d/meshbox.fish",
    ):
        assert "_MESHBOX_COMPLETE" in (unpacked / "usr/share" / shell).read_text()


BASH = r"""
source /usr/share/bash-completion/completions/meshbox
COMP_WORDS=(meshbox "$@") COMP_CWORD=$#
"$(complete -p meshbox | sed 's/.*-F \([^ ]*\).*/\1/')" meshbox "${!#}" ""
printf '%s\n' "${COMPREPLY[@]}"
"""
ZSH = r"""
zmodload zsh/zpty
zpty shell "TERM=dumb zsh -f -i"
zpty -w shell 'autoload -U compinit; compinit -u'
zpty -n -w shell "meshbox $*"$'\t'
zpty -r -m shell shown "*$EXPECTED*"
print -r -- $shown
"""
"""Types the words into a terminal, then TAB, and reads until what is expected is shown."""


def test_completion_in_shells(package: Path, tmp_path: Path) -> None:
    """In bash, zsh and fish commands and options are completed."""
    debian = Debian(tmp_path)
    shutil.copy(package, tmp_path / "root/meshbox.deb")
    shells = ("bash", "zsh", "fish")
    debian("apt-get", "-qq", "install", "--no-install-recommends", *shells, "/root/meshbox.deb")
    for words, expected in (("dep", "deploy"), ("services --js", "--json"), ("services --", "--json")):
        assert expected in debian("bash", "-c", BASH, "bash", *words.split()).stdout.splitlines()
        assert expected in debian("env", f"EXPECTED={expected}", "zsh", "-c", ZSH, "zsh", *words.split()).stdout
        shown = debian("fish", "-c", 'complete -C "meshbox $argv"', *words.split()).stdout
        assert expected in [line.partition("\t")[0] for line in shown.splitlines()]


def test_life_of_an_installation(
    package: Path, former: Path, needed: list[str], unpacked: Path, machine: PrivilegedMachine, tmp_path: Path
) -> None:
    """Install, run, upgrade from the first version, remove, purge: containers go on, and every file is as before."""
    debian = Debian(tmp_path)
    shutil.copy(package, tmp_path / "root/meshbox.deb")
    shutil.copy(former, tmp_path / "root/former.deb")
    debian("apt-get", "-qq", "install", "--no-install-recommends", *needed)
    untouched = debian.contents()
    debian("apt-get", "-qq", "install", "--no-install-recommends", "/root/former.deb")
    assert debian("meshbox", "--version").stdout.startswith("meshbox 0.0.1")
    missing = debian("meshbox", "run", netns=machine.netns, check=False)
    assert missing.returncode == 1
    assert "docker_socket" in missing.stderr or "systemctl start docker" in missing.stderr

    settings = (
        f'docker_socket = "{machine.seen}{machine.socket}"\nnetns_dir = "{machine.seen}{machine.netns_dir}"\n'
        f'dns_upstreams = ["{machine.switch.address}"]\nnode = "{machine.node}"\n'
    )
    (tmp_path / "etc/meshbox/meshbox.toml").write_text(settings)
    (tmp_path / "srv/app.py").write_text(
        f"far = service('far', containers=[container('server', image='{IMAGE}', ports=[7000])])"
    )
    appliance = start(debian, machine, unpacked)
    debian("meshbox", "deploy", "/srv/app.py", netns=machine.netns)
    machine.run_container("client", IMAGE, service="near", container="client", connect_to="server.far")
    address = wait_until(lambda: answers(machine), "the client reaches the server")
    names = sorted(machine.containers())
    started = {name: (machine.inspect(name)["Id"], machine.inspect(name)["State"]["StartedAt"]) for name in names}
    assert len(started) == 2

    said = debian("dpkg", "--force-confold", "--install", "/root/meshbox.deb", netns=machine.netns).stdout
    assert f"former version still runs (pid {appliance.pid})" in said
    assert debian("meshbox", "--version").stdout == version_of(package)
    assert debian("/usr/lib/meshbox/bin/python", "-c", COMPILED).stdout.split() == [".so"] * 2
    assert (tmp_path / "etc/meshbox/meshbox.toml").read_text() == settings
    assert answers(machine) == address
    assert appliance.stop() == 0
    appliance = start(debian, machine, unpacked)
    assert wait_until(lambda: answers(machine), "the client reaches the server again") == address
    assert sorted(machine.containers()) == names
    for words in ("cap_drop none → NET_RAW", "= service far: unchanged"):  # a deploy drops it, an upgrade does not
        assert words in debian("meshbox", "deploy", "/srv/app.py", netns=machine.netns).stdout
    names = sorted(machine.containers())
    started = {name: (machine.inspect(name)["Id"], machine.inspect(name)["State"]["StartedAt"]) for name in names}
    assert len(started) == 2
    (tmp_path / "srv/app.py").unlink()

    said = debian("dpkg", "--remove", "meshbox", netns=machine.netns).stdout
    assert f"waiting until pid {appliance.pid} has drained" in said
    assert "rules of this host\nremoved: rules in 2 containers" in said
    assert appliance.stop() == 0
    tables = [
        machine.exec("nft", "list", "tables"),
        *(machine.exec_in(name, "nft", "list", "tables") for name in started),
    ]
    assert [table.stdout for table in tables if "meshbox" in table.stdout] == []
    after = {name: (machine.inspect(name)["Id"], machine.inspect(name)["State"]["StartedAt"]) for name in names}
    assert after == started
    kept = debian.contents()
    assert {path: kept.get(path) for path in untouched} == untouched
    assert {path for path in kept if path not in untouched and not path.startswith("/var/lib/dpkg/info/")} == {
        # For the next installation. What is for systemd stays everywhere in Debian until it is purged.
        *("/var/lib/meshbox", "/var/lib/meshbox/state.json"),
        *("/etc/meshbox", "/etc/meshbox/meshbox.toml", "/etc/meshbox/meshbox.toml.dpkg-dist"),
        *(f"{ENABLED}/multi-user.target.wants/meshbox.service", f"{ENABLED}/meshbox.service.dsh-also"),
        "/etc/systemd/system/multi-user.target.wants/meshbox.service",
    }

    debian("dpkg", "--purge", "meshbox", netns=machine.netns)
    left = debian.contents()
    assert {path: what for path, what in left.items() if untouched.get(path) != what} == {}
    assert [path for path in untouched if path not in left] == []


def test_from_nothing_to_names_and_back(package: Path, machine: PrivilegedMachine, tmp_path: Path) -> None:
    """By the documents' commands the example answers by name, and then everything is as before, containers running."""
    debian = Debian(tmp_path)
    client(machine)
    before, untouched = world(machine), debian.traces()
    (tmp_path / "root/dist").mkdir()
    shutil.copy(package, tmp_path / "root/dist")
    debian("sh", "-c", f"cd /root && {documented('apt install')}", typed="y\n")
    shutil.copy(ROOT / "examples/app.py", tmp_path / "root/app.py")
    (tmp_path / "etc/meshbox/meshbox.toml").write_text(
        f'docker_socket = "{machine.seen}{machine.socket}"\nnetns_dir = "{machine.seen}{machine.netns_dir}"\n'
        f'dns_upstreams = ["{machine.switch.address}"]\n'
    )
    machine.appliance = appliance = Program(
        machine.netns, debian.command("meshbox", "run"), machine.root / "package.log"
    )
    wait_until(lambda: '"ready"' in appliance.tail(), "it is ready")
    debian("sh", "-c", documented("meshbox check"), netns=machine.netns)
    debian("meshbox", "deploy", "/root/app.py", netns=machine.netns)
    example_answers(machine)
    debian("meshbox", "remove", "flask", "orange", netns=machine.netns)
    debian("sh", "-c", documented("apt purge"), netns=machine.netns, typed="y\n")
    assert appliance.stop() == 0
    assert world(machine) == before
    assert debian.traces() == untouched


class Newcomer:
    """Somebody at a computer with systemd, what the README asks for first, and a clone."""

    def __init__(self, debian: Debian, computer: Computer, outlet: Outlet) -> None:
        self.debian = debian
        self.computer = computer
        self._env = [f"{name}={value}" for name, value in by_way_of(outlet).items()]
        (first,) = quoted(r"as root, with `(apt-get install [^`]*)` done")
        self.types(first)
        self._before = debian.contents()

    def types(self, line: str) -> str:
        """Run a line in the clone; return what that shows."""
        command = ("env", "--chdir=/root/meshbox", *self._env, "sh", "-c", f"exec 2>&1; {line}")
        return self.computer.inside(*command, input="y\n", timeout=280).stdout

    def fills_docker(self) -> None:
        """Get the images that would be pulled, and start the client."""
        load(self.computer.docker, {name: IMAGES[name] for name in (IMAGE, *STAND_INS)})
        client(self.computer)

    def purges(self, said: str) -> None:
        """Do what `make clean` has said, and find every file as it was."""
        (purge,) = re.findall(r"apt-get purge .*", said)
        self.types(purge)
        left = self.debian.contents()
        changed = {path for path in {*left, *self._before} if left.get(path) != self._before.get(path)}
        kept = (OF_DEBIAN, OF_DOCKER, SYSTEMD_WORK)
        assert "\n".join(path for path in sorted(changed) if not any(what.match(path) for what in kept)) == ""


@pytest.fixture
def newcomer(switch: Switch, tmp_path: Path) -> Iterator[Newcomer]:
    """Somebody who has nothing of meshbox yet."""
    debian = Debian(tmp_path)
    debian("apt-get", "-qq", "install", "--no-install-recommends", "systemd", "dbus", *STANDARD)
    example = clean_clone(tmp_path / "root/meshbox") / "examples/app.py"
    example.write_text(without_limits(example))
    with Computer(switch, 10, tmp_path) as computer, Outlet(computer.netns, computer.address) as outlet:
        yield Newcomer(debian, computer, outlet)


def test_from_source_and_back(newcomer: Newcomer) -> None:
    """So it is from source: `make setup`, `.venv/bin/meshbox`, and the documents' line that removes it."""
    computer, types = newcomer.computer, newcomer.types
    types("make setup")
    newcomer.fills_docker()
    before = world(computer)
    log = "/tmp/meshbox.log"
    pid = types(f".venv/bin/meshbox run >{log} 2>&1 & echo $!").strip()
    wait_until(lambda: '"ready"' in types(f"cat {log}"), "it is ready")
    types(".venv/bin/meshbox check")
    types(".venv/bin/meshbox deploy examples/app.py")
    example_answers(computer)
    types(".venv/bin/meshbox remove flask orange")
    said = types(documented("kill -TERM").replace("<pid>", pid))
    assert world(computer) == before
    newcomer.purges(said)


def test_service_under_systemd(
    package: Path, former: Path, needed: list[str], machine: PrivilegedMachine, tmp_path: Path
) -> None:
    """Installing starts it in the unit's sandbox, upgrading restarts it, systemd mends a hang, purging leaves nothing.

    With `host_access` systemd-resolved leads to names of the mesh for as long as it runs.
    """
    debian = Debian(tmp_path)
    shutil.copy(package, tmp_path / "root/meshbox.deb")
    shutil.copy(former, tmp_path / "root/former.deb")
    debian("apt-get", "-qq", "install", "--no-install-recommends", "systemd", "dbus", "systemd-resolved", *needed)
    shutil.copy(ROOT / "examples/app.py", tmp_path / "root/app.py")
    drop_in(tmp_path, "meshbox", DROP_IN)
    with booted(tmp_path, machine) as inside:

        def shown(name: str) -> str:
            return inside("systemctl", "show", "meshbox", "--value", "--property", name).stdout.strip()

        def names() -> tuple[list[str], str]:
            domains = re.findall(r"~\S+", inside("resolvectl", "domain").stdout)
            return domains, inside("find", "/run", "-iname", "*meshbox*").stdout

        before, resolved = debian.contents(), names()
        inside("dpkg", "--install", "/root/former.deb")
        assert (shown("ActiveState"), shown("UnitFileState"), shown("Type")) == ("active", "enabled", "notify")
        machine.run_container("server", IMAGE, service="far", container="server", ports="7000")
        words = f"server.far,{EXAMPLE}"
        machine.run_container("client", IMAGE, service="test", container="client", connect_to=words)
        started = {name: machine.inspect(name)["State"]["StartedAt"] for name in ("server", "client")}
        address = wait_until(lambda: answers(machine), "the client reaches the server")

        configuration = tmp_path / "etc/meshbox/meshbox.toml"
        configuration.write_text('host_access = true\nhost_connect_to = ["server.far"]\n')
        main = shown("MainPID")
        # Enter keeps the configuration.
        inside("dpkg", "--install", "/root/meshbox.deb", input="\n")
        assert configuration.read_text().startswith("host_access")
        assert (shown("ActiveState"), shown("NRestarts")) == ("active", "0")
        assert shown("MainPID") != main
        assert f"version {__version__}" in inside("meshbox", "check").stdout
        assert wait_until(lambda: answers(machine), "the client reaches the server again") == address

        call = "import socket; print(socket.create_connection(('server.far', 7000), 5).recv(100).decode())"
        assert inside("python3", "-c", call).stdout.split()[0] == machine.inspect("server")["Config"]["Hostname"]
        assert "~server.far" in names()[0]
        assert address in inside("resolvectl", "query", "server.far").stdout
        for _ in range(3):  # two starts of systemd-resolved each, and systemd refuses the sixth in ten seconds
            inside("systemctl", "restart", "meshbox")
        assert address in inside("resolvectl", "query", "server.far").stdout
        inside("systemctl", "stop", "meshbox")
        assert names() == resolved
        assert inside("resolvectl", "query", "server.far", check=False).returncode != 0
        inside("systemctl", "start", "meshbox")

        configuration.write_text("dns_prot = 53\n")
        refused = inside("systemctl", "restart", "meshbox", check=False)
        assert (refused.returncode, shown("ActiveState"), shown("NRestarts")) == (1, "failed", "0"), "not tried again"
        assert "dns_prot" in inside("journalctl", "--unit=meshbox", "--lines=20", "--output=cat").stdout

        # docs/guide/host-and-gateways.md: in the image, which does not see the host's files, this is done by hand.
        configuration.write_text('host_access = true\nresolv_conf = ""\n')
        inside("systemctl", "restart", "meshbox")
        by_hand = quoted(r"`(DNS=\S+)` and `(Domains=\S+)`")
        mesh_conf = tmp_path / "etc/systemd/resolved.conf.d/mesh.conf"
        mesh_conf.parent.mkdir()
        mesh_conf.write_text("\n".join(["[Resolve]", *by_hand, ""]))
        read_again = "systemctl reset-failed systemd-resolved; systemctl restart systemd-resolved"
        inside("sh", "-c", read_again)
        call = call.replace("server.far", "server.far.mesh.internal")
        assert inside("python3", "-c", call).stdout.split()[0] == machine.inspect("server")["Config"]["Hostname"]
        shutil.rmtree(mesh_conf.parent)
        inside("sh", "-c", read_again)

        inside("meshbox", "deploy", "/root/app.py")
        example_answers(machine)
        inside("meshbox", "remove", "flask", "orange")

        inside("systemctl", "kill", "--kill-whom=main", "--signal=STOP", "meshbox")
        again = ("1", "active")
        wait_until(lambda: (shown("NRestarts"), shown("ActiveState")) == again, "it is started again", seconds=60)
        wait_until(lambda: answers(machine), "the client reaches the server again")

        said = inside("dpkg", "--remove", "meshbox").stdout
        assert "waiting until its connections have drained" in said
        assert "rules in 2 containers" in said
        assert shown("ActiveState") == "inactive"
        inside("dpkg", "--purge", "meshbox")
        assert (shown("LoadState"), names()) == ("not-found", resolved)
        after = debian.contents()
        changed = {path for path in {*before, *after} if before.get(path) != after.get(path)}
        assert [path for path in changed if not SYSTEMD_WORK.match(path)] == []
    assert {name: machine.inspect(name)["State"]["StartedAt"] for name in started} == started


def test_service_that_cannot_start(
    package: Path, needed: list[str], machine: PrivilegedMachine, tmp_path: Path
) -> None:
    """Installing says what tells why, as often as it is; what was mended later, however late, starts it by itself."""
    debian = Debian(tmp_path)
    shutil.copy(package, tmp_path / "root/meshbox.deb")
    debian("apt-get", "-qq", "install", "--no-install-recommends", "systemd", "dbus", *needed)
    drop_in(tmp_path, "meshbox", DROP_IN)
    with booted(tmp_path, machine) as inside:

        def advice() -> str:
            apt = ("apt-get", "--quiet", "install", "--no-install-recommends", "--reinstall", "/root/meshbox.deb")
            done = inside("sh", "-c", f"exec 2>&1; {' '.join(apt)}")
            assert "Could not execute" not in done.stdout
            (line,) = re.findall(r"meshbox: the service has not started; (.*)", done.stdout)
            (command,) = re.findall(r"^'(.*)' says why and what to do\. ", line)
            return f"{line}\n{inside('sh', '-c', f'{command} 2>&1', check=False).stdout}"

        def state() -> tuple[str, int]:
            names = ("ActiveState", "NRestarts")
            found = inside("systemctl", "show", "meshbox", "--property", ",".join(names)).stdout
            active, restarts = (re.findall(rf"^{name}=(.*)$", found, re.MULTILINE)[0] for name in names)
            return active, int(restarts)

        inside("rm", "/run/docker.sock")
        said = advice()
        assert "tried again every few seconds" in said
        assert "systemctl start docker" in said
        wait_until(lambda: state()[1] > LIMIT, "it was tried more often than systemd does unless told", seconds=60)
        inside("ln", "-s", "/mnt/docker.sock", "/run/docker.sock")
        wait_until(lambda: state()[0] == "active", "it has started by itself")

        with occupied(machine, "0.0.0.0", 53, "DGRAM"):
            said = advice()
            assert "tried again every few seconds" in said
            assert "set dns_port to a free port" in said
        wait_until(lambda: state()[0] == "active", "it has started by itself with the port free again")

        configuration = tmp_path / "etc/meshbox/meshbox.toml"
        configuration.write_text("dns_prot = 53\n")
        said = advice()
        assert "dns_prot" in said
        configuration.write_text("")
        (command,) = re.findall("After that: (.*)", said)
        inside(*command.split())
        assert state() == ("active", 0)


def test_newcomer(newcomer: Newcomer) -> None:
    """By the documents' commands alone the package is built, leads to the example, and away again with all it brought.

    `apt install` brings Docker in the same transaction; each container starts after the unit.
    """
    computer, types = newcomer.computer, newcomer.types
    drop_in(newcomer.debian.root, "meshbox", DROP_IN)
    types(f"apt-get install {HAD}")
    types("make deb")
    said = types(documented("apt install"))
    assert "docker.io" in said
    assert "Could not execute" not in said
    assert "has not started" not in said
    assert types("systemctl is-active docker meshbox") == "active\nactive\n"
    (package,) = newcomer.debian.root.glob("root/meshbox/dist/*.deb")
    assert types("meshbox --version") == version_of(package)
    types(documented("meshbox check"))

    newcomer.fills_docker()
    types("meshbox deploy examples/app.py")
    example_answers(computer)
    computer.docker("restart", "--time=1", "client")
    wait_until(lambda: "addresses" in computer.client("client", "resolve", "redis.flask"), "the client is in again")
    example_answers(computer)
    started = computer.inspect("client")["State"]["StartedAt"]

    types("meshbox remove flask orange")
    types(documented("apt purge"))
    assert computer.containers() == ["client"]
    assert computer.inspect("client")["State"]["StartedAt"] == started
    assert computer.docker("network", "ls", "--format={{.Name}}").split() == ["bridge", "host", "none"]
    assert computer.exec_in("client", "nft", "list", "ruleset").stdout == ""
    assert "meshbox" not in computer.exec("nft", "list", "ruleset").stdout
    types(f"apt-get purge {HAD}")
    types(documented("apt autoremove"))
    assert types("ls -A /var/lib/docker") == ""
    shutil.rmtree(newcomer.debian.root / "etc/systemd/system/meshbox.service.d")
    newcomer.purges(types("make clean"))


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
        machine.appliance = appliance = Program(
            machine.netns, debian.command(*command), machine.root / "meshbox.log", env
        )
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
