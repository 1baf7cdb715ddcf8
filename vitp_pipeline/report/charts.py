"""Charts as Plotly figures: plain JSON. Colors are the page's (`var(--…)`), so that light and dark need one set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from vitp_pipeline.figure import Figure, difference, plain, signed
from vitp_pipeline.figure import percent as in_percent
from vitp_pipeline.report.task_bars import BARS, TaskBars, value_of, variants_of
from vitp_pipeline.report.task_bars import by_metric as bars_by_metric

Chart = dict[str, Any]

INK = {
    "generator": "var(--generator)",
    "classifier": "var(--classifier)",
    "fused": "var(--fused)",
    "upper_bound": "var(--upper-bound)",
    "gain": "var(--gain)",
    "harm": "var(--harm)",
}
SERIES = (
    "var(--fused)",
    "var(--classifier)",
    "var(--series-3)",
    "var(--series-4)",
    "var(--series-5)",
    "var(--series-6)",
)
CURVE = 5
"""Least number of α joined by a line: fewer points would suggest a curve that was not measured."""
LEGEND = {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0}


def percent(value: Figure) -> Figure:
    return None if value is None else round(100 * value, 4)


def percents(values: Sequence[float | None]) -> list[float | None]:
    return [percent(v) for v in values]


def alpha_curves(curves: dict[str, dict[str, Any]], alpha: float) -> dict[str, Chart]:
    """A chart per figure that was swept; `alpha` marks the headline."""
    return {
        name: alpha_curve(name, [("fused", curve["alpha"], curve["value"])], curve["upper_bound"], alpha)
        for name, curve in curves.items()
    }


def is_curve(alphas: Sequence[float]) -> bool:
    """True if figures at these α suffice to draw the curve over α."""
    return len(alphas) >= CURVE


def alpha_curve(
    name: str,
    curves: Sequence[tuple[str, Sequence[float], Sequence[Any]]],
    upper_bound: float | None,
    alpha: float | None,
) -> Chart:
    """One figure over α, a run being a line, or few points: (label, α, values)."""
    data: list[dict[str, Any]] = []
    for (label, xs, ys), color in zip(curves, _cycle(len(curves)), strict=True):
        mode = "lines+markers" if is_curve(xs) else "markers"
        line = {"type": "scatter", "mode": mode, "name": label, "x": list(xs), "y": percents(ys)}
        look = {"line": {"color": color}} if is_curve(xs) else {"marker": {"color": color, "size": 9}}
        data.append(line | look | {"hovertemplate": f"α = %{{x}}: %{{y:.2f}} {name}<extra></extra>"})
    if len(curves) == 1:
        _, xs, ys = curves[0]
        if upper_bound is not None:
            data.append(_level("upper bound (mask labels)", xs, percent(upper_bound), INK["upper_bound"], "dash"))
        if 0.0 in xs:
            data.append(_level("generator alone", xs, percent(ys[list(xs).index(0.0)]), INK["generator"], "dot"))
        if alpha is not None and alpha in xs:
            mark = {"color": INK["fused"], "size": 13, "symbol": "circle-open", "line": {"width": 3}}
            at = {"x": [alpha], "y": [percent(ys[list(xs).index(alpha)])]}
            data.append({"type": "scatter", "mode": "markers", "name": "headline", "marker": mark} | at)
    layout = _layout("α, weight of the classifier", f"{name} [%]", height=360)
    layout["xaxis"] |= {"range": [-0.03, 1.03], "zeroline": False}
    return {"data": data, "layout": layout}


def task_bars(evaluations: Sequence[Sequence[TaskBars]], labels: Sequence[str]) -> Chart:
    """Draw generator, fused and upper bound of every task, as the paper's Figure 1; a cluster for every evaluation.

    Args:
        labels: of the evaluations, their letters first; not shown where there is only one.
    """
    places = [(metric, i) for metric, numbers in bars_by_metric(evaluations) for i in numbers]
    letters = [labels[i].partition(":")[0] for _, i in places]
    metrics = [metric for metric, _ in places]
    data: list[dict[str, Any]] = []
    for variant in variants_of(evaluations):
        values = [value_of(evaluations[i], metric, variant) for metric, i in places]
        bar: dict[str, Any] = {"type": "bar", "name": BARS[variant]}
        bar |= {"x": [metrics, letters] if len(evaluations) > 1 else metrics}
        bar |= {"y": percents(values), "text": [in_percent(v, 1) for v in values], "textposition": "outside"}
        color = INK["upper_bound"] if variant == "upper_bound_point" else INK[variant]
        told = {"customdata": [labels[i] for _, i in places]} if len(evaluations) > 1 else {}
        hover = f"{BARS[variant]}: %{{y:.2f}}{'<br>%{customdata}' if told else ''}<extra></extra>"
        data.append(bar | told | {"marker": {"color": color}, "cliponaxis": False, "hovertemplate": hover})
    layout = _layout("", "%", height=340)
    layout |= {"barmode": "group", "bargap": 0.3, "bargroupgap": 0.05}
    layout["yaxis"] |= {"rangemode": "tozero"}
    layout["xaxis"] |= {"type": "multicategory" if len(evaluations) > 1 else "category", "showgrid": False}
    return {"data": data, "layout": layout}


def class_bars(
    classes: Sequence[str],
    values: Mapping[str, Sequence[Any]],
    name: str,
    images: Sequence[tuple[int, int]] | None = None,
) -> Chart:
    """A row per class: gray up to the generator, colored from there to the fused figure, pale up to the upper bound.

    Where nothing was fused, the figure of the classifier or the generator alone, pale up to the upper bound.

    Args:
        images: per class its index and how many images of the gallery show it: its name links to these.
    """
    drawn = _class_bars(classes, values, name)
    if images is not None:
        text = [
            f'<a href="#class-{index}"><u>{escape(c)}</u></a>' if count else escape(c)
            for c, (index, count) in zip(classes, images, strict=True)
        ]
        drawn["layout"]["yaxis"] |= {"tickmode": "array", "tickvals": list(classes), "ticktext": text}
        told = drawn["data"][0]
        told["hovertext"] = [
            f"{hover}<br>{f'{count} of the images below' if count else 'in none of the images below'}"
            for hover, (_, count) in zip(told["hovertext"], images, strict=True)
        ]
    return drawn


def _class_bars(classes: Sequence[str], values: Mapping[str, Sequence[Any]], name: str) -> Chart:
    of_masks = values.get("upper_bound_mask", [None] * len(classes))
    upper_bound = percents(of_masks)
    if "fused" not in values:
        alone = next(name for name in ("classifier", "generator") if name in values)
        own = percents(values[alone])
        text = [
            f"<b>{c}</b><br>{alone} {in_percent(f)}<br>upper bound {in_percent(b)}"
            for c, f, b in zip(classes, values[alone], of_masks, strict=True)
        ]
        return _class_rows(
            classes,
            [
                ("upper_bound", [b or 0.0 for b in upper_bound], INK["upper_bound"], 0.0),
                (alone, [f or 0.0 for f in own], INK[alone], 0.0),
            ],
            text,
        )
    generator, fused = (percents(values[k]) for k in ("generator", "fused"))
    both = [(g or 0.0, f or 0.0) for g, f in zip(generator, fused, strict=True)]
    text = [
        f"<b>{c}</b><br>generator {in_percent(g)}<br>fused {in_percent(f)} ({signed(difference(f, g))})"
        f"<br>upper bound {in_percent(b)}"
        for c, g, f, b in zip(classes, values["generator"], values["fused"], of_masks, strict=True)
    ]

    gain = [max(0.0, f - g) for g, f in both]
    harm = [max(0.0, g - f) for g, f in both]
    return _class_rows(
        classes,
        [
            ("upper_bound", [b or 0.0 for b in upper_bound], INK["upper_bound"], 0.0),
            ("generator", [min(g, f) for g, f in both], INK["generator"], 0.0),
            ("gained by fusion", gain, INK["gain"], [g for g, _ in both]),
            ("lost by fusion", harm, INK["harm"], [f for _, f in both]),
        ],
        text,
    )


def _class_rows(
    classes: Sequence[str], bars: Sequence[tuple[str, list[float], str, list[float] | float]], text: Sequence[str]
) -> Chart:
    """Draw bars over each other: (title, lengths, color, base), the first with the text of every class."""
    data = []
    for number, (title, x, color, base) in enumerate(bars):
        shown: dict[str, Any] = {"hoverinfo": "skip"} if number else {"hovertext": text, "hoverinfo": "text"}
        bar = {"type": "bar", "orientation": "h", "name": title, "y": list(classes), "x": x, "base": base}
        data.append(bar | {"width": 0.8, "marker": {"color": color}} | shown)
    layout = _layout("", "", height=50 + 19 * len(classes))
    layout |= {"barmode": "overlay", "hovermode": "y", "bargap": 0.15, "showlegend": False}
    layout["margin"] = {"l": 56, "r": 12, "t": 34, "b": 8}
    layout["yaxis"] |= {"automargin": True, "type": "category", "autorange": "reversed", "dtick": 1, "showgrid": False}
    layout["xaxis"] |= {"side": "top", "ticksuffix": " %", "zeroline": False}
    return {"data": data, "layout": layout}


def confusion(counts: np.ndarray, names: Sequence[str]) -> Chart:
    """Shares of every true class's pixels. counts: (C, C) [truth, predicted]."""
    total = counts.sum(1, keepdims=True)
    share = np.divide(100.0 * counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    z = plain(share.round(2))
    heat = {
        "type": "heatmap",
        "x": list(names),
        "y": list(names),
        "z": z,
        "zmin": 0,
        "zmax": 100,
        "colorscale": [[0, "var(--heat-0)"], [0.5, "var(--heat-1)"], [1, "var(--heat-2)"]],
        "xgap": 1,
        "ygap": 1,
        "colorbar": {"ticksuffix": " %", "thickness": 10, "outlinewidth": 0},
        "hovertemplate": "truth %{y}<br>predicted %{x}<br>%{z:.1f} % of its pixels<extra></extra>",
    }
    layout = _layout("", "", height=170 + 18 * len(names))
    layout["margin"] = {"l": 56, "r": 4, "t": 8, "b": 48}
    common = {"automargin": True, "type": "category", "dtick": 1, "showgrid": False, "ticks": ""}
    layout["yaxis"] |= common | {"autorange": "reversed"}
    layout["xaxis"] |= common | {"tickangle": -90, "tickfont": {"size": 11}}
    return {"data": [heat], "layout": layout}


def reliability(found: dict[str, dict[str, Any]]) -> Chart:
    """Accuracy by confidence; on the diagonal a source is perfectly calibrated."""
    diagonal = {"type": "scatter", "mode": "lines", "name": "perfectly calibrated", "x": [0, 100], "y": [0, 100]}
    data: list[dict[str, Any]] = [
        diagonal | {"line": {"color": INK["upper_bound"], "dash": "dash"}, "hoverinfo": "skip"}
    ]
    for name, bins in found.items():
        ece = "" if bins["ece"] is None else f" (ECE {100 * bins['ece']:.1f})"
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "connectgaps": False,  # an empty bin is no point of the diagram
                "name": f"{name}{ece}",
                "x": percents(bins["confidence"]),
                "y": percents(bins["right"]),
                "customdata": bins["count"],
                "line": {"color": INK[name]},
                "marker": {"size": [6 + 14 * (n / max(1, *bins["count"])) ** 0.5 for n in bins["count"]]},
                "hovertemplate": f"{name}: %{{customdata}} masks<br>"
                "confidence %{x:.1f} %, accuracy %{y:.1f} %<extra></extra>",
            }
        )
    layout = _layout("confidence [%]", "accuracy [%]", height=420)
    layout["xaxis"]["range"] = layout["yaxis"]["range"] = [-2, 102]
    return {"data": data, "layout": layout}


