"""The records of conf/paper: none is lost, each says what it is compared with, and runs find theirs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from lowbit.config import compose as C
from lowbit.results import read_layout
from lowbit.results.published import Record, as_teacher, find, read_papers

FOLDER = C.shipped_root() / "conf" / "paper"
RECORDS = read_papers([FOLDER])
# Published numbers by paper, and how many of them runs are compared with.
COUNTS = {
    "apq_vit": (5, 0),
    "binarybert": (68, 15),
    "bit": (172, 73),
    "cage": (5, 0),
    "fkd": (3, 0),
    "gplq": (31, 1),
    "kd_qat": (10, 0),
    "lsq_plus": (2, 0),
    "mixed_precision_asr": (3, 0),
    "ofq": (13, 3),
    "oscillations": (10, 0),
    "paretoq": (32, 0),
    "pdqat": (11, 0),
    "q2bert": (8, 0),
    "q_vit": (5, 0),
    "quant_noise": (2, 0),
    "sdq": (2, 0),
    "stable_qat": (31, 0),
    "teacher_intervention": (94, 20),
    "ternarybert": (28, 24),
    "ternarybert_mindspore": (3, 2),
    "variation_aware": (27, 8),
    "xtc": (105, 36),
}
SCORES = {
    *("val/accuracy", "val_mismatched/accuracy", "val/matthews", "val/f1", "val/pearson", "val/exact_match"),
    *("size/mib", "size/compression"),
}


def config(**changes: Any) -> dict[str, Any]:
    """Return the part of a resolved config that records look at; `changes` are dotted with __."""
    plain = {"data.name": "cola", "model.name": "bert_base", "method.name": "ternarybert", "quantizer.name": "w2a8"}
    values = plain | {key.replace("__", "."): value for key, value in changes.items()}
    return dict(OmegaConf.to_container(OmegaConf.from_dotlist([f"{k}={v}" for k, v in values.items()])))  # type: ignore[arg-type]


def papers(*names: str) -> list[Record]:
    return [record for record in RECORDS if record.paper in names]


def test_no_number_is_lost() -> None:
    """670 published numbers were given; each is compared with runs, or says why not."""
    found = {
        paper: (len(papers(paper)), sum(record.score is not None for record in papers(paper)))
        for paper in sorted({record.paper for record in RECORDS})
    }
    assert found == COUNTS
    assert sum(total for total, _ in found.values()) == len(RECORDS) == 670
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(COUNTS)


def test_records_ask_for_what_configs_have() -> None:
    """Every key is one of the config, every name a choice, and every score a metric: a slip would match nothing."""
    cfg = C.compose([])
    with C.hydra_session():
        choices = {group: set(C.choices(group)) for group in ("data", "model", "method", "quantizer")}
    comparable = [record for record in RECORDS if record.score is not None]
    assert {record.score for record in comparable} == SCORES
    for record in comparable:
        for key, wanted in record.match.items():
            parent, _, leaf = key.rpartition(".")
            assert leaf in OmegaConf.select(cfg, parent), f"{record.paper}: no key {key}"
            if leaf == "name":
                names = set(wanted) if isinstance(wanted, list) else {wanted}
                assert names <= choices[parent], f"{record.paper}: {key}={wanted}"


@pytest.mark.parametrize(
    ("changes", "score", "names", "text"),
    [
        ({}, "val/matthews", ["ternarybert"], "55.7"),
        ({"quantizer__name": "lat_w2a8"}, "val/matthews", ["ternarybert"], "54.3"),
        ({"data__name": "mnli"}, "val_mismatched/accuracy", ["ternarybert"], "83.3"),
        ({}, "size/compression", ["ternarybert"], "14.9"),
        ({"data__name": "squad"}, "val/exact_match", ["ternarybert"], "79.9"),
        ({"method__name": "ti_g", "budget__epochs": 12}, "val/matthews", ["teacher_intervention"], "57.9"),
        ({"budget__epochs": 300, "model__name": "tinybert_6l"}, "val/matthews", ["teacher_intervention"], "54.1"),
        ({"method__name": "bit", "quantizer__name": "bit_w1a2"}, "val/matthews", ["bit"], "32.1"),
        (
            {"method__name": "bit", "quantizer__name": "bit_w1a2", "data__train_file": "aug.tsv"},
            "val/matthews",
            ["bit"],
            "43.2",
        ),
        (
            {"data__name": "mnli", "method__name": "xtc_layers", "quantizer__name": "xtc_w1a8"}
            | {"method__layer_map": [2, 4, 6, 8, 10]},
            "val/accuracy",
            ["xtc"],
            "82.8",
        ),
        (
            {"data__name": "imagenet", "model__name": "deit_tiny", "method__name": "variation_aware"}
            | {"quantizer__name": "lsq_per_head", "quantizer__weight__bits": 3, "quantizer__activation__bits": 3}
            | {"data__soft_labels": "labels"},
            "val/accuracy",
            ["variation_aware"],
            "71.22",
        ),
        ({"method__name": "finetune"}, "val/matthews", ["ternarybert", "bit"], "58.1 to 59.7"),
    ],
    ids=str,
)
def test_runs_find_their_published_value(changes: dict[str, Any], score: str, names: list[str], text: str) -> None:
    """Against the tables of the papers; where sources differ it is their range."""
    found = find(papers(*names), config(**changes), score)
    assert found is not None
    assert str(found) == text


@pytest.mark.parametrize(
    "changes",
    [
        {"data__train_size": 100},
        {"data__eval_size": 100},
        {"model__name": "minilm"},
        {"data__name": "sst2"},
        {"quantizer__name": "w8a8"},
        {"data__train_file": "aug.tsv"},
    ],
    ids=str,
)
def test_other_runs_find_none(changes: dict[str, Any]) -> None:
    """Another cell, and the same cell on a part of the data."""
    assert find(papers("ternarybert"), config(**changes), "val/matthews") is None


def test_the_published_labels_of_crops_are_part_of_the_comparison() -> None:
    """Runs on the logits of the batch's teacher are another experiment than those on stored labels."""
    run = config(data__name="imagenet", model__name="deit_tiny", method__name="variation_aware")
    run["quantizer"] = {"name": "lsq_w4a4", "weight": {"bits": 2}, "activation": {"bits": 2}}
    for labels, published in ((None, None), ("labels", "59.73")):
        run["data"]["soft_labels"] = labels
        found = find(papers("variation_aware"), run, "val/accuracy")
        assert (found if found is None else str(found)) == published


