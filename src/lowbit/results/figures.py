"""The figures of reports and loggers. It loads matplotlib: import it only where a figure is drawn."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure  # not pyplot: it keeps figures and a backend for the whole process
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lowbit.results.report import Histogram, Point, Series

# Okabe and Ito's palette without its yellow, which white paper swallows. Markers and dashes repeat at another rate
# than the colors do, so that series differ in print without color, too.
COLORS = ("#0072b2", "#c44e00", "#00795a", "#b0487f", "#8a6d00", "#3f7fbf", "#5b4bb7", "#4d4d4d")
_MARKERS = "os^D"
_DASHES = ("-", "--", ":", "-.")
_WIDTH, _HEIGHT = 340 / 72, 280 / 72  # a phone's width, at which 16 points are 16 pixels
_LINE = 22 / 72  # of a legend
_LEGEND_CHARACTERS = 34
_ASIDE, _FARTHEST = 0.04, 4  # of the axis, between markers that would cover each other; places to either side
_RC: dict[Any, Any] = {  # typed as an open dict: matplotlib's own type lists every key
    "font.size": 16,
    "text.parse_math": False,  # a `$` in the name of a run is a `$`
    "svg.fonttype": "none",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#c9c9d0",
    "legend.frameon": False,
    "legend.fontsize": 16,
}


@rc_context(_RC)
def draw_series(
    series: Sequence[Series],
    x: str,
    y: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    marks: Sequence[tuple[float, str]] = (),
) -> Figure:
    """Draw series on common axes, without the points that an axis cannot show (not finite, or not above 0 on a log).

    Args:
        series: Lines and clouds.
        x: Name of the horizontal axis.
        y: Name of the vertical axis.
        log_x: Whether the horizontal axis is logarithmic.
        log_y: Whether the vertical axis is logarithmic.
        marks: Places of vertical lines, which get a number, and what begins there, for the legend.
    """
    lines = [f"{number} {name}" for number, (_, name) in enumerate(marks, 1)]
    labels = [textwrap.fill(text, _LEGEND_CHARACTERS) for text in [one.name for one in series] + lines]
    height = _HEIGHT + _LINE * sum(label.count("\n") + 1 for label in labels)
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axis = figure.subplots()
    shown = [[(a, b) for a, b in one.points if _is_shown(a, log=log_x) and _is_shown(b, log=log_y)] for one in series]
    axis.set_xlabel(f"{x} (log scale)" if log_x else x)
    axis.set_title(f"{y} (log scale)" if log_y else y, loc="left", fontsize=16, pad=26 if marks else 8)
    for name, place, log in (("x", 0, log_x), ("y", 1, log_y)):
        values = [point[place] for points in shown for point in points]
        if log and values:
            axis.set(**{f"{name}scale": "log"})
            scaled = axis.xaxis if name == "x" else axis.yaxis
            scaled.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < 50 * min(values) else (1,)))
            scaled.set_major_formatter("{x:g}")  # matplotlib's default writes formulas
            scaled.set_minor_formatter(NullFormatter())
    clouds = [place for one, points in zip(series, shown, strict=True) if not one.line for place in points]
    shifts = iter(_shifts(clouds, log=log_x))
    for one, points, label in zip(series, shown, labels, strict=False):
        if one.line:
            _draw_line(axis, one, points, label)
        else:
            _draw_cloud(axis, one, points, label, shifts)
    _draw_marks(axis, marks, labels[len(series) :])
    if labels:
        figure.legend(loc="outside lower left", handlelength=1.5, borderaxespad=0)
    return figure


def _is_shown(value: float, *, log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log)


def _draw_line(axis: Axes, series: Series, points: Sequence[Point], label: str) -> None:
    marker = _MARKERS[series.style % len(_MARKERS)] if series.dots or len(points) == 1 else ""
    axis.plot(
        *(zip(*points, strict=True) if points else ([], [])),
        color=COLORS[series.style % len(COLORS)],
        linestyle=_DASHES[(series.style + series.style // len(COLORS)) % len(_DASHES)],
        marker=marker,
        markersize=8 - 0.6 * (series.style % len(COLORS)),  # of equal points all can be seen
        label=label,
    )


def _draw_cloud(axis: Axes, series: Series, points: Sequence[Point], label: str, shifts: Iterator[float]) -> None:
    for number, (x, y) in enumerate(points):
        aside = ScaledTranslation(next(shifts) * _ASIDE * _WIDTH, 0, axis.figure.dpi_scale_trans)
        (marker,) = axis.plot(
            [x],
            [y],
            color=COLORS[series.style % len(COLORS)],
            linestyle="",
            marker=_MARKERS[series.style % len(_MARKERS)],
            label=label if number == 0 else None,
        )
        marker.set_transform(axis.transData + aside)  # only now, so that the axes' limits are those of the data
    axis.margins(x=0.25)


def _shifts(points: Sequence[Point], *, log: bool) -> list[int]:
    """Return by how many places each point moves to the right, so that it covers no other one."""
    places = np.array([(math.log10(x) if log else x, y) for x, y in points]).reshape(-1, 2)
    spans = np.ptp(places, axis=0) if len(places) else np.ones(2)
    places = places / np.where(spans > 0, spans, 1)
    aside = np.array([_ASIDE, 0])
    taken: list[NDArray[np.float64]] = []
    shifts = []
    for place in places:
        tried = sorted(range(-_FARTHEST, _FARTHEST + 1), key=abs)
        free = (n for n in tried if all(abs(place + n * aside - other).max() >= _ASIDE * 0.99 for other in taken))
        shifts.append(next(free, 0))
        taken.append(place + shifts[-1] * aside)
    return shifts


def _draw_marks(axis: Axes, marks: Sequence[tuple[float, str]], labels: Sequence[str]) -> None:
    free, gap = -math.inf, 0.06 * (axis.get_xlim()[1] - axis.get_xlim()[0])
    for number, ((place, _), label) in enumerate(zip(marks, labels, strict=True), 1):
        axis.axvline(place, color="0.4", linewidth=1, linestyle=":")
        free = max(place, free)  # numbers of near marks stand side by side
        axis.text(free, 1.01, str(number), ha="center", weight="bold", transform=axis.get_xaxis_transform())
        free += gap
        axis.plot([], [], linestyle="", label=label)


@rc_context(_RC)
def draw_histograms(histograms: Sequence[Histogram]) -> Figure:
    """Draw weights before and after quantization, one above the other, each with its own scale."""
    columns = min(len(histograms), 3)
    lines = -(-len(histograms) // columns)
    figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * lines), layout="constrained")
    axes = figure.subplots(2 * lines, columns, squeeze=False)
    for axis in axes.flatten():
        axis.set_axis_off()
    for number, one in enumerate(histograms):
        line, column = divmod(number, columns)
        pair = axes[2 * line : 2 * line + 2, column]
        pair[0].set_title(one.name, fontsize=16 if columns == 1 else 10, pad=30)
        for axis, shares, label, color in zip(
            pair, (one.before, one.after), ("before (latent)", "after (quantized)"), ("0.6", COLORS[0]), strict=True
        ):
            axis.set_axis_on()
            axis.grid(visible=False)
            axis.xaxis.set_major_locator(MaxNLocator(4))
            axis.yaxis.set_visible(False)
            # The square root keeps the tails visible next to a peak of zeros.
            axis.stairs(np.sqrt(shares), np.linspace(one.low, one.high, len(shares) + 1), fill=True, color=color)
            axis.text(0, 1.02, label, transform=axis.transAxes, va="bottom")
        pair[0].tick_params(labelbottom=False)
    return figure


def to_svg(figure: Figure, title: str) -> str:
    """Return a figure as SVG for a page of HTML: readable text, a title, nothing that refers to another page."""
    buffer = io.StringIO()
    with rc_context({**_RC, "svg.hashsalt": title}):  # the same figure is the same text
        figure.savefig(buffer, format="svg", metadata={"Title": title, "Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = re.sub("<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub('<g id="[^"]*"', "<g", svg)  # no two elements of a page may have one id
    return svg.replace("<svg", '<svg class="chart" role="img"', 1)


def to_pixels(figure: Figure) -> NDArray[np.uint8]:
    """Return a figure as a picture (height, width, RGB)."""
    canvas: Any = FigureCanvasAgg(figure)  # untyped
    canvas.draw()
    image_HWC: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
    return image_HWC
