"""Compile the data plane's hot modules with mypyc: `compile_dataplane.py FOLDER`, where FOLDER holds `appliance/`.

The extension modules come to lie beside their sources there. Python prefers them, and takes the sources where they
do not fit it: another interpreter, another machine. Both do the same.

    FOLDER                in what is installed there, or copied
    --libraries PYTHON …  with the libraries' types of that interpreter; default: this one's
    --copy FOLDER         copy this checkout's appliance/ and nft/ there first; nothing if that is done

Never in a checkout: there an edited source would not be what runs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = (
    "appliance.dataplane.access",
    "appliance.dataplane.balance",
    "appliance.dataplane.context",
    "appliance.dataplane.holding",
    "appliance.dataplane.loop.epoll",
    "appliance.dataplane.namespace",
    "appliance.dataplane.shares",
    "appliance.dataplane.sockets",
    "appliance.dataplane.sources",
    "appliance.dataplane.standstill",
    "appliance.dataplane.tcp.accept",
    "appliance.dataplane.tcp.dial",
    "appliance.dataplane.tcp.door",
    "appliance.dataplane.tcp.listener",
    "appliance.dataplane.tcp.relay",
    "appliance.dataplane.udp.batch",
    "appliance.dataplane.udp.client",
    "appliance.dataplane.udp.door",
    "appliance.dataplane.udp.listener",
    "appliance.dataplane.udp.places",
    "appliance.dataplane.udp.session",
)
"""What runs for each message, datagram or connection."""
LIBRARY = "appliance"
"""All are one library, so that they call each other directly. It lies beside appliance/, as appliance__mypyc.…so."""
NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.so")
MADE = "made-from"
"""In a copy: what it was made from."""


def main() -> int:
    """Compile; 1 with one line that says why where it cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--copy", action="store_true")
    parser.add_argument("--libraries", default=sys.executable)
    options = parser.parse_args()
    folder = options.folder.resolve()
    source = _digest()
    if (folder / "pyproject.toml").exists():
        return _fail(f"{folder} is a checkout, whose sources would no longer be what runs; name a copy, or use --copy")
    if options.copy and _read(folder / MADE) == source:
        return 0
    missing = _missing()
    if missing:
        return _fail(f"needs {missing}")
    if options.copy:
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("appliance", "nft"):
            shutil.copytree(ROOT / name, folder / name, ignore=NOT_COPIED)
    print("meshbox: compiling the data plane, which takes half a minute", file=sys.stderr, flush=True)
    error = _compile(folder, options.libraries)
    if error:
        return _fail(error)
    if options.copy:
        (folder / MADE).write_text(source)
    return 0


def _missing() -> str:
    """Return what is not there, and how to get it."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    headers = Path(sysconfig.get_config_var("INCLUDEPY") or sysconfig.get_path("include"), "Python.h")
    if not shutil.which(compiler) or not headers.exists():
        return f"a C compiler and Python's headers ({compiler}, {headers}): apt-get install gcc python3-dev"
    try:
        import mypyc.build  # noqa: F401, PLC0415 — looked for here, and loaded by the process that this starts
        import setuptools  # noqa: F401, PLC0415
    except ImportError as error:
        return f"{error.name}, as packaging/requirements-build.lock pins it: make setup, and .venv/bin/python for this"
    return ""


def _compile(folder: Path, libraries: str) -> str:
    """Put the extension modules into the folder; return why that failed, if it did."""
    with tempfile.TemporaryDirectory() as scratch:
        # In a copy without the rest, where mypy finds neither settings nor a site-packages that it would not accept.
        shutil.copytree(folder / "appliance", Path(scratch, "appliance"), ignore=NOT_COPIED)
        built = Path(scratch, "built")
        done = subprocess.run(
            [sys.executable, "-c", _BUILD, LIBRARY, libraries, *(f"{name.replace('.', '/')}.py" for name in MODULES)],
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            return f"mypyc or the compiler failed:\n{done.stdout[-3000:]}"
        for path in built.rglob("*.so"):
            shutil.copyfile(path, folder / path.relative_to(built))
    return ""


_BUILD = """
import sys
from setuptools import setup
from mypyc.build import mypycify
library, libraries, *paths = sys.argv[1:]
options = ["--config-file=", "--ignore-missing-imports", "--python-executable", libraries]
modules = mypycify(options + paths, opt_level="3", debug_level="0", group_name=library)
setup(name="meshbox", packages=[], ext_modules=modules, script_args=["build_ext", "--build-lib=built"])
"""
"""In a process of its own: setuptools and mypy take what they are to do from the process's working directory."""


def _digest() -> str:
    """Return what tells one state of the sources, and of what compiles them, from another."""
    digest = hashlib.sha256(f"{sys.version} {sysconfig.get_platform()}".encode())
    sources = sorted(path for name in ("appliance", "nft") for path in (ROOT / name).rglob("*") if path.is_file())
    for path in (*sources, Path(__file__), ROOT / "packaging/requirements-build.lock"):
        if path.suffix not in {".pyc", ".so"}:
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _fail(words: str) -> int:
    print(f"compile: {words}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