def help_and_harm(bins: Sequence[dict[str, Any]], title: str) -> Chart:
    """Draw per bin the share of masks that fusion corrected (up) and made wrong (down)."""
    names = [b["bin"] for b in bins]

    def share(key: str, sign: int = 1) -> list[float | None]:
        return [percent(sign * b[key] / b["masks"]) if b["masks"] else None for b in bins]

    counts = [[b["masks"], b["righted"], b["wronged"], b["before"], b["after"]] for b in bins]
    hover = (
        "%{x}: %{customdata[0]} masks<br>corrected %{customdata[1]}, newly wrong %{customdata[2]}<br>"
        "correct before %{customdata[3]}, after %{customdata[4]}<extra></extra>"
    )
    common = {"type": "bar", "x": names, "customdata": counts, "hovertemplate": hover}
    net = [percent((b["righted"] - b["wronged"]) / b["masks"]) if b["masks"] else None for b in bins]
    marker = {"color": "var(--ink)", "size": 9, "symbol": "diamond"}
    data = [
        common | {"name": "corrected", "y": share("righted"), "marker": {"color": INK["gain"]}},
        common | {"name": "newly wrong", "y": share("wronged", -1), "marker": {"color": INK["harm"]}},
        {
            "type": "scatter",
            "mode": "markers",
            "name": "net",
            "x": names,
            "y": net,
            "marker": marker,
            "hoverinfo": "skip",
        },
    ]
    layout = _layout(title, "of the masks [%]", height=340)
    layout |= {"barmode": "relative", "bargap": 0.25}
    layout["xaxis"] |= {"type": "category", "automargin": True}
    return {"data": data, "layout": layout}


