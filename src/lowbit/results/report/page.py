"""The page of a report: sections of text, tables and figures; every text in it is escaped, nothing is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from lowbit.results.formats import OPEN_TABLE, Grid, html_page, html_table
from lowbit.results.report.charts import hidden_figure, histogram_figures, loss_panels, score_figures
from lowbit.results.report.groups import Group
from lowbit.results.report.layers import LayerFacts, SiteFacts
from lowbit.results.report.style import CSS

_OPEN_PANELS = 12  # further loss curves are folded
_EMPTY = "-"


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
    return html_page(report.title, CSS, lines, [no_icon])


def _paragraphs(texts: Iterable[str], style: str = "") -> list[str]:
    kind = f' class="{style}"' if style else ""
    return [f"<p{kind}>{escape(text)}</p>" for text in texts if text]


def _progress(groups: Sequence[Group]) -> str:
    jobs, done = sum(len(group.cells) for group in groups), sum(len(group.finished) for group in groups)
    damaged = sum(bool(cell.damage) for group in groups for cell in group.cells)
    missing = "" if done == jobs else f"; {jobs - done} not run, with the commands that run them at the end"
    told = f" Files of {damaged} of those are damaged: see below the table." if damaged else ""
    return f"{done} of {jobs} runs have finished{missing}.{told}"


def _table(report: Report) -> list[str]:
    return [*html_table(report.grid), *_paragraphs(report.grid.notes, "soft")]


def _scores(report: Report) -> list[str]:
    text = (
        "Size: every finished run, in MB of packed weights; the teacher's are at 32 bits. Steps: the first finished "
        "seed of each row, evaluated after each stage and every trainer.eval_every steps. Points that would "
        "cover each other stand side by side."
    )
    return [*_paragraphs([text], "soft"), *score_figures(report.groups)]


def _losses(report: Report) -> list[str]:
    key, panels, damaged = loss_panels(report.groups)
    notes = _paragraphs(damaged, "below")
    if not panels:
        return notes or _paragraphs(["No run has left its metrics.csv here."])
    text = (
        "Terms as logged, before their weights, of the first finished seed of each row. Numbers mark the beginning of "
        "a stage, or of a phase in which tensors of the teacher stand in for the student's."
    )
    shown = [*notes, *_paragraphs([text], "soft"), key, '<div class="panels">', *panels[:_OPEN_PANELS], "</div>"]
    folded = panels[_OPEN_PANELS:]
    if folded:
        summary = f"<summary>{len(folded)} more</summary>"
        shown += [f'<details>{summary}<div class="panels">', *folded, "</div></details>"]
    return shown


def _layers(report: Report) -> list[str]:
    notes = [f"{label}: {facts.note}" for label, facts in report.facts.items() if facts.note]
    body = _paragraphs([report.note])
    outputs = hidden_figure(report.groups, dict(report.facts))
    if outputs:
        rows = max(facts.rows for facts in report.facts.values())
        told = f"Outputs: |h - h(teacher)| / |h(teacher)| of each layer on the first {rows} evaluation rows."
        body += [*_paragraphs([told], "soft"), *outputs]
    sites = {label: {site.name: site for site in facts.sites} for label, facts in report.facts.items() if facts.sites}
    if sites:
        told = "Weights: |Q(w) - w| / |w| of each quantized weight, first finished seed of each row."
        body += [*_paragraphs([told], "soft"), *_errors(sites)]
    return [*body, *_paragraphs(notes, "soft")]


def _errors(sites: Mapping[str, Mapping[str, SiteFacts]]) -> list[str]:
    names = list(dict.fromkeys(name for mine in sites.values() for name in mine))
    errors = [site.error for mine in sites.values() for site in mine.values() if math.isfinite(site.error)]
    highest = max(errors, default=1.0) or 1.0
    heads = "".join(f'<th scope="col" class="right">{escape(label)}</th>' for label in sites)
    rows = []
    for name in names:
        cells = [_error(mine.get(name), highest) for mine in sites.values()]
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    means = [sum(site.error for site in mine.values()) / len(mine) for mine in sites.values()]
    mean = "".join(f'<td class="right">{value:.3f}</td>' for value in means)
    return [
        *OPEN_TABLE,
        f'<thead><tr><th scope="col">weight</th>{heads}</tr></thead>',
        f'<tbody><tr><th scope="row">mean of {len(names)}</th>{mean}</tr></tbody>',
        "</table></div>",
        "<details><summary>Each weight</summary>",
        *OPEN_TABLE,
        f'<thead><tr><th scope="col">weight</th>{heads}</tr></thead>',
        f"<tbody>{''.join(rows)}</tbody>",
        "</table></div></details>",
    ]


def _error(site: SiteFacts | None, highest: float) -> str:
    if site is None:
        return f'<td class="right">{_EMPTY}</td>'
    share = 0.6 * site.error / highest if math.isfinite(site.error) else 0.0
    told = escape(f"{site.kind}, {site.bits:g} bits, {100 * site.zeros:.1f} % zeros")
    return f'<td class="right heat" style="--share: {share:.2f}" title="{told}">{site.error:.3f}</td>'


def _weights(report: Report) -> list[str]:
    facts = report.facts.get(report.chosen)
    if facts is None or not facts.histograms:
        reason = f"{report.chosen}: {facts.note}" if facts is not None and facts.note else ""
        return _paragraphs([report.note or reason or f"{report.chosen} has no quantized weights."])
    text = (
        f"{report.chosen}: the latent weights that training moves, and the values that the network computes with; "
        "common bins, heights as the square root of the share, each to its own scale."
    )
    return [*_paragraphs([text], "soft"), '<div class="panels">', *histogram_figures(facts.histograms), "</div>"]


def _commands(report: Report) -> list[str]:
    missing = [cell.command for g in report.groups for cell, run in zip(g.cells, g.runs, strict=True) if run is None]
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
