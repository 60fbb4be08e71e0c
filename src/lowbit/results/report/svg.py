"""Charts as SVG text: sized for a phone, coloured by the page's style sheet, readable without colour."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

from lowbit.results.report.groups import Point

WIDTH, HEIGHT = 340, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 30, 48
_MARK_WIDTH = 14
_APART, _FARTHEST = 11, 4  # pixels between markers that would cover each other, and places to either side
STYLES = 8  # colours of the style sheet; the ninth series has the first colour again, with another dash and marker
_MARKERS = ("circle", "square", "triangle", "diamond")
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
_ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Series:
    """One line or cloud of points; `style` numbers its colour, marker and dash."""

    points: Sequence[Point]
    style: int
    name: str = ""
    line: bool = True
    dots: bool = False


@dataclass(frozen=True)
class Chart:
    """Series on common axes; `marks` are vertical lines with a number beside each, explained in the legend."""

    title: str
    series: Sequence[Series]
    x: str
    y: str
    log_x: bool = False
    log_y: bool = False
    marks: Sequence[tuple[float, str]] = field(default_factory=tuple)


class Axis:
    """Maps values to pixels and names round ones."""

    def __init__(self, values: Iterable[float], start: float, end: float, *, log: bool, few: int = 4) -> None:
        found = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
        low, high = (min(found), max(found)) if found else (1.0, 2.0)
        self.log, self._start, self._end, self._few = log, start, end, few
        if log:
            low, high = math.log10(low), math.log10(high)
        gap = 0.06 * (high - low) or max(abs(high) * 0.05, 0.05)
        # Steps begin at 0, and there is nothing below.
        self.low, self.high = (low if low == 0 and not log else low - gap), high + gap

    def __call__(self, value: float) -> float | None:
        """Return the pixel, or None for what the axis cannot show."""
        if not math.isfinite(value) or (self.log and value <= 0):
            return None
        place = (math.log10(value) if self.log else value) - self.low
        return self._start + (self._end - self._start) * place / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Return round values inside the axis."""
        if self.log:
            low, high = 10**self.low, 10**self.high
            decades = range(math.floor(self.low), math.ceil(self.high) + 1)
            for factors in ((1,), (1, 3), (1, 2, 5)):
                found = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
                if len(found) >= 2:
                    return found[:: -(-len(found) // self._few)]
        else:
            low, high = self.low, self.high
        step = _round_step((high - low) / self._few)
        first = math.ceil(low / step)
        return [n * step for n in range(first, math.floor(high / step) + 1)]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in _ROUND if factor * power >= rough * 0.999)


def number(value: float) -> str:
    """Return an axis label: short, without an exponent where digits do.

    >>> [number(v) for v in (0.0, 12000, 0.05, 97.5, 2e-5)]
    ['0', '12k', '0.05', '97.5', '2e-05']
    """
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k" if abs(value) < 1e6 else f"{value:.0e}"
    return f"{value:.4g}"


def draw(chart: Chart) -> str:
    """Return the SVG of a chart; points that an axis cannot show (nan, not above 0 on a log axis) are left out."""
    x = Axis((p[0] for s in chart.series for p in s.points), _LEFT, WIDTH - _RIGHT, log=chart.log_x)
    y = Axis((p[1] for s in chart.series for p in s.points), HEIGHT - _BOTTOM, _TOP, log=chart.log_y)
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">', f"<title>{escape(chart.title)}</title>"]
    parts += [f'<text x="4" y="18">{escape(chart.y)}</text>', *_grid(x, y)]
    below = f"{chart.x} (log scale)" if x.log else chart.x
    parts.append(f'<text class="end" x="{WIDTH - _RIGHT}" y="{HEIGHT - 4}">{escape(below)}</text>')
    if y.log:  # not beside the name: the marks stand there
        parts.append(f'<text x="4" y="{HEIGHT - 4}">{escape(chart.y)} on a log scale</text>')
    free = 0.0
    for value, text in chart.marks:
        place = x(value)
        if place is not None:
            told, free = max(place, free), max(place, free) + _MARK_WIDTH
            parts.append(f'<path class="mark" d="M{place:.1f} {_TOP}V{HEIGHT - _BOTTOM}"/>')
            parts.append(f'<text class="mark middle" x="{told:.1f}" y="18">{escape(text)}</text>')
    taken: list[Point] = []
    for series in sorted(chart.series, key=lambda one: not _is_line(one)):  # markers of lines keep their places
        parts += _series(series, x, y, taken)
    return "".join([*parts, "</svg>"])


def _is_line(series: Series) -> bool:
    return series.line and len(series.points) > 1


def _grid(x: Axis, y: Axis) -> list[str]:
    bottom = HEIGHT - _BOTTOM
    parts = [f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{WIDTH - _RIGHT}"/>']
    for value in y.ticks():
        place = y(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {place:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 6}" y="{place + 5:.1f}">{number(value)}</text>')  # type: ignore[operator]
    for value in x.ticks():
        place = x(value)
        parts.append(f'<path class="axis" d="M{place:.1f} {bottom}v5"/>')
        parts.append(f'<text class="middle" x="{place:.1f}" y="{bottom + 21}">{number(value)}</text>')
    return parts


def _series(series: Series, x: Axis, y: Axis, taken: list[Point]) -> list[str]:
    placed = [(x(a), y(b)) for a, b in series.points]
    shown = [(a, b) for a, b in placed if a is not None and b is not None]
    if not _is_line(series):
        return [_marker(*_beside(place, taken), series.style, series.name) for place in shown]
    parts = []
    if len(shown) > 1:
        path = "L".join(f"{a:.1f} {b:.1f}" for a, b in shown)
        parts.append(f'<path class="line {_color(series.style)}"{_dash(series.style)} d="M{path}"/>')
    if series.dots or len(shown) == 1:
        # Later markers are smaller, so that of equal points all can be seen.
        size = 1.3 - 0.09 * (series.style % STYLES)
        taken += shown
        parts += [_marker(a, b, series.style, series.name, size) for a, b in shown]
    return parts


def _beside(place: Point, taken: list[Point]) -> Point:
    """Return the place, or the nearest free one to its left or right, and take it; its own where none is near."""
    for step in range(2 * _FARTHEST + 1):
        shift = _APART * ((step + 1) // 2) * (1 if step % 2 else -1)
        here = place[0] + shift, place[1]
        inside = _LEFT + _APART / 2 < here[0] < WIDTH - _RIGHT
        if inside and all(abs(here[0] - a) >= _APART or abs(here[1] - b) >= _APART for a, b in taken):
            taken.append(here)
            return here
    return place


def sample(style: int, *, line: bool = True, dots: bool = False) -> str:
    """Return the sample of a legend's entry."""
    drawn = f'<path class="line {_color(style)}"{_dash(style)} d="M1 9H33"/>' if line else ""
    return f'<svg class="sample" viewBox="0 0 34 18">{drawn}{_marker(17, 9, style) if dots else ""}</svg>'


def _marker(x: float, y: float, style: int, name: str = "", size: float = 1.0) -> str:
    r = 5.5 * size
    shapes = {
        "circle": f"M{x - r:.2f} {y:.2f}a{r:.2f} {r:.2f} 0 1 0 {2 * r:.2f} 0a{r:.2f} {r:.2f} 0 1 0 {-2 * r:.2f} 0Z",
        "square": f"M{x - r:.1f} {y - r:.1f}h{2 * r:.1f}v{2 * r:.1f}h{-2 * r:.1f}Z",
        "triangle": f"M{x:.1f} {y - 1.2 * r:.1f}l{1.1 * r:.1f} {2 * r:.1f}h{-2.2 * r:.1f}Z",
        "diamond": f"M{x:.1f} {y - 1.2 * r:.1f}l{1.2 * r:.1f} {1.2 * r:.1f}l{-1.2 * r:.1f} {1.2 * r:.1f}"
        f"l{-1.2 * r:.1f} {-1.2 * r:.1f}Z",
    }
    shape = shapes[_MARKERS[style % len(_MARKERS)]]
    told = f"<title>{escape(name)}</title>" if name else ""
    return f'<path class="dot {_color(style)}" d="{shape}">{told}</path>'


def _color(style: int) -> str:
    return f"c{style % STYLES}"


def _dash(style: int) -> str:
    dash = _DASHES[(style + style // STYLES) % len(_DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def draw_histogram(low: float, high: float, before: Sequence[float], after: Sequence[float], title: str) -> str:
    """Return the SVG of two histograms with common bins, one above the other: each with its own scale."""
    x = Axis((low, high), 14, WIDTH - 14, log=False)
    middle, bottom = 112, 216
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} 246" role="img">', f"<title>{escape(title)}</title>"]
    for shares, floor, name, style in (
        (before, middle, "before (latent)", "latent"),
        (after, bottom, "after (quantized)", "c0"),
    ):
        # The square root keeps the tails visible beside a peak of zeros.
        highest = max(map(math.sqrt, shares), default=0.0) or 1.0
        parts.append(f'<path class="area {style}" d="{_bars(shares, low, high, x, floor, 78 / highest)}"/>')
        parts.append(f'<path class="axis" d="M14 {floor}H{WIDTH - 14}"/>')
        parts.append(f'<text x="4" y="{floor - 82}">{name}</text>')
    for value in x.ticks():
        place = x(value)
        parts.append(f'<path class="axis" d="M{place:.1f} {bottom}v5"/>')
        parts.append(f'<text class="middle" x="{place:.1f}" y="{bottom + 21}">{number(value)}</text>')
    return "".join([*parts, "</svg>"])


def _bars(shares: Sequence[float], low: float, high: float, x: Axis, floor: float, unit: float) -> str:
    width = (high - low) / max(len(shares), 1)
    path = []
    for place, share in enumerate(shares):
        if share > 0:
            left, right = x(low + place * width) or 0.0, x(low + (place + 1) * width) or 0.0
            path.append(f"M{left:.1f} {floor}V{floor - unit * math.sqrt(share):.1f}H{right:.1f}V{floor}Z")
    return "".join(path)