def differences(rows: Sequence[dict[str, Any]]) -> Chart:
    """Points with intervals, one row each: {label, metric, estimate, low, high}, the figures in [−1, 1]."""
    names = [f"{row['label'].split(':')[0]} · {row['metric']}" for row in rows]
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    data = []
    for metric, color in zip(metrics, _cycle(len(metrics)), strict=True):
        own = [(name, row) for name, row in zip(names, rows, strict=True) if row["metric"] == metric]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": metric,
                "x": percents([row["estimate"] for _, row in own]),
                "y": [name for name, _ in own],
                "error_x": _interval([row for _, row in own], color, 2, 6),
                "customdata": [[row["label"], percent(row["low"]), percent(row["high"])] for _, row in own],
                "marker": {"color": color, "size": 11},
                "hovertemplate": f"%{{customdata[0]}}<br>{metric}: %{{x:+.2f}}, %{{customdata[1]:+.2f}} to "
                "%{customdata[2]:+.2f}<extra></extra>",
            }
        )
    layout = _layout("points", "", height=80 + 30 * len(rows))
    layout |= {"showlegend": False}
    category = {"automargin": True, "type": "category", "categoryorder": "array", "categoryarray": names}
    layout["yaxis"] |= category | {"autorange": "reversed", "dtick": 1}
    layout["xaxis"] |= {"zeroline": True, "zerolinewidth": 2}
    return {"data": data, "layout": layout}


