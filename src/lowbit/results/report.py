"""`lowbit report`: one page of a sweep, with its table, curves, layers and commands. The page loads nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from lowbit.files import DamagedFileError, sha256_of
from lowbit.results.collect import TEACHER, Cell, group_cells
from lowbit.results.render import OPEN_TABLE, Grid, html_page, html_table
from lowbit.results.run_file import METRICS_FILE, RUN_FILE, read_rows, remedy
from lowbit.results.scores import EMPTY, scale_of

Point = tuple[float, float]

_NOT_TERMS = ("_percent", "_ratio")  # of what is logged with the loss, and the learning rates
_OPEN_PANELS = 12  # further loss curves are folded
_WIDE = 4.0  # an axis whose values differ by more than this factor is logarithmic


@dataclass(frozen=True)
class Series:
    """A line, or a cloud of points; `style` is the number of its color, marker and dash."""

    name: str
    points: Sequence[Point]
    style: int
    line: bool = True
    dots: bool = True


@dataclass(frozen=True)
class SiteFacts:
    """A quantized weight.

    Attributes:
        name: Module name, with the role for a block of a fused weight.
        kind: Kind of its quantizer.
        bits: Stored bits of a weight.
        error: |Q(w) - w| / |w|, Euclidean norms.
        zeros: Share of zeros among the quantized weights.
    """

    name: str
    kind: str
    bits: float
    error: float
    zeros: float


@dataclass(frozen=True)
class Histogram:
    """A weight before and after quantization: shares in equal bins from `low` to `high`, which sum to 1 each."""

    name: str
    low: float
    high: float
    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass(frozen=True)
class LayerFacts:
    """A finished run, layer by layer, as `lowbit.training.inspection` measures it.

    Attributes:
        sites: Its quantized weights.
        histograms: Of a few of them.
        hidden: |h - h_teacher| / |h_teacher| of each layer's output; empty where it was not measured.
        rows: Evaluation rows that `hidden` was measured on.
        note: Why `hidden` was not measured, or nothing at all.
    """

    sites: tuple[SiteFacts, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    hidden: tuple[float, ...] = ()
    rows: int = 0
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Jobs that differ in their seed only."""

    label: str
    cells: tuple[Cell, ...]

    @property
    def finished(self) -> list[tuple[Cell, dict[str, Any]]]:
        """The jobs that have finished, with their run.json."""
        return [(cell, cell.run) for cell in self.cells if cell.run is not None]

    @property
    def score(self) -> float | None:
        """Mean of the primary metric, in the unit of papers."""
        values = [float(run["metrics"][run["primary_metric"]]) for _, run in self.finished]
        return fmean(values) * scale_of(self.metric) if values else None

    @property
    def metric(self) -> str | None:
        """Primary metric of its runs."""
        return next((str(run["primary_metric"]) for _, run in self.finished), None)


def groups_of(cells: Iterable[Cell]) -> list[Group]:
    """Group the jobs as the rows of a table are."""
    return [Group(label, tuple(cell for cell, _ in members)) for label, members in group_cells(cells)]


@dataclass(frozen=True)
class Curves:
    """What metrics.csv holds of one run.

    Attributes:
        terms: Each loss term over the steps of the recipe, as logged: without its weight.
        parts: Where a stage or a phase begins, and its name.
        validation: Every evaluation of `metric`, in the unit of papers.
        damage: What is wrong with the file, and the remedy; the rest is empty then.
    """

    terms: dict[str, list[Point]]
    parts: list[tuple[float, str]]
    validation: list[Point]
    damage: str = ""


def read_curves(folder: Path, run: dict[str, Any]) -> Curves:
    """Return the curves of a finished run; empty ones where its metrics.csv is gone or damaged."""
    try:
        rows = _whole_rows(folder / METRICS_FILE, run.get("files", {}).get(METRICS_FILE))
    except DamagedFileError as error:
        return Curves({}, [], [], damage=f"{error.fault}; the curves are left out. {remedy(folder)}")
    except OSError as error:
        return Curves({}, [], [], damage=f"{error}; the curves are left out.")
    terms, parts = loss_curves(rows)
    terms.pop("loss", None)
    metric = validation_metric(run)
    scale = scale_of(metric)
    return Curves(terms, parts, [(step, scale * value) for step, value in _points(rows, metric)])


