"""The paper's Figure 1 as a picture file, drawn by Matplotlib without a browser."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitp_pipeline.errors import UsageError
from vitp_pipeline.figure import percent
from vitp_pipeline.report import task_bars
from vitp_pipeline.report.loaded_evaluation import StoredEvaluation
from vitp_pipeline.storage.atomic_files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".svg", ".png", ".pdf")
COLORS = {"generator": "#6b7685", "classifier": "#8a4fbf", "fused": "#1d5fc4", "upper_bound_point": "#d3dae4"}
INK, LINE = "#1c2330", "#d9dee6"
BAR, BETWEEN, GAP, UPRIGHT = 0.46, 0.3, 0.75, 9
"""Width of a bar, and the gaps between the evaluations of a metric and between metrics, in inches; most bars whose
numbers are written horizontally."""
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "vitp",  # the same figures give the same bytes
}


def require_figure(path: Path) -> None:
    """Raise UsageError where no figure can be written: another suffix than `FORMATS`, or no Matplotlib."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            f"--figure {path}: the suffix chooses the format", f"Give a path that ends in {', '.join(FORMATS)}"
        )
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError(f"a figure needs the package {error.name}", "pip install 'vitp-pipeline[report]'") from error


def write_figure(evaluations: Sequence[StoredEvaluation], labels: Sequence[str], path: Path) -> None:
    """Draw generator, fused and upper bound of every task and evaluation, and write the picture whole.

    Args:
        labels: of the evaluations, as `compare.labels_of` makes them; not shown where there is only one.
        path: its suffix is the format.
    Raises:
        UsageError: as `require_figure`.
        StorageError: no room.
    """
    require_figure(path)
    import matplotlib

    provenance = evaluations[0].result["provenance"]
    content, kind = io.BytesIO(), path.suffix.lower().removeprefix(".")
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    with matplotlib.rc_context(STYLE):
        drawn = [task_bars.task_bars(stored) for stored in evaluations]
        figure = bar_figure(drawn, labels, f"{provenance['dataset']} {provenance['split']}")
        figure.savefig(content, format=kind, dpi=200, bbox_inches="tight", pad_inches=0.12, metadata=dates[kind])
    write_whole(path, content.getvalue())


def bar_figure(evaluations: Sequence[Sequence[task_bars.TaskBars]], labels: Sequence[str], title: str) -> Figure:
    """Draw the bars: a container of the axes for every variant, named as in `task_bars.BARS`, heights in per cent.

    Where there are several evaluations, each metric has a cluster for each, marked by the letter of its label.
    """
    from matplotlib.figure import Figure

    variants, metrics = task_bars.variants_of(evaluations), task_bars.by_metric(evaluations)
    cluster = BAR * len(variants)
    lefts: list[tuple[str, int, float]] = []
    middles: dict[str, float] = {}
    x = GAP / 2
    for metric, numbers in metrics:
        start = x
        for number in numbers:
            lefts.append((metric, number, x))
            x += cluster + BETWEEN
        middles[metric] = (start + x - BETWEEN) / 2
        x += GAP - BETWEEN
    width = x - GAP / 2
    figure = Figure(figsize=(max(3.6, width + 0.8), 3.6))
    axes = figure.add_subplot()
    upright = len(lefts) * len(variants) > UPRIGHT
    for place, variant in enumerate(variants):
        values = [task_bars.value_of(evaluations[number], metric, variant) for metric, number, _ in lefts]
        bars = axes.bar(
            [left + (place + 0.5) * BAR for _, _, left in lefts],
            [math.nan if value is None else 100 * value for value in values],
            0.94 * BAR,
            color=COLORS[variant],
            label=task_bars.BARS[variant],
            zorder=2,
        )
        texts = ["" if value is None else percent(value, 1) for value in values]
        axes.bar_label(bars, texts, padding=2, fontsize=8, rotation=90 if upright else 0)
    heights = [100 * v for own in evaluations for bars in own for v in bars.values.values() if v is not None]
    axes.set_xlim(0, width)
    axes.set_ylim(0, 1.15 * max(heights, default=0) or 1)
    axes.set_ylabel("%")
    axes.set_title(title, fontsize=11, pad=30, parse_math=False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=LINE)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(variants), frameon=False, fontsize=9, columnspacing=1.2
    )
    if len(evaluations) == 1:
        axes.set_xticks(list(middles.values()), list(middles))
        return figure
    axes.set_xticks([left + cluster / 2 for _, _, left in lefts], [labels[n].partition(":")[0] for _, n, _ in lefts])
    below = axes.secondary_xaxis("bottom")
    below.set_xticks(list(middles.values()), list(middles))
    below.tick_params(length=0, pad=20)
    below.spines["bottom"].set_visible(False)
    axes.text(0, -0.22, "\n".join(labels), transform=axes.transAxes, va="top", fontsize=9, parse_math=False)
    return figure
