"""Oscillation: the frequency of flips, the share that oscillates, freezing."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lowbit.quantizers import QuantFusedLinear, QuantizerSpec, QuantLinear, weight_sites
from lowbit.quantizers.oscillation import Freezing, OscillationTracker

LSQ = QuantizerSpec("lsq", bits=3)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def unit_grid(rows: int = 2, columns: int = 4, spec: QuantizerSpec = LSQ) -> QuantLinear:
    """A layer of zero weights whose levels are the integers."""
    layer = QuantLinear.from_float(nn.Linear(columns, rows, bias=False), spec, None)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight_quantizer.step_size.fill_(1.0)
    return layer


def put(layer: nn.Module, values: list[float]) -> None:
    """Set the first weights."""
    with torch.no_grad():
        layer.weight.view(-1)[: len(values)] = torch.tensor(values)


def tracker_of(model: nn.Module, **settings: float) -> OscillationTracker:
    return OscillationTracker(weight_sites(model), **settings)


# --- the frequency --------------------------------------------------------------------------------------------------


def test_frequency_of_periodic_flips():
    layer = unit_grid()
    tracker = tracker_of(layer)
    periods = (1, 100, 300)
    for step in range(30_000):
        if step % 100 and step >= 3000:  # the fast one is settled: skip what does not change the others' codes
            for record in tracker.records.values():
                record.frequency.mul_(1 - tracker.momentum)
            continue
        put(layer, [float((step // period) % 2) for period in periods] + [step * 1e-5])
        tracker.update()
        if step == 2999:
            assert tracker.frequencies()[""][0, 0].item() == pytest.approx(0.95, abs=0.001)
    (frequency,) = tracker.frequencies().values()
    # Just after a flip f is largest: m / (1 - (1 - m)^period); the mean over a period is 1 / period.
    assert frequency[0, 1].item() == pytest.approx(0.001 / (1 - 0.999**100), rel=0.12)
    assert frequency[0, 2].item() == pytest.approx(0.0026, abs=0.0003)
    assert frequency[0, 1] > 0.005 > frequency[0, 2]
    assert not frequency[0, 3]
    assert not frequency[1].any()


def reference(codes: list[int], momentum: float) -> tuple[float, float]:
    """The published recursion, one weight in plain Python: frequency and average."""
    frequency, previous, average = 0.0, 0, float(codes[0])
    for old, new in pairwise(codes):
        sign = (new > old) - (new < old)
        frequency = momentum * (sign * previous == -1) + (1 - momentum) * frequency
        previous = sign or previous
        average = momentum * new + (1 - momentum) * average
    return frequency, average


@pytest.mark.parametrize("momentum", [0.001, 0.3])
def test_frequency_and_average_follow_the_published_recursion(momentum: float):
    layer = unit_grid()
    tracker = tracker_of(layer, momentum=momentum)
    history = torch.randint(-4, 4, (60, 8)).where(torch.rand(60, 8) < 0.5, 0)
    for codes in history:
        put(layer, (codes + torch.rand(8) * 0.8 - 0.4).tolist())
        tracker.update()
    (record,) = tracker.records.values()
    expected = [reference(history[:, i].tolist(), momentum) for i in range(8)]
    torch.testing.assert_close(record.frequency.flatten(), torch.tensor([f for f, _ in expected]))
    torch.testing.assert_close(record.average.flatten(), torch.tensor([a for _, a in expected]))


def test_moves_in_one_direction_and_pauses_are_no_oscillation():
    layer = unit_grid()
    tracker = tracker_of(layer, momentum=0.5)
    for value in (-4.0, -2.0, -2.0, 0.0, 0.0, 3.0):
        put(layer, [value])
        tracker.update()
    assert not tracker.frequencies()[""].any()
    put(layer, [3.0])
    tracker.update()
    put(layer, [2.0])  # back, after pauses
    tracker.update()
    assert tracker.frequencies()[""][0, 0] == 0.5


def test_a_jump_over_the_whole_grid_has_the_right_sign():
    layer = unit_grid(spec=QuantizerSpec("lsq", bits=8))
    tracker = tracker_of(layer, momentum=0.5)
    for value in (-128.0, 127.0, 126.0):  # up by 255, which does not fit a byte, and down
        put(layer, [value])
        tracker.update()
    assert tracker.frequencies()[""][0, 0] == 0.5


def test_percentage_counts_weights_over_all_sites():
    model = nn.ModuleDict({"one": unit_grid(), "two": unit_grid(2, 1)})
    tracker = tracker_of(model, momentum=0.01)
    for step in range(4):
        put(model["one"], [step % 2, step % 2, 0])
        put(model["two"], [0.4 if step % 2 else 0.0])
        tracker.update()
    assert tracker.percentage().shape == ()
    assert tracker.percentage().item() == pytest.approx(100 * 2 / 10)
    assert set(tracker.frequencies()) == {"one", "two"}
    for threshold, share in ((0.0198, 20), (0.0200, 0)):  # two flips at momentum 0.01: f = 0.0199
        tracker.threshold = threshold
        assert tracker.percentage().item() == pytest.approx(share)


@pytest.mark.parametrize(
    ("spec", "dtype"),
    [
        (QuantizerSpec("lsq", bits=8), torch.int8),
        (QuantizerSpec("lsq", bits=8, signed=False), torch.int16),
        (QuantizerSpec("minmax_asymmetric", bits=7), torch.int8),
        (QuantizerSpec("minmax_asymmetric", bits=8), torch.int16),
        (QuantizerSpec("minmax_asymmetric", bits=16), torch.int32),
        (QuantizerSpec("statsq", bits=8, granularity="row"), torch.int8),
        (QuantizerSpec("xtc", bits=8), torch.int8),
        (QuantizerSpec("twn"), torch.int8),
        (QuantizerSpec("bwn"), torch.int8),
    ],
    ids=str,
)
def test_codes_are_kept_in_the_smallest_type_that_holds_them(spec: QuantizerSpec, dtype: torch.dtype):
    layer = QuantLinear.from_float(nn.Linear(64, 64), spec, None)
    tracker = tracker_of(layer, momentum=0.5)
    (record,) = tracker.records.values()
    assert record.codes.dtype is dtype
    assert record.previous.dtype is torch.int8
    extremes = []
    for sign in (1, -1, 1):  # from one end to the other and back
        with torch.no_grad():
            layer.weight.copy_(sign * torch.linspace(-9, 9, 64 * 64).reshape(64, 64))
        tracker.update()
        extremes.append(layer.weight_quantizer.codes(layer.weight)[0, 0].item())
        assert torch.equal(record.codes.float(), layer.weight_quantizer.codes(layer.weight))
    assert extremes[0] < extremes[1]
    assert record.frequency[0, 0] == record.frequency[-1, -1] == 0.5


# --- what the tracker is to the model -------------------------------------------------------------------------------


def fused(spec: QuantizerSpec, heads: tuple[int, int] | None = None) -> QuantFusedLinear:
    specs = {"query": (spec, None), "key": (None, None), "value": (spec, None)}
    return QuantFusedLinear.from_float(nn.Linear(4, 12, bias=False), specs, heads)


def test_a_tracker_owns_neither_parameters_nor_quantizers():
    model = nn.Sequential(unit_grid(), fused(LSQ))
    keys = set(model.state_dict())
    tracker = tracker_of(model)
    assert not list(tracker.parameters())
    assert set(model.state_dict()) == keys
    assert not any("quantizer" in key or "weight" in key for key in tracker.state_dict())
    assert set(tracker.frequencies()) == {"0", "1.query", "1.value"}
    names = ("codes", "previous", "frequency", "average", "frozen")
    records = {f"records.{site}.{name}" for site in ("0", "1/query", "1/value") for name in names}
    assert set(tracker.state_dict()) == records | {"started"}


def test_settings_out_of_range_are_refused():
    layer = unit_grid()
    with pytest.raises(ValueError, match="momentum=2: must be between 0 and 1"):
        tracker_of(layer, momentum=2)
    with pytest.raises(ValueError, match="threshold=-1: must be between 0 and 1"):
        tracker_of(layer, threshold=-1)
    with pytest.raises(ValueError, match="no quantized weights to track"):
        tracker_of(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="a name of its own"):
        OscillationTracker([*weight_sites(layer), *weight_sites(layer)])
    with pytest.raises(ValueError, match="kind 'block_noise' does not have"):
        tracker_of(QuantLinear.from_float(nn.Linear(4, 4), QuantizerSpec("block_noise", block_size=2), None))
    with pytest.raises(ValueError, match=r"threshold=1\.5: must be between 0 and 1"):
        tracker_of(layer).freeze(1.5)


class NoReadsByTheHost(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "_local_scalar_dense" not in str(func), "the host waits for a number"
        assert "nonzero" not in str(func), "the host waits for a size"
        return func(*args, **(kwargs or {}))


def test_the_host_waits_for_nothing():
    model = nn.ModuleDict({"row": unit_grid(spec=QuantizerSpec("lsq", bits=2, granularity="row")), "fused": fused(LSQ)})
    tracker = tracker_of(model)
    with NoReadsByTheHost():
        for _ in range(3):
            tracker.freeze(0.1)
            tracker.apply_frozen()
            tracker.update()
        tracker.percentage()
        tracker.frozen_share()


def test_averages_stay_in_float32_in_a_half_precision_model():
    layer = unit_grid()
    model = nn.ModuleDict({"layer": layer, "tracker": tracker_of(layer, momentum=0.001)}).to(torch.bfloat16)
    (record,) = model["tracker"].records.values()
    assert record.frequency.dtype is record.average.dtype is torch.float32
    for step in range(3000):
        put(layer, [step % 2])
        model["tracker"].update()
    assert record.frequency[0, 0].item() == pytest.approx(0.95, abs=0.001)


# --- freezing -------------------------------------------------------------------------------------------------------


def test_threshold_schedule():
    freezing = Freezing()
    at = {step: freezing.threshold_at(step, 400) for step in (0, 99, 100, 250, 400)}
    assert at.pop(0) is at.pop(99) is None
    assert at == pytest.approx({100: 0.1, 250: 0.055, 400: 0.01})
    assert Freezing(start=1.0).threshold_at(400, 400) is not None
    for name in ("start_threshold", "end_threshold", "start"):
        with pytest.raises(ValueError, match=rf"{name}=2: must be between 0 and 1"):
            Freezing(**{name: 2})


def oscillate(tracker: OscillationTracker, site: Any, amount: Tensor, steps: int = 6) -> None:
    """Move the site's weights by `amount` and back, with the tracker looking."""
    for step in range(steps):
        with torch.no_grad():
            site.weight.add_(amount if step % 2 == 0 else -amount)
        tracker.update()


