"""The nine GLUE tasks: what their files are called, what the columns hold, how they are scored (imports no torch)."""

from __future__ import annotations

from dataclasses import dataclass

from lowbit.settings.data import GlueTask, Score

LARGEST_SCORE = 5.0  # of STS-B, whose labels are similarities from 0 on
REPOSITORY = "nyu-mll/glue"
# A commit of January 2024; unverified, since this was written without network access.
REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"


@dataclass(frozen=True)
class SplitName:
    """A labelled part of a task: the file's stem in the official layout, and the split's name everywhere else."""

    file: str
    split: str


TRAIN = SplitName("train", "train")
DEV = SplitName("dev", "validation")


@dataclass(frozen=True)
class TaskDescription:
    """One task.

    Attributes:
        folder: Folder of the official layout.
        texts: The columns of the sentences in the TSV files.
        features: The same in Parquet files, `save_to_disk` folders and on the hub, where the label is `label`.
        labels: The labels as the TSV files spell them, in the order of their ids (the hub's order); empty: a number.
        metric: Name of the score, see `lowbit.data.build_metric`.
        train_rows: Official number of training rows.
        label: Name of the label's column in the TSV files.
        columns: Columns of files that have no header; None: the first line names them.
        dev: The labelled development sets, by the suffix under which the second one is logged.
        names: What the labels mean, as the hub calls them, where the files spell them 0 and 1.
    """

    folder: str
    texts: tuple[str, ...]
    features: tuple[str, ...]
    labels: tuple[str, ...]
    metric: Score
    train_rows: int
    label: str = "label"
    columns: tuple[str, ...] | None = None
    dev: tuple[tuple[str, SplitName], ...] = (("", DEV),)
    names: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[SplitName, ...]:
        """Every labelled split; the official test labels are not public."""
        return (TRAIN, *(split for _, split in self.dev))

    @property
    def label_names(self) -> tuple[str, ...]:
        """What the labels mean, in the order of their ids; nothing for a number."""
        return self.names or self.labels


_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_PAIR = ("sentence1", "sentence2")

TASKS: dict[GlueTask, TaskDescription] = {
    GlueTask.cola: TaskDescription(
        folder="CoLA",
        texts=("sentence",),
        features=("sentence",),
        labels=_BINARY,
        metric="matthews",
        train_rows=8_551,
        columns=("source", "label", "mark", "sentence"),
        names=("unacceptable", "acceptable"),
    ),
    GlueTask.sst2: TaskDescription(
        "SST-2", ("sentence",), ("sentence",), _BINARY, "accuracy", 67_349, names=("negative", "positive")
    ),
    GlueTask.mrpc: TaskDescription(
        folder="MRPC",
        texts=("#1 String", "#2 String"),
        features=_PAIR,
        labels=_BINARY,
        metric="accuracy_f1",
        train_rows=3_668,
        label="Quality",
        names=("not_equivalent", "equivalent"),
    ),
    GlueTask.stsb: TaskDescription("STS-B", _PAIR, _PAIR, (), "pearson_spearman", 5_749, label="score"),
    GlueTask.qqp: TaskDescription(
        folder="QQP",
        texts=("question1", "question2"),
        features=("question1", "question2"),
        labels=_BINARY,
        metric="accuracy_f1",
        train_rows=363_846,
        label="is_duplicate",
        names=("not_duplicate", "duplicate"),
    ),
    GlueTask.mnli: TaskDescription(
        folder="MNLI",
        texts=_PAIR,
        features=("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
        metric="accuracy",
        train_rows=392_702,
        label="gold_label",
        dev=(
            ("", SplitName("dev_matched", "validation_matched")),
            ("mismatched", SplitName("dev_mismatched", "validation_mismatched")),
        ),
    ),
    GlueTask.qnli: TaskDescription(
        "QNLI", ("question", "sentence"), ("question", "sentence"), _ENTAILMENT, "accuracy", 104_743
    ),
    GlueTask.rte: TaskDescription("RTE", _PAIR, _PAIR, _ENTAILMENT, "accuracy", 2_490),
    GlueTask.wnli: TaskDescription(
        "WNLI", _PAIR, _PAIR, _BINARY, "accuracy", 635, names=("not_entailment", "entailment")
    ),
}
