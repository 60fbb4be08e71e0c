"""Two processes under DistributedDataParallel: calibration, learned scales and kept ranges end up the same on both."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lowbit.quantizers import QuantEmbedding, QuantizerSpec, QuantLinear, begin_step, calibrate, end_step

STEPS = 3
IDS = torch.arange(8).reshape(2, 4)


def make_model() -> nn.Sequential:
    torch.manual_seed(0)  # same weights on both, as a checkpoint or a seed gives them
    row = QuantizerSpec("lsq", bits=3, granularity="row")
    weight = QuantizerSpec("lsq", bits=2)
    return nn.Sequential(
        QuantEmbedding.from_float(nn.Embedding(8, 8), row, None),
        QuantLinear.from_float(nn.Linear(8, 8), weight, QuantizerSpec("lsq", bits=2, offset=True)),
        nn.Tanh(),
        QuantLinear.from_float(nn.Linear(8, 8), row, QuantizerSpec("elastic", bits=4, shift=True)),
        QuantLinear.from_float(nn.Linear(8, 8), weight, QuantizerSpec("static", bits=4, symmetric=False, momentum=0.5)),
        QuantLinear.from_float(nn.Linear(8, 2), QuantizerSpec("static", bits=4), None),
    )


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers, those that are not saved as well."""
    return {name: t.detach().clone() for name, t in (*model.named_parameters(), *model.named_buffers())}


def ids_of(rank: int, generator: torch.Generator) -> Tensor:
    """Rank 0 sees other words than rank 1: their scales differ."""
    return torch.randint(0, 4, (6, 5), generator=generator) + 4 * rank


def work(rank: int, meeting: Path, out: Path) -> None:
    """Calibrate, train and save what this process has."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=2)
    model, generator = make_model(), torch.Generator().manual_seed(rank)
    names = calibrate(model, [ids_of(rank, generator) for _ in range(2)], model)
    found: dict[str, Any] = {"names": names, "calibrated": snapshot(model), "inputs": []}
    last: Any = model[4]
    last.input_quantizer.register_forward_pre_hook(lambda _, args: found["inputs"].append(args[0].detach()))
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(STEPS):
        begin_step(model, step, optimizer)
        y = parallel(ids_of(rank, generator))
        optimizer.zero_grad()
        (y - rank).square().mean().backward()
        optimizer.step()
        end_step(model)
    found["trained"] = snapshot(model)
    found["output"] = model.eval()(IDS)
    torch.save(found, out)
    dist.destroy_process_group()


def run_two_processes(folder: Path) -> list[dict[str, Any]]:
    outs = [folder / f"rank{rank}.pt" for rank in range(2)]
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder / "meeting"), str(out)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank, out in enumerate(outs)
    ]
    try:
        while None in [worker.poll() for worker in workers] and not any(worker.returncode for worker in workers):
            time.sleep(0.05)
    finally:  # one whose partner has failed would wait for it
        for worker in workers:
            worker.kill()
    errors = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(errors)
    return [torch.load(out) for out in outs]


def differing(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[str]:
    assert list(ours) == list(theirs)
    return [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]


def check_calibration_gives_all_the_scales_of_the_first(found: list[dict[str, Any]]):
    first, second = found
    assert first["names"] == second["names"] == ["1.input_quantizer", "3.input_quantizer", "4.input_quantizer"]
    assert differing(first["calibrated"], second["calibrated"]) == []
    for rank, process in enumerate(found):
        model, generator = make_model(), torch.Generator().manual_seed(rank)
        calibrate(model, [ids_of(rank, generator) for _ in range(2)], model)
        alone = differing(snapshot(model), process["calibrated"])
        assert (alone == []) == (rank == 0)  # rank 1 alone would have found others


def check_training_leaves_the_same_numbers(found: list[dict[str, Any]]):
    first, second = found
    kept = {name for name in first["trained"] if "pending" not in name}
    assert set(differing(first["trained"], second["trained"])).isdisjoint(kept)
    assert torch.equal(first["output"], second["output"])
    same = set(first["trained"]) - set(differing(first["calibrated"], first["trained"]))
    assert {name for name in same & kept if not name.endswith(("initialized", "floor"))} == set()


def check_ranges_average_over_the_processes(found: list[dict[str, Any]]):
    low, high = (found[0]["calibrated"][f"4.input_quantizer.{end}"] for end in ("low", "high"))
    batches = [process["inputs"][:STEPS] for process in found]  # the last is the evaluation
    assert not torch.equal(batches[0][0], batches[1][0])
    for pair in zip(*batches, strict=True):
        low = 0.5 * low + 0.5 * torch.stack([x.min() for x in pair]).mean()
        high = 0.5 * high + 0.5 * torch.stack([x.max() for x in pair]).mean()
    for process in found:
        torch.testing.assert_close(process["trained"]["4.input_quantizer.low"], low)
        torch.testing.assert_close(process["trained"]["4.input_quantizer.high"], high)


def test_two_processes_agree(tmp_path: Path):
    found = run_two_processes(tmp_path)
    check_calibration_gives_all_the_scales_of_the_first(found)
    check_training_leaves_the_same_numbers(found)
    check_ranges_average_over_the_processes(found)


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
