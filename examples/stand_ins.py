"""Images for a machine that reaches no image registry, built from Debian packages.

One root file system is unpacked from packages that apt fetches (nothing is installed), imported once, and given the
names and commands of the images that it stands for. It holds the real redis-server, a Python interpreter, busybox,
bash and curl. What is built is cached under build/images; `make clean` removes it.
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

HERE = Path(__file__).parent
CACHE = HERE.parent / "build" / "images"
BASE = "meshbox-stand-in"
PACKAGES = ("bash", "busybox-static", "curl", "python3", "redis-server", "redis-tools")

# They come along for the packages' installation scripts, which are not run.
NOT_NEEDED = ("adduser", "debconf", "dpkg", "init-system-helpers", "lib*-perl", "libperl*", "lsb-base", "passwd")
NOT_NEEDED += ("perl*", "sysvinit-utils", "usrmerge", "libpam*", "libaudit*", "libsemanage*", "libsepol*", "libdb5*")
NOT_NEEDED += ("libgdbm*", "tar", "media-types", "mailcap", "mime-support", "libstdc++6-*", "base-files-*")

# Documentation and translations: a third of what the packages hold.
LEFT_OUT = ("./usr/share/doc", "./usr/share/man", "./usr/share/locale", "./usr/share/info", "./usr/lib/systemd")


@dataclass(frozen=True, slots=True, kw_only=True)
class StandIn:
    """An image to be: its command, and files (path → content) beside those of the base."""

    command: Sequence[str]
    files: Mapping[str, bytes] = field(default_factory=dict)


STAND_INS = {
    "crccheck/hello-world": StandIn(
        command=("python3", "/srv/hello.py"),
        files={"srv/hello.py": (HERE / "images" / "hello.py").read_bytes()},
    ),
    "redis": StandIn(command=("redis-server", "--protected-mode", "no", "--save", "")),
    "python:3.11-slim": StandIn(command=("python3",)),
}


class DockerError(Exception):
    """Docker did not do it; the text is Docker's own."""


class Docker:
    """The docker command on one engine; `socket` None is the machine's own."""

    def __init__(self, socket: Path | None = None) -> None:
        self._command = ["docker"] if socket is None else ["docker", "--host", f"unix://{socket}"]

    def __call__(self, *args: str, stdin: bytes | None = None) -> str:
        """Run it and return what it printed. Raises DockerError."""
        done = subprocess.run([*self._command, *args], input=stdin, capture_output=True, check=False)
        if done.returncode:
            raise DockerError(f"docker {' '.join(args)}: {done.stderr.decode().strip()}")
        return done.stdout.decode().strip()

    def has_image(self, name: str) -> bool:
        """Whether the engine holds the image."""
        done = subprocess.run([*self._command, "image", "inspect", name], capture_output=True, check=False)
        return done.returncode == 0

    def import_tar(self, tar: Path, name: str) -> None:
        """Make an image of a root file system."""
        self("import", str(tar), name)


def root_file_system() -> Path:
    """Return the tar file of the base, made when it is not in the cache. Raises CalledProcessError."""
    tar = CACHE / f"base-{sha256(repr(PACKAGES).encode()).hexdigest()[:16]}.tar"
    if tar.exists():
        return tar
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        _run("chmod", "755", scratch)
        root = Path(scratch) / "root"
        _lay_out(root)
        for package in _fetch(Path(scratch)):
            if not any(Path(package.name.split("_")[0]).match(pattern) for pattern in NOT_NEEDED):
                _unpack(package, root)
        _link_busybox(root)
        made = Path(scratch) / "base.tar"
        _run(
            "tar", "--create", "--numeric-owner", "--owner=0", "--group=0", f"--file={made}", f"--directory={root}", "."
        )
        made.rename(tar)
    return tar


def load(docker: Docker, stand_ins: Mapping[str, StandIn]) -> None:
    """Give the engine images of these names, built on the base. Raises CalledProcessError and DockerError."""
    if not docker.has_image(BASE):
        docker.import_tar(root_file_system(), BASE)
    for name, stand_in in stand_ins.items():
        container = docker("create", BASE, "true")
        try:
            if stand_in.files:
                docker("cp", "-", f"{container}:/", stdin=_tar(stand_in.files))
            docker("commit", "--change", f"CMD {orjson.dumps(list(stand_in.command)).decode()}", container, name)
        finally:
            docker("rm", "--force", container)


def _fetch(scratch: Path) -> Iterable[Path]:
    """Download the packages and all that they depend on, as if nothing were installed here."""
    archives = scratch / "archives"
    (archives / "partial").mkdir(parents=True)
    status = scratch / "status"
    status.touch()
    options = {
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",
        "Debug::NoLocking": "true",
        "Dir::Cache::archives": str(archives),
        "Dir::State::status": str(status),
    }
    settings = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    if not any(Path("/var/lib/apt/lists").glob("*_Packages*")):
        _run("apt-get", "-qq", "update")
    _run("apt-get", "-qq", *settings, "--download-only", "--yes", "install", *PACKAGES)
    return sorted(archives.glob("*.deb"))


def _lay_out(root: Path) -> None:
    """Make the directories that every Debian root has, with the merged /usr."""
    for directory in ("usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "tmp", "root", "var/tmp", "run"):
        (root / directory).mkdir(parents=True)
    for directory in ("bin", "sbin", "lib", "lib64"):
        (root / directory).symlink_to(f"usr/{directory}")
    (root / "tmp").chmod(0o1777)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")


def _unpack(package: Path, root: Path) -> None:
    contents = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], capture_output=True, check=True).stdout
    excludes = [f"--exclude={path}" for path in LEFT_OUT]
    command = ["tar", "--extract", "--keep-directory-symlink", f"--directory={root}", *excludes]
    subprocess.run(command, input=contents, check=True)


def _link_busybox(root: Path) -> None:
    """Give busybox's tools their names, where no better program has it."""
    busybox = root / "bin/busybox"
    tools = subprocess.run([str(busybox), "--list"], capture_output=True, check=True, text=True).stdout.split()
    for tool in tools:
        path = root / "usr/bin" / tool
        if not os.path.lexists(path):
            path.symlink_to("busybox")


def _tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            info.mode = 0o755
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
