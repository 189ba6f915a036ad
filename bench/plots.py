"""One picture for each work: its figures side by side, with CPU time split into user and system."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from matplotlib.axes import Axes

    from bench.figures import Figure, Result

OURS, OTHERS, SYSTEM = "#c8442d", "#8a9aa8", "#c9d2da"


def draw(results: Iterable[Result], folder: Path) -> None:
    """Write a PNG for each work."""
    folder.mkdir(parents=True, exist_ok=True)
    for result in results:
        figures = [figure for figure in result.work.figures if not figure.name.endswith(("(user)", "(system)"))]
        canvas, axes = plt.subplots(1, len(figures), figsize=(3.6 * len(figures), 0.9 + 0.4 * len(result.samples)))
        for axis, figure in zip([axes] if len(figures) == 1 else axes, figures, strict=True):
            _bars(axis, result, figure)
        canvas.suptitle(result.title)
        canvas.tight_layout()
        canvas.savefig(folder / f"{result.work.name}.png", dpi=110)
        plt.close(canvas)


def _bars(axis: Axes, result: Result, figure: Figure) -> None:
    names = [name for name in reversed(result.samples) if result.values(name, figure.name)]
    medians = [result.median(name, figure.name) or 0.0 for name in names]
    reach = [
        [middle - min(result.values(name, figure.name)) for name, middle in zip(names, medians, strict=True)],
        [max(result.values(name, figure.name)) - middle for name, middle in zip(names, medians, strict=True)],
    ]
    axis.barh(names, medians, xerr=reach, color=[OURS if name == "meshbox" else OTHERS for name in names], capsize=2)
    system = [result.median(name, f"{figure.name} (system)") for name in names]
    if names and all(value is not None for value in system):
        axis.barh(names, [value or 0.0 for value in system], color=SYSTEM, height=0.35)
        axis.set_xlabel("pale: in the kernel", fontsize=7)
    axis.set_title(f"{figure.name} ({figure.better} is better)", fontsize=9)
    axis.tick_params(labelsize=8)
