from __future__ import annotations

import re
import resource
import time
from dataclasses import replace

import pytest

from appliance.check import files, host
from appliance.model.facts import BridgeMember, DockerName
from appliance.model.finding import Finding, Level
from appliance.model.stats import ShareStats


@pytest.fixture
def host_with(monkeypatch):
    """A host on which this is found."""
    asked = []

    def found_on_host(*found, held=()):
        async def examine(_, *, running=False, open_files=None):
            asked.append((running, open_files))
            return found

        monkeypatch.setattr(host, "examine", examine)
        monkeypatch.setattr(files, "lock", lambda _: held)
        return asked

    return found_on_host


def finding(level, words="found", remedy=""):
    """One finding."""
    return Finding(subject="thing", level=level, words=words, remedy=remedy)


@pytest.mark.parametrize(("level", "code"), [(Level.OK, 0), (Level.WARNING, 0), (Level.FAILED, 1)])
def test_exit_code(meshbox, host_with, level, code):
    """Only what keeps the appliance from running makes `check` fail."""
    host_with(finding(Level.OK), finding(level, "it is [odd]", "mend it"))
    said = meshbox("check")
    assert said.code == code
    assert said.out.splitlines()[-1].split(maxsplit=2) == ["thing", str(level), "it is [odd]  mend it"]


def test_hanging_appliance(meshbox, host_with):
    """Where none answers, the process that holds the lock keeps another one from running."""
    asked = host_with(finding(Level.OK), held=[finding(Level.FAILED, "another meshbox")])
    said = meshbox("check")
    assert said.code == 1
    assert asked == [(False, None)]
    assert "another meshbox" in said.out


def test_json(show, host_with):
    """Scripts get the same."""
    host_with(finding(Level.WARNING, "few", "more"))
    assert show("check") == [{"subject": "thing", "level": "warning", "words": "few", "remedy": "more"}]


def test_running_appliance(appliance, meshbox, host_with):
    """A running appliance holds its own ports, and its faults are shown."""
    asked = host_with(finding(Level.OK), held=[finding(Level.FAILED, "another meshbox")])
    appliance.faults.report("nft", "push failed", "no such table")
    said = meshbox("check")
    assert said.code == 0
    assert asked == [(True, resource.getrlimit(resource.RLIMIT_NOFILE)[0])]
    assert "running with pid" in said.out
    assert "push failed (nft, 1 times): no such table" in said.out


def test_who_holds_more_than_its_share(appliance, show, host_with):
    """A caller that gave way a moment ago, or holds memory, is named; one of hours ago is not."""
    host_with(finding(Level.OK))
    now = time.time()
    appliance.greedy = (
        ShareStats(caller="172.30.0.9", held=7000, stuck=0, given_up=12, last=now - 5),
        ShareStats(caller="172.30.0.8", held=300, stuck=700 << 20, given_up=0, last=0),
        ShareStats(caller="172.30.0.7", held=3, stuck=0, given_up=4, last=now - 7200),
    )
    rows = [row for row in show("check") if row["subject"] == "share"]
    assert [row["level"] for row in rows] == ["warning", "warning"]
    assert re.fullmatch(
        r"172\.30\.0\.9 holds 7000 connections; 12 were reset, the last one \d+ s ago", rows[0]["words"]
    )
    assert rows[1]["words"] == "172.30.0.8 holds 300 connections, 700 MiB in those that it does not read"
    assert all("meshbox connections" in row["remedy"] for row in rows)


def test_names_that_docker_answers(appliance, meshbox, spec, show, host_with):
    """A container called like a name of the mesh is told where no door comes first, with what to do."""
    appliance.config = replace(appliance.config, doors=False)
    host_with(finding(Level.OK))
    assert not [row for row in show("check") if row["subject"] == "name"]
    words = 'shop = service("my-shop", containers=[container("web", image="web", ports=[80])])'
    assert meshbox("deploy", spec(words)).code == 0
    (seen,) = appliance.snapshot().workloads
    known = DockerName(seen.attachments[0].network, str(seen.name), str(seen.name))
    appliance.members = (
        BridgeMember(
            id="f" * 64, ports=frozenset(), macs=frozenset(), addresses=frozenset(), called=frozenset({known})
        ),
    )
    (row,) = (row for row in show("check") if row["subject"] == "name")
    assert row["level"] == "warning"
    assert f"answers {seen.name} on network {known.network}" in row["words"]
    assert row["remedy"] == f"give container {seen.name} another name in Docker"
