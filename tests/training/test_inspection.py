"""A finished run, layer by layer, from its files."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import TINY_TI, load_into

from lowbit.config import identity
from lowbit.results import read_run
from lowbit.training.inspection import inspect_run
from lowbit.training.train import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The outputs and the folder of one run of two stages."""
    outputs = tmp_path_factory.mktemp("outputs")
    cfg, config = load_into(outputs, *TINY_TI)
    train(cfg, config)
    return outputs, identity.run_folder(cfg, config)


def test_weights_and_outputs(finished):
    """Errors of ternary weights as the formula has them: alpha times the sign beyond 0.7 of the mean magnitude."""
    outputs, folder = finished
    facts = inspect_run(read_run(folder), folder, outputs)
    assert facts.note == ""
    weights = load_file(folder / "stages" / "plain" / "model.safetensors")
    (site,) = [site for site in facts.sites if site.name.endswith("layer.1.output.dense")]
    weight = weights[f"{site.name}.weight"].clamp(-2.5, 2.5)
    beyond = weight.abs() > 0.7 * weight.abs().mean()
    alpha = weight[beyond].abs().mean()
    quantized = torch.where(beyond, alpha * weight.sign(), 0.0)
    assert site.error == pytest.approx(float((quantized - weight).norm() / weight.norm()), rel=1e-5)
    assert site.zeros == pytest.approx(float((~beyond).double().mean()))
    assert (site.kind, site.bits) == ("twn", 2.0)

    assert len(facts.hidden) == 2
    assert facts.rows == 32
    assert all(0 < error < 5 for error in facts.hidden)

    assert len(facts.histograms) == 6
    for histogram in facts.histograms:
        assert sum(histogram.before) == pytest.approx(1, abs=1e-5)
        assert sum(histogram.after) == pytest.approx(1, abs=1e-5)
        assert histogram.low < 0 < histogram.high
    by_name = {histogram.name: histogram for histogram in facts.histograms}
    tensorwise = [name for name in by_name if "embedding" not in name]
    assert tensorwise
    for name in tensorwise:
        assert sum(share > 0 for share in by_name[name].after) == 3


def test_full_precision_student_equals_its_teacher_in_no_error(tmp_path):
    """A student that nothing has changed has the outputs of its teacher, and no quantized weight."""
    untrained = [word for word in TINY_TI if not word.startswith(("method", "budget"))]
    words = (*untrained, "method=ptq", "quantizer=none", "budget={steps: 1, epochs: null}")
    cfg, config = load_into(tmp_path, *words)
    train(cfg, config)
    folder = identity.run_folder(cfg, config)
    facts = inspect_run(read_run(folder), folder, tmp_path)
    assert facts.sites == ()
    assert facts.hidden == pytest.approx((0.0, 0.0), abs=1e-6)


def test_what_is_not_there_is_told(finished, tmp_path):
    """Weights without their teacher still show; without weights, or under settings of no version, there is a reason."""
    outputs, folder = finished
    run = read_run(folder)
    facts = inspect_run(run, folder, tmp_path)
    assert facts.hidden == ()
    assert "model.safetensors is not here" in facts.note
    assert facts.sites
    unknown = {**run, "config": {**run["config"], "colour": "red"}}
    assert inspect_run(unknown, folder, outputs).note.startswith("cannot be rebuilt: ")
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    (copy / "stages" / "intervene" / "model.safetensors").unlink()
    facts = inspect_run(run, copy, outputs)
    assert facts.sites == ()
    assert "stages/intervene/model.safetensors is not here. Delete " in facts.note
