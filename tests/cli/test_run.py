from __future__ import annotations

import fcntl
import subprocess
import sys

import pytest

from appliance.cli.run import parse
from appliance.config import options as config
from appliance.errors import InputError


def test_every_option_is_a_flag():
    """Each field of the configuration can be set by a flag, in both spellings."""
    for option in config.options():
        assert parse([option.flag, "x"]) == (None, {option.key: "x"})
        assert parse([f"{option.flag}=x"]) == (None, {option.key: "x"})


def test_configuration_file():
    """The file is a flag too."""
    assert parse(["--config", "/etc/other.toml", "--node", "h1"]) == ("/etc/other.toml", {"node": "h1"})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--dns-prt", "5"], 'unknown argument "--dns-prt" (did you mean "--dns-port"?)'),
        (["--dns-port"], "--dns-port: expected one argument"),
        (["now"], 'unknown argument "now"; see meshbox run --help'),
    ],
)
def test_wrong_flags(words, expected):
    """A wrong flag is refused in one line with the nearest right one."""
    with pytest.raises(InputError) as caught:
        parse(words)
    assert expected in str(caught.value)


def test_wrong_value(meshbox):
    """A wrong value is told before anything is started."""
    said = meshbox("run", "--dns-port", "99999")
    assert (said.code, said.out) == (2, "")
    assert said.err == 'meshbox: --dns-port: "99999" is not a whole number from 1 to 65535\n'


def test_help_lists_the_options(meshbox):
    """The help of `run` has every option with its default."""
    out = " ".join(meshbox("run", "--help").out.replace("│", " ").split())
    for option in config.options():
        assert option.flag in out
    assert "(default 20000-29999)" in out


def test_appliance_loads_no_tables(tmp_path):
    """What runs for months does not hold the libraries that draw tables and parse command lines.

    It gets as far as finding that another one holds the lock of this host.
    """
    code = (
        "import sys\n"
        "from appliance.cli import main\n"
        f"assert main(['run', '--config', '/dev/null', '--run-dir', {str(tmp_path)!r}]) == 1\n"
        "print([m for m in ('typer', 'rich.console', 'click') if m in sys.modules])\n"
    )
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "another meshbox" in done.stderr
    assert done.stdout == "[]\n"