def class_differences(rows: Sequence[dict[str, Any]]) -> Chart:
    """Per class the difference with its interval: {name, estimate, low, high}."""
    x = percents([r["estimate"] for r in rows])
    color = [INK["gain"] if (v or 0) >= 0 else INK["harm"] for v in x]
    bar = {
        "type": "bar",
        "orientation": "h",
        "y": [r["name"] for r in rows],
        "x": x,
        "marker": {"color": color},
        "error_x": _interval(rows, "var(--muted)", 1.5, 3),
        "customdata": [[percent(r["low"]), percent(r["high"])] for r in rows],
        "hovertemplate": "%{y}: %{x:+.2f}, %{customdata[0]:+.2f} to %{customdata[1]:+.2f}<extra></extra>",
    }
    layout = _layout("points", "", height=80 + 22 * len(rows))
    layout["yaxis"] |= {"automargin": True, "type": "category", "autorange": "reversed", "dtick": 1}
    return {"data": [bar], "layout": layout}


def _interval(rows: Sequence[dict[str, Any]], color: str, thickness: float, width: int) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [_reach(row["high"], row["estimate"]) for row in rows],
        "arrayminus": [_reach(row["estimate"], row["low"]) for row in rows],
        "color": color,
        "thickness": thickness,
        "width": width,
    }


def _reach(far: Figure, near: Figure) -> Figure:
    """Return the distances from an estimate to the ends of its interval."""
    away = difference(far, near)
    return None if away is None else percent(max(0.0, away))


def _level(name: str, xs: Sequence[float], y: float | None, color: str, dash: str) -> dict[str, Any]:
    ends = [min(xs), max(xs)]
    line = {"color": color, "dash": dash}
    shown = {"hovertemplate": f"{name}: %{{y:.2f}}<extra></extra>"}
    return {"type": "scatter", "mode": "lines", "name": name, "x": ends, "y": [y, y], "line": line} | shown


def _layout(x: str, y: str, height: int) -> dict[str, Any]:
    return {
        "height": height,
        "margin": {"l": 56, "r": 12, "t": 28, "b": 48},
        "xaxis": {"title": {"text": x}},
        "yaxis": {"title": {"text": y}},
        "legend": dict(LEGEND),
        "hoverlabel": {"align": "left"},
    }


def _cycle(count: int) -> list[str]:
    return [SERIES[i % len(SERIES)] for i in range(count)]
