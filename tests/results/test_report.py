"""The page of a report, from runs on disk: what it shows, what it escapes, what it never loads."""

import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from lowbit.files import sha256
from lowbit.results import collect, tabulate_rows
from lowbit.results.figures import draw_histograms, draw_series, to_pixels, to_svg
from lowbit.results.report import (
    Histogram,
    LayerFacts,
    Report,
    Series,
    SiteFacts,
    groups_of,
    read_curves,
    render_report,
)

METRICS = """stage,step,train/loss,train/logits,train/scores,train/lr,phase/context,phase/probs,val/accuracy
intervene,9,3,0.5,2.0,0.1,1,0,
intervene,19,2,0.25,nan,0.1,0,1,0.5
plain,29,1,0.125,1.0,0.1,,,0.75
"""


class Elements(HTMLParser):
    """Collects every element with its attributes, and checks that they are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def report(make_cell) -> Report:
    """Two seeds of a method with curves and layers, one run without a metrics.csv, one job that has not run."""
    cells = [make_cell(seed=1), make_cell(seed=2, accuracy=0.8), make_cell("kd"), make_cell("<b>&bit", run=False)]
    (cells[0].run_dir / "metrics.csv").write_text(METRICS)
    site = SiteFacts("layer.0.query", "twn", 2.0, 0.4321, 0.3)
    histogram = Histogram("layer.0.<query>", -1.0, 1.0, (0.25, 0.5, 0.25), (0.0, 1.0, 0.0))
    facts = {
        "ti_g": LayerFacts((site, replace(site, name="layer.1.query")), (histogram,), (0.1, 0.2), 8),
        "kd": LayerFacts(note="model.safetensors is not here"),
    }
    grid = tabulate_rows(collect(cells), "demo")
    return Report("demo <1>", "Of `this`.", grid, groups_of(cells), ["lowbit sweep demo"], facts, "ti_g")


def test_page_is_well_formed_and_loads_nothing(report):
    page = render_report(report)
    elements = Elements(page)
    assert elements.open == []
    tags = {tag for tag, _ in elements.found}
    assert not tags & {"script", "img", "iframe", "object", "embed"}
    loaded = [value for _, attributes in elements.found for key, value in attributes.items() if key in ("src", "href")]
    assert all(value.startswith(("#", "data:")) for value in loaded)
    assert not re.search(r"url\((?!#)|@import|https?:", page)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in [a for _, a in elements.found]
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;bit" in page
    assert "layer.0.&lt;query&gt;" in page


def test_page_shows_runs_layers_and_missing_commands(report):
    page = render_report(report)
    assert "3 of 4 runs have finished; 1 not run" in page
    assert "Not run: 1" in page
    assert "lowbit train method=&lt;b&gt;&amp;bit seed=0" in page.split("Not run: 1")[1]
    assert all(text in page for text in ("1 intervene: context", "2 intervene: probs", "3 plain"))
    assert "0.432" in page
    assert "first 8 evaluation rows" in page
    assert "kd: model.safetensors is not here" in page
    assert page.count("before (latent)") == page.count("after (quantized)") == 1
    assert "# ti_g2, commit abc1234\nlowbit train method=ti_g seed=2" in page


def test_page_without_layers_says_why(report):
    page = render_report(replace(report, facts={}, note="Left out."))
    assert page.count("<p>Left out.</p>") == 2
    assert "Each weight" not in page


def test_many_loss_panels_are_folded(report, make_cell):
    cells = []
    for number in range(15):
        cells.append(make_cell(f"method{number}"))
        (cells[-1].run_dir / "metrics.csv").write_text(METRICS)
    page = render_report(replace(report, groups=groups_of(cells), facts={}))
    assert "<summary>3 more</summary>" in page
    assert page.index("Loss terms of method11") < page.index("3 more") < page.index("Loss terms of method12")


def test_curves_of_a_run(report):
    cell, run = report.groups[0].finished[0]
    curves = read_curves(cell.run_dir, run)
    assert list(curves.terms) == ["logits", "scores"]
    assert curves.terms["logits"] == [(9.0, 0.5), (19.0, 0.25), (29.0, 0.125)]
    assert curves.parts == [(0.0, "intervene: context"), (19.0, "intervene: probs"), (29.0, "plain")]
    assert curves.validation == [(19.0, 50.0), (29.0, 75.0)]
    kd, run = report.groups[1].finished[0]
    assert read_curves(kd.run_dir, run).terms == {}


@pytest.mark.parametrize("content", [b"\xff\xfe", b"stage,step\nplain,x\n", b"stage,step\nplain,1,2,3\n", b"a\0b"])
def test_damaged_curves_are_named(content, report):
    """The page says which file is to blame, and shows everything else."""
    cell = report.groups[0].cells[0]
    (cell.run_dir / "metrics.csv").write_bytes(content)
    page = render_report(report)
    assert f"{cell.run_dir / 'metrics.csv'} is damaged" in page
    assert "3 of 4 runs have finished" in page


def test_curves_of_another_file_than_the_run_left(report):
    """run.json knows the SHA-256 of its metrics.csv: one flipped digit is seen."""
    cell, run = report.groups[0].finished[0]
    run["files"] = {"metrics.csv": sha256(METRICS.encode())}
    assert not read_curves(cell.run_dir, run).damage
    (cell.run_dir / "metrics.csv").write_text(METRICS.replace("0.5", "0.6"))
    assert "SHA-256" in read_curves(cell.run_dir, run).damage


def test_score_of_a_group(report):
    assert report.groups[0].score == pytest.approx(85.0)
    assert report.groups[2].score is None


def test_lines_of_many_rows_differ():
    """The ninth series has the color of the first; marker or dash tells them apart."""
    (axis,) = draw_series([Series(f"row{style}", [(0, 1), (1, 2)], style) for style in range(15)], "step", "s").axes
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axis.lines}
    assert len(looks) == 15


def test_equal_points_stand_side_by_side_in_the_plot():
    """Three rows of two seeds with one size and one score."""
    for log_x in (False, True):
        series = [Series(f"row{style}", [(0.07, 97.0)] * 2, style, line=False) for style in range(3)]
        figure = draw_series([*series, Series("teacher", [(2.0, 98.0)], 3, line=False)], "MB", "s", log_x=log_x)
        to_svg(figure, "t")
        (axis,) = figure.axes
        xs = sorted(line.get_transform().transform(line.get_xydata())[0, 0] for line in axis.lines)
        assert len(xs) == 7
        assert all(b - a > 5 for a, b in itertools.pairwise(xs))
        assert axis.bbox.x0 < xs[0] < xs[-1] < axis.bbox.x1
        assert len(axis.get_legend_handles_labels()[1]) == 4


def test_axes_say_that_they_are_logarithmic():
    series = [Series("a", [(1.0, 2.0), (100.0, 3.0)], 0)]
    logarithmic = to_svg(draw_series(series, "MB", "loss", log_x=True, log_y=True), "t")
    assert ">MB (log scale)<" in logarithmic
    assert ">loss (log scale)<" in logarithmic
    assert "log" not in to_svg(draw_series(series, "MB", "loss"), "t")


def test_figure_leaves_out_what_its_axes_cannot_show():
    points = [(0.0, 1.0), (1.0, float("nan")), (2.0, 0.0), (3.0, -1.0), (4.0, float("inf")), (5.0, 10.0)]
    series = [Series("a", points, 0), Series("nothing", points[1:4], 1)]
    figure = draw_series(series, "step", "loss", log_y=True, marks=[(0.0, "one")])
    (axis,) = figure.axes
    assert axis.lines[0].get_xydata().tolist() == [[0.0, 1.0], [5.0, 10.0]]
    assert len(axis.lines[1].get_xydata()) == 0
    to_svg(figure, "t")
    to_svg(draw_series(series[1:], "step", "loss", log_x=True, log_y=True), "t")


def test_names_in_figures_are_text():
    """Neither HTML, nor a formula."""
    svg = to_svg(draw_series([Series("<b> $x_1$ &", [(0.0, 1.0)], 0)], "step", "loss"), "<i>")
    assert "&lt;b&gt; $x_1$ &amp;" in svg
    assert "<title>&lt;i&gt;</title>" in svg
    assert svg == to_svg(draw_series([Series("<b> $x_1$ &", [(0.0, 1.0)], 0)], "step", "loss"), "<i>")


def test_histograms_have_a_panel_for_each_weight():
    histograms = [Histogram(f"layer{n}", -1.0, 1.0, (0.25, 0.5, 0.25), (0.0, 1.0, 0.0)) for n in range(4)]
    figure = draw_histograms(histograms)
    shown = [axis for axis in figure.axes if axis.patches]
    assert len(shown) == 8
    heights = shown[0].patches[0].get_data().values
    assert heights == pytest.approx([0.5, 0.5**0.5, 0.5])
    assert to_pixels(figure).shape[2] == 3
