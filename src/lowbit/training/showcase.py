"""What W&B and TensorBoard show of a finished run beside its curves: sizes, tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lowbit.modeling import Instrument
from lowbit.quantizers import WeightSite, weight_sites
from lowbit.results import Cell, collect, tabulate_rows
from lowbit.results.report import Histogram, Series, loss_curves
from lowbit.training.loggers import MetricsFile, TensorBoardRun, WandbRun

_LAYER_COLUMNS = ("layer", "shape", "quantizer", "bits", "float_kb", "packed_kb", "relative_error", "zeros_percent")
_PANELS = 6
_BINS = 61
_TINY = 1e-12


def show_result(
    loggers: Sequence[Any], result: dict[str, Any], instrument: Instrument, folder: Path, *, figures: bool
) -> None:
    """Give the loggers that can show them the run's summary, tables and pictures; `folder` holds its run.json."""
    showcases = [logger for logger in loggers if isinstance(logger, (TensorBoardRun, WandbRun))]
    if not showcases:
        return
    step = max(result["steps"] - 1, 0)
    sites = list(weight_sites(instrument.model))
    grid = tabulate_rows(collect([Cell(folder, {}, "")]))
    tables: dict[str, tuple[list[str], list[list[Any]]]] = {
        "tables/result": ([name for name, _ in grid.heads], [list(line) for line in grid.lines]),
        "tables/layers": (list(_LAYER_COLUMNS), [_layer(site) for site in sites]),
    }
    rows = next((logger.rows for logger in loggers if isinstance(logger, MetricsFile)), [])
    images = _figures(rows, sites) if figures else {}
    for showcase in showcases:
        showcase.log_summary(summary_of(result))
        for name, (columns, lines) in tables.items():
            showcase.log_table(name, columns, lines, step=step)
        for name, image_HWC in images.items():
            showcase.log_image(name, [image_HWC], step)
        showcase.finalize("success")


def summary_of(result: dict[str, Any]) -> dict[str, Any]:
    """Return what a table of runs needs: the metrics, sizes, steps and seconds of a run.json."""
    sizes = {f"size/{key}": result["size"][key] for key in ("bits", "compression", "float_bytes", "simulated_bytes")}
    teacher = {} if result["teacher"] is None else {f"teacher/{k}": v for k, v in result["teacher"]["metrics"].items()}
    facts = {key: result[key] for key in ("status", "steps", "seconds")}
    score = {"score": result["metrics"][result["primary_metric"]]}  # one name for every data set, for W&B sweeps
    return {**result["metrics"], **score, **sizes, **teacher, **facts}


def _layer(site: WeightSite) -> list[Any]:
    weight, quantized, spec = site.weight, site.quantized(), site.quantizer.spec
    error = float((quantized - weight).norm() / weight.norm().clamp(min=1e-12))
    zeros = 100 * float((quantized == 0).float().mean())
    packed = spec.packed_bits(weight.numel(), site.quantizer.groups) / 8e3
    shape = "x".join(map(str, weight.shape))
    return [site.name, shape, spec.kind, float(spec.storage_bits), weight.numel() * 4 / 1e3, packed, error, zeros]


def weight_histograms(sites: Sequence[WeightSite]) -> tuple[Histogram, ...]:
    """Return the histograms of a few quantized weights, evenly spread over the layers."""
    if len(sites) > _PANELS:
        sites = [sites[round(place * (len(sites) - 1) / (_PANELS - 1))] for place in range(_PANELS)]
    return tuple(_histogram(site) for site in sites)


def _histogram(site: WeightSite) -> Histogram:
    latent, values = site.weight.detach().float().flatten(), site.quantized().detach().float().flatten()
    bound = 1.02 * max(float(latent.abs().max()), float(values.abs().max()), _TINY)
    before, after = (torch.histc(tensor, _BINS, -bound, bound) / tensor.numel() for tensor in (latent, values))
    return Histogram(site.name, -bound, bound, tuple(before.tolist()), tuple(after.tolist()))


def _figures(rows: Sequence[Mapping[str, Any]], sites: Sequence[WeightSite]) -> dict[str, NDArray[np.uint8]]:
    """Return pictures of the loss and its terms over the recipe's steps, and of weights before and after."""
    from lowbit.results.figures import draw_histograms, draw_series, to_pixels

    terms, parts = loss_curves(rows)
    series = [Series(name, points, style, dots=False) for style, (name, points) in enumerate(terms.items())]
    images = {"figures/loss": to_pixels(draw_series(series, "step", "loss", log_y=True, marks=parts))}
    if sites:
        images["figures/weights"] = to_pixels(draw_histograms(weight_histograms(sites)))
    return images
