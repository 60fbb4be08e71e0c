"""Randomness as a function of the step: a resumed run needs no saved generator state to repeat itself."""

from __future__ import annotations

import numpy as np
import torch


def seed_step(seed: int, step: int) -> None:
    """Seed torch's generators for one training step from (seed, recipe step)."""
    state = np.random.SeedSequence([seed, step]).generate_state(2, np.uint32)
    torch.manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)
