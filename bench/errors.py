"""Why there are no figures."""

from __future__ import annotations


class BenchError(Exception):
    """A contender did not do the work, or the work could not be set up: any figures would be worthless."""
