"""A work and its figures, made up."""

from __future__ import annotations

from contextlib import nullcontext

from bench.figures import Figure, Result, Work

ECHO = Work(
    name="echo",
    title="Echo",
    figures=(Figure(name="p50 µs", better="lower", digits=1), Figure(name="CPU µs", better="lower")),
    open=lambda _: nullcontext({}),
)
RESULT = Result(
    work=ECHO,
    samples={
        "direct": [{"p50 µs": 10.0}] * 3,
        "meshbox": [{"p50 µs": 33.0, "CPU µs": 5.0}, {"p50 µs": 32.0, "CPU µs": 4.0}, {"p50 µs": 40.0, "CPU µs": 6.0}],
        "haproxy": [{"p50 µs": 30.0, "CPU µs": 5.0}] * 3,
    },
)
