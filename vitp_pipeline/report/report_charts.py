"""Registry of the charts of a report: the figures that each draws. `charts` holds their look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitp_pipeline.report import charts, figures
from vitp_pipeline.report.charts import Chart
from vitp_pipeline.report.loaded_evaluation import StoredEvaluation
from vitp_pipeline.report.task_bars import task_bars
from vitp_pipeline.validation.registry import Registry

HELP_TITLES = {
    "area": "area of the mask, share of the image",
    "confidence": "confidence of the generator",
    "frequency": "frequency of the true class, in pixels",
}


@dataclass(frozen=True)
class ReportFigures:
    """Figures that charts show, as `figures` and `mask_statistics` make them.

    `shown_in` is how many images of the gallery show each class.
    """

    stored: StoredEvaluation
    measures: dict[str, dict[str, list[Any]]]
    confusion: dict[str, np.ndarray]
    curves: dict[str, dict[str, Any]]
    helped: dict[str, list[dict[str, Any]]]
    reliability: dict[str, dict[str, Any]]
    shown_in: list[int]


@dataclass(frozen=True)
class ReportChart:
    """A chart, or several of a kind.

    Attributes:
        draw: figures → charts by their keys in `page/report.html`; none where there is nothing to show.
        caption: of a chart appended to those of masks; "" where the page has a fixed place for it.
    """

    draw: Callable[[ReportFigures], dict[str, Chart]]
    caption: str = ""


CHARTS: Registry[ReportChart] = Registry("chart", "vitp_pipeline.report.report_charts")


def drawn_charts(shown: ReportFigures) -> tuple[dict[str, Chart], dict[str, str]]:
    """Return all charts by name, and the captions of those without a fixed place on the page."""
    drawn: dict[str, Chart] = {}
    captions: dict[str, str] = {}
    for kind in CHARTS:
        found = CHARTS[kind].draw(shown)
        drawn |= found
        captions |= dict.fromkeys(found, CHARTS[kind].caption) if CHARTS[kind].caption else {}
    return drawn, captions


def _tasks(shown: ReportFigures) -> dict[str, Chart]:
    return {"tasks": charts.task_bars([task_bars(shown.stored)], [""])}


def _alpha(shown: ReportFigures) -> dict[str, Chart]:
    curves = charts.alpha_curves(shown.curves, shown.stored.evaluation.alpha)
    return {f"alpha:{name}": chart for name, chart in curves.items()}


def _classes(shown: ReportFigures) -> dict[str, Chart]:
    names, compared, drawn = shown.stored.classes, shown.stored.evaluation.compared, {}
    for measure, values in shown.measures.items():
        chosen = [k for k in range(len(names)) if any(values[v][k] is not None for v in compared)]
        own = {variant: [column[k] for k in chosen] for variant, column in values.items()}
        links = [(k, shown.shown_in[k]) for k in chosen]
        drawn[f"classes:{measure}"] = charts.class_bars([names[k] for k in chosen], own, measure, links)
    return drawn


def _confusion(shown: ReportFigures) -> dict[str, Chart]:
    confusion, drawn = shown.confusion, {}
    if not confusion:
        return {}
    chosen = figures.most_confused(confusion)
    labels = (*shown.stored.classes, figures.NO_MASK)
    names = [labels[k] for k in chosen] + ["all others"]
    folds = sum(m.sum(0) + m.sum(1) for m in confusion.values()).astype(bool).sum() > len(chosen)
    for variant, counts in confusion.items():
        folded = figures.folded(counts, chosen)
        last = len(names) if folds else -1
        drawn[f"confusion:{variant}"] = charts.confusion(folded[:last, :last], names[:last])
    return drawn


def _help(shown: ReportFigures) -> dict[str, Chart]:
    return {f"help:{name}": charts.help_and_harm(bins, HELP_TITLES[name]) for name, bins in shown.helped.items()}


def _reliability(shown: ReportFigures) -> dict[str, Chart]:
    return {"reliability": charts.reliability(shown.reliability)}


for _draw in (_tasks, _alpha, _classes, _confusion, _help, _reliability):
    CHARTS.add(_draw.__name__.removeprefix("_"), ReportChart(_draw))
