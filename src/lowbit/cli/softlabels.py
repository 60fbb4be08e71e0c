"""`lowbit softlabels`: its arguments; what it does with them is in `lowbit.training.soft_labels`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from lowbit.cli.verbs import OVERRIDES, AddVerb, describe_error
from lowbit.config.problems import ConfigError
from lowbit.config.validate import load

_EXAMPLE = "lowbit softlabels labels/digits experiment=digits/variation_aware_mckd --crops 16 --flip 0"
_KINDS = ("full", "hard", "smoothing", "marginal_smoothing", "marginal_renorm")


def add(verb: AddVerb) -> None:
    """Add the verb."""
    summary = "store a teacher's answers to crops of the training images"
    sub = verb("softlabels", _softlabels, summary, _EXAMPLE)
    sub.add_argument("out", type=Path, help="folder of the store; one of the same settings is resumed")
    sub.add_argument(
        "overrides", nargs="*", default=[], help=f"{OVERRIDES}; give those of the training that will use the store"
    )
    sub.add_argument("--crops", type=int, default=500, help="crops per image (500)")
    sub.add_argument("--label-type", choices=_KINDS, default="marginal_smoothing", help="what is kept of each answer")
    sub.add_argument("--top-k", type=int, help="classes that the marginal types keep (5)")
    sub.add_argument("--seed", type=int, help="seed of the crops (0)")
    sub.add_argument("--scale", type=float, nargs=2, metavar=("LOW", "HIGH"), help="share of the area (0.08 0.936)")
    sub.add_argument("--flip", type=float, help="probability that a crop is mirrored (0.5)")
    sub.add_argument("--interpolation", choices=("bilinear", "bicubic"), help="resizing of the crops (bilinear)")
    sub.add_argument("--images-per-shard", type=int, default=1000, help="rows of a file, the unit of resuming (1000)")
    sub.add_argument("--fkd", type=Path, metavar="FOLDER", help="import the label files that FKD published")
    sub.add_argument("--images", type=Path, metavar="FOLDER", help="with --fkd: the training images, by class folder")
    sub.add_argument("--skip", action="store_true", help="with --fkd: leave out images without an intact file")


def _softlabels(args: argparse.Namespace) -> int:
    _check_arguments(args)
    loaded = None if args.fkd is not None else load(args.overrides, labelling=True)
    from lowbit.training.guards import NonFiniteError
    from lowbit.training.soft_labels import LabelOptions, import_soft_labels, write_soft_labels

    names = [field.name for field in dataclasses.fields(LabelOptions)]
    options = LabelOptions(**{name: getattr(args, name) for name in names})
    try:
        if loaded is None:
            print(import_soft_labels(args.out, args.fkd, args.images, options, skip=args.skip))
        else:
            print(write_soft_labels(*loaded, args.out, options))
    except NonFiniteError as error:  # of the teacher's training
        print(describe_error(error), file=sys.stderr)
        return 1
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    if args.fkd is None and (args.skip or args.images is not None):
        raise ConfigError(["softlabels: --images and --skip go with --fkd FOLDER, which imports published labels"])
    if args.fkd is not None and args.images is None:
        raise ConfigError(["softlabels --fkd: name the training images as well, for example --images imagenet/train"])
    if args.fkd is not None and args.overrides:
        raise ConfigError([f"softlabels --fkd: {args.overrides[0]} has no effect, the labels exist; leave it out"])