def test_what_is_assumed_is_said() -> None:
    """The unit of the fine-tuning time of Figure 1 is nowhere stated."""
    found = find(papers("teacher_intervention"), config(budget__epochs=3), "val/matthews")
    assert found is not None
    assert "3 epochs without augmentation" in found.assumed[0]
    assert "unverified" in found.assumed[0]
    assert found.sources == ("Teacher Intervention (EACL 2023, arXiv 2302.11812), Figure 1",)


def test_a_teacher_is_the_full_precision_row() -> None:
    """Whatever its student is, and whatever augmented rows that one sees."""
    student: Mapping[str, Any] = config(data__train_file="aug.tsv")
    found = find(papers("bit"), as_teacher(student), "val/matthews")
    assert str(found) == "59.7"
    assert student["method"] == {"name": "ternarybert"}


TABLE = "title: T\ntables:\n  - {table: 1, model: m, dataset: d, split: s, metric: c, method: x, bits: 2, source: o, "


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title: T\n", "needs `title` and `tables`"),
        (f"{TABLE}values: [{{value: 3}}]}}\n", "give `score` and `match`, or say why it is `not_comparable`"),
        (f"{TABLE}score: a, not_comparable: b, match: {{c: d}}, values: [{{value: 3}}]}}\n", "or say why"),
        (f"{TABLE}not_comparable: b, values: [{{vlue: 3}}]}}\n", "lacks ['value'], unknown fields ['vlue']"),
    ],
)
def test_faulty_file(text: str, said: str, tmp_path: Path) -> None:
    """The message names the file and the place."""
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"mine\.yaml") as caught:
        read_papers([tmp_path])
    assert said in str(caught.value)


def test_a_users_file_replaces_the_shipped_one(tmp_path: Path) -> None:
    """./conf/paper of the working directory comes last."""
    (tmp_path / "bit.yaml").write_text(f"{TABLE}not_comparable: b, values: [{{value: [1, 2]}}]}}\n")
    mine = read_papers([FOLDER, tmp_path])
    (only,) = [record for record in mine if record.paper == "bit"]
    assert (only.title, only.low, only.high, only.not_comparable) == ("T", 1.0, 2.0, "b")
    assert len(mine) == len(RECORDS) - COUNTS["bit"][0] + 1


def test_examples_of_the_docs_can_be_read(tmp_path: Path) -> None:
    """The layout and the paper of docs/tables.md, as a reader would copy them."""
    page = (C.shipped_root() / "docs" / "tables.md").read_text(encoding="utf-8")
    layout, paper = (block.split("```")[0] for block in page.split("```yaml\n")[1:])
    (tmp_path / "paper.yaml").write_text(paper)
    compared, other = read_papers([tmp_path])
    assert str(find([compared], config(method__name="ti_g"), "val/matthews")) == "57 ± 0.3"
    assert other.not_comparable == "an average over tasks"
    (tmp_path / "mine.yaml").write_text(layout)
    found = read_layout([tmp_path / "mine.yaml"])
    assert found is not None
    assert [part.label for part in found.columns if not isinstance(part, str)] == ["CoLA", "size"]
