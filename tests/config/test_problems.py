"""What a person reads who mistyped something: one line each, with the key, the value, the choices, the nearest."""

import os
import shlex

import pytest
from omegaconf import OmegaConf

from lowbit.cli import main
from lowbit.config import compose as C
from lowbit.config.problems import check_overrides, nearest
from lowbit.settings.fields import settings_of
from lowbit.settings.model import ModelConfig
from lowbit.settings.recipe import TeacherConfig
from lowbit.settings.run import PATHS, Config

# argv, words on stderr
REFUSED: list[tuple[list[str], list[str]]] = [
    (["train", "method=ti_gg"], ["method=ti_gg: no such choice", "Did you mean 'ti_g'?", "ternarybert"]),
    (["check", "experiment=digits/bitchain"], ["no such choice", "Did you mean 'digits/bit_chain'?", "digits/ti_g"]),
    (["train", "model.lr=3"], ["no such key 'model.lr'", "Did you mean 'optimizer.lr'?", "Keys here: name, kind"]),
    (["train", "optimizer.kind=sgd"], ["optimizer.kind", "'sgd'", "[adamw, bert_adam]"]),
    (["train", "model=hf", "data=agreement", "data.tokenizer=model"], ["model.path: no value", "model.path=bert"]),
    (["train", "teacher=path"], ["teacher.path: no value", "model.safetensors"]),
    (["train", "seed=[1"], ["'seed=[1'", "not a valid override", "quote the value"]),
    (["train", "seed"], ["'seed'", "KEY=VALUE"]),
    (["train", "seed=range(1,4)"], ["3 jobs in one command", "-m"]),
    (["train", "-m", "seed=abc", "method=ti_o,ti_g"], ["seed=abc", "Integer"]),
    (["table", "demo", "seed=["], ["'seed=['", "not a valid override"]),
    (["check", "data=csv", "data.dir=/x"], ["data=csv: no such choice"]),  # nothing of what stands in for it
    (["check", "experiment=tinny", "data.dir=/x"], ["experiment=tinny: no such choice"]),
    (["check", "model=/"], ["model=/: no such choice. For a folder: model=hf model.path=/. Allowed"]),
    (["check", "paths.outputs=~nobody.here/x"], ["paths.outputs=~nobody.here/x: no home folder of such a user"]),
    (
        ["check", "method=ti_o", "budget.steps=40", "budget.epochs=null"],
        ["since the other stages take intervene 60", "or lower method.stages.intervene.steps"],
    ),
    (["sweep", "dem"], ["sweep 'dem'", "Did you mean 'demo'?", "Sweeps: ablation_ti_digits"]),
    (["table", "nothing"], ["sweep 'nothing'", "Sweeps: ablation_ti_digits"]),
    (["ls", "method", "model"], ["model goes with `lowbit ls runs`"]),
    (["ls", "metod"], ["metod: no such group", "Did you mean 'method'?", "quantizer"]),
]
REFUSED_BY_ARGPARSE: list[tuple[list[str], list[str]]] = [
    (["frobnicate"], ["invalid choice: 'frobnicate'", "train", "sweep", "table", "check", "ls"]),
    (["sweep"], ["required: name"]),
    (["compare", "a"], ["required: right\n"]),
    (["train", "--sed=1"], ["unrecognized arguments: --sed=1"]),
    (["table", "demo", "--format", "pdf"], ["invalid choice: 'pdf'", "md", "csv", "latex"]),
]


@pytest.mark.parametrize(("argv", "words"), REFUSED, ids=lambda value: " ".join(value)[:50])
def test_refused_with_one_readable_line(argv, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    head, line = err.splitlines()
    assert head == "1 problem in the configuration:"
    assert line.startswith("  - ")
    for word in words:
        assert word in line, err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("argv", "words"), REFUSED_BY_ARGPARSE, ids=lambda value: " ".join(value)[:50])
