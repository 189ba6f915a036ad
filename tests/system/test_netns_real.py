"""What is read from real network namespaces."""

from __future__ import annotations

import subprocess
import threading
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from nsworld import HOST, NEIGHBOUR, WORKLOAD, World

from appliance.drivers.netns import addresses, identity, owner, routes
from appliance.errors import RetryError

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.system

ID = "0123456789abcdef" * 4


@pytest.fixture
def world():
    """Bare namespaces."""
    with World() as made:
        yield made


def test_a_namespace_is_known_by_device_and_inode_not_by_path(world, tmp_path):
    """Two ways into one namespace are one; a namespace of the same name, made again, is another."""
    link = tmp_path / "link"
    link.symlink_to(world.path("workload"))
    first = identity.identify(world.path("workload"))
    assert first is not None
    assert identity.identify(str(link)) == first
    assert identity.identify(world.path("neighbour")) != first


def test_addresses_of_a_namespace(world):
    """IPv4 only, loopback left out, and this thread is in its own namespace afterwards."""
    home = Path(identity.HOST).readlink()
    assert trio.run(addresses.read, world.path("workload")) == (IPv4Address(WORKLOAD),)
    assert trio.run(addresses.read, world.path("neighbour")) == (IPv4Address(NEIGHBOUR),)
    assert Path("/proc/thread-self/ns/net").readlink() == home
    assert "netns" not in {thread.name for thread in threading.enumerate()}


def test_addresses_are_told_as_soon_as_there_are_any(world):
    """Docker makes the namespace before it gives it addresses."""
    world.bare("workload")

    async def main() -> None:
        path = world.path("workload")
        assert await addresses.read(path) == ()
        assert await addresses.wait(path, timeout=0.05) == ()
        found: list[tuple[IPv4Address, ...]] = []

        async def wait() -> None:
            found.append(await addresses.wait(path, timeout=10))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            await trio.to_thread.run_sync(world.address, "workload", "eth0", "172.30.7.7/16", "fd30::7/64")
        assert found == [(IPv4Address("172.30.7.7"),)]

    trio.run(main)


def test_a_neighbour_is_told_as_soon_as_an_interface_leads_there(world):
    """Docker gives an interface its address first and sets it up afterwards; before that no route can go through it."""
    world.unroute("workload")
    world.link("workload", "down")
    path = world.path("workload")

    async def main() -> None:
        assert await addresses.read(path) == (IPv4Address(WORKLOAD),)
        assert not await routes.wait_neighbour(path, IPv4Address(HOST), timeout=0.05)
        found: list[bool] = []

        async def wait() -> None:
            found.append(await routes.wait_neighbour(path, IPv4Address(HOST), timeout=10))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            await trio.to_thread.run_sync(world.link, "workload", "up")
        assert found == [True]
        assert await routes.add_route(path, IPv4Network("240.0.0.0/4"), IPv4Address(HOST))

    trio.run(main)


def test_a_route_to_virtual_addresses_is_dropped_again(world):
    """Only through the gateway that it was added with, and as often as one likes."""
    world.unroute("workload")
    path, vips, host = world.path("workload"), IPv4Network("240.0.0.0/4"), IPv4Address(HOST)
    show = ["nsenter", f"--net={path}", "ip", "route", "show", str(vips)]

    async def main() -> None:
        assert await routes.add_route(path, vips, host)
        await routes.drop_route(path, vips, IPv4Address(NEIGHBOUR))
        assert f"via {HOST}" in (await trio.run_process(show, capture_stdout=True)).stdout.decode()
        assert not await routes.add_route(path, vips, host)
        for _ in range(2):
            await routes.drop_route(path, vips, host)
            assert (await trio.run_process(show, capture_stdout=True)).stdout == b""
        assert await routes.add_route(path, vips, host)

    trio.run(main)


@pytest.mark.parametrize("ask", [addresses.read, addresses.wait])
def test_a_namespace_that_is_gone_has_no_addresses_to_read(ask):
    """The caller tries again or learns that the container has ended."""
    with pytest.raises(RetryError, match=r"cannot read the addresses .* No such file"):
        trio.run(ask, "/run/netns/mbd-nowhere")


def test_a_file_becomes_a_namespace(world, tmp_path):
    """Docker makes an ordinary file first and mounts the namespace on it afterwards."""
    file = tmp_path / "netns"
    file.touch()

    async def main() -> None:
        assert identity.identify(str(file)) is None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_expect, str(file), world.netns("workload").id)
            await trio.testing.wait_all_tasks_blocked()
            await trio.run_process(["mount", "--bind", world.path("workload"), str(file)])

    try:
        trio.run(main)
    finally:
        subprocess.run(["umount", str(file)], check=True)


async def _expect(path, wanted) -> None:
    assert await identity.wait_namespace(path, timeout=10) == wanted


def test_the_owner_of_a_namespace_is_read_from_its_process(world):
    """By the control group of a process inside, before Docker says anything; nobody yet is no error."""
    path = world.path("workload")
    assert trio.run(owner.find_owner, path) is None
    with control_group(f"docker-{ID}.scope") as group:
        enter = f"echo $$ > {group}/cgroup.procs; exec sleep 60"
        with subprocess.Popen(["nsenter", f"--net={path}", "sh", "-c", enter]) as process:
            try:
                while ID not in Path(f"/proc/{process.pid}/cgroup").read_text():
                    assert process.poll() is None
                found = trio.run(owner.find_owner, path)
                assert (found.container, found.process.pid) == (ID, process.pid)
                assert trio.run(owner.find_owner, world.path("neighbour")) is None
            finally:
                process.kill()
    assert trio.run(owner.find_owner, "/run/netns/mbd-nowhere") is None


@contextmanager
def control_group(name: str) -> Iterator[Path]:
    """Make a control group for a while, in whichever hierarchy this machine has."""
    root = Path("/sys/fs/cgroup")
    base = next((root / kind for kind in ("pids", "unified") if (root / kind / "cgroup.procs").exists()), root)
    group = base / name
    group.mkdir()
    try:
        yield group
    finally:
        while group.exists():  # the kernel may still be taking the process down
            with suppress(OSError):
                group.rmdir()
