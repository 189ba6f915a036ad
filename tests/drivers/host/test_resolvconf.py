"""The host's resolver settings: what is put there, and that exactly that goes again."""

from __future__ import annotations

import errno
import os
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
import trio

from appliance.drivers.host import resolvconf
from appliance.drivers.host.resolvconf import ResolverSettings
from appliance.drivers.process import Finished
from appliance.errors import HostError

SERVER = IPv4Address("127.66.0.53")
SOME = frozenset({"redis.flask", "apple.orange", "mesh.internal"})


@pytest.fixture
def commands(monkeypatch):
    """The programs that would have been run; they succeed and print nothing."""
    run = []

    async def note(command, **_):
        run.append(" ".join(command))
        return Finished(0, "", "")

    monkeypatch.setattr(resolvconf, "run", note)
    return run


def names(tmp_path: Path, file: Path | str) -> ResolverSettings:
    """Settings with files of the test's own."""
    return ResolverSettings(
        resolv_conf=str(file), vip_range=IPv4Network("240.0.0.0/4"), drop_in=tmp_path / "resolved.conf.d/meshbox.conf"
    )


def put(host: ResolverSettings, domains: frozenset[str] = SOME, port: int = 53) -> None:
    """Put everything in place."""
    trio.run(lambda: host.apply(SERVER, port=port, domains=domains))


@pytest.mark.parametrize("text", ["", "nameserver 10.0.0.1\n", "search a.b\nnameserver 10.0.0.1\noptions ndots:2"])
def test_resolv_conf_is_restored_exactly(commands, tmp_path, text) -> None:
    """Put twice and undone, also by another run, it is what it was; in between our server comes first."""
    file = tmp_path / "resolv.conf"
    file.write_text(text)
    for _ in range(2):
        put(names(tmp_path, file))
        assert file.read_text() == f"{resolvconf.REMARK}nameserver 127.66.0.53\n{text}"
    assert trio.run(names(tmp_path, file).revert) == [f"nameserver in {file}"]
    assert file.read_text() == text
    assert trio.run(names(tmp_path, file).revert) == []


def test_what_others_write_meanwhile_stays(commands, tmp_path) -> None:
    """A DHCP client that writes around our lines, or over them, loses nothing."""
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 10.0.0.1\n")
    put(names(tmp_path, file))
    file.write_text("# dhcp\n" + file.read_text() + "nameserver 10.0.0.2\n")
    trio.run(names(tmp_path, file).revert)
    assert file.read_text() == "# dhcp\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n"


def test_link_is_followed_and_stays(commands, tmp_path) -> None:
    """Where resolv.conf is a link, what it leads to is changed."""
    target, link = tmp_path / "real", tmp_path / "resolv.conf"
    target.write_text("nameserver 10.0.0.1\n")
    link.symlink_to("real")
    put(names(tmp_path, link))
    assert link.is_symlink()
    assert "127.66.0.53" in target.read_text()
    trio.run(names(tmp_path, link).revert)
    assert target.read_text() == "nameserver 10.0.0.1\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["real", "resolv.conf"]


def test_systemd_resolved(commands, tmp_path, monkeypatch) -> None:
    """Where it is in charge it gets a drop-in with the names that are ours, and starts anew only when that changes."""
    monkeypatch.setattr(resolvconf, "RESOLVED", tmp_path / "resolve")
    (tmp_path / "resolve").mkdir()
    stub = tmp_path / "resolve/stub-resolv.conf"
    stub.write_text("nameserver 127.0.0.53\n")
    host, drop_in = names(tmp_path, stub), tmp_path / "resolved.conf.d/meshbox.conf"
    put(host, port=5353)
    put(host, port=5353)
    assert "DNS=127.66.0.53:5353\nDomains=~apple.orange ~mesh.internal ~redis.flask\n" in drop_in.read_text()
    assert commands.count("systemctl try-restart systemd-resolved") == 1
    put(host, frozenset({"flask"}))
    assert "Domains=~flask\n" in drop_in.read_text()
    assert trio.run(host.revert) == [str(drop_in)]
    assert commands.count("systemctl try-restart systemd-resolved") == 3
    assert not drop_in.parent.exists()
    assert stub.read_text() == "nameserver 127.0.0.53\n"


def test_no_file(commands, tmp_path) -> None:
    """With resolv_conf empty only the route is made."""
    put(names(tmp_path, ""))
    assert commands == ["ip -4 route replace 240.0.0.0/4 dev lo src 127.0.0.1 proto 77"]
    assert list(tmp_path.iterdir()) == []


def test_one_server_is_choose_server() -> None:
    """One of ours, best the one that only this host has: each of them takes the place of a resolver of the host."""
    addresses = [IPv4Address(text) for text in ("10.0.0.1", "127.66.0.54", "127.66.0.53")]
    assert resolvconf.choose_server(addresses) == SERVER
    assert resolvconf.choose_server(addresses[:1]) == addresses[0]
    assert resolvconf.choose_server([]) is None


def test_mounted_file_is_written_in_place(commands, tmp_path, monkeypatch) -> None:
    """Where it cannot be replaced by another file, it stays the same one; nothing is left beside it."""
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 10.0.0.1\n")
    inode = file.stat().st_ino
    monkeypatch.setattr(Path, "replace", refusing(errno.EBUSY))
    put(names(tmp_path, file))
    assert file.read_text() == f"{resolvconf.REMARK}nameserver 127.66.0.53\nnameserver 10.0.0.1\n"
    trio.run(names(tmp_path, file).revert)
    assert file.read_text() == "nameserver 10.0.0.1\n"
    assert file.stat().st_ino == inode
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("mounted", [False, True])
def test_full_disk_leaves_the_file_as_it_is(commands, tmp_path, monkeypatch, mounted) -> None:
    """Without space for the new content, the former one stays, also where it would be written in place."""
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 10.0.0.1\n")
    if mounted:
        monkeypatch.setattr(Path, "replace", refusing(errno.EBUSY))
        monkeypatch.setattr(os, "posix_fallocate", refusing(errno.ENOSPC))
    else:
        monkeypatch.setattr(Path, "write_bytes", refusing(errno.ENOSPC))
    with pytest.raises(HostError, match="No space left on device"):
        put(names(tmp_path, file))
    assert file.read_text() == "nameserver 10.0.0.1\n"
    assert list(tmp_path.iterdir()) == [file]


def refusing(number: int):
    """Return what fails with this error."""

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    return refuse


def test_file_that_cannot_be_written(commands, tmp_path) -> None:
    """The words say which file, and what to do."""
    with pytest.raises(HostError, match="resolv_conf"):
        put(names(tmp_path, "/proc/version"))
