"""Writing a soft-label store: a teacher labels N crops of every image, shard by shard, and the same call resumes."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor

from lowbit.data.sampling import generator_for
from lowbit.files import atomic_write, remove_leftovers, sha256_of, write_json
from lowbit.soft_labels.crops import DRAWN, CropRule, Crops, CropTransform, draw_crops
from lowbit.soft_labels.files import FORMAT, MANIFEST, LabelType, Manifest, find_damage, read_manifest, shard_names
from lowbit.soft_labels.store import Images, StoredLabels, compress, image_digest, probe_pixels

Teacher = Callable[[Tensor], Tensor]
Advance = Callable[[float], None]


@dataclass(frozen=True)
class StoreSettings:
    """The settings of a store; all but `images_per_shard`, `batch_size` and `command` decide its content.

    Attributes:
        data: Name of the data set.
        teacher: Id of the teacher, such as that of the teacher cache or a timm name with its revision.
        num_classes: Width of the teacher's head.
        transform: From a crop to the teacher's input.
        crops: Crops per image.
        label_type: `full`, `hard`, `smoothing`, `marginal_smoothing_kK` or `marginal_renorm_kK`.
        rule: How crops are drawn.
        seed: Seed of the crops; None for imported ones.
        description: The teacher, for people.
        images_per_shard: Rows of a shard, the unit of resuming.
        batch_size: Crops per forward of the teacher.
        command: The command that writes the store, for messages.
        names: Of the classes, in the order of the probabilities; none where they are numbers.
    """

    data: str
    teacher: str
    num_classes: int
    transform: CropTransform
    crops: int = 500
    label_type: str = "marginal_smoothing_k5"
    rule: CropRule = field(default_factory=CropRule)
    seed: int | None = 0
    description: str = ""
    images_per_shard: int = 1000
    batch_size: int = 250
    command: str = "lowbit softlabels"
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("crops", "images_per_shard", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.num_classes < 2 or LabelType.parse(self.label_type).k >= self.num_classes:
            raise ValueError(f"label_type={self.label_type} keeps every one of {self.num_classes} classes: use full")

    def plan(self, size: int, probe: str, identity: str) -> Manifest:
        """Return the manifest of a store without shards.

        Args:
            size: Number of images.
            probe: One digest of the images.
            identity: What the digest depends on: `pixels` or `names`.
        """
        labels = {"type": str(LabelType.parse(self.label_type)), "classes": self.num_classes}
        plan = {
            "format": FORMAT,
            "data": {"name": self.data, "size": size, "identity": identity, "probe": probe},
            "teacher": {"id": self.teacher, "description": self.description},
            "labels": labels | ({"names": self.names} if self.names else {}),
            "crops": {"per_image": self.crops, **asdict(self.rule), "seed": self.seed},
            "transform": asdict(self.transform),
            "images_per_shard": self.images_per_shard,
            "command": self.command,
            "shards": {},
        }
        parsed: Manifest = json.loads(json.dumps(plan))  # tuples to lists, as they will be read
        return parsed


class LabelledImage(NamedTuple):
    """One row of a shard."""

    image: int
    digest: str
    crops: Crops
    labels: StoredLabels


def write_store(
    images: Images,
    make_teacher: Callable[[], Teacher],
    folder: Path,
    settings: StoreSettings,
    progress: bool = False,
) -> Manifest:
    """Label N crops of every image; whole shards of an earlier call are kept, so that the same call resumes.

    Args:
        images: The training images, in the order of training.
        make_teacher: Returns a function from (batch, C, size, size) pixels to logits; called once the settings and the
            folder are known to be right.
        folder: The store.
        settings: What to store.
        progress: Whether to show a bar.

    Returns:
        The manifest.

    Raises:
        ValueError: the folder holds a store of other settings, or the teacher's output cannot be stored.
    """
    seed = settings.seed
    if seed is None:
        raise ValueError("seed=None is for imported labels: give a number")
    plan = settings.plan(len(images), probe_pixels(images), "pixels")
    resume_manifest(folder, plan)
    teacher = make_teacher()
    return write_shards(
        folder, plan, lambda indices, advance: _label(images, teacher, settings, seed, indices, advance), progress
    )


def _label(
    images: Images, teacher: Teacher, settings: StoreSettings, seed: int, indices: range, advance: Advance
) -> list[LabelledImage]:
    """Label the images of one shard; its first image begins a batch, so that resuming changes no bit."""
    drawn: list[tuple[int, str, Crops]] = []

    def cut() -> Iterator[Tensor]:
        for index in indices:
            image = images[index]
            height, width = image.shape[-2:]
            crops = draw_crops(height, width, settings.crops, settings.rule, generator_for(seed, DRAWN, index))
            drawn.append((index, image_digest(image), crops))
            for coords, flip in zip(crops.coords, crops.flip.tolist(), strict=True):
                yield settings.transform(image, coords, flip)

    label_type, views, answers = LabelType.parse(settings.label_type), cut(), []
    while batch := list(islice(views, settings.batch_size)):
        answers.append(compress(_probabilities(teacher, torch.stack(batch), settings.num_classes), label_type))
        advance(len(batch) / settings.crops)
    classes = torch.cat([answer.classes for answer in answers]).reshape(len(drawn), settings.crops, label_type.k)
    probs = torch.cat([answer.probabilities for answer in answers]).reshape(len(drawn), settings.crops, -1)
    labels = map(StoredLabels, classes, probs)
    return [LabelledImage(*facts, own) for facts, own in zip(drawn, labels, strict=True)]


@torch.no_grad()
def _probabilities(teacher: Teacher, views: Tensor, num_classes: int) -> Tensor:
    logits = teacher(views)
    if logits.shape != (len(views), num_classes):
        wanted = (len(views), num_classes)
        raise ValueError(f"the teacher returned logits of shape {tuple(logits.shape)}, expected {wanted}")
    probs = logits.float().softmax(-1).cpu()
    if not bool(probs.isfinite().all()):
        raise ValueError("the teacher returned logits that are not finite")
    return probs


def write_shards(
    folder: Path,
    plan: Manifest,
    rows: Callable[[range, Advance], Sequence[LabelledImage] | None],
    progress: bool = False,
) -> Manifest:
    """Write the shards that are missing or damaged, and the manifest after each.

    Args:
        folder: The store.
        plan: From `StoreSettings.plan`.
        rows: Labels the images of a range. Images that it leaves out are recorded as skipped; None: write no shard.
        progress: Whether to show a bar.

    Raises:
        ValueError: there are no images, or the folder holds a store of another plan.
    """
    size, step = plan["data"]["size"], plan["images_per_shard"]
    if size < 1:
        raise ValueError(f"{folder}: the data set {plan['data']['name']} has no images to label")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"), Progress(disable=not progress) as bar:
        advance = partial(bar.advance, bar.add_task("soft labels, images", total=size))
        manifest = resume_manifest(folder, plan)
        remove_leftovers(folder)
        for name, start in zip(shard_names(manifest), range(0, size, step), strict=True):
            indices = range(start, min(start + step, size))
            fault, readonly = find_damage(folder, manifest, name), manifest["format"] != FORMAT
            if fault is not None and readonly:
                again = f"delete {folder} and run `{plan['command']}` again"
                raise ValueError(f"{folder / name} {fault}; Parquet is read, but not written: {again}")
            # Images that an earlier call skipped may have their file by now.
            if fault is None and (readonly or not manifest["shards"][name]["skipped"]):
                advance(len(indices))
                continue
            found = rows(indices, advance)
            if found is None:
                continue
            manifest["shards"][name] = _write_shard(folder / name, found, indices, manifest["labels"]["classes"])
            write_json(folder / MANIFEST, manifest)
        return manifest


def resume_manifest(folder: Path, plan: Manifest) -> Manifest:
    """Return the plan with the shards of an earlier call.

    Raises:
        ValueError: the folder holds a store of another plan, or something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder")
    found = read_manifest(folder)
    if found is None:
        own = {MANIFEST, *shard_names(plan)}
        others = [path.name for path in folder.glob("[!.]*") if path.name not in own]
        if others:
            raise ValueError(f"{folder} holds other files ({others[0]}): name a new folder, or one of a store")
        return plan
    plan = {**plan, "format": found["format"]}
    if "names" not in found["labels"]:  # a store without names stays as it is: runs that use it keep their ids
        plan["labels"] = {key: value for key, value in plan["labels"].items() if key != "names"}
    wrong = [key for key in plan if key not in ("shards", "command") and found.get(key) != plan[key]]
    if wrong:
        said = "; ".join(f"{key}: there {found.get(key)}, asked for {plan[key]}" for key in wrong)
        raise ValueError(f"{folder} is a store of other settings ({said}): name another folder or delete this one")
    return {**plan, "shards": found["shards"]}


def _write_shard(path: Path, rows: Sequence[LabelledImage], indices: range, num_classes: int) -> Manifest:
    """Write a shard and return its facts."""
    tensors = {}
    if rows:  # an import may have skipped all of them
        classes = torch.stack([row.labels.classes for row in rows])
        tensors = {
            "digest": torch.tensor([list(bytes.fromhex(row.digest)) for row in rows], dtype=torch.uint8),
            "coords": torch.stack([row.crops.coords for row in rows]),
            "flip": torch.stack([row.crops.flip for row in rows]),
            "classes": classes.to(torch.int16 if num_classes <= 2**15 else torch.int32),
            "probabilities": torch.stack([row.labels.probabilities for row in rows]),
        }
    with atomic_write(path) as temporary:
        save_file(tensors, temporary)
        facts = {"rows": len(rows), "bytes": temporary.stat().st_size, "sha256": sha256_of(temporary)}
    labelled = {row.image for row in rows}
    return {**facts, "skipped": [index for index in indices if index not in labelled]}
