"""Fake quantizers as pure functions: tensor in, tensor of the same shape on a low-bit grid out.

Each is one published formula with its published gradient; `estimator=` replaces the gradient of the input.
Half-precision inputs keep their scales in float32. No forward or backward synchronises with the host; `lsq_mse_init`,
which runs once, does.
"""

from lowbit.quantizers.functional.dynamic import minmax_asymmetric, minmax_symmetric, xtc_symmetric
from lowbit.quantizers.functional.initial import lsq_mse_init
from lowbit.quantizers.functional.learned import elastic_signed, elastic_unsigned, lsq, seq
from lowbit.quantizers.functional.loss_aware import lat_ternarize
from lowbit.quantizers.functional.noise import drop_blocks, quant_noise
from lowbit.quantizers.functional.ranges import pact, static_range
from lowbit.quantizers.functional.statistical import bitnet_ternarize, bwn_binarize, statsq, twn_ternarize

__all__ = [
    "bitnet_ternarize",
    "bwn_binarize",
    "drop_blocks",
    "elastic_signed",
    "elastic_unsigned",
    "lat_ternarize",
    "lsq",
    "lsq_mse_init",
    "minmax_asymmetric",
    "minmax_symmetric",
    "pact",
    "quant_noise",
    "seq",
    "static_range",
    "statsq",
    "twn_ternarize",
    "xtc_symmetric",
]