def test_weights_freeze_on_the_rounded_average_of_their_integers():
    layer = unit_grid()
    tracker = tracker_of(layer, momentum=0.2)
    for step in range(20):
        put(layer, [2.0 if step % 4 else 1.0, -3.0, step % 2, 0.3])  # mostly 2; constant; half and half
        tracker.update()
    tracker.freeze(0.1)
    (record,) = tracker.records.values()
    assert record.frozen.flatten().tolist() == [True, False, True, *[False] * 5]
    assert tracker.frozen_share().item() == pytest.approx(2 / 8)
    put(layer, [-1.0, -3.2, 9.0, 0.3])
    tracker.apply_frozen()
    half = reference([step % 2 for step in range(20)], 0.2)[1]
    expected = torch.tensor([2.0, -3.2, round(half), 0.3, 0, 0, 0, 0])
    torch.testing.assert_close(layer.weight.detach().flatten(), expected)
    tracker.freeze(1.0)  # for good
    assert tracker.frozen_share().item() == pytest.approx(2 / 8)


def test_frozen_integers_do_not_drift_with_later_codes():
    layer = unit_grid()
    tracker = tracker_of(layer, momentum=0.5)
    (site,) = weight_sites(layer)
    oscillate(tracker, site, torch.eye(2, 4))
    tracker.freeze(0.1)
    frozen = next(iter(tracker.records.values())).average.clone()
    put(layer, [3.0, 3.0])
    for _ in range(20):
        tracker.update()  # before apply_frozen: sees the moved weight
    put(layer, [3.0, 3.0])
    tracker.freeze(0.1)
    tracker.apply_frozen()
    assert layer.weight[0, 0] == frozen[0, 0] != 3
    assert layer.weight[0, 1] == 3


