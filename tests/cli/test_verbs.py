"""What each verb prints and returns, from any working directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lowbit import __version__
from lowbit.cli import main
from lowbit.config import compose as C
from lowbit.config.problems import ConfigError
from lowbit.config.sources import file_problems
from lowbit.config.validate import load
from lowbit.execution.search import parse_space

VERBS = (
    *("train", "sweep", "search", "ablate", "table", "report", "compare"),
    *("check", "ls", "fetch", "softlabels", "bench"),
)
HEAVY = ("torch", "transformers", "lightning", "timm", "sklearn", "pandas", "wandb")


def test_cli_and_a_config_error_import_nothing_heavy(tmp_path: Path):
    """A config error shows in a second, and so do ls and --help."""
    code = (
        "import sys; from lowbit.cli import main; "
        "codes = [main(['ls']), main(['ls', 'method']), main(['train', 'method=ti_gg']), main(['train', 'seed=-1'])]; "
        f"heavy = [name for name in {HEAVY} if name in sys.modules]; "
        "print(codes, heavy, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[0, 0, 2, 2] []"


def test_console_script_is_this_function():
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="lowbit")
    assert script.load() is main


def test_ls(capsys):
    assert main(["ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        *sorted(path.name for path in (C.shipped_root() / "conf").iterdir() if path.is_dir()),
        "sweeps",
    ]
    with C.hydra_session():
        methods = C.choices("method")
    assert f"method       {', '.join(methods)}" in lines
    assert {"finetune", "ternarybert", "ti_g", "xtc", "bit", "binarybert"} <= set(methods)
    names = {name.strip(",") for line in lines for name in line.split()[1:]}
    assert "digits/ti_g" in names
    assert not {name for name in names if name.rsplit("/", 1)[-1].startswith("_")}


def test_ls_of_a_group_says_what_each_choice_is(capsys):
    assert main(["ls", "method"]) == 0
    lines = capsys.readouterr().out.splitlines()
    with C.hydra_session():
        assert len(lines) == len(C.choices("method"))
    described = dict(line.split(maxsplit=1) for line in lines)
    assert described["ternarybert"].startswith("TernaryBERT (arXiv 2009.12812)")
    assert all(text.endswith(".") for text in described.values())


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert f"example: lowbit {verb}" in " ".join(out.split())


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_help_lists_the_verbs(argv, capsys):
    if argv:
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == 0
    else:
        assert main([]) == 0
    out = capsys.readouterr().out
    assert "Train Transformers" in out
    assert "console script" not in out
    first_words = [line.split()[0] for line in out.splitlines() if line.startswith("    ")]
    assert [word for word in first_words if word in VERBS] == list(VERBS)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("bench", "compare")])
def test_example_of_the_help_is_valid(verb, capsys, monkeypatch, tmp_path):
    """The examples are commands that pass the checks (train and sweep: their configs do)."""
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    words = " ".join(capsys.readouterr().out.split()).split("example: lowbit ")[1].split()
    monkeypatch.chdir(tmp_path)
    if verb in ("train", "check"):
        assert main(["check", *words[1:]]) == 0
    elif verb == "search":
        parse_space(C.sweep_overrides(words[1], []))
    elif verb == "ablate":
        load([word for word in words[1:] if not word.startswith(("over=", "seed="))])
    elif verb in ("sweep", "report"):
        load(C.expand(C.sweep_overrides(words[1], [word for word in words[2:] if "=" in word]))[0])
    elif verb == "fetch":
        C.to_config(C.compose(words[1:]))
    elif verb == "softlabels":
        load([word for word in words if "=" in word], labelling=True)
    else:
        assert main(words) == 0


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"lowbit {__version__}\n"


def test_a_reader_that_leaves_is_no_error(monkeypatch, capsys):
    """`lowbit ls method | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["ls", "method"]) == 141
        monkeypatch.undo()
    assert capsys.readouterr().err == ""


def test_commas_without_m_are_refused(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "method=ti_o,ti_g", "seed=1,2"]) == 2
    assert "4 jobs in one command: add -m" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_overrides_may_stand_on_both_sides_of_an_option(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "seed=-1", "-m", "optimizer.lr=-1,-2", "model.dropout=3"]) == 2
    err = capsys.readouterr().err
    for words in ("seed=-1", "optimizer.lr=-1.0", "optimizer.lr=-2.0", "model.dropout=3.0"):
        assert words in err


def test_check_shows_stages_rules_and_size(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["check", "experiment=agreement/ti_g"]) == 0
    out = capsys.readouterr().out
    head, *lines = out.splitlines()
    assert head.startswith("agreement/ti_g/")
    assert head.endswith(": valid")
    assert "  stage intervene: 60 steps, losses logits, hidden, scores, attn_block, adamw lr 0.0005" in lines
    assert "  stage plain: 940 steps, losses logits, hidden, scores, attn_block, adamw lr 0.0005" in lines
    assert any(line.startswith("  word_embedding: 1 embedding: weight twn/row") for line in lines)
    assert any(line.startswith("  size ") for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_check_of_a_rule_that_matches_nothing(capsys):
    """Nothing in the config says which modules a model has: the preview builds it without weights."""
    assert main(["check", "quantizer.rules=[{match:[querry],weight:{kind:twn}}]"]) == 2
    err = capsys.readouterr().err
    assert "matches no module" in err
    assert "Did you mean 'query'?" in err
    assert "Traceback" not in err


def test_check_of_several_jobs(capsys):
    assert main(["check", "method=ti_o,ti_g"]) == 0
    out = capsys.readouterr().out
    assert [line.split("/")[1] for line in out.splitlines() if line.endswith(": valid")] == ["ti_o", "ti_g"]


MY_EXPERIMENT = """# @package _global_
# My own cell.
defaults:
  - override /method: ti_g

name: mine
method:
  losses:
    mine: {kind: maps, weight: 0.5}
"""


def test_working_directory_adds_choices(capsys, monkeypatch, tmp_path):
    """./conf and ./sweeps beside the user's own work; a loss that the method lacks is one line of YAML."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(MY_EXPERIMENT)
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "own.yaml").write_text(
        "# @package _global_\n# My sweep.\nhydra:\n  sweeper:\n    params:\n      seed: 3,4\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["ls", "experiment"]) == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert listed["mine"] == "My own cell."
    assert "digits/ti_g" in listed
    assert main(["check", "experiment=mine"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("mine/")
    assert "losses logits, hidden, scores, attn_block, mine" in out
    assert main(["check", "experiment=mime"]) == 2
    assert "Did you mean 'mine'?" in capsys.readouterr().err
    assert main(["table", "own", "experiment=mine", "--format", "md"]) == 0
    assert "not run" in capsys.readouterr().out
    monkeypatch.chdir("/")
    assert main(["check", "experiment=mine"]) == 2
    assert "no such choice" in capsys.readouterr().err


GLOBAL = "# @package _global_\n"
# a file of the user, its content, and the one problem
WRONG_FILES: list[tuple[str, str, str]] = [
    (
        "experiment/x",
        GLOBAL + "# A typo.\nsead: 7\n",
        "line 3: no such key 'sead'. Did you mean 'seed'? Keys here: name",
    ),
    ("experiment/x", "# No header.\nseed: 7\n", "line 1: the first line must be `# @package _global_`, before"),
    ("experiment/x", GLOBAL + "optimizer:\n  lr: fast\n", "line 3: optimizer.lr: Value 'fast' of type 'str' could not"),
    (
        "experiment/x",
        GLOBAL + "optimizer: {kind: sgd}\n",
        "line 2: optimizer.kind: Invalid value 'sgd', expected one of",
    ),
    ("experiment/x", GLOBAL + "optimizer: 3\n", "line 2: optimizer: "),
    ("experiment/x", GLOBAL + "lr: 3\n", "line 2: no such key 'lr'. Did you mean 'optimizer.lr'?"),
    (
        "experiment/x",
        GLOBAL + "defaults:\n  - override /method: ti_gg\n",
        "line 3: method=ti_gg: no such choice. Did you mean",
    ),
    (
        "experiment/x",
        GLOBAL + "defaults:\n  - override /metod: ti_g\n",
        "line 3: no group 'metod'. Did you mean 'method'?",
    ),
    (
        "experiment/x",
        GLOBAL + "defaults:\n  - method: ti_g\n",
        "line 3: no group 'experiment/method'; write `override /meth",
    ),
    ("experiment/x", GLOBAL + "name: [broken\n", "line 2, column 7 expected ',' or ']'"),
    ("experiment/x", GLOBAL + "seed: 1\nseed: 2\n", "line 3, column 1"),
    ("experiment/x", "- 1\n", "line 1: a config file holds keys and values"),
    ("experiment/x", "# mine\n" + GLOBAL + "seed: 1\n", "the first line must be `# @package _global_`, before other"),
    ("experiment/x", GLOBAL + "defaults: {data: digits}\n", "line 2: defaults: must be a list"),
    ("experiment/x", GLOBAL + "defaults:\n- {data: digits, model: x}\n", "line 3: an entry is one choice"),
    ("experiment/x", GLOBAL + "defaults: [x]\n", "line 2: experiment/x leads back to itself"),
    ("experiment/x", GLOBAL + "optimizer:\nseed: 1\n", "line 2: optimizer: has no keys; indent them below it"),
    ("experiment/x", GLOBAL + "optimizer.lr: 1\n", "line 2: optimizer.lr: dots are for overrides; in a file write"),
    ("experiment/x", GLOBAL + "optimizer: {lr: '${nope}'}\n", "optimizer.lr: Interpolation key 'nope' not found"),
    ("experiment/x", GLOBAL + "seed: 1\noptimizer:\n  lr: -1\n", "optimizer.lr=-1.0: must be greater than 0"),
    ("experiment/x", GLOBAL + "\nname: ../../x\n", "name=../../x: is part of a path"),
    ("experiment/x", GLOBAL + "method: {stages: {'../x': {steps: 3}}}\n", "method.stages=../x: is part of a path"),
    (
        "method/x",
        "name: x\nlosses: {task: {knd: task}}\nstages: {a: {}}\n",
        "line 2: no such key 'method.losses.task.knd'",
    ),
    (
        "method/x",
        "name: x\nstages:\n  a: {stepz: 3}\n",
        "line 3: no such key 'method.stages.a.stepz'. Did you mean 'steps'",
    ),
    ("method/x", "defaults:\n  - _losse\nname: x\n", "line 2: method=_losse: no such choice"),
    ("method/x", "name: \xff", "can't decode byte 0xff"),
    ("method/ti_g", "name: mine\n", "is not read, since lowbit has a method/ti_g too; rename the file"),
]


