from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PROGRAM = ROOT / "packaging/compile_dataplane.py"


def said(*arguments: Path | str, program: Path = PROGRAM, **environment: str) -> tuple[int, str]:
    """Run it; return its exit code and what it says."""
    command = [sys.executable, program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    return done.returncode, done.stdout + done.stderr


def test_a_checkout_is_left_as_it_is() -> None:
    """An extension module beside an edited source would be what runs."""
    code, words = said(ROOT)
    assert code == 1
    assert words.startswith(f"compile: {ROOT} is a checkout")
    assert not list((ROOT / "appliance").rglob("*.so"))


def test_without_a_compiler_one_line_says_what_to_install(tmp_path: Path) -> None:
    """And nothing is copied."""
    code, words = said("--copy", tmp_path / "copy", CC="no-such-compiler")
    assert code == 1
    assert words.startswith("compile: needs a C compiler and Python's headers (no-such-compiler, ")
    assert words.endswith(": apt-get install gcc python3-dev\n")
    assert words.count("\n") == 1
    assert not (tmp_path / "copy").exists()


def test_without_mypy_one_line_says_where_it_is(tmp_path: Path) -> None:
    """As with another interpreter than that of .venv."""
    code, words = said(tmp_path, PYTHONPATH=str(_without_mypy(tmp_path)))
    assert (code, words.count("\n")) == (1, 1)
    assert words.startswith("compile: needs mypyc, ")


def _without_mypy(folder: Path) -> Path:
    (folder / "mypyc.py").write_text("raise ImportError(name='mypyc')")
    return folder


def test_a_source_that_changes_is_compiled_again(tmp_path: Path) -> None:
    """What has been made from the same sources is left alone; a wrong one is told, and nothing is held for made."""
    clone = tmp_path / "clone"
    for name in ("appliance", "nft", "packaging"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for module in (clone / "appliance/dataplane").rglob("*.py"):
        module.write_text("one: int = 1\n")

    def again() -> tuple[int, str]:
        return said("--copy", clone / "build", program=clone / "packaging/compile_dataplane.py")

    assert again()[1].count("compiling") == 1
    assert again() == (0, "")
    found = subprocess.check_output(
        [sys.executable, "-c", "import appliance.dataplane.tcp.relay as relay; print(relay.one, relay.__file__)"],
        env={**os.environ, "PYTHONPATH": str(clone / "build"), "PYTHONSAFEPATH": "1"},
        text=True,
    )
    module = Path("appliance/dataplane/tcp/relay.py")
    assert found.startswith(f"1 {clone / 'build' / module.with_suffix('')}.cpython")
    (clone / module).write_text("one: int = 'two'\n")
    code, words = again()
    assert code == 1
    assert "relay.py:1: error" in words
    assert again()[0] == 1
