"""Rights, programs, limits and the clock: each finding says what is wrong and how to mend it."""

from __future__ import annotations

import errno
import resource
import socket
import time
from ipaddress import IPv4Address

from appliance.check import kernel, ports, ranges, system
from appliance.model.finding import Level


def test_missing_programs_are_named_with_their_package(monkeypatch) -> None:
    """Without nft, nsenter and ip it says what to install, and looks at the rest all the same."""
    monkeypatch.setenv("PATH", "/nonexistent")
    assert [finding.remedy for finding in (kernel.nft(), *system.programs())] == [
        "apt-get install nftables",
        "apt-get install util-linux",
        "apt-get install iproute2",
    ]
    assert ranges.routes() == ()


def test_rights_that_are_missing(monkeypatch, tmp_path) -> None:
    """In a container the option is named, elsewhere what to give; a port that one may not bind is not taken."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(system, "CAP_SYS_ADMIN", 63)
    mark = tmp_path / "mark"
    monkeypatch.setattr("appliance.image.IMAGE_MARK", mark)
    monkeypatch.setattr("appliance.image.CONTAINER_MARK", mark)

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    for look in (system.privileges, lambda: ports.dns_port(53, [IPv4Address("127.0.0.1")])):
        mark.unlink(missing_ok=True)
        assert look().level is Level.FAILED
        assert "CAP_" in look().words
        assert "missing" in look().words
        assert "CapabilityBoundingSet" in look().remedy
        mark.touch()
        assert look().remedy == "run the container with --privileged"


def test_open_files(monkeypatch) -> None:
    """A low limit is a warning that says where to raise it; none is well."""
    for hard, level in ((1024, Level.WARNING), (system.FEW_FILES, Level.OK), (resource.RLIM_INFINITY, Level.OK)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, hard=hard: (0, hard))
        assert system.open_files().level is level
    monkeypatch.setattr(resource, "getrlimit", lambda _: (0, 1024))
    assert system.open_files().words == "limit is 1024"
    assert "LimitNOFILE" in system.open_files().remedy
    assert system.open_files(20000).words == "limit is 20000", "that of the appliance that runs"


def test_clock(monkeypatch) -> None:
    """A clock that was never set is a warning."""
    assert system.clock().level is Level.OK
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert system.clock().level is Level.WARNING
    assert "timedatectl set-ntp true" in system.clock().remedy


def test_not_root(monkeypatch) -> None:
    """An ordinary user is told to use sudo."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "sudo" in system.privileges().remedy
