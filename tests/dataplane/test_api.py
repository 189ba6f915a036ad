"""The questions of the data plane's interface; its two implementations have tests of their own."""

from __future__ import annotations

import inspect
from ipaddress import IPv4Address

import pytest

from appliance.dataplane import api
from appliance.dataplane.inprocess import InProcess
from appliance.dataplane.workers.pool import WorkerPool

QUESTIONS = (api.STATS, api.CONNECTIONS, api.DNS_STATS, api.LEFT, api.pairs_to(IPv4Address("127.0.0.1")))


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.method)
def test_a_question_is_a_method_of_the_plane(question: api.Question[object]) -> None:
    """With these arguments: it is called by name, perhaps in another process."""
    inspect.signature(getattr(InProcess, question.method)).bind(None, *question.arguments)


@pytest.mark.parametrize("plane", [InProcess, WorkerPool])
def test_both_planes_have_the_whole_interface(plane: type) -> None:
    """What the control plane may call or read, with the arguments that it may give."""
    for name, wanted in vars(api.DataPlane).items():
        if name.startswith("_"):
            continue
        own = getattr(plane, name, None)
        if inspect.isfunction(wanted):
            parameters = [p for p in inspect.signature(wanted).parameters.values() if p.name != "self"]
            inspect.signature(own).bind(None, *parameters)
        else:
            assert own is not None or name in inspect.getsource(plane.__init__), f"{plane.__name__} has no {name}"


def test_questions_are_values() -> None:
    """Equal where they ask the same; they go to workers and select how answers are merged."""
    assert api.pairs_to(IPv4Address("10.0.0.1")) == api.pairs_to(IPv4Address("10.0.0.1")) != api.STATS