SITES = {
    "lsq": lambda: unit_grid(4, 4),
    "lsq row": lambda: QuantLinear.from_float(nn.Linear(4, 4), QuantizerSpec("lsq", bits=3, granularity="row"), None),
    "lsq offset": lambda: QuantLinear.from_float(nn.Linear(4, 4), QuantizerSpec("lsq", bits=3, offset=True), None),
    "head rows": lambda: QuantLinear.from_float(
        nn.Linear(4, 4), QuantizerSpec("lsq", bits=3, granularity="head"), None, heads=(2, 0)
    ),
    "head columns": lambda: QuantLinear.from_float(
        nn.Linear(4, 4), QuantizerSpec("lsq", bits=3, granularity="head"), None, heads=(2, 1)
    ),
    "seq": lambda: QuantLinear.from_float(nn.Linear(4, 4), QuantizerSpec("seq", bits=2, granularity="row"), None),
    "twn": lambda: QuantLinear.from_float(nn.Linear(4, 4), QuantizerSpec("twn"), None),
    "bwn": lambda: QuantLinear.from_float(nn.Linear(4, 4), QuantizerSpec("bwn", granularity="row"), None),
    "statsq": lambda: QuantLinear.from_float(nn.Linear(4, 4), QuantizerSpec("statsq", bits=3), None),
    "fused": lambda: fused(LSQ),
    "fused heads": lambda: fused(QuantizerSpec("lsq", bits=3, granularity="head"), heads=(2, 0)),
}


