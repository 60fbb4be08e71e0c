"""Writing the shards of a soft-label store: Parquet through `datasets`, resumable."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from lowbit.config.label_store import MANIFEST, damage, read_manifest, shard_names
from lowbit.data.crops import Crops
from lowbit.data.label_types import LabelKind, LabelType, StoredLabels
from lowbit.files import replacing, sha256_of, write_json

Advance = Callable[[float], None]


class LabelledImage(NamedTuple):
    """One row of a shard."""

    image: int
    digest: str
    crops: Crops
    labels: StoredLabels


def write_shards(
    folder: Path,
    plan: dict[str, Any],
    rows: Callable[[range, Advance], Sequence[LabelledImage] | None],
    progress: bool = False,
) -> dict[str, Any]:
    """Write the shards that are missing or damaged, and the manifest after each.

    Args:
        folder: The store.
        plan: From `StoreSettings.plan`.
        rows: Labels the images of a range; images that it leaves out are noted as skipped. None: write no shard.
        progress: Whether to show a bar.

    Raises:
        ValueError: no images, or the folder holds a store of another plan.
    """
    if plan["data"]["size"] < 1:
        raise ValueError(f"{folder}: the data set {plan['data']['name']} has no images to label")
    folder.mkdir(parents=True, exist_ok=True)
    size, step = plan["data"]["size"], plan["images_per_shard"]
    with FileLock(folder / ".lock"), bar(size, progress) as advance:
        manifest = resumed_manifest(folder, plan)
        for old in folder.glob(".*.tmp"):
            old.unlink()
        for name, start in zip(shard_names(manifest), range(0, size, step), strict=True):
            indices = range(start, min(start + step, size))
            # Images that an earlier call skipped may have their file by now.
            if damage(folder, manifest, name) is None and not manifest["shards"][name]["skipped"]:
                advance(len(indices))
                continue
            found = rows(indices, advance)
            if found is None:
                continue
            manifest["shards"][name] = _write_shard(folder / name, found, indices, manifest)
            write_json(folder / MANIFEST, manifest)
        return manifest


def resumed_manifest(folder: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Return the plan with the shards of an earlier call.

    Raises:
        ValueError: the folder holds a store of another plan, or something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder")
    old = read_manifest(folder)
    if old is None:
        ours = {MANIFEST, *shard_names(plan)}
        others = [path.name for path in folder.glob("[!.]*") if path.name not in ours]
        if others:
            raise ValueError(f"{folder} holds other files ({others[0]}): name a new folder, or one of a store")
        return plan
    if "names" not in old["labels"]:  # of a version that did not write them; runs under the store keep their ids
        plan = {**plan, "labels": {key: value for key, value in plan["labels"].items() if key != "names"}}
    wrong = [key for key in plan if key not in ("shards", "command") and old.get(key) != plan[key]]
    if wrong:
        said = "; ".join(f"{key}: there {old.get(key)}, asked for {plan[key]}" for key in wrong)
        raise ValueError(f"{folder} is a store of other settings ({said}): name another folder or delete this one")
    return {**plan, "shards": old["shards"]}


def _write_shard(
    path: Path, rows: Sequence[LabelledImage], indices: range, manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a shard under a temporary name, rename it, and return its facts."""
    from datasets import Array2D, Dataset, Features, List, Value

    count, classes = manifest["crops"]["per_image"], manifest["labels"]["classes"]
    label_type = LabelType.parse(manifest["labels"]["type"])
    features: dict[str, Any] = {
        "image": Value("int64"),
        "digest": Value("string"),
        "coords": Array2D((count, 4), "float32"),
        "flip": List(Value("bool"), length=count),
        "probabilities": Array2D((count, label_type.k or classes), "float32"),
    }
    columns: dict[str, list[Any]] = {
        "image": [row.image for row in rows],
        "digest": [row.digest for row in rows],
        "coords": [row.crops.coords.numpy() for row in rows],
        "flip": [row.crops.flip.tolist() for row in rows],
        "probabilities": [row.labels.probabilities.numpy() for row in rows],
    }
    if label_type.kind is not LabelKind.full:
        features["classes"] = Array2D((count, label_type.k), "int16" if classes <= 2**15 else "int32")
        columns["classes"] = [row.labels.classes.numpy() for row in rows]
    with replacing(path) as temporary:
        with quiet():
            Dataset.from_dict(columns, features=Features(features)).to_parquet(str(temporary))
        facts = {"rows": len(rows), "bytes": temporary.stat().st_size, "sha256": sha256_of(temporary)}
    labelled = {row.image for row in rows}
    return {**facts, "skipped": [index for index in indices if index not in labelled]}


@contextmanager
def bar(total: int, shown: bool) -> Iterator[Advance]:
    """Yield the function that moves a progress bar by a number of images."""
    if not shown:
        yield lambda _: None
        return
    from rich.progress import Progress

    with Progress() as progress:
        task = progress.add_task("soft labels, images", total=total)
        yield lambda images: progress.advance(task, images)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep `datasets` from drawing a bar per shard."""
    import datasets

    silent = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not silent:
            datasets.enable_progress_bars()
