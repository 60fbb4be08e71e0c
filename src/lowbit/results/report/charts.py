"""The figures of a report: scores against size and steps, loss terms, errors by layer, weights before and after."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from lowbit.results.report.groups import Curves, Group, Point, read_curves, validation_metric
from lowbit.results.report.layers import Histogram, LayerFacts
from lowbit.results.report.svg import Chart, Series, draw, draw_histogram, sample
from lowbit.results.rows import TEACHER
from lowbit.results.scores import scale_of

_WIDE = 4.0  # an axis whose values differ by more than this factor is logarithmic


@dataclass(frozen=True)
class Entry:
    """A line of a legend."""

    style: int
    name: str


def figure(svg: str, caption: str = "") -> str:
    """Return a figure."""
    told = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{told}{svg}</figure>"


def legend(entries: Iterable[Entry], *, line: bool = True, dots: bool = False) -> str:
    """Return a legend as a list."""
    items = [f"<li>{sample(entry.style, line=line, dots=dots)}{escape(entry.name)}</li>" for entry in entries]
    return f'<ul class="legend">{"".join(items)}</ul>'


def score_figures(groups: Sequence[Group]) -> list[str]:
    """Return the scores against size and against steps, and their legend; groups of other metrics have panels too."""
    parts = []
    for metric in dict.fromkeys(group.metric for group in groups if group.metric is not None):
        mine = [(style, group) for style, group in enumerate(groups) if group.metric == metric]
        teacher = len(groups)
        sizes = [_sized(style, group) for style, group in mine]
        teachers = _teachers([group for _, group in mine], metric)
        if teachers:
            sizes.append(Series(teachers, teacher, TEACHER, line=False, dots=True))
        evaluated = [_evaluated(style, group) for style, group in mine]
        checked = validation_metric(mine[0][1].finished[0][1])
        entries = [Entry(style, group.label) for style, group in mine]
        parts += [
            '<div class="panels">',
            figure(draw(_chart(f"{_spoken(metric)} against size", sizes, "MB", metric))),
            figure(draw(_chart(f"{_spoken(checked)} against steps", evaluated, "step", checked))),
            "</div>",
            legend([*entries, *([Entry(teacher, TEACHER)] if teachers else [])], dots=True),
        ]
    return parts


def _chart(title: str, series: Sequence[Series], x: str, metric: str) -> Chart:
    values = [point[0] for one in series for point in one.points if point[0] > 0]
    spread = x == "MB" and bool(values) and max(values) > _WIDE * min(values)
    unit = ", %" if scale_of(metric) != 1 else ""
    return Chart(title, series, x, f"{_spoken(metric)}{unit}", log_x=spread)


def _sized(style: int, group: Group) -> Series:
    scale = scale_of(group.metric)
    points = [
        (run["size"]["simulated_bytes"] / 1e6, scale * float(run["metrics"][run["primary_metric"]]))
        for _, run in group.finished
    ]
    return Series(points, style, group.label, line=False, dots=True)


def _teachers(groups: Sequence[Group], metric: str) -> list[Point]:
    runs = [run for group in groups for _, run in group.finished]
    teachers = {run["teacher"]["id"]: run["teacher"] for run in runs if run["teacher"] is not None}
    known = [teacher for teacher in teachers.values() if metric in teacher["metrics"]]
    return [(t["size"]["float_bytes"] / 1e6, scale_of(metric) * float(t["metrics"][metric])) for t in known]


def _evaluated(style: int, group: Group) -> Series:
    """Return the validation scores of the group's first finished run, over the steps of its recipe."""
    cell, run = group.finished[0]
    found = dict(read_curves(cell.run_dir, run).validation)
    metric, done = validation_metric(run), 0
    for stage in run.get("stages", []):  # what metrics.csv lacks without trainer.eval_every
        done += stage["steps"]
        if metric in stage["metrics"]:
            found.setdefault(float(done - 1), scale_of(metric) * float(stage["metrics"][metric]))
    return Series(sorted(found.items()), style, group.label, dots=True)


def loss_panels(groups: Sequence[Group]) -> tuple[str, list[str], list[str]]:
    """Return the legend of the terms, a panel for the first finished run of each group, and what cannot be read."""
    curves: list[tuple[Group, Curves]] = []
    damaged: list[str] = []
    for group in groups:
        if group.finished:
            cell, run = group.finished[0]
            found = read_curves(cell.run_dir, run)
            if found.terms:
                curves.append((group, found))
            if found.damage:
                damaged.append(f"{group.label}: {found.damage}")
    names = {name: style for style, name in enumerate(dict.fromkeys(n for _, found in curves for n in found.terms))}
    panels = []
    for group, found in curves:
        marks = [(step, str(place)) for place, (step, _) in enumerate(found.parts, 1)]
        series = [Series(points, names[name], name) for name, points in found.terms.items()]
        chart = Chart(f"Loss terms of {group.label}", series, "step", "loss", log_y=True, marks=marks)
        parts = "; ".join(f"{place} {name}" for place, (_, name) in enumerate(found.parts, 1))
        note = f'<p class="soft">{escape(parts)}</p>'
        panels.append(figure(draw(chart) + note, group.label))
    return legend(Entry(style, name) for name, style in names.items()), panels, damaged


def hidden_figure(groups: Sequence[Group], facts: dict[str, LayerFacts]) -> list[str]:
    """Return the error of each layer's output against the teacher, by layer."""
    series = [
        Series([(float(layer), error) for layer, error in enumerate(facts[group.label].hidden)], style, group.label)
        for style, group in enumerate(groups)
        if group.label in facts and facts[group.label].hidden
    ]
    if not series:
        return []
    chart = Chart("Error of layer outputs against the teacher", [_dotted(s) for s in series], "layer", "relative error")
    panel = f'<div class="panels">{figure(draw(chart))}</div>'
    return [panel, legend((Entry(s.style, s.name) for s in series), dots=True)]


def _dotted(series: Series) -> Series:
    return Series(series.points, series.style, series.name, dots=True)


def histogram_figures(histograms: Sequence[Histogram]) -> list[str]:
    """Return a figure for each weight."""
    return [figure(draw_histogram(h.low, h.high, h.before, h.after, h.name), h.name) for h in histograms]


def _spoken(metric: str) -> str:
    return metric.replace("/", " ")
