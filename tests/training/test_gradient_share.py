"""The logged ratio of a regularizer's gradient to that of all other losses."""

import torch
from torch import nn

from lowbit.quantizers import QuantizerSpec, QuantLinear, weight_sites
from lowbit.training.gradient_share import RegularizerShare


def test_ratio_of_two_gradients_by_hand():
    layer = QuantLinear.from_float(nn.Linear(2, 1, bias=False), QuantizerSpec("lsq", bits=3), None)
    share = RegularizerShare(list(weight_sites(layer)))
    assert share.ratio() is None
    regularizer = (layer.weight * torch.tensor([[0.3, 0.4]])).sum()  # norm 0.5
    rest = (layer.weight * torch.tensor([[0.0, 2.0]])).sum()
    share.measure(regularizer)
    (regularizer + rest).backward()
    torch.testing.assert_close(share.ratio(), torch.tensor(0.25))
    assert share.ratio() is None  # once per measurement


def test_weights_that_the_regularizer_leaves_out_count_for_the_rest():
    layers = nn.ModuleList(
        QuantLinear.from_float(nn.Linear(1, 1, bias=False), QuantizerSpec("lsq", bits=3), None) for _ in range(2)
    )
    share = RegularizerShare(list(weight_sites(layers)))
    first, second = (layer.weight for layer in layers)
    share.measure(6.0 * first.sum())
    (6.0 * first + 3.0 * first + 4.0 * second).sum().backward()
    torch.testing.assert_close(share.ratio(), torch.tensor(6.0 / 5.0))
