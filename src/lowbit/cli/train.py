"""`lowbit train`: one run, or with -m one for every combination of values."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from lowbit.cli.launchers import add_options
from lowbit.cli.sweep import multirun
from lowbit.cli.verbs import OVERRIDES, AddVerb, describe_error
from lowbit.config import compose as C
from lowbit.config import identity
from lowbit.config.idle import idle_notes
from lowbit.config.problems import ConfigError
from lowbit.config.validate import load, planned_steps
from lowbit.execution.process import lead_children
from lowbit.settings.model import TeacherSource
from lowbit.settings.quantizer import FakeQuantConfig, QuantizerKind
from lowbit.settings.run import Config

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # of torchrun, Lightning, srun


def add(verb: AddVerb) -> None:
    """Add the verb."""
    train = verb(
        "train", _train, "train and score one model, or several with -m", "lowbit train experiment=digits/ti_g seed=2"
    )
    train.add_argument("-m", "--multirun", action="store_true", help="run every combination of comma-separated values")
    train.add_argument("overrides", nargs="*", default=[], help=OVERRIDES)
    add_options(train)


def _train(args: argparse.Namespace) -> int:
    if args.multirun:
        return multirun(args, args.overrides, "multirun")
    if args.jobs or args.dry_run or args.launcher or args.cluster or args.slurm:
        raise ConfigError(["--jobs, --dry-run and the launchers are of several runs: add -m"])
    jobs = C.expand(args.overrides) if any("," in o for o in args.overrides) else [args.overrides]
    if len(jobs) > 1:
        raise ConfigError([f"{len(jobs)} jobs in one command: add -m to run them all, or quote a value with commas"])
    cfg, config = load(args.overrides)
    if config.trainer.devices * config.trainer.num_nodes > 1:
        lead_children()
        # DistributedDataParallel looks for unused parameters in every step, and torch says so if it finds none.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not any(os.environ.get(rank, "0") != "0" for rank in _RANKS):  # only the first process of a run speaks
        print("\n".join(_plan(cfg, config)), flush=True)
        for note in idle_notes(config, args.overrides):
            print(f"note: {note}", file=sys.stderr)
    from lowbit.training.train import train

    try:
        train(cfg, config)
    except ConfigError:
        raise
    except Exception as error:
        if not isinstance(error, (ValueError, OSError, MemoryError)) and not hasattr(error, "__notes__"):
            raise  # a fault of lowbit, before there was a file for its traceback
        print(describe_error(error), file=sys.stderr)
        return 1
    return 0


def _plan(cfg: DictConfig, config: Config) -> Iterator[str]:
    """Yield what a run is about to do."""
    method, steps = config.method, planned_steps(config)
    long = "steps that the data decide" if steps is None else f"{steps} steps"
    yield f"data     {config.data.name}, {config.data.batch_size} rows a step"
    yield f"model    {config.model.name}"
    yield f"method   {method.name}: {', '.join(method.stages)}, {long}"
    yield f"bits     {_bits(config)}"
    yield f"teacher  {_teacher(cfg, config)}"
    yield f"folder   {identity.run_folder(cfg, config)}"


def _bits(config: Config) -> str:
    quantizer = config.quantizer
    specs = {"weights": quantizer.weight, "activations": quantizer.activation}
    if quantizer.name == "none" or not any(stage.quantize for stage in config.method.stages.values()):
        return "full precision"
    words = [f"{what} {_width(spec)}" for what, spec in specs.items() if spec.kind != QuantizerKind.none]
    return f"{quantizer.name}: {', '.join(words) or 'by rules of its own'}"


def _width(spec: FakeQuantConfig) -> str:
    return spec.kind if spec.bits is None else f"{spec.kind} of {spec.bits:g} bits"


def _teacher(cfg: DictConfig, config: Config) -> str:
    teacher = config.teacher
    if not config.method.needs_teacher:
        return "none"
    if teacher.source is not TeacherSource.finetune:
        return f"{teacher.path or 'the weights of the model'}, as given by teacher={teacher.source.name}"
    folder = Path(config.paths.outputs) / "teachers" / identity.teacher_id(cfg)
    if (folder / "teacher.json").is_file():
        return f"trained before, {folder}"
    length = (
        f"{teacher.budget.steps} steps" if teacher.budget.steps is not None else f"{teacher.budget.epochs:g} epochs"
    )
    return f"trained first, for {length}; kept for other runs in {folder}"