def _whole_rows(path: Path, recorded: str | None) -> list[dict[str, str]]:
    if recorded is not None and not path.exists():
        raise DamagedFileError(path, f"{path} is missing")
    if recorded is not None and sha256_of(path) != recorded:
        raise DamagedFileError(path, f"{path} is damaged: its SHA-256 is not the one in {RUN_FILE}")
    return read_rows(path)


def validation_metric(run: dict[str, Any]) -> str:
    """Return the primary metric as the evaluations during training have it: on the validation split."""
    split, _, name = str(run["primary_metric"]).partition("/")
    return f"val/{name}" if split == "test" else f"{split}/{name}"


def loss_curves(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[Point]], list[tuple[float, str]]]:
    """Return the loss and its terms over the steps, and where each stage and each phase of a stage begins.

    A phase is a time in which tensors of the teacher replace the same tensors of the student.
    """
    trained = [row for row in rows if "train/loss" in row]
    names = dict.fromkeys(key.removeprefix("train/") for row in trained for key in row if key.startswith("train/"))
    terms = {
        name: _points(trained, f"train/{name}")
        for name in names
        if name not in ("lr", "lr_scales") and not name.endswith(_NOT_TERMS)
    }
    parts: list[tuple[float, str]] = []
    before = None
    for row in trained:
        phase = {key.removeprefix("phase/"): value for key, value in row.items() if key.startswith("phase/")}
        sites = " + ".join(site for site, share in phase.items() if float(share) > 0)
        name = f"{row['stage']}: {sites}" if sites else str(row["stage"])
        if name != before:
            parts.append((0.0 if before is None else float(row["step"]), name))
        before = name
    return terms, parts


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    return [(float(row["step"]), float(row[key])) for row in rows if key in row]


def _figure(series: Sequence[Series], title: str, x: str, y: str, **options: Any) -> str:
    from lowbit.results.figures import draw_series, to_svg

    return f"<figure>{to_svg(draw_series(series, x, y, **options), title)}</figure>"


def _sizes(group: Group) -> list[Point]:
    scale = scale_of(group.metric)
    return [
        (run["size"]["simulated_bytes"] / 1e6, scale * float(run["metrics"][run["primary_metric"]]))
        for _, run in group.finished
    ]


def _teachers(groups: Sequence[Group], metric: str) -> list[Point]:
    runs = [run for group in groups for _, run in group.finished]
    teachers = {run["teacher"]["id"]: run["teacher"] for run in runs if run["teacher"] is not None}
    known = [teacher for teacher in teachers.values() if metric in teacher["metrics"]]
    return [(t["size"]["float_bytes"] / 1e6, scale_of(metric) * float(t["metrics"][metric])) for t in known]


def _evaluations(group: Group) -> list[Point]:
    """Return the validation scores of the group's first finished run, over the steps of its recipe."""
    cell, run = group.finished[0]
    found = dict(read_curves(cell.run_dir, run).validation)
    metric, done = validation_metric(run), 0
    for stage in run.get("stages", []):  # what metrics.csv lacks without trainer.eval_every
        done += stage["steps"]
        if metric in stage["metrics"]:
            found.setdefault(float(done - 1), scale_of(metric) * float(stage["metrics"][metric]))
    return sorted(found.items())


@dataclass(frozen=True)
class Report:
    """What a report shows.

    Attributes:
        title: Name of the sweep.
        about: What the sweep's file says of it.
        grid: Its table.
        groups: Its jobs.
        commands: Commands that make the sweep, its table and this report.
        facts: Layers of one run of each group, by the group's label.
        chosen: Label of the group whose weights are shown.
        note: Why there are no layers.
    """

    title: str
    about: str
    grid: Grid
    groups: Sequence[Group]
    commands: Sequence[str]
    facts: Mapping[str, LayerFacts] = field(default_factory=dict)
    chosen: str = ""
    note: str = ""


def render_report(report: Report) -> str:
    """Return the page as HTML that needs no other file and no script."""
    sections = {
        "Table": _table(report),
        "Score, size and steps": _scores(report),
        "Loss terms": _losses(report),
        "Error by layer": _layers(report),
        "Weights before and after": _weights(report),
        "Commands": _commands(report),
    }
    links = [f'<a href="#s{place}">{escape(name)}</a>' for place, name in enumerate(sections)]
    lines = [
        *_paragraphs([report.about.replace("`", ""), _progress(report.groups)]),
        f"<nav>{''.join(links)}</nav>",
    ]
    for place, (name, body) in enumerate(sections.items()):
        lines += [f'<section id="s{place}">', f"<h2>{escape(name)}</h2>", *body, "</section>"]
    no_icon = '<link rel="icon" href="data:,">'  # or browsers ask the server for one
    return html_page(report.title, lines, [no_icon])


