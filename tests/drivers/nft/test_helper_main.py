"""The helper's side of the pipe, with a stand-in for libnftables' binding."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import orjson
import pytest

from appliance.drivers.netns import netlink
from appliance.drivers.nft.helper_main import LENGTH, _is_port_taken, frame

BINDING = """
class Nftables:
    def cmd(self, text):
        include, path, _ = text.split('"')
        assert include == "include "
        with open(path, encoding="utf-8") as transaction:
            text = transaction.read()
        return (0, text.upper(), "") if text != "bad" else (-1, "", "words")
"""


def talk(tmp_path, binding: str, data: bytes) -> tuple[int, list[object]]:
    """Give the helper its whole input; return its exit code and what it said."""
    (tmp_path / "nftables.py").write_text(binding)
    done = subprocess.run(
        [sys.executable, "-m", "appliance.drivers.nft.helper_main"],
        input=data,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        check=False,
        timeout=20,
    )
    said, rest = [], done.stdout
    while rest:
        end = LENGTH.size + LENGTH.unpack_from(rest)[0]
        said.append(orjson.loads(rest[LENGTH.size : end]))
        rest = rest[end:]
    return done.returncode, said


def test_commands_are_answered_in_turn(tmp_path):
    """After the greeting, one answer for each; it ends with its input."""
    commands = [{"text": text, "dry": False, "netns": None} for text in ("one", "bad", "ünïcode", "x" * 200_000)]
    code, said = talk(tmp_path, BINDING, b"".join(map(frame, commands)))
    assert code == 0
    assert said == [
        {"fault": None},
        {"code": 0, "output": "ONE", "error": ""},
        {"code": -1, "output": "", "error": "words"},
        {"code": 0, "output": "ÜNÏCODE", "error": ""},
        {"code": 0, "output": "X" * 200_000, "error": ""},
    ]


@pytest.mark.parametrize("cut", [1, 4, 10])
def test_a_cut_off_command_is_not_carried_out(tmp_path, cut):
    """The appliance died while it wrote."""
    code, said = talk(tmp_path, BINDING, frame({"text": "one", "dry": False, "netns": None})[:cut])
    assert (code, said) == (0, [{"fault": None}])


@pytest.mark.parametrize(
    ("binding", "remedy"),
    [
        ("raise ImportError('gone')", "pip install pip-nftables"),
        ("def Nftables(): raise OSError('libnftables.so.1: gone')", "apt-get install libnftables1"),
    ],
)
def test_what_is_missing_is_said_in_the_greeting(tmp_path, binding, remedy):
    """Rather than a traceback."""
    code, said = talk(tmp_path, binding, b"")
    assert code == 0
    assert remedy in said[0]["fault"]


def test_our_port_is_taken_while_a_socket_has_it():
    """The kernel gives the process id to the first netlink socket of a process, and an arbitrary port to the next."""
    assert not _is_port_taken()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_NETFILTER) as sock:
        sock.bind((0, 0))
        assert sock.getsockname()[0] == os.getpid()
        assert _is_port_taken()
    assert not _is_port_taken()