def freeze_some(model: nn.Module, tracker: OscillationTracker) -> list[Tensor]:
    """Freeze the first column of every site; return each site's mask."""
    masks = []
    for site in weight_sites(model):
        mask = torch.zeros(site.weight.shape, dtype=torch.bool)
        mask[:, 0] = True
        masks.append(mask)
    before = copy.deepcopy(model.state_dict())
    for step in range(8):
        with torch.no_grad():
            for site, mask in zip(weight_sites(model), masks, strict=True):
                # Mirrored weights have other codes, unless they are zero.
                site.weight.copy_(torch.where(mask, site.weight.abs().clamp(min=0.6) * (-1) ** step, site.weight))
        tracker.update()
    model.load_state_dict(before)
    tracker.freeze(0.2)
    for record, mask in zip(tracker.records.values(), masks, strict=True):
        assert torch.equal(record.frozen, mask)
    return masks


@pytest.mark.parametrize("name", SITES)
def test_frozen_weights_stay_on_their_integer_while_the_rest_trains(name: str):
    model = SITES[name]()
    tracker = tracker_of(model, momentum=0.2)
    masks = freeze_some(model, tracker)
    tracker.apply_frozen()
    sites = list(weight_sites(model))
    integers = [record.average[mask].clone() for record, mask in zip(tracker.records.values(), masks, strict=True)]
    assert all(torch.equal(i, i.round()) for i in integers)
    start, scales = model.weight.detach().clone(), [p.detach().clone() for q in _quantizers(model) for p in q]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(10):
        optimizer.zero_grad()
        (model(torch.randn(16, 4)) - torch.randn(16, model.weight.shape[0])).square().mean().backward()
        optimizer.step()
        with torch.no_grad():  # an offset learns from clipped weights only, which there may be none of
            for parameter in (p for q in _quantizers(model) for p in q):
                parameter.add_(0.01)
        tracker.apply_frozen()
        tracker.update()
        for site, mask, integer in zip(sites, masks, integers, strict=True):
            assert torch.equal(site.quantizer.codes(site.weight)[mask], integer)
            if next(site.quantizer.parameters(), None) is not None:  # a fixed point: exactly on the level
                torch.testing.assert_close(site.quantized()[mask], site.weight[mask])
    assert model.weight.isfinite().all()
    assert all((a != b).any() for a, b in zip(scales, [p for q in _quantizers(model) for p in q], strict=True))
    for site, mask, record in zip(sites, masks, tracker.records.values(), strict=True):
        assert torch.equal(record.frozen, mask)
        moved = site.weight != site.of(start)
        assert moved[~mask].all()
    if name.startswith("fused"):  # the full-precision block: moved by the optimizer alone, no level
        assert (model.weight[4:8] != start[4:8]).all()


