"""The published defects of estimators and low-bit weight quantizers are absent: spec/estimators.md, E1 to E13 in order.

E1, E2: section 2.5; E3 to E5: StableQAT (4.8); E6: CAGE (5); E7: PEGE (6); E8, E9: PDQAT (7.8); E10 to E12: ParetoQ
(8.8); E13: StatsQ (9). The index in docs/methods names the tests of the others.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lowbit.config.validate import load
from lowbit.modeling import prepare
from lowbit.modeling.sizes import model_size
from lowbit.quantizers import QuantizerSpec, QuantLinear, Target, build_quantizer, weight_sites
from lowbit.recipes import Stage
from lowbit.training.run import Run

Stages = Callable[..., tuple[Stage, ...]]


@pytest.mark.parametrize(("kind", "bits"), [("lsq", 2), ("seq", 2), ("elastic", 1)])
@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-30])
def test_scales_have_a_floor(kind: str, bits: int, scale: float):
    """E1: a division by a scale at or below zero gave NaN or turned signs around."""
    quantizer = build_quantizer(QuantizerSpec(kind, bits=bits), Target((1, 4), weight=True))
    x = torch.tensor([[-2.0, -0.5, 0.5, 2.0]], requires_grad=True)
    quantizer.initialize(x.detach())
    with torch.no_grad():
        quantizer.step_size.fill_(scale)
    y = quantizer(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert ((y == 0) | (y.sign() == x.sign())).all()
    assert x.grad.isfinite().all()
    assert quantizer.step_size.grad.isfinite().all()


def relative_error(spec: QuantizerSpec) -> float:
    linear = nn.Linear(512, 256, bias=False)
    with torch.no_grad():
        linear.weight.normal_(generator=torch.Generator().manual_seed(0))
    (site,) = weight_sites(QuantLinear.from_float(linear, spec, None))
    return ((site.quantized() - site.weight).square().sum() / site.weight.square().sum()).item()


def test_a_step_size_starts_from_least_squares(stages_of: Stages):
    """E2, E3: the largest magnitude as a 2-bit step has an error of .944, against .150."""
    weight = stages_of("quantizer=lsq_w4a4", "quantizer.weight.bits=2")[0].rules[0].weight
    assert relative_error(weight) == pytest.approx(0.150, abs=0.003)
    assert relative_error(QuantizerSpec("lsq", bits=2, init="max")) > 0.9


def test_two_bits_of_paretoq_are_its_own_grid(stages_of: Stages):
    """E3: StableQAT's "ParetoQ" baseline was LSQ from the largest magnitude: levels -2, -1, 0, 1."""
    spec = stages_of("quantizer=seq_w2")[0].rules[0].weight
    quantizer = build_quantizer(spec, Target((1, 5), weight=True))
    w = torch.tensor([[-1.0, -0.3, 0.1, 0.6, 1.0]])
    quantizer.initialize(w)
    assert quantizer(w).flatten().tolist() == pytest.approx([-0.75, -0.25, 0.25, 0.75, 0.75])


def test_a_run_has_its_folder_without_a_logging_service(tmp_path: Path):
    """E8: weights were saved under the logging service's run id, also where there was none."""
    folders = {Run(*load([f"logger={name}", f"paths.outputs={tmp_path}"])).folder for name in ("none", "wandb")}
    assert len(folders) == 1


@pytest.mark.parametrize(("bits", "levels"), [(1.58, 3), (2, 4), (3, 8), (4, 16)])
def test_the_width_is_a_setting_and_the_largest_weight_adds_no_level(bits: float, levels: int, stages_of: Stages):
    """E11: a script had w_bits 4 hard-coded. E12: taken literally, the formula has a level too many at |w| = alpha."""
    spec = stages_of("quantizer=seq_w2", f"quantizer.weight.bits={bits}")[0].rules[0].weight
    quantizer = build_quantizer(spec, Target((1, 4001), weight=True))
    w = torch.linspace(-1, 1, 4001)[None]
    quantizer.initialize(w)
    assert quantizer(w).unique().numel() == levels


def test_the_size_falls_with_the_width(stages_of: Stages, bert: Callable[..., nn.Module]):
    """E11: the checkpoint that came out was larger than the one that went in, and nothing said how small it packs."""
    sizes = {}
    for bits in (2, 4):
        (stage,) = stages_of("quantizer=seq_w2", f"quantizer.weight.bits={bits}")
        sizes[bits] = model_size(prepare(bert(), stage.rules))
    assert sizes[2].simulated_bytes < sizes[4].simulated_bytes < sizes[4].float_bytes
