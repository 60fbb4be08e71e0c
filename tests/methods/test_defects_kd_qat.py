"""The published defects of KD-QAT are absent: spec/ternarybert.md, section 2.8, in its order (1 to 3)."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowbit.quantizers import build_quantizer
from lowbit.recipes import Stage
from lowbit.settings.run import Config, LoggerMode
from lowbit.training.loggers import wandb_mode

ROOT = Path(__file__).resolve().parents[2]
Batch = dict[str, Tensor]
Stages = Callable[..., tuple[Stage, ...]]


def secrets(text: str) -> list[str]:
    """Return what looks like a key: 32 characters or more with digits among them; names and pinned revisions do not."""
    lines = [line for line in text.splitlines() if not re.search(r"revision|sha256", line.lower())]
    words = re.findall(r"[A-Za-z0-9+\-]{32,}={0,2}", "\n".join(lines))
    return [word for word in words if len(re.findall(r"\d", word)) > 2]


def test_no_token_is_in_the_repository_and_nothing_is_sent_without_a_key(
    config_of: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
):
    """Defect 1 (TI's too): a logging-service token in the code, and logging on by default."""
    assert secrets("key = 'eyJhcGlfYWRkcmVzcyI6Imh0dHBzOi8vYXBwLm5l12'")
    files = [p for folder in ("src", "conf", "sweeps") for p in (ROOT / folder).rglob("*.*") if p.suffix != ".pyc"]
    assert len(files) > 100
    assert {p.name: found for p in files if (found := secrets(p.read_text(encoding="utf-8")))} == {}
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)
    assert config_of().logger.mode is LoggerMode.auto
    assert wandb_mode(LoggerMode.auto) == "offline"


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_b_bits_have_at_most_2_to_the_b_levels(stages_of: Stages, bits: int):
    """Defect 2: the quantizer of 4 to 7 bits had a level too many, 17 at 4 bits."""
    (stage,) = stages_of("quantizer=w4a8", f"quantizer.weight.bits={bits}", f"quantizer.embedding.bits={bits}")
    quantizer = build_quantizer(stage.rules[0].weight)
    w = torch.linspace(-1, 1, 20_001, dtype=torch.float64)[None]
    assert quantizer(w).unique().numel() == 2**bits - 1, "symmetric: zero and as many levels on either side"


def test_the_map_loss_reads_valid_tokens_only_and_stands_zeros(
    stages_of: Stages, distil: Callable[..., Any], bert: Callable[..., nn.Module], padded: Callable[[int], Batch]
):
    """Pitfall 3: over the full padded map, padded rows would enter; a probability of zero would be infinite."""
    (stage,) = stages_of("method=kd_qat", "quantizer.activation.granularity=token")
    module = distil(stage, bert(), bert(seed=1))
    values = [module.losses(padded(more), 0)[1]["maps"].item() for more in (0, 5)]
    assert values[0] > 1e-3
    assert values[1] == pytest.approx(values[0], rel=1e-4)
    with torch.no_grad():
        for layer in module.student.bert.encoder.layer:
            layer.attention.self.query.weight.mul_(1e4)
    total, terms = module.losses(padded(5), 0)
    total.backward()
    assert terms["maps"].isfinite()
    assert module.student.bert.encoder.layer[0].attention.self.query.weight.grad.isfinite().all()
