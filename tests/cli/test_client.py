from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack

import pytest

from appliance import lock
from appliance.cli import check, client
from appliance.config.options import Config

NOT_RUNNING = "meshbox is not running here"


@pytest.fixture(autouse=True)
def own_host(monkeypatch):
    """An appliance may run on the machine that runs the tests."""
    monkeypatch.setattr(lock, "GUARD", ("127.66.0.2", os.getpid() % 64000 + 1024))
    monkeypatch.setattr(lock, "SOCKET", f"\0meshbox-test-{os.getpid()}")


def later(do, *arguments):
    """Do something while a command waits."""
    threading.Timer(0.5, do, arguments).start()


@pytest.fixture
def starting(appliance, tmp_path):
    """An appliance that does not listen yet; calling this lets it do so, later."""
    path = tmp_path / "admin.sock"
    hidden = path.rename(tmp_path / "hidden")
    return lambda: later(hidden.rename, path)


@pytest.fixture
def hasty(monkeypatch):
    """Waiting is a failure."""
    monkeypatch.setattr(client._NEVER, "wait", lambda _: pytest.fail("it waits"))


def test_waits_for_an_appliance_that_starts(starting, meshbox, tmp_path):
    """What holds the lock will listen soon: the same command gets its answer then."""
    with lock.only_one(tmp_path):
        starting()
        assert meshbox("services").code == 0


def test_gives_up_an_appliance_that_never_gets_ready(meshbox, tmp_path, monkeypatch):
    """It is not said to be started once more."""
    monkeypatch.setattr(client, "START", 0.5)
    with lock.only_one(tmp_path):
        words = f"meshbox is starting, but does not answer yet on {tmp_path}/admin.sock: check its log\n"
        assert meshbox("services") == (1, "", words)


def test_waits_no_longer_for_an_appliance_that_has_ended(meshbox, tmp_path):
    """A host that is not fit lets it end at once."""
    with ExitStack() as stack:
        stack.enter_context(lock.only_one(tmp_path))
        later(stack.close)
        began = time.monotonic()
        assert NOT_RUNNING in meshbox("services").err
        assert time.monotonic() - began < client.START / 2


@pytest.mark.usefixtures("hasty")
def test_waits_for_no_other_appliance(meshbox, tmp_path):
    """One with another run_dir will never listen here."""
    with lock.only_one(tmp_path / "other"):
        (tmp_path / "lock").write_text("1")
        assert NOT_RUNNING in meshbox("services").err


@pytest.mark.usefixtures("hasty")
def test_waits_for_nothing_that_it_may_not_use(meshbox, tmp_path, monkeypatch):
    """A user that is not root is told so at once."""
    (tmp_path / "admin.sock").touch()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with lock.only_one(tmp_path):
        assert "run this with sudo" in meshbox("services").err


def test_in_the_image_one_is_expected(starting, meshbox, tmp_path, monkeypatch):
    """`docker exec` may come before the appliance holds its lock."""
    monkeypatch.setattr("appliance.image.IMAGE_MARK", tmp_path)
    starting()
    assert meshbox("services").code == 0


@pytest.mark.usefixtures("hasty")
def test_check_expects_none(tmp_path, monkeypatch):
    """In the image, too, one looks at the host before anything runs."""
    monkeypatch.setattr("appliance.image.IMAGE_MARK", tmp_path)
    assert check._running(Config(run_dir=str(tmp_path))) is None
