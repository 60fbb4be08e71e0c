"""Files, labels and settings come from others: nothing in them is run, nothing in them leaves its place.

Tests of single rooms: CIFAR's unpickler (data/test_image_sets.py), keys that must not get into a run's files
(training/test_tracking.py), `auto_map` code (modeling/test_checkpoints.py), names that leave the outputs folder
(config/test_validate.py).
"""

import ast
import csv
import io
import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from import_fkd import read_fkd
from safetensors import SafetensorError
from transformers import BertConfig

from lowbit.cli import main
from lowbit.config.cifar_files import read_batch
from lowbit.data.agreement import agreement_info
from lowbit.data.cache import cached
from lowbit.data.image_source import FileImages
from lowbit.files import read_json
from lowbit.modeling.build import build_model
from lowbit.results import FORMATS, Cell, Grid, collect, read_layout, read_papers, tabulate_rows, write_grid
from lowbit.results.render import write_csv
from lowbit.results.report import Report, groups_of, read_curves, render_report
from lowbit.results.run_file import read_run
from lowbit.settings.data import DataConfig, DataKind
from lowbit.settings.model import ModelConfig, ModelKind
from lowbit.soft_labels.files import LabelType, complete_manifest
from lowbit.training.checkpoints import step_of
from lowbit.training.stage_runner import finished_stage, load_quantizer_state, load_weights

AGREEMENT = DataConfig(name="agreement", kind=DataKind.agreement)
SOURCES = sorted(path for part in ("src", "scripts") for path in (Path(__file__).parents[1] / part).rglob("*.py"))


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


def as_pickle(payload: Payload, path: Path) -> None:
    path.write_bytes(pickle.dumps({"data": payload, "global_step": payload}))


def as_torch(payload: Payload, path: Path) -> None:
    torch.save({"data": payload, "global_step": payload}, path)


def read_model(folder: Path) -> None:
    text = replace(agreement_info(AGREEMENT), vocab_size=10, max_length=8)
    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    BertConfig(vocab_size=10, max_position_embeddings=8, architectures=["BertModel"], **sizes).save_pretrained(folder)
    with pytest.raises((ValueError, pickle.UnpicklingError), match=r"pytorch_model|Weights only"):
        build_model(ModelConfig(name="hf", kind=ModelKind.hf, path=str(folder)), text, 0)


# File -> what reads it, given the file.
READERS: dict[str, Callable[[Path], object]] = {
    "last.ckpt": step_of,
    "model.safetensors": lambda path: load_weights(torch.nn.Linear(1, 1), path),
    "pytorch_model.bin": lambda path: read_model(path.parent),
    "quantizers.safetensors": lambda path: load_quantizer_state(path.parent),
    "stage.json": lambda path: finished_stage(path.parent),
    "run.json": lambda path: read_run(path.parent),
    "teacher.json": read_json,
    "metrics.csv": lambda path: read_curves(path.parent, {"primary_metric": "val/x"}),
    "manifest.json": lambda path: complete_manifest(path.parent, checksums=True),
    "tokens.safetensors": lambda path: cached(path, dict),
    "data_batch_1": lambda path: read_batch(path, DataKind.cifar10),
    "n0_0.tar": lambda path: read_fkd(path, LabelType.parse("full"), 2, 1),
    "image.png": lambda path: FileImages(path.parent, [path.name])[0],
    "paper.yaml": lambda path: read_papers([path.parent]),
    "sweep.yaml": lambda path: read_layout([path]),
}


@pytest.mark.parametrize("write", [as_pickle, as_torch])
@pytest.mark.parametrize("name", READERS)
def test_no_file_is_unpickled(name: str, write: Callable[[Payload, Path], None], tmp_path: Path):
    mark, path = tmp_path / "mark", tmp_path / "folder" / name
    path.parent.mkdir()
    write(Payload(mark), path)
    with suppress(ValueError, OSError, SafetensorError, yaml.YAMLError):
        READERS[name](path)
    assert not mark.exists()


def test_the_payload_works(tmp_path: Path):
    as_torch(Payload(tmp_path / "mark"), tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "mark").exists()


