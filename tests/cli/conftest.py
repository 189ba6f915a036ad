"""The command line in this process, with a fake appliance behind a real socket in a thread beside it."""

from __future__ import annotations

import threading
from typing import NamedTuple

import orjson
import pytest
import trio

from appliance.api import server
from appliance.cli import main
from appliance.config.options import Config
from appliance.testing.appliance import FakeAppliance


class Said(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def meshbox(monkeypatch, tmp_path, capsys):
    """Run a command; nothing of this machine's own configuration counts."""
    monkeypatch.setenv("MESHBOX_CONFIG", "/dev/null")
    monkeypatch.setenv("MESHBOX_RUN_DIR", str(tmp_path))

    def meshbox(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Said(code, *capsys.readouterr())

    return meshbox


@pytest.fixture
def show(meshbox):
    """Return what a noun says as JSON."""

    def show(*words):
        said = meshbox(*words, "--json")
        return orjson.loads(said.out)

    return show


@pytest.fixture
def appliance(tmp_path):
    """A fake appliance that answers."""
    fake = FakeAppliance(Config(node="h1", run_dir=str(tmp_path)))
    ready = threading.Event()
    handle = []

    async def serve():
        handle.append((trio.lowlevel.current_trio_token(), trio.CancelScope()))
        with handle[0][1]:
            async with trio.open_nursery() as nursery:
                await nursery.start(server.serve, fake, tmp_path / "admin.sock")
                ready.set()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert ready.wait(10)
    yield fake
    token, scope = handle[0]
    trio.from_thread.run_sync(scope.cancel, trio_token=token)
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def spec(tmp_path):
    """Write a spec file and return its path."""

    def spec(text):
        path = tmp_path / "app.py"
        path.write_text(text)
        return path

    return spec
