"""Settings of a data set: where the rows come from, how they are batched; and what models must know of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum, auto
from typing import Any, Literal

from omegaconf import MISSING

from lowbit.settings.fields import LIMIT, Of, number, path_name, setting


class DataKind(StrEnum):
    """Where the examples come from."""

    digits = auto()
    agreement = auto()
    glue = auto()
    squad = auto()
    xglue = auto()
    image_folder = auto()
    cifar10 = auto()
    cifar100 = auto()


class Interpolation(StrEnum):
    """How images are resized."""

    bilinear = auto()
    bicubic = auto()


class GlueTask(StrEnum):
    """A task of the GLUE benchmark; `config.glue_tasks` describes each."""

    cola = auto()
    sst2 = auto()
    mrpc = auto()
    stsb = auto()
    qqp = auto()
    mnli = auto()
    qnli = auto()
    rte = auto()
    wnli = auto()


class SquadVersion(StrEnum):
    """A version of SQuAD; in 2.0 a text may not hold the answer. `config.squad_files` describes each."""

    v1_1 = auto()
    v2_0 = auto()


class XglueTask(StrEnum):
    """An understanding task of the XGLUE benchmark; `config.xglue_tasks` describes each."""

    xnli = auto()
    pawsx = auto()
    nc = auto()
    qadsm = auto()
    wpr = auto()
    qam = auto()
    ner = auto()
    pos = auto()


class DataSource(StrEnum):
    """Where the rows of a published data set are read: files below `data.dir`, or the Hugging Face hub."""

    folder = auto()
    hub = auto()


class OnBadRow(StrEnum):
    """What a row that cannot be used does: stop before anything is trained, or be left out and counted."""

    error = auto()
    skip = auto()


class TokenizerKind(StrEnum):
    """Who turns text into token ids: the data set's own word list, or the model's tokenizer."""

    words = auto()
    model = auto()


class Padding(StrEnum):
    """To which length the sentences of a batch are padded."""

    longest = auto()
    max_length = auto()


@dataclass
class ImageConfig:
    """How image files become the input of a model; see docs/data.md, Images.

    `size` is that of models without pretrained weights (null: that of the data); pretrained ones keep their own. So do
    `crop_pct` and `interpolation` of the evaluation unless they are set here. The rest is drawn anew for every training
    image under `augment: true`: `scale` of its area, mirrored with probability `flip`, strength of `color_jitter`, a
    `randaugment` of timm such as rand-m9-mstd0.5-inc1, `random_erasing` with this probability.
    """

    size: int | None = number(above=0)
    crop_pct: float | None = number(above=0, at_most=1, note="a share of the shorter side")
    interpolation: Interpolation | None = None
    scale: list[float] = number([0.08, 1.0], above=0, at_most=1, note="shares of the area")
    flip: float = number(0.5, at_least=0, at_most=1, note="a probability")
    color_jitter: float = number(0.0, at_least=0)
    randaugment: str | None = None
    random_erasing: float = number(0.0, at_least=0, at_most=1, note="a probability")


_GLUE = Of("kind", (DataKind.glue,))
_SQUAD = Of("kind", (DataKind.squad,))
_XGLUE = Of("kind", (DataKind.xglue,))
_PUBLISHED = Of("kind", (DataKind.glue, DataKind.squad, DataKind.xglue))
_FILES = Of("kind", (*_PUBLISHED.values, DataKind.image_folder, DataKind.cifar10, DataKind.cifar100))
TEXT = (*_PUBLISHED.values, DataKind.agreement)
_TEXT = Of("kind", TEXT)
_OWN_SPLIT = Of("kind", (DataKind.digits, DataKind.agreement))


@dataclass
class DataConfig:
    """A data set and how it is batched.

    `soft_labels` is the folder of a soft-label store (`lowbit softlabels`): training then takes `num_crops` stored
    crops of each image per step. `batch_size` counts crops, so a pass over the images is `num_crops` epochs.

    `task` to `on_bad_row` are of GLUE, `version` to `max_question_length` of SQuAD, `xglue_task` to `languages` of
    XGLUE: see docs/data.md. `length_grouped` draws training batches of texts of similar length; it counts only where
    `padding` is `longest`. `num_workers` processes build batches; null: up to 8 where there are image files, else none.
    """

    name: str = path_name(MISSING)
    kind: DataKind = MISSING
    batch_size: int = number(32, above=0)
    eval_batch_size: int = number(256, above=0)
    augment: bool = False
    train_size: int | None = number(above=0)
    eval_size: int | None = number(above=0)
    tokenizer: TokenizerKind = TokenizerKind.words
    padding: Padding = setting(Padding.longest, of=_TEXT)
    max_length: int | None = number(above=0, of=_TEXT)
    split_seed: int = number(0, at_least=0, below=LIMIT, of=_OWN_SPLIT)
    num_workers: int | None = number(at_least=0)
    task: GlueTask | None = setting(of=_GLUE)
    source: DataSource = setting(DataSource.folder, of=_FILES)
    dir: str | None = setting(of=_FILES)
    revision: str | None = setting(of=_PUBLISHED)
    train_file: str | None = setting(of=_GLUE)
    on_bad_row: OnBadRow = setting(OnBadRow.error, of=_FILES)
    version: SquadVersion | None = setting(of=_SQUAD)
    doc_stride: int | None = number(above=0, of=_SQUAD)
    max_question_length: int | None = number(above=0, of=_SQUAD)
    xglue_task: XglueTask | None = setting(of=_XGLUE, later=True)
    language: str | None = setting(of=_XGLUE, later=True)
    languages: list[str] | None = setting(of=_XGLUE, later=True)
    length_grouped: bool = setting(False, of=Of("padding", (Padding.longest,)))
    soft_labels: str | None = None
    num_crops: int = number(4, above=0)
    image: ImageConfig = field(default_factory=ImageConfig, metadata={"later": True})


Score = Literal["accuracy", "matthews", "accuracy_f1", "pearson_spearman", "f1", "entity_f1", "ndcg"]


@dataclass(frozen=True)
class ImageInput:
    """What a model wants of the images of files: `size` in pixels, statistics per channel, and how they are cut.

    In an evaluation the shorter side is resized to `size` / `crop_pct`, and the centre cut out; `crop_mode=squash`
    resizes both sides. `interpolation` is a filter of PIL by its name in timm. Where there is a `processor`, it makes
    the pixels of an evaluation, from an RGB image of PIL; it does not count where inputs are compared.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"
    processor: Callable[[Any], Any] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class DataInfo:
    """Static facts of a data set; text fields are None for images and the other way round.

    Attributes:
        name: Name of the data group choice.
        modality: What a batch holds besides `labels`: `pixel_values`, or token ids with their masks.
        task: Kind of head and task loss.
        num_labels: Width of the head.
        metric: Key for `build_metric`.
        train_size: Rows of the training split; questions where a tokenizer is still to cut texts into windows.
        vocab_size: Number of word ids; None if a model's tokenizer decides.
        max_length: Longest sequence that a batch can hold, special tokens included; None if a model's tokenizer
            decides and the config sets no limit.
        image_size: Height and width in pixels.
        channels: Colour channels.
        image: How image files are read; None for images that are held as tensors.
        has_test: Whether there is a test split; else models are scored on the validation split.
        more_validation: Names of further validation splits, such as MNLI's `mismatched`.
        averaged: Whether tables show the mean over all validation splits, `val_mean`.
        labels: Names of the labels in the order of their ids; none where they are numbers.
    """

    name: str
    modality: Literal["image", "text"]
    task: Literal["classification", "regression", "span", "tagging"]
    num_labels: int
    metric: Score
    train_size: int
    vocab_size: int | None = None
    max_length: int | None = None
    image_size: int | None = None
    channels: int | None = None
    image: ImageInput | None = None
    has_test: bool = True
    more_validation: tuple[str, ...] = ()
    averaged: bool = False
    labels: tuple[str, ...] = ()

    @property
    def primary_metric(self) -> str:
        """The number that tables show of a run."""
        validation = "val_mean" if self.averaged else "val"
        return f"{'test' if self.has_test else validation}/{self.metric}"
