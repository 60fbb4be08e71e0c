"""`lowbit VERB ...`: the console script. Imports neither torch nor transformers until a config has passed."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lowbit import __version__, label_arguments
from lowbit.config import compose as C
from lowbit.config import identity
from lowbit.config.problems import CONFIG_ERRORS, ConfigError, check_overrides, explain, nearest
from lowbit.config.validate import load

_OVERRIDES = "Hydra overrides, KEY=VALUE; `lowbit ls` shows the groups, `lowbit check` tests a combination"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0 done, 1 failed, 2 not a valid command or config, 130 interrupted."""
    # Idle OpenMP threads that spin make two threads several times slower on a shared machine; torch reads this once.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    args = _arguments(argv)
    try:
        return int(args.run(args))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (*CONFIG_ERRORS, OSError) as error:
        print(_told(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        return 130


def _train(args: argparse.Namespace) -> int:
    if args.multirun:
        return _multirun(args.overrides)
    jobs = C.expand(args.overrides) if any("," in o for o in args.overrides) else [args.overrides]
    if len(jobs) > 1:
        raise ConfigError([f"{len(jobs)} jobs in one command: add -m to run them all, or quote a value with commas"])
    cfg, config = load(args.overrides)
    from lowbit.training.guards import NonFiniteLossError
    from lowbit.training.run import train

    try:
        train(cfg, config)
    except (ValueError, OSError, NonFiniteLossError) as error:
        print(_told(error), file=sys.stderr)
        return 1
    return 0


def _sweep(args: argparse.Namespace) -> int:
    _known_sweep(args.name)
    return _multirun([f"+sweeps={args.name}", f"sweep={args.name}", *args.overrides])


def _multirun(overrides: list[str]) -> int:
    """Validate every job, then let Hydra's sweeper and launcher run them; a failed job does not stop the others."""
    jobs = _jobs(overrides)
    _check_jobs(jobs)
    import hydra

    failures: list[str] = []

    def job(cfg: Any) -> float | None:
        from lowbit.training.run import train

        try:
            return train(cfg, C.to_config(cfg))
        except Exception as error:
            failures.append(f"{cfg.name}/{identity.run_id(cfg)}: {_told(error)}")
            print(f"FAILED {failures[-1]}", file=sys.stderr)
            return None

    C.register()
    run = hydra.main(config_path=str(C.shipped_root() / "conf"), config_name=C.ROOT_CONFIG, version_base="1.3")(job)
    argv = sys.argv
    sys.argv = ["lowbit", "-m", *C.hydra_arguments(overrides)]
    try:
        run()
    finally:
        sys.argv = argv
    if failures:
        print(f"{len(failures)} of {len(jobs)} jobs failed; the same command again retries them:", file=sys.stderr)
        print("\n".join(f"  - {failure}" for failure in failures), file=sys.stderr)
    return 1 if failures else 0


def _jobs(overrides: list[str]) -> list[list[str]]:
    """Expand overrides into jobs, those of a sweep's file included where `+sweeps=NAME` is among them."""
    sweep = next((o.split("=", 1)[1] for o in overrides if o.startswith("+sweeps=")), None)
    rest = [o for o in overrides if not o.startswith(("+sweeps=", "sweep="))]
    try:
        return C.expand(overrides if sweep is None else C.sweep_overrides(sweep, rest))
    except CONFIG_ERRORS as error:
        raise ConfigError(check_overrides(overrides)[1] or [explain(error)]) from error


def _check_jobs(jobs: list[list[str]]) -> None:
    problems: dict[str, None] = {}
    for job in jobs:
        try:
            load(job)
        except ConfigError as error:
            problems.update(dict.fromkeys(error.problems))
    if problems:
        raise ConfigError(list(problems))


def _table(args: argparse.Namespace) -> int:
    from lowbit.results import Cell, collect, print_table, render

    _known_sweep(args.name)
    jobs = _jobs([f"+sweeps={args.name}", *args.overrides])
    labels = [{key: value for key, _, value in (o.partition("=") for o in job)} for job in jobs]
    swept = {"method", *(key for key in labels[0] if len({label[key] for label in labels}) > 1)}
    cells = []
    for job, label in zip(jobs, labels, strict=True):
        cfg, config = load(job)
        shown = {key: value for key, value in label.items() if key in swept}
        cells.append(Cell(identity.run_folder(cfg, config), shown, f"lowbit train {shlex.join(job)}"))
    rows = collect(cells)
    if args.format is None and args.out is None:
        print_table(rows, title=args.name)
        return 0
    text = render(rows, args.format or "md")
    if args.out is None:
        print(text)
    else:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
        print(f"wrote {args.out}")
    return 0


def _check(args: argparse.Namespace) -> int:
    try:
        jobs = _jobs(args.overrides)
    except ConfigError:
        jobs = [args.overrides]  # load() says everything that is wrong with them
    _check_jobs(jobs)
    from lowbit.training.preview import preview

    for job in jobs:
        cfg, config = load(job)
        lines = list(preview(config))
        print(f"{config.name}/{identity.run_id(cfg)}: valid")
        print("\n".join(f"  {line}" for line in lines))
    return 0


def _softlabels(args: argparse.Namespace) -> int:
    label_arguments.check_arguments(args)
    loaded = None if args.fkd is not None else load(args.overrides, labelling=True)
    from lowbit.training.guards import NonFiniteLossError
    from lowbit.training.soft_labels import LabelOptions, import_soft_labels, write_soft_labels

    names = [field.name for field in dataclasses.fields(LabelOptions)]
    options = LabelOptions(**{name: getattr(args, name) for name in names})
    try:
        if loaded is None:
            print(import_soft_labels(args.out, args.fkd, args.images, options, skip=args.skip))
        else:
            print(write_soft_labels(*loaded, args.out, options))
    except NonFiniteLossError as error:  # of the teacher's training
        print(_told(error), file=sys.stderr)
        return 1
    return 0


def _ls(args: argparse.Namespace) -> int:
    with C.hydra_session():
        groups = {group: C.choices(group) for group in C.groups()}
    if args.group is None:
        for group, names in groups.items():
            print(f"{group:<12} {', '.join(names)}")
        return 0
    if args.group not in groups:
        raise ConfigError([f"{args.group}: no such group. {nearest(args.group, groups)}Groups: {', '.join(groups)}"])
    names = groups[args.group]
    width = max((len(name) for name in names), default=0)
    for name in names:
        print(f"{name:<{width}}  {C.first_comment(args.group, name)}")
    return 0


def _bench(args: argparse.Namespace) -> int:
    overrides = list(args.overrides)
    if overrides and args.shape is not None:
        raise ConfigError(["bench step: give --shape or an experiment's overrides, not both"])
    loaded = load(overrides) if overrides else None
    from lowbit.training.bench import bench_step

    print(bench_step(None if loaded is None else loaded[1], args.shape, args.rounds, args.threads))
    return 0


def _told(error: BaseException) -> str:
    """Return an error for people: its text, and where the traceback is."""
    kind = "" if isinstance(error, (*CONFIG_ERRORS, OSError, ConfigError)) else f"{type(error).__name__}: "
    return "\n".join([f"error: {kind}{explain(error)}", *getattr(error, "__notes__", [])])


def _known_sweep(name: str) -> None:
    with C.hydra_session():
        known = C.choices("sweeps")
    if name not in known:
        raise ConfigError([f"sweep {name!r}: no such file. {nearest(name, known)}Sweeps: {', '.join(known)}"])


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    # argparse takes the positional arguments up to the first option only; overrides may also follow it.
    if rest and (not hasattr(args, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    args.command = shlex.join(["lowbit", *(sys.argv[1:] if argv is None else argv)])
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lowbit", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--version", action="version", version=f"lowbit {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(
        name: str, run: Callable[[argparse.Namespace], int], summary: str, example: str
    ) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")
        sub.set_defaults(run=run)
        return sub

    train = verb(
        "train", _train, "run one experiment, or several with -m", "lowbit train experiment=digits/ti_g seed=2"
    )
    train.add_argument("-m", "--multirun", action="store_true", help="run every combination of comma-separated values")
    train.add_argument("overrides", nargs="*", help=_OVERRIDES)
    sweep = verb(
        "sweep", _sweep, "run every job of sweeps/NAME.yaml that is not finished", "lowbit sweep demo seed=1,2"
    )
    sweep.add_argument("name", help="file name in sweeps/, without .yaml")
    sweep.add_argument("overrides", nargs="*", help=_OVERRIDES)
    table = verb(
        "table", _table, "print the table of a sweep's runs", "lowbit table demo --format latex --out demo.tex"
    )
    table.add_argument("name", help="file name in sweeps/, without .yaml")
    table.add_argument("overrides", nargs="*", help="the overrides that the sweep was run with")
    table.add_argument("--format", choices=("md", "csv", "latex"), help="default: a table for the terminal")
    table.add_argument("--out", type=Path, help="write to this file (md unless --format says otherwise)")
    check = verb("check", _check, "compose and validate without training", "lowbit check experiment=digits/ti_g")
    check.add_argument("overrides", nargs="*", help=_OVERRIDES)
    summary = "write, or resume, a store of a teacher's answers to crops of the training images"
    label_arguments.add_arguments(verb("softlabels", _softlabels, summary, label_arguments.EXAMPLE), _OVERRIDES)
    ls = verb("ls", _ls, "list config groups, or the choices of one", "lowbit ls method")
    ls.add_argument("group", nargs="?", help="a config group")
    bench = verb("bench", _bench, "measure a distillation step against its parts", "lowbit bench step")
    bench.add_argument("what", choices=("step",), help="what to measure")
    bench.add_argument("overrides", nargs="*", help="an experiment to measure; none: --shape under TernaryBERT")
    bench.add_argument(
        "--shape", help="hidden=384,layers=6,heads=12,ffn=1536,vocab=30522,batch=32,length=64 if not given"
    )
    bench.add_argument("--rounds", type=int, default=8, help="timed rounds; each runs (a), (b) and (c) once")
    bench.add_argument("--threads", type=int, help="torch threads; default: all cores")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
