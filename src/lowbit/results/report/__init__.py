"""`lowbit report`: one page of a sweep, with its table, curves, layers and commands; figures are SVG in the page."""

from lowbit.results.report.groups import Group, groups_of
from lowbit.results.report.layers import Histogram, LayerFacts, SiteFacts
from lowbit.results.report.page import Report, render_report

__all__ = ["Group", "Histogram", "LayerFacts", "Report", "SiteFacts", "groups_of", "render_report"]
