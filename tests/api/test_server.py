"""The socket of the admin API: root's own, and gone afterwards."""

from __future__ import annotations

import stat

import orjson
import pytest
import trio.testing

from appliance import logs
from appliance.api import server
from appliance.errors import HostError


def test_socket_is_roots_own(converse, tmp_path):
    """Nobody but the owner can use the socket, a stale one is replaced, and it is gone afterwards."""
    path = tmp_path / "admin.sock"
    path.write_text("stale")

    async def test(_):
        mode = path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600

    converse(test)
    assert not path.exists()


def test_fault_of_ours_is_in_the_log(converse, capsys, monkeypatch):
    """A request that meets a fault in the program is answered by 500, and the traceback is one line of the log."""

    async def test(call):
        monkeypatch.setattr(call.appliance, "stats", None)
        assert (await call.http.get("/v1/routes")).status_code == 500
        while not said:  # it is answered first
            await trio.testing.wait_all_tasks_blocked()
            said.extend(capsys.readouterr().err.splitlines())

    said = []
    logs.configure(form="json")
    converse(test)
    (line,) = said
    assert "TypeError" in orjson.loads(line)["exception"]


def test_socket_that_cannot_be_made(tmp_path):
    """A folder that is not there is told in one line."""
    with pytest.raises(HostError, match=r"cannot make the admin socket .*: No such file or directory"):
        server._listening(tmp_path / "none/admin.sock")
