"""A directory's files as they come and go, told as a dialogue: this is done, that is told."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import trio
import trio.testing

from appliance.drivers.netns import directory
from appliance.drivers.netns.directory import FileChange, watch_directory
from appliance.errors import HostError


class Dialogue:
    """A watch whose next change is awaited with a deadline."""

    def __init__(self, watch: directory.DirectoryWatch) -> None:
        self._watch = watch

    async def told(self, *changes: str) -> None:
        """Expect changes: `+name` has come, `-name` has gone."""
        for change in changes:
            with trio.fail_after(5):
                got = await anext(self._watch)
            assert ("+" if got.present else "-") + Path(got.path).name == change

    async def silent(self) -> None:
        """Expect that nothing is left to tell."""
        with trio.move_on_after(0.02):
            raise AssertionError(await anext(self._watch))


def play(directory, scenario) -> None:
    """Run a scenario with a watch on the directory."""

    async def main() -> None:
        with watch_directory(str(directory)) as watch:
            await scenario(Dialogue(watch))

    trio.run(main)


def test_files_that_are_there_come_first(tmp_path):
    """Nothing falls between listing and watching."""
    (tmp_path / "b").touch()
    (tmp_path / "a").touch()

    async def scenario(watch):
        await watch.told("+a", "+b")
        await watch.silent()

    play(tmp_path, scenario)


def test_paths_are_whole(tmp_path):
    """What is told can be opened."""
    (tmp_path / "a").touch()

    async def main():
        with watch_directory(str(tmp_path)) as watch:
            assert await anext(watch) == FileChange(path=str(tmp_path / "a"), present=True)

    trio.run(main)


def test_files_come_and_go(tmp_path):
    """Made, moved in, moved out, removed, made again."""

    async def scenario(watch):
        (tmp_path / "a").touch()
        await watch.told("+a")
        (tmp_path / "a").rename(tmp_path.parent / "elsewhere")
        await watch.told("-a")
        (tmp_path.parent / "elsewhere").rename(tmp_path / "b")
        await watch.told("+b")
        (tmp_path / "b").unlink()
        (tmp_path / "b").touch()
        await watch.told("-b", "+b")
        (tmp_path / "b").write_text("changed")
        await watch.silent()

    play(tmp_path, scenario)


def test_the_directory_may_come_later(tmp_path):
    """Docker makes it with its first container; so may be the directories above it."""
    directory = tmp_path / "docker" / "netns"

    async def scenario(watch):
        await watch.silent()
        (tmp_path / "unrelated").touch()
        (tmp_path / "docker").mkdir()
        await watch.silent()
        (tmp_path / "docker" / "unrelated").touch()
        directory.mkdir()
        (directory / "a").touch()
        await watch.told("+a")
        (directory / "b").touch()
        await watch.told("+b")

    play(directory, scenario)


def test_the_directory_may_go_and_come_again(tmp_path):
    """A restarted Docker makes it again: what it had is reported as gone, and what it has as come."""
    directory = tmp_path / "docker" / "netns"
    directory.mkdir(parents=True)
    (directory / "a").touch()

    async def scenario(watch):
        await watch.told("+a")
        (directory / "a").unlink()
        directory.rmdir()
        (tmp_path / "docker").rmdir()
        await watch.told("-a")
        await watch.silent()
        directory.mkdir(parents=True)
        (directory / "b").touch()
        await watch.told("+b")

    play(directory, scenario)


def test_another_directory_in_its_place_is_compared(tmp_path):
    """Moved away and replaced at once: the difference is told."""
    directory = tmp_path / "netns"
    directory.mkdir()
    for name in ("a", "b"):
        (directory / name).touch()

    async def scenario(watch):
        await watch.told("+a", "+b")
        directory.rename(tmp_path / "old")
        directory.mkdir()
        for name in ("b", "c"):
            (directory / name).touch()
        await watch.told("-a", "+c")
        (tmp_path / "old" / "d").touch()
        await watch.silent()
        (directory / "e").touch()
        await watch.told("+e")

    play(directory, scenario)


def test_dropped_events_are_made_up_for(tmp_path):
    """More files than the kernel's queue of events holds: the directory is compared with what was known."""
    many = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text()) // 2 + 10

    async def scenario(watch):
        for number in range(many):
            os.close(os.open(tmp_path / "a", os.O_CREAT))
            (tmp_path / "a").rename(tmp_path / f"{number % 2}")
        told = {}
        while set(told) != {"0", "1"}:
            change = await anext(watch._watch)
            told[Path(change.path).name] = change.present
            if not change.present:
                told.pop(Path(change.path).name)
        (tmp_path / "last").touch()
        while Path((await anext(watch._watch)).path).name != "last":
            pass

    play(tmp_path, scenario)


def test_closing_wakes_who_waits(tmp_path):
    """A watch that ends leaves no descriptor and no task."""
    before = len(list(Path("/proc/self/fd").iterdir()))

    async def main():
        watch = watch_directory(str(tmp_path))

        async def wait():
            with pytest.raises(trio.ClosedResourceError):
                await anext(watch)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            watch.close()
            watch.close()

    trio.run(main)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_used_up_limit_says_how_to_raise_it(tmp_path, monkeypatch):
    """Inotify instances are few by default."""

    def refuse(**_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(directory, "INotify", refuse)
    with pytest.raises(HostError, match=r"raise fs\.inotify\.max_user_instances"):
        watch_directory(str(tmp_path))
