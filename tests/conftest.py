"""Fixtures for system tests: one machine for the whole run, with the appliance at work in each test."""

from __future__ import annotations

import io
import logging
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import orjson
import pytest
import structlog
from hypothesis import HealthCheck, settings
from machine import Machine, Switch

from appliance import logs

if TYPE_CHECKING:
    from collections.abc import Iterator

settings.register_profile("meshbox", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("meshbox")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo what commands that ran in this process configured: their standard error is closed by then."""
    handlers = logging.root.handlers[:]
    yield
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers


@pytest.fixture
def lines(monkeypatch):
    """Return what was logged since the last call."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure(form="json")

    def read() -> list[dict]:
        text = stream.getvalue()
        stream.seek(0)
        stream.truncate()
        return [orjson.loads(line) for line in text.splitlines()]

    yield read
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def switch() -> Iterator[Switch]:
    """The bridge that machines are plugged into, and the outside world."""
    with Switch() as made:
        yield made


@pytest.fixture(scope="session")
def machine(switch: Switch) -> Iterator[Machine]:
    """A machine with its Docker Engine and all images; the appliance may or may not run."""
    with Machine(switch, 1) as made:
        yield made


@contextmanager
def at_work(machine: Machine) -> Iterator[Machine]:
    """Provide the machine with its appliance running and nothing in the mesh; cleared afterwards."""
    machine.check_docker()
    if machine.appliance is None or not machine.appliance.running:
        machine.appliance = None
        machine.start()
    try:
        yield machine
    finally:
        machine.clear()


@pytest.fixture
def mesh(machine: Machine) -> Iterator[Machine]:
    """The machine with its appliance running and nothing in the mesh; cleared after each test."""
    with at_work(machine) as one:
        yield one


@pytest.fixture(scope="module")
def lasting_mesh(machine: Machine) -> Iterator[Machine]:
    """The same for all tests of a file together, which leave it as they find it and do not use `mesh` or `idle`."""
    with at_work(machine) as one:
        yield one


@pytest.fixture
def idle(machine: Machine) -> Iterator[Machine]:
    """The machine without an appliance, for tests that start it in their own way; cleared afterwards."""
    machine.stop()
    yield machine
    with suppress(AssertionError):
        machine.clear()
    machine.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show the end of the appliance's log beside a failure."""
    report = yield
    used = getattr(item, "funcargs", {})
    for machine in (*filter(None, [used.get("machine")]), *used.get("cluster", ())) if report.failed else ():
        report.sections.append((f"meshbox.log of {machine.node}", machine.log(60)))
    return report
