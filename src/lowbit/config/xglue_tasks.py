"""The eight XGLUE understanding tasks: what their files are called, what they hold, how they are scored (no torch).

Written from memory of the `xglue` loader of Hugging Face and of the XGLUE paper (arXiv 2004.01401), without network
access: file names, label names, languages and row counts are unverified.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lowbit.settings.data import Score, XglueTask

Part = Literal["train", "dev"]
REPOSITORY = "microsoft/xglue"
# The repository holds a loading script, which `datasets` 4 and later do not run; this is the hub's own copy in Parquet.
REVISION = "refs/convert/parquet"


@dataclass(frozen=True)
class XglueDescription:
    """One task.

    Attributes:
        folder: Folder of the official layout.
        hub: Name of the configuration on the hub.
        train, dev: Names of the official files, `{language}` to be filled in.
        columns: Texts, then the label, in the order of the files and as the hub calls them; words and tags of tagging.
        labels: In the order of their ids.
        languages: Those with a development set.
        metric: Name of the score, see `lowbit.data.build_metric`.
        train_rows: Number of training rows, or sentences.
        numbered: Files may begin each row with its number.
        aliases: Other spellings of labels in the files.
        names: What the labels mean, as the hub calls them, where the files spell them 0 and 1.
    """

    folder: str
    hub: str
    train: str
    dev: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    languages: tuple[str, ...]
    metric: Score
    train_rows: int
    numbered: bool = False
    aliases: tuple[tuple[str, str], ...] = ()
    names: tuple[str, ...] = ()

    @property
    def tags(self) -> bool:
        """Whether words are labelled, not texts."""
        return self.columns[0] == "words"

    @property
    def label_names(self) -> tuple[str, ...]:
        """What the labels mean, in the order of their ids."""
        return self.names or self.labels

    def file(self, part: Part, language: str) -> str:
        """Return the name of an official file, with its folder."""
        return f"{self.folder}/{(self.train if part == 'train' else self.dev).format(language=language)}"


def split_name(part: Part, language: str) -> str:
    """Return what the hub calls a split; only English has training rows there."""
    return "train" if part == "train" else f"validation.{language}"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _texts(
    name: str, columns: tuple[str, ...], labels: str, languages: str, rows: int, metric: Score = "accuracy"
) -> XglueDescription:
    """Describe one of the four tasks whose files are named alike."""
    train, dev = f"xglue.{name}.{{language}}.train", f"xglue.{name}.{{language}}.dev"
    return XglueDescription(name.upper(), name, train, dev, columns, _words(labels), _words(languages), metric, rows)


def _tags(name: str, labels: str, languages: str, rows: int, metric: Score) -> XglueDescription:
    """Describe a task whose words have labels."""
    train, dev, columns = "{language}.train", "{language}.dev", ("words", name)
    return XglueDescription(name.upper(), name, train, dev, columns, _words(labels), _words(languages), metric, rows)


XGLUE_TASKS: dict[XglueTask, XglueDescription] = {
    XglueTask.xnli: XglueDescription(
        folder="XNLI",
        hub="xnli",
        train="multinli.train.{language}.tsv",
        dev="{language}.dev",
        columns=("premise", "hypothesis", "label"),
        labels=("entailment", "neutral", "contradiction"),
        languages=_words("ar bg de el en es fr hi ru sw th tr ur vi zh"),
        metric="accuracy",
        train_rows=392_702,
        aliases=(("contradictory", "contradiction"),),  # as the machine-translated training files of XNLI spell it
    ),
    XglueTask.pawsx: XglueDescription(
        folder="PAWSX",
        hub="paws-x",
        train="{language}/train.tsv",
        dev="{language}/dev_2k.tsv",
        columns=("sentence1", "sentence2", "label"),
        labels=("0", "1"),
        languages=("en", "de", "es", "fr"),
        metric="accuracy",
        train_rows=49_401,
        numbered=True,
        names=("different", "same"),
    ),
    XglueTask.nc: _texts(
        "nc",
        ("news_title", "news_body", "news_category"),
        "foodanddrink sports travel finance lifestyle news entertainment health video autos",
        "en de es fr ru",
        100_000,
    ),
    XglueTask.qadsm: _texts(
        "qadsm", ("query", "ad_title", "ad_description", "relevance_label"), "Bad Good", "en de fr", 100_000
    ),
    XglueTask.wpr: _texts(
        "wpr",
        ("query", "web_page_title", "web_page_snippet", "relavance_label"),  # the hub's own spelling
        "Bad Fair Good Excellent Perfect",
        "en de es fr it pt zh",
        99_997,
        "ndcg",
    ),
    XglueTask.qam: replace(
        _texts("qam", ("question", "answer", "label"), "0 1", "en de fr", 100_000),
        names=("False", "True"),
    ),
    XglueTask.ner: _tags(
        "ner", "O B-PER I-PER B-ORG I-ORG B-LOC I-LOC B-MISC I-MISC", "en de es nl", 14_042, "entity_f1"
    ),
    XglueTask.pos: _tags(
        "pos",
        "ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X",
        "en de es nl bg el fr pl tr vi zh ur hi it ar ru th",
        25_376,
        "accuracy",
    ),
}