def _paragraphs(texts: Iterable[str], style: str = "") -> list[str]:
    kind = f' class="{style}"' if style else ""
    return [f"<p{kind}>{escape(text)}</p>" for text in texts if text]


def _progress(groups: Sequence[Group]) -> str:
    jobs, done = sum(len(group.cells) for group in groups), sum(len(group.finished) for group in groups)
    damaged = sum(bool(cell.damage) for group in groups for cell in group.cells)
    missing = "" if done == jobs else f"; {jobs - done} not run, with the commands that run them at the end"
    damage = f" Files of {damaged} of those are damaged: see below the table." if damaged else ""
    return f"{done} of {jobs} runs have finished{missing}.{damage}"


def _table(report: Report) -> list[str]:
    return [*html_table(report.grid), *_paragraphs(report.grid.notes, "soft")]


def _scores(report: Report) -> list[str]:
    """Return the scores against size and against steps; each metric has its own panels."""
    text = (
        "Size: every finished run, in MB of packed weights; the teacher's are at 32 bits. Steps: the first finished "
        "seed of each row, evaluated after each stage and every trainer.eval_every steps. Points that would "
        "cover each other stand side by side."
    )
    body = _paragraphs([text], "soft")
    for metric in dict.fromkeys(group.metric for group in report.groups if group.metric is not None):
        mine = [(style, group) for style, group in enumerate(report.groups) if group.metric == metric]
        sizes = [Series(group.label, _sizes(group), style, line=False) for style, group in mine]
        teachers = _teachers([group for _, group in mine], metric)
        if teachers:
            sizes.append(Series(TEACHER, teachers, len(report.groups), line=False))
        evaluated = [Series(group.label, _evaluations(group), style) for style, group in mine]
        checked = validation_metric(mine[0][1].finished[0][1]).replace("/", " ")
        name, unit = metric.replace("/", " "), ", %" if scale_of(metric) != 1 else ""
        values = [size for one in sizes for size, _ in one.points if size > 0]
        log_x = bool(values) and max(values) > _WIDE * min(values)
        figures = [
            _figure(sizes, f"{name} against size", "MB", f"{name}{unit}", log_x=log_x),
            _figure(evaluated, f"{checked} against steps", "step", f"{checked}{unit}"),
        ]
        body += _panels(figures)
    return body


def _panels(figures: Iterable[str]) -> list[str]:
    return ['<div class="panels">', *figures, "</div>"]


def _losses(report: Report) -> list[str]:
    """Return the loss terms of the first finished run of each group, and which files cannot be read."""
    first = [(group.label, *group.finished[0]) for group in report.groups if group.finished]
    found = [(label, read_curves(cell.run_dir, run)) for label, cell, run in first]
    notes = _paragraphs([f"{label}: {curves.damage}" for label, curves in found if curves.damage], "below")
    styles = {name: style for style, name in enumerate(dict.fromkeys(n for _, curves in found for n in curves.terms))}
    figures = []
    for label, curves in found:
        if curves.terms:
            series = [Series(name, points, styles[name], dots=False) for name, points in curves.terms.items()]
            drawn = _figure(series, f"Loss terms of {label}", "step", "loss", log_y=True, marks=curves.parts)
            figures.append(drawn.replace("<figure>", f"<figure><figcaption>{escape(label)}</figcaption>"))
    if not figures:
        return notes or _paragraphs(["No run has left its metrics.csv here."])
    text = (
        "Terms as logged, before their weights, of the first finished seed of each row. Numbers mark the beginning of "
        "a stage, or of a phase in which tensors of the teacher stand in for the student's."
    )
    shown = [*notes, *_paragraphs([text], "soft"), *_panels(figures[:_OPEN_PANELS])]
    folded = figures[_OPEN_PANELS:]
    if folded:
        shown += [f"<details><summary>{len(folded)} more</summary>", *_panels(folded), "</details>"]
    return shown