def _quantizers(model: nn.Module) -> list[list[nn.Parameter]]:
    return [list(site.quantizer.parameters()) for site in weight_sites(model)]


def test_full_precision_rows_and_unfrozen_weights_are_not_written():
    model = nn.ModuleDict({"fused": fused(LSQ), "plain": nn.Linear(4, 4)})
    tracker = tracker_of(model, momentum=0.2)
    masks = freeze_some(model, tracker)
    before = copy.deepcopy(model.state_dict())
    tracker.apply_frozen()
    tracker.update()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"fused.weight"}
    differs = model["fused"].weight != before["fused.weight"]
    mask = torch.cat([masks[0], torch.zeros(4, 4, dtype=torch.bool), masks[1]])
    assert differs.any()
    assert not differs[~mask].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype):
    layer = QuantLinear.from_float(nn.Linear(4, 4, dtype=dtype), LSQ, None)
    tracker = tracker_of(layer, momentum=0.2)
    (mask,) = freeze_some(layer, tracker)
    tracker.apply_frozen()
    (record,) = tracker.records.values()
    assert layer.weight.dtype is dtype
    assert torch.equal(layer.weight_quantizer.codes(layer.weight)[mask].float(), record.average[mask])


@pytest.mark.parametrize("kind", ["twn", "lsq", "minmax_symmetric", "statsq"])
def test_all_zero_weights_give_finite_numbers(kind: str):
    bits = None if kind == "twn" else 3
    layer = QuantLinear.from_float(nn.Linear(4, 4), QuantizerSpec(kind, bits=bits), None)
    with torch.no_grad():
        layer.weight.zero_()
    tracker = tracker_of(layer)
    for _ in range(3):
        tracker.update()
        tracker.freeze(0.0)
        tracker.apply_frozen()
    assert all(value.isfinite().all() for value in tracker.state_dict().values())
    assert not layer.weight.any()


def test_state_dict_round_trip_continues_as_if_nothing_had_happened():
    model = nn.Sequential(unit_grid(4, 4), fused(LSQ))
    tracker = tracker_of(model, momentum=0.2)
    freeze_some(model, tracker)
    other = copy.deepcopy(model)
    loaded = tracker_of(other, momentum=0.2)
    loaded.load_state_dict(copy.deepcopy(tracker.state_dict()))
    for one, two in ((model, tracker), (other, loaded)):
        torch.manual_seed(5)
        for _ in range(3):
            with torch.no_grad():
                for site in weight_sites(one):
                    site.weight.add_(torch.randn(site.weight.shape))
            two.apply_frozen()
            two.update()
    assert torch.equal(model[0].weight, other[0].weight)
    assert torch.equal(model[1].weight, other[1].weight)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in tracker.state_dict().items())
    assert tracker.frozen_share() == loaded.frozen_share() > 0


def test_a_fresh_state_records_on_its_first_update_after_loading():
    layer = unit_grid()
    used, fresh = tracker_of(layer, momentum=0.5), tracker_of(layer, momentum=0.5)
    state = copy.deepcopy(fresh.state_dict())
    for value in (0.0, 1.0, 0.0):
        put(layer, [value])
        used.update()
    used.load_state_dict(state)
    put(layer, [3.0])
    used.update()
    (record,) = used.records.values()
    assert record.average[0, 0] == 3
    assert not record.previous.any()