def test_refused_by_argparse(argv, words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    for word in words:
        assert word in err


def test_check_reports_seeded_mistakes_at_once(capsys):
    """A wrong choice, a wrong key, a wrong type and a value that only makes no sense."""
    assert main(["check", "method=ti_gg", "model.depth=3", "seed=abc", "optimizer.lr=-1"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    head, *lines = err.splitlines()
    assert head == "4 problems in the configuration:"
    expected = (
        "method=ti_gg: no such choice. Did you mean 'ti_g'?",
        "model.depth=3: no such key 'model.depth'.",
        "seed=abc: seed: Value 'abc' of type 'str' could not be converted to Integer",
        "optimizer.lr=-1.0: must be greater than 0",
    )
    for line, text in zip(lines, expected, strict=True):
        assert line.startswith(f"  - {text}")


def test_overrides_of_a_wrong_choice_are_still_checked(capsys):
    """A key of the method that was mistyped cannot be known; all the others can."""
    assert main(["check", "experiment=digits/ti_g", "model=vit_mikro", "model.patch_size=big", "data.augment=5.5"]) == 2
    err = capsys.readouterr().err
    assert "Did you mean 'vit_micro'?" in err
    assert "model.patch_size" in err
    assert "data.augment" in err
    assert err.startswith("3 problems")


def test_problems_of_several_jobs_are_listed_once(capsys):
    assert main(["check", "seed=-1,-2", "optimizer.lr=0"]) == 2
    head, *lines = capsys.readouterr().err.splitlines()
    assert head == "3 problems in the configuration:"
    assert [line.split(":")[0].strip() for line in lines] == ["- seed=-1", "- optimizer.lr=0.0", "- seed=-2"]


@pytest.mark.parametrize(
    "value",
    [
        "/home/jürgen/glue",
        "/home/my data/x",
        "/x/a&b;c#d!",
        "日本",
        "/a b/ü",
        "/tmp/x^y",
        "${oc.env:HOME}/a",
        "a\\b",
        "",
    ],
)
def test_a_plain_path_needs_no_quotes(value):
    (kept,) = C.expand([f"data.dir={value}"])[0]
    assert C.compose([kept]).data.dir == value.replace("${oc.env:HOME}", os.environ["HOME"])


@pytest.mark.parametrize(
    "value",
    ["/x/(1)", "/x/a'b", '/x/a"b', "/x/[ü]", "/x/ü=1", '/x/ü\'s "q"\\z', "C:\\ü", "[1", "/x/ü'\\", "{ü", 'ü=\\"'],
)
def test_the_advice_to_quote_works(value):
    """It is pasted into a shell."""
    _, (problem,) = check_overrides([f"data.dir={value}"])
    (word,) = shlex.split(problem.split("quote the value: ")[1])
    assert C.compose([word]).data.dir == value


def test_values_of_a_sweep_are_quoted_one_by_one():
    assert [C.compose(job).data.dir for job in C.expand(["data.dir=/ü,/b,/ä c"])] == ["/ü", "/b", "/ä c"]


@pytest.mark.parametrize("override", ["{}=~/x", "{}='~/x'", "{}=~/ü", "++{}=~/x"])
@pytest.mark.parametrize("key", [key for key in PATHS if key != "teacher.model.path"])
def test_a_tilde_is_the_home_folder_in_every_path(key, override, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = C.compose([override.format(key)])
    leaf = "ü" if "ü" in override else "x"
    assert OmegaConf.select(cfg, key) == str(tmp_path / leaf)


def test_every_path_is_listed():
    words = ("path", "dir", "train_file", "soft_labels", "outputs")
    keys = {found.key for found in settings_of(Config(teacher=TeacherConfig(model=ModelConfig())))}
    assert {key for key in keys if key.rpartition(".")[2] in words} == set(PATHS)


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("ti_gg", ["ti_g", "ti_o"], "Did you mean 'ti_g'? "),
        ("trainer.lr", ["trainer", "teacher.optimizer.lr", "optimizer.lr"], "Did you mean 'optimizer.lr'? "),
        ("lr", ["logger", "optimizer.lr"], "Did you mean 'optimizer.lr'? "),
        ("budgt.steps", ["method.stages.a.steps", "budget.steps"], "Did you mean 'budget.steps'? "),
        ("modle", ["model", "method"], "Did you mean 'model'? "),
        ("zzz", ["ti_g", "ti_o"], ""),
        ("anything", [], ""),
    ],
)
def test_nearest(word, known, hint):
    assert nearest(word, known) == hint
