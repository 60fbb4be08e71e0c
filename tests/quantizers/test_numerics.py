"""Every public function: hard tensors, half precision, torch.compile, checkpointing, no host syncs, memory."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from lowbit.quantizers import functional as F
from lowbit.quantizers.estimators import EWGS, ClippedSTE, Estimator, StableQAT, ValueClippedSTE

N = 2**20
ROWS = 8


@dataclass(frozen=True)
class Case:
    """A call f(x, estimator, **learned); `learned` holds initial values, of one number or one per row."""

    call: Callable[..., Tensor]
    learned: dict[str, float] = field(default_factory=dict)
    rows: bool = False
    estimators: bool = True

    def numbers(self, rows: int, device: str = "cpu") -> dict[str, Tensor]:
        shape = (rows, 1) if self.rows else (1,)
        return {k: torch.full(shape, v, device=device, requires_grad=True) for k, v in self.learned.items()}


def scattered(x: Tensor) -> Tensor:
    """Return numbers in [0, 1) that a compiler can trace."""
    return (torch.arange(x.numel(), dtype=torch.float32) * 0.618034 % 1).reshape(x.shape)


def lat(variant: str, granularity: str) -> Case:
    def call(x: Tensor, e: Estimator | None) -> Tensor:
        return F.lat_ternarize(x, scattered(x), granularity=granularity, variant=variant, estimator=e)

    return Case(call)


def kept_blocks(x: Tensor) -> Tensor:
    return scattered(x)[:, : max(x.shape[1] // 8, 1)] < 0.5


A = {"alpha": 0.7}
CASES = {
    "bitnet_ternarize": Case(lambda x, e: F.bitnet_ternarize(x, estimator=e)),
    "bwn_binarize": Case(lambda x, e: F.bwn_binarize(x, granularity="tensor", estimator=e)),
    "bwn_binarize centred": Case(lambda x, e: F.bwn_binarize(x, granularity="row", center=True, estimator=e)),
    "bwn_binarize zero": Case(lambda x, e: F.bwn_binarize(x, granularity="row", sign_of_zero=0, estimator=e)),
    "twn_ternarize": Case(lambda x, e: F.twn_ternarize(x, granularity="tensor", clip=2.5), estimators=False),
    "twn_ternarize row": Case(lambda x, e: F.twn_ternarize(x, granularity="row"), estimators=False),
    "statsq": Case(lambda x, e: F.statsq(x, bits=2, estimator=e)),
    "minmax_symmetric": Case(lambda x, e: F.minmax_symmetric(x, bits=8, granularity="tensor", estimator=e)),
    "minmax_symmetric row": Case(lambda x, e: F.minmax_symmetric(x, bits=8, granularity="row", clip=2.5, estimator=e)),
    "minmax_asymmetric": Case(lambda x, e: F.minmax_asymmetric(x, bits=8, granularity="row", estimator=e)),
    "xtc_symmetric": Case(lambda x, e: F.xtc_symmetric(x, bits=8, granularity="token", estimator=e)),
    "lat_ternarize": lat("approximate", "row"),
    "lat_ternarize exact": lat("exact", "row"),
    "lsq": Case(lambda x, e, alpha: F.lsq(x, alpha, bits=2, grad_scale="lsq", estimator=e), A),
    "lsq row": Case(lambda x, e, alpha: F.lsq(x, alpha, bits=4, grad_scale="l1", estimator=e), A, rows=True),
    "lsq offset": Case(
        lambda x, e, alpha, offset: F.lsq(x, alpha, bits=4, offset=offset, grad_scale="none", estimator=e),
        {"alpha": 0.7, "offset": 0.1},
    ),
    "seq": Case(lambda x, e, alpha: F.seq(x, alpha, bits=2, estimator=e), A, rows=True),
    "seq 1.58": Case(lambda x, e, alpha: F.seq(x, alpha, bits=1.58, estimator=e), A, rows=True),
    "elastic_signed": Case(lambda x, e, alpha: F.elastic_signed(x, alpha, bits=1, estimator=e), A),
    "elastic_signed 4": Case(lambda x, e, alpha: F.elastic_signed(x, alpha, bits=4, estimator=e), A),
    "elastic_unsigned": Case(lambda x, e, alpha: F.elastic_unsigned(x, alpha, bits=1, estimator=e), A),
    "elastic_unsigned 2": Case(lambda x, e, alpha: F.elastic_unsigned(x, alpha, bits=2, estimator=e), A),
    "pact": Case(lambda x, e, low, high: F.pact(x, low, high, bits=4), {"low": -1.5, "high": 1.5}, estimators=False),
    "pact asymmetric": Case(
        lambda x, e, low, high: F.pact(x, low, high, bits=4, granularity="row", symmetric=False),
        {"low": -1.5, "high": 1.5},
        estimators=False,
    ),
    "static_range": Case(lambda x, e: F.static_range(x, torch.tensor(-1.0), torch.tensor(1.25), bits=4, estimator=e)),
    "static_range symmetric": Case(
        lambda x, e: F.static_range(x, torch.tensor(-1.0), torch.tensor(0.5), bits=4, symmetric=True, estimator=e)
    ),
    "quant_noise": Case(lambda x, e: F.quant_noise(x, F.bitnet_ternarize(x, estimator=e), scattered(x) < 0.5)),
    "drop_blocks": Case(lambda x, e: F.drop_blocks(x, kept_blocks(x), rate=0.5), estimators=False),
}
EVERY = pytest.mark.parametrize("name", CASES)


def test_every_public_function_has_a_case():
    covered = {name.split()[0] for name in CASES}
    assert covered == set(F.__all__) - {"lsq_mse_init"}  # which has no gradient and runs once, on the host


def run(case: Case, x: Tensor, estimator: Estimator | None = None, call: Callable[..., Tensor] | None = None):
    """Return the output, the gradient of x and those of the learned numbers."""
    x, learned = x.detach().clone().requires_grad_(), case.numbers(x.shape[0], x.device.type)
    y = (call or case.call)(x, estimator, **learned)
    y.backward(torch.ones_like(y))
    return [y.detach(), x.grad, *(number.grad for number in learned.values())]


def gaussian(rows: int = ROWS, columns: int = 64) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(2))


# --- hard tensors ---------------------------------------------------------------------------------------------------

HARD = {
    "zeros": torch.zeros(3, 8),
    "negative zeros": -torch.zeros(3, 8),
    "a zero row": torch.cat([torch.zeros(1, 8), gaussian(2, 8)]),
    "constant": torch.full((3, 8), 0.3),
    "negative constant": torch.full((3, 8), -1.7),
    "one element per row": torch.tensor([[0.7], [0.0], [-3.0]]),
    "small": gaussian(3, 8) * 1e-20,
    "large": gaussian(3, 8) * 1e20,
    "denormal": gaussian(3, 8) * 1e-41,
    "small and large": torch.cat([gaussian(1, 8) * 1e-20, gaussian(2, 8) * 1e20]),
}


@pytest.mark.parametrize("estimator", [None, ClippedSTE(), EWGS(0.5), StableQAT(), ValueClippedSTE(2.5)], ids=str)
@EVERY
def test_no_tensor_gives_nan_or_infinity(name: str, estimator: Estimator | None):
    case = CASES[name]
    for x in HARD.values():
        for tensor in run(case, x, estimator if case.estimators else None):
            assert torch.isfinite(tensor).all()


@EVERY
def test_zeros_become_zeros_or_the_nearest_level_of_a_grid_without_zero(name: str):
    y = run(CASES[name], torch.zeros(2, 4))[0]
    level = {"elastic_signed": 0.7, "seq": 0.25 * 0.7, "lsq offset": 0.1, "static_range": 0.05}.get(name, 0.0)
    torch.testing.assert_close(y, torch.full((2, 4), level), rtol=1e-6, atol=1e-7)


def test_the_sign_of_zero_is_positive_unless_it_is_asked_to_be_zero():
    w, alpha = torch.tensor([1.0, 0.0, -0.0, -3.0]), torch.tensor([2.0])
    assert F.bwn_binarize(w, granularity="tensor").tolist() == [1.0, 1.0, 1.0, -1.0]
    assert F.bwn_binarize(w, granularity="tensor", sign_of_zero=0).tolist() == [1.0, 0.0, 0.0, -1.0]
    assert F.elastic_signed(w, alpha, bits=1).tolist() == [2.0, 2.0, 2.0, -2.0]
    assert F.elastic_signed(w, alpha, bits=1, sign_of_zero=0).tolist() == [2.0, 0.0, 0.0, -2.0]
    centred = torch.tensor([0.0, 1.0, 2.0])  # the middle one lies on the mean
    assert F.bwn_binarize(centred, granularity="tensor", center=True).sign().tolist() == [-1.0, 1.0, 1.0]
    assert F.bwn_binarize(centred, granularity="tensor", center=True, sign_of_zero=0).sign().tolist() == [-1, 0, 1]


# --- dtypes, compiler, checkpoint -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@EVERY
def test_half_precision_is_float32_rounded_once(name: str, dtype: torch.dtype):
    if name in ("quant_noise", "drop_blocks"):
        pytest.skip("no scale of its own: passes the quantizer's result or the weight on, in their dtype")
    x = gaussian().to(dtype)
    half, full = run(CASES[name], x), run(CASES[name], x.float())
    assert [t.dtype for t in half] == [dtype, dtype, *([torch.float32] * (len(half) - 2))]
    for a, b in zip(half, full, strict=True):
        assert torch.equal(a, b.to(a.dtype))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ("twn_ternarize", "lsq", "seq") else pytest.mark.slow) for name in CASES],
)
def test_the_compiled_function_is_one_graph_and_equals_eager(name: str):
    case, x = CASES[name], gaussian()
    torch._dynamo.reset()
    compiled = torch.compile(case.call, fullgraph=True, backend="aot_eager")
    for a, b in zip(run(case, x, call=compiled), run(case, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.slow  # half a minute for the first call of a C++ compiler
@pytest.mark.parametrize("estimator", [None, StableQAT()], ids=str)
def test_inductor_compiles_a_learned_quantizer(estimator: Estimator | None):
    case, x = CASES["lsq offset"], gaussian()
    torch._dynamo.reset()
    try:
        compiled = run(case, x, estimator, torch.compile(case.call, fullgraph=True))
    except torch._inductor.exc.InductorError as error:
        if "compiler" in str(error).lower():
            pytest.skip("no C++ compiler on this machine")
        raise
    for a, b in zip(compiled, run(case, x, estimator), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@EVERY
def test_gradient_checkpointing_changes_nothing(name: str):
    case, x = CASES[name], gaussian()

    def checkpointed(x: Tensor, estimator: None, **learned: Tensor) -> Tensor:
        result: Tensor = checkpoint(case.call, x, estimator, use_reentrant=False, **learned)
        return result

    for a, b in zip(run(case, x, call=checkpointed), run(case, x), strict=True):
        assert torch.equal(a, b)


# --- host synchronisation -------------------------------------------------------------------------------------------

SYNCS = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "masked_select", "unique", "equal")


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_the_recorder_sees_a_synchronisation():
    with Recorder() as recorder:
        assert not torch.zeros(1).any()
    assert recorder.seen & set(SYNCS)


@pytest.mark.parametrize("estimator", [None, EWGS(0.1), StableQAT()], ids=str)
@EVERY
def test_neither_pass_waits_for_the_device(name: str, estimator: Estimator | None):
    with Recorder() as recorder:
        run(CASES[name], gaussian(), estimator if CASES[name].estimators else None)
    assert not recorder.seen & set(SYNCS)


# --- memory ---------------------------------------------------------------------------------------------------------


def peak_bytes(case: Case, estimator: Estimator | None, x: Tensor) -> int:
    """Return the most bytes that one forward and backward hold at a time beyond x and the upstream gradient."""
    x, learned, upstream = x.clone().requires_grad_(), case.numbers(x.shape[0]), torch.ones_like(x)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        y = case.call(x, estimator, **learned)
        y.backward(upstream)
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in events))


def without_lat() -> list[tuple[str, Estimator | None]]:
    # lat sorts, and weighs by a curvature of the weight's size: it needs more. The noise functions are no quantizers.
    names = [name for name in CASES if not name.startswith(("lat", "quant_noise", "drop_blocks"))]
    return [(n, e) for n in names for e in (None, StableQAT()) if e is None or CASES[n].estimators]


def test_the_memory_probe_sees_what_is_allocated():
    case = Case(lambda x, e: x.sin().cos())
    assert peak_bytes(case, None, torch.ones(1024, N // 1024)) >= 12 * N


@pytest.mark.parametrize(("name", "estimator"), without_lat(), ids=str)
def test_a_step_holds_output_input_gradient_and_one_mask(name: str, estimator: Estimator | None):
    shape = (1024, N // 1024)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    scale_sized = 64 * shape[0]  # a few numbers per row
    assert peak_bytes(CASES[name], estimator, x) <= 1.01 * (4 + 4 + 1) * N + scale_sized