@pytest.mark.parametrize(("choice", "content", "words"), WRONG_FILES, ids=lambda value: str(value)[-40:])
def test_error_in_a_file_of_the_user(choice, content, words, capsys, monkeypatch, tmp_path):
    """It names file, line and key; what the file should say, where that can be known."""
    file = tmp_path / "conf" / f"{choice}.yaml"
    file.parent.mkdir(parents=True)
    file.write_bytes(content.encode("latin-1"))
    monkeypatch.chdir(tmp_path)
    assert main(["check", choice.replace("/", "=")]) == 2
    head, *problems = capsys.readouterr().err.splitlines()
    assert head == "1 problem in the configuration:"
    assert words in problems[0]
    assert f"conf/{choice}.yaml" in problems[0]
    assert len(problems) == 1


def test_errors_of_a_file_that_another_one_names_and_of_overrides_are_told_at_once(capsys, monkeypatch, tmp_path):
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "base.yaml").write_text(GLOBAL + "sead: 1\n")
    (folder / "x.yaml").write_text(GLOBAL + "defaults:\n  - /experiment/base\noptimizer: {lrr: 1}\n")
    monkeypatch.chdir(tmp_path)
    assert main(["check", "experiment=x", "optimizer.lr=-1", "model.dept=3"]) == 2
    head, *problems = capsys.readouterr().err.splitlines()
    assert head == "4 problems in the configuration:"
    for words in (
        "base.yaml, line 2: no such key 'sead'",
        "x.yaml, line 4: no such key 'optimizer.lrr'",
        "lr=-1.0",
        "dept",
    ):
        assert any(words in problem for problem in problems)