def _layers(report: Report) -> list[str]:
    """Return the error of each layer's output against the teacher, and that of each quantized weight."""
    body = _paragraphs([report.note])
    outputs = [
        Series(group.label, list(enumerate(facts.hidden)), style)
        for style, group in enumerate(report.groups)
        if (facts := report.facts.get(group.label)) is not None and facts.hidden
    ]
    if outputs:
        rows = max(facts.rows for facts in report.facts.values())
        text = f"Outputs: |h - h(teacher)| / |h(teacher)| of each layer on the first {rows} evaluation rows."
        figure = _figure(outputs, "Error of layer outputs against the teacher", "layer", "relative error")
        body += [*_paragraphs([text], "soft"), *_panels([figure])]
    sites = {label: {site.name: site for site in facts.sites} for label, facts in report.facts.items() if facts.sites}
    if sites:
        text = "Weights: |Q(w) - w| / |w| of each quantized weight, first finished seed of each row."
        body += [*_paragraphs([text], "soft"), *_errors(sites)]
    return [
        *body,
        *_paragraphs([f"{label}: {facts.note}" for label, facts in report.facts.items() if facts.note], "soft"),
    ]


def _errors(sites: Mapping[str, Mapping[str, SiteFacts]]) -> list[str]:
    names = list(dict.fromkeys(name for mine in sites.values() for name in mine))
    errors = [site.error for mine in sites.values() for site in mine.values() if math.isfinite(site.error)]
    highest = max(errors, default=1.0) or 1.0
    means = [fmean(site.error for site in mine.values()) for mine in sites.values()]
    rows = {name: [_error(mine.get(name), highest) for mine in sites.values()] for name in names}
    return [
        *_table_of(sites, {f"mean of {len(names)}": [f'<td class="right">{mean:.3f}</td>' for mean in means]}),
        "<details><summary>Each weight</summary>",
        *_table_of(sites, rows),
        "</details>",
    ]


def _table_of(labels: Iterable[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    heads = "".join(f'<th scope="col" class="right">{escape(label)}</th>' for label in labels)
    lines = [f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>' for name, cells in rows.items()]
    head = f'<thead><tr><th scope="col">weight</th>{heads}</tr></thead>'
    return [*OPEN_TABLE, head, "<tbody>", *lines, "</tbody>", "</table></div>"]


def _error(site: SiteFacts | None, highest: float) -> str:
    if site is None:
        return f'<td class="right">{EMPTY}</td>'
    share = 0.6 * site.error / highest if math.isfinite(site.error) else 0.0
    facts = escape(f"{site.kind}, {site.bits:g} bits, {100 * site.zeros:.1f} % zeros")
    return f'<td class="right heat" style="--share: {share:.2f}" title="{facts}">{site.error:.3f}</td>'


def _weights(report: Report) -> list[str]:
    facts = report.facts.get(report.chosen)
    if facts is None or not facts.histograms:
        reason = f"{report.chosen}: {facts.note}" if facts is not None and facts.note else ""
        return _paragraphs([report.note or reason or f"{report.chosen} has no quantized weights."])
    from lowbit.results.figures import draw_histograms, to_svg

    text = (
        f"{report.chosen}: the latent weights that training moves, and the values that the network computes with; "
        "common bins, heights as the square root of the share, each to its own scale."
    )
    figures = [f"<figure>{to_svg(draw_histograms([one]), one.name)}</figure>" for one in facts.histograms]
    return [*_paragraphs([text], "soft"), *_panels(figures)]


def _commands(report: Report) -> list[str]:
    missing = [cell.command for group in report.groups for cell in group.cells if cell.run is None]
    finished = [(cell, run) for group in report.groups for cell, run in group.finished]
    body = _paragraphs(["The sweep, its table and this page; finished runs are not repeated:"])
    body.append(_pre(report.commands))
    if missing:
        body += [*_paragraphs([f"Not run: {len(missing)}"], "not-run"), _pre(missing)]
    if finished:
        lines = [
            f"# {run.get('run_id', cell.run_dir.name)}, commit {run.get('commit') or 'unknown'}\n{cell.command}"
            for cell, run in finished
        ]
        body += [
            f"<details><summary>Each of the {len(finished)} finished runs alone</summary>",
            _pre(lines),
            "</details>",
        ]
    return body


def _pre(lines: Iterable[str]) -> str:
    return "<pre>" + escape("\n".join(lines)) + "</pre>"