def calls() -> list[tuple[str, str, dict[str, str]]]:
    """Return every call of the package: its file, the name that is called, the keywords."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                keywords = {word.arg or "": ast.unparse(word.value) for word in node.keywords}
                found.append((path.name, ast.unparse(node.func), keywords))
    return found


def test_nothing_that_runs_what_it_reads_is_called():
    for file, name, keywords in calls():
        assert name not in ("eval", "exec", "os.system", "pickle.load", "pickle.loads", "yaml.unsafe_load"), file
        assert keywords.get("shell", "False") == "False", f"{file}: {name}"
        assert keywords.get("allow_pickle", "False") == "False", f"{file}: {name}"
        assert keywords.get("trust_remote_code", "False") == "False", f"{file}: {name}"
        if name == "torch.load" or (name.endswith(".fit") and "ckpt_path" in keywords):
            assert keywords.get("weights_only") == "True", f"{file}: {name}"
        if name == "yaml.load":
            assert keywords.get("Loader") == "_Loader", f"{file}: {name}"


# --- YAML ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["experiment", "method", "data", "quantizer"])
def test_a_tag_in_a_configuration_file_runs_nothing(
    group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "conf" / group / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"# @package _global_\nname: !!python/object/apply:os.mkdir ['{tmp_path}/mark']\n")
    assert main(["check", f"{group}=mine"]) == 2
    assert "mine" in capsys.readouterr().err
    assert not (tmp_path / "mark").exists()


def test_a_tag_in_a_paper_or_a_layout_runs_nothing(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"table: {{rows: !!python/object/apply:os.mkdir ['{tmp_path}/mark'], columns: []}}\n")
    for read in (lambda: read_papers([tmp_path]), lambda: read_layout([file])):
        with pytest.raises(Exception, match="could not determine a constructor"):
            read()
    assert not (tmp_path / "mark").exists()


# --- labels ----------------------------------------------------------------------------------------------------------

NASTY = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></style><script>alert(2)</script>",
    "=cmd|' /C calc'!A0",
    "+1+cmd",
    "@SUM(1)",
    r"\input{/etc/passwd} \write18{id} 100% $x$ a_b ~ ^ # {",
    "a | b \\| c",
    "first\n\nsecond\r\n| x |",
]


class Tags(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def cells(tmp_path: Path) -> list[Cell]:
    """Jobs that have not run, whose labels come from overrides, and whose commands hold them."""
    return [Cell(tmp_path / str(n), {"method": text}, f"lowbit train name={text}", {}) for n, text in enumerate(NASTY)]


@pytest.mark.parametrize("fmt", FORMATS)
def test_labels_stay_in_their_cells(fmt: str, cells: list[Cell]):
    text = write_grid(tabulate_rows(collect(cells), NASTY[2]), fmt)
    if fmt == "html":
        page = Tags(text)
        assert not page.tags & {"script", "img"}
        assert not page.attributes & {"onerror", "src"}
        assert all(label.split("\n")[0] in page.text for label in NASTY)
    elif fmt == "csv":
        rows = list(csv.reader(io.StringIO(text)))
        assert len(rows) == 1 + len(NASTY)
        assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "@", "\t"))]
        assert {row[0].removeprefix("'") for row in rows[1:]} == set(NASTY)
    elif fmt == "latex":
        body = text.split("\\midrule\n")[1].split("\\bottomrule")[0]
        assert len(body.strip().split("\n")) == len(NASTY)
        assert r"\textbackslash{}input\{/etc/passwd\} \textbackslash{}write18\{id\} 100\% \$x\$ a\_b" in body
    else:
        lines = text.split("\n\n")[0].split("\n")
        assert len(lines) == 2 + len(NASTY)
        assert "<" not in text.split("To fill the missing cells:")[0]  # what follows is indented: code, not HTML
        assert r"a \| b \\\| c" in text


def test_labels_stay_in_their_cells_of_a_report(cells: list[Cell]):
    rows = collect(cells)
    page = Tags(render_report(Report(NASTY[1], NASTY[0], tabulate_rows(rows, NASTY[2]), groups_of(cells), NASTY)))
    assert not page.tags & {"script", "img"}
    assert not page.attributes & {"onerror", "src"}


def test_notes_and_commands_stay_in_their_places():
    grid = Grid([("a", "left")], [["b"]], title=NASTY[0], notes=NASTY, commands=NASTY)
    assert not Tags(write_grid(grid, "html")).tags & {"script", "img"}
    notes, commands = write_grid(grid, "md").split("To fill the missing cells:\n\n")
    assert "<" not in notes
    assert all(line.startswith("    ") for line in commands.splitlines())


def test_no_cell_of_a_csv_file_is_a_formula():
    text = write_csv([["=1+1", "@x", "-2", "+3", "\t=4", -5.0, None, "fine"]])
    assert next(csv.reader(io.StringIO(text))) == ["'=1+1", "'@x", "'-2", "'+3", "'\t=4", "-5.0", "", "fine"]