def test_shipped_files_have_no_problems():
    choices = [f"{group}={name}" for group, name in _shipped() if group != "paper"]
    assert len(choices) > 80
    assert file_problems(choices) == {}


def _shipped() -> list[tuple[str, str]]:
    with C.hydra_session():
        return [(group, name) for group in C.groups() for name in C.choices(group)]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("quantizer.rules=[{match:[querry],weight:{kind:twn}}]", "Did you mean 'query'?"),
        ("quantizer.rules=[{match:[query],weight:{kind:ipq,block_size:7}}]", "block_size=7 does not divide"),
        ("trainer.accelerator=foo", "trainer.accelerator=foo: must be one of auto, cpu"),
        ("paths.outputs=~/x/../y", "querry"),
    ],
)
def test_a_refused_run_leaves_nothing(override, words, capsys, monkeypatch, tmp_path, few_steps):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    more = ["quantizer.rules=[{match:[querry],weight:{kind:twn}}]"] if "paths" in override else []
    assert main(["train", *few_steps(["method=ternarybert"]), override, *more]) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_refused_late_leaves_nothing(monkeypatch, tmp_path, few_steps):
    """Surgery refuses what only the trained teacher shows; here the folder of the data is refused."""
    from lowbit.training import run

    def refuse(*_: object) -> None:
        raise ConfigError(["too late"])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "make_datamodule", refuse)
    assert main(["train", *few_steps(["method=finetune"])]) == 2
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_train_from_another_folder_writes_only_outputs(capsys, monkeypatch, tmp_path, few_steps):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *few_steps(["method=finetune"]), "teacher.seed=3"]) == 0
    out, err = capsys.readouterr()
    assert err == "note: teacher.seed=3: has no effect, since method=finetune needs no teacher\n"
    plan = dict(line.split(maxsplit=1) for line in out.splitlines()[:6])
    assert (plan["data"], plan["model"]) == ("digits, 20 rows a step", "vit_micro")
    assert (plan["method"], plan["bits"], plan["teacher"]) == ("finetune: finetune, 4 steps", "full precision", "none")
    assert plan["folder"] == str(next(iter(Path().glob("outputs/runs/digits/finetune/*"))))
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    assert len(list(tmp_path.glob("outputs/runs/digits/finetune/*/run.json"))) == 1
