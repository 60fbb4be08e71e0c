"""What W&B and TensorBoard show of a finished run beside its curves: sizes, tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lowbit.modeling import Instrument
from lowbit.quantizers import WeightSite, weight_sites
from lowbit.results import Cell, collect, to_frame
from lowbit.training.loggers import MetricsFile, Showcase

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LAYER_COLUMNS = ("layer", "shape", "quantizer", "bits", "float_kb", "packed_kb", "relative_error", "zeros_percent")
_NOT_TERMS = ("lr", "lr_scales", "oscillation_percent", "frozen_percent", "obr_gradient_ratio")  # under train/
_PANELS = 6
_SAMPLES = 100_000  # weights of a histogram


def show_result(
    loggers: Sequence[Any], result: dict[str, Any], instrument: Instrument, folder: Path, *, figures: bool
) -> None:
    """Give the loggers that can show them the run's summary, tables and pictures; `folder` holds its run.json."""
    showcases = [logger for logger in loggers if isinstance(logger, Showcase)]
    if not showcases:
        return
    step = max(result["steps"] - 1, 0)
    sites = list(weight_sites(instrument.model))
    frame = to_frame(collect([Cell(folder, {}, "")]))
    tables: dict[str, tuple[Sequence[str], list[list[Any]]]] = {
        "tables/result": (list(map(str, frame.columns)), frame.to_numpy().tolist()),
        "tables/layers": (_LAYER_COLUMNS, [_layer(site) for site in sites]),
    }
    images = {}
    if figures:
        rows = next((logger.rows for logger in loggers if isinstance(logger, MetricsFile)), [])
        images = {"figures/loss": loss_by_stage(rows)}
        if sites:
            images["figures/weights"] = weight_histograms(sites)
    for showcase in showcases:
        showcase.log_summary(summary_of(result))
        for name, (columns, lines) in tables.items():
            showcase.log_table(name, columns, lines, step)
        for name, image_HWC in images.items():
            showcase.log_image(name, image_HWC, step)
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


def loss_by_stage(rows: Sequence[dict[str, Any]]) -> NDArray[np.uint8]:
    """Return a picture (HWC) of the loss and its terms over the recipe's steps, the stages apart."""
    trained = [row for row in rows if "train/loss" in row]
    logged = dict.fromkeys(key for row in trained for key in row if key.startswith("train/"))
    names = [name for name in logged if name.removeprefix("train/") not in _NOT_TERMS]
    figure, axes = _panels(1, width=8, height=4)
    axis = axes[0]
    for name in names:
        points = [(int(row["step"]), float(row[name])) for row in trained if name in row]
        label = name.removeprefix("train/")
        axis.plot(*zip(*points, strict=True), label=label, linewidth=2 if label == "loss" else 1)
    begins: dict[str, int] = {}
    for row in trained:
        begins.setdefault(str(row["stage"]), int(row["step"]))
    for stage, begin in begins.items():
        axis.axvline(begin, color="0.7", linewidth=1)
        axis.text(begin, 1.01, f" {stage}", transform=axis.get_xaxis_transform(), fontsize=8)
    axis.set(xlabel="step", yscale="log")
    if names:
        axis.legend(fontsize=8)
    return _pixels(figure)


def weight_histograms(sites: Sequence[WeightSite]) -> NDArray[np.uint8]:
    """Return a picture (HWC) of latent weights (area) and the levels they are rounded to (bars), of a few layers."""
    chosen = sites[:: -(-len(sites) // _PANELS)]
    figure, axes = _panels(len(chosen), width=10, height=5)
    for axis, site in zip(axes, chosen, strict=True):
        axis.hist(_sample(site.weight), bins=100, histtype="stepfilled", color="0.8", density=True, label="latent")
        axis.hist(
            _sample(site.quantized()),
            bins=100,
            histtype="stepfilled",
            color="C0",
            density=True,
            label="quantized",
            alpha=0.8,
        )
        axis.set_title(site.name, fontsize=7)
        axis.set_yscale("log")  # tails matter, and densities themselves do not
        axis.yaxis.set_visible(False)
        axis.tick_params(labelsize=6)
    axes[0].legend(fontsize=7)
    return _pixels(figure)


def _sample(weight: Tensor) -> NDArray[np.float32]:
    flat = weight.detach().flatten()
    sample: NDArray[np.float32] = flat[:: max(1, flat.numel() // _SAMPLES)].float().cpu().numpy()
    return sample


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure  # not pyplot: it keeps figures and a backend for the whole process

    columns = min(count, 3)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(-(-count // columns), columns, squeeze=False).flatten()
    for axis in axes[count:]:
        axis.remove()
    return figure, list(axes[:count])


def _pixels(figure: Figure) -> NDArray[np.uint8]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)  # untyped
    canvas.draw()
    image_HWC: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
    return image_HWC
