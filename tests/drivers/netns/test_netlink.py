"""Netlink messages put together and taken apart."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.drivers.netns import netlink
from appliance.drivers.netns.netlink import Message, attribute, attributes, messages, request


def test_a_request_reads_as_it_was_written():
    """Header and body survive the way there and back."""
    data = request(22, netlink.DUMP, b"body") + request(26, 0, b"")
    assert list(messages(data)) == [Message(22, 0, b"body"), Message(26, 0, b"")]


@given(values=st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=20))))
def test_attributes_read_as_they_were_written(values):
    """Whatever their lengths: each begins at a multiple of four."""
    data = b"".join(attribute(kind, value) for kind, value in values)
    assert len(data) % 4 == 0
    assert list(attributes(data)) == values


def test_flag_bits_are_no_part_of_an_attributes_type():
    """NLA_F_NESTED and NLA_F_NET_BYTEORDER are masked out."""
    assert list(attributes(attribute(0x8000 | 5, b"x"))) == [(5, b"x")]


@given(data=st.binary(max_size=200))
def test_any_bytes_are_taken_apart_without_an_error(data):
    """A truncated or impossible length ends the reading."""
    for message in messages(data):
        list(attributes(message.body))
    list(attributes(data))


@given(cut=st.integers(0, 40))
def test_a_truncated_datagram_yields_its_whole_messages(cut):
    """What arrived whole is used."""
    data = request(1, 0, b"abcd") + request(2, 0, b"efgh")
    whole = list(messages(data[: len(data) - cut]))
    assert whole == [Message(1, 0, b"abcd"), Message(2, 0, b"efgh")][: 2 - (cut > 0) - (cut > 20)]


def test_the_kernels_refusal_is_an_error_with_its_number():
    """A route that does not exist cannot be looked up."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_ROUTE) as sock:
        sock.bind((0, 0))
        with pytest.raises(OSError, match=r"Operation not supported|Invalid argument"):
            netlink.ask(sock, request(4095, 0, b"\0" * 16))


def test_a_file_that_is_no_namespace_cannot_be_entered(tmp_path):
    """Neither an ordinary file nor none, and no thread is left behind."""
    (tmp_path / "file").touch()
    for name in ("file", "none"):
        with pytest.raises(OSError, match=r"Invalid argument|No such file|not permitted"):
            netlink.socket_in(str(tmp_path / name), netlink.NETLINK_ROUTE)


def test_without_a_thread_no_namespace_is_entered(monkeypatch):
    """It is an error of the system like any other."""

    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(netlink.threading.Thread, "start", refuse)
    with pytest.raises(OSError, match="can't start new thread"):
        netlink.entered("/proc/self/ns/net", lambda: None)


def test_a_fifo_in_place_of_a_namespace_holds_up_nothing(tmp_path):
    """It has no writer, and all traffic would wait for one."""
    os.mkfifo(tmp_path / "ns")
    with pytest.raises(OSError, match=r"\[Errno"):
        netlink.entered(str(tmp_path / "ns"), lambda: None)
