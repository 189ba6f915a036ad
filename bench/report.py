"""Results as Markdown and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.bars import Verdict, verdicts
from bench.figures import Result, Work

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bench.figures import Figure

HEAD = """\
Medians of alternating rounds; ± is half the distance between the largest and the smallest round. In parentheses the
ratio to the contender in bold. Every contender does the same work. Where a work does not say otherwise, each is pinned
alone to one CPU, with one thread or process, and client and server share the others. CPU is what the contender itself
used, from /proc. `direct` is no proxy at all, `dnat` the kernel rewriting addresses.

`meshbox` is what is deployed: client and server have the rules of a container (nft/workload.nft, nft/door.nft), the
proxy's namespace those of a host (nft/host.nft), as the appliance renders them. The client dials a virtual IP, and the
data plane, compiled as in image and package, with access check, balancer and counters, accepts in the client's
namespace and dials from inside the server's. These rules are there in its own turns only. In all three namespaces
the kernel tracks connections for every contender, because of Docker's own rules for hosts and for containers on
networks of a user's own. `meshbox, port dialled` is the data plane without rules and doors; in `dns-*` its port is
asked, in `churn*` and `workers` dialled, beside a host's rules. `meshbox, interpreted` is what is deployed, but run
from source.
"""
WORDS = {"met": "met", "missed": "**missed**", "not measured": "**not measured**"}


def to_json(results: Sequence[Result], facts: Mapping[str, str], **how: Any) -> dict[str, Any]:
    """Return all samples, and why there are none where a contender did not do its work."""
    return {
        "machine": dict(facts),
        "how": how,
        "works": {result.work.name: result.samples for result in results if not result.error},
        "failed": {result.work.name: result.error for result in results if result.error},
    }


def from_json(runs: Sequence[Mapping[str, Any]], works: Iterable[Work]) -> list[Result]:
    """Return the results of earlier runs, of each work those of the last; works that no longer exist are left out."""
    last = {name: run for run in runs for name in (*run["works"], *run.get("failed", ()))}
    return [_result(last[work.name], work) for work in works if work.name in last]


def _result(run: Mapping[str, Any], work: Work) -> Result:
    return Result(
        work=work,
        samples=run["works"].get(work.name, {}),
        error=run.get("failed", {}).get(work.name, ""),
        run=_run(run),
        quick=run["how"].get("quick", False),
    )


def _run(data: Mapping[str, Any]) -> str:
    how = data["how"]
    return f"{how['date']}, {how['rounds']} rounds of {how['seconds']} s, commit {data['machine'].get('commit', '?')}"


def markdown(results: Sequence[Result], facts: Mapping[str, str]) -> str:
    """Return the report."""
    known = {name: value for name, value in facts.items() if name != "commit"}
    parts = [
        "# Measured\n",
        "\n".join(f"- {name}: {value}" for name, value in known.items()) + "\n",
        HEAD,
    ]
    judged = list(verdicts(results))
    if judged:
        parts.append("## Bars\n\n" + _bars(judged))
    for result in results:
        command = f"`make bench ARGS='{'--quick ' * result.quick}--only {result.work.name}'`"
        note = f" {result.work.note}" if result.work.note else ""
        parts.append(f"## {result.title}\n\n{command}: {result.run}.{note}\n\n{_table(result)}")
    return "\n".join(parts)


def _bars(judged: Iterable[Verdict]) -> str:
    lines = ["| work | figure | of | must be | is | |", "| --- | --- | --- | --- | --- | --- |"]
    for verdict in judged:
        bar = verdict.bar
        of = (
            bar.contender
            + (f" / {bar.against}" if bar.against else "")
            + (f", each less {bar.minus}" if bar.minus else "")
            + ", in the worst round" * bar.never
        )
        must = f"{'≥' if bar.at_least else '≤'} {bar.limit:g}"
        reached = "-" if verdict.reached is None else f"{verdict.reached:.2f}"
        cells = (bar.work, bar.figure, of, must, reached, WORDS[verdict.word])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _table(result: Result) -> str:
    work = result.work
    if result.error:
        return f"Not measured: {' '.join(result.error.split())}\n"
    lines = ["| | " + " | ".join(f.name for f in work.figures) + " |", "| --- |" + " ---: |" * len(work.figures)]
    for name in result.samples:
        label = f"**{name}**" if name == work.reference else name
        lines.append(f"| {label} | " + " | ".join(_cell(result, name, figure) for figure in work.figures) + " |")
    return "\n".join(lines) + "\n"


def _cell(result: Result, name: str, figure: Figure) -> str:
    value = result.median(name, figure.name)
    if value is None:
        return "-"
    ratio = result.ratio(name, figure.name, result.work.reference)
    text = f"{value:,.{figure.digits}f} ±{result.spread(name, figure.name) * 50:.0f} %"
    return text if ratio is None or name == result.work.reference else f"{text} ({ratio:.2f})"
