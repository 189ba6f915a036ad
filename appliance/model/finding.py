"""What a check of a host found: how bad it is, and how to mend it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check. `remedy` says what to do unless it is ok."""

    subject: str
    level: Level
    words: str
    remedy: str = ""


def ok(subject: str, words: str) -> Finding:
    """Return a finding that nothing is wrong."""
    return Finding(subject=subject, level=Level.OK, words=words)


def failed(subject: str, words: str, remedy: str) -> Finding:
    """Return a finding that keeps the appliance from running."""
    return Finding(subject=subject, level=Level.FAILED, words=words, remedy=remedy)


def warning(subject: str, words: str, remedy: str) -> Finding:
    """Return a finding that limits what the appliance can do."""
    return Finding(subject=subject, level=Level.WARNING, words=words, remedy=remedy)
