"""Every sweep states how many jobs it has, and they compose, validate, differ, and have a place in its table."""

import re
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from lowbit.config import compose as C
from lowbit.config import identity
from lowbit.config.batch import load_jobs
from lowbit.config.problems import ConfigError
from lowbit.config.validate import load
from lowbit.results import read_layout
from lowbit.results.collect import Cell
from lowbit.results.layout import Part, parts_of
from lowbit.results.published import matches

ROOT = C.shipped_root()
FIXTURES = Path(__file__).parents[1] / "fixtures"
# `sweeps/search_*` hold spaces for `lowbit search`, which nobody can list: tests/config/test_shipped_files.py.
SWEEPS = sorted(path.stem for path in (ROOT / "sweeps").glob("*.yaml") if not path.stem.startswith("search_"))

# What stands in for data that are not here: the fixtures, which have few rows. {glue} is the GLUE fixture many times
# over, so that intervened steps fit into the epochs; {model} a folder that passes for a model.
GLUE = ["data.dir={glue}"]
IMAGES = [f"data.dir={FIXTURES / 'images'}", "data.batch_size=1"]
NEEDS = {
    **{
        name: GLUE
        for name in SWEEPS
        if re.search("glue$|mnli_qqp$|distillation$|^ti_modes$|^ti_time$|^estimators$", name)
    },
    **{name: [*GLUE, "model=hf", "model.path={model}"] for name in ("methods_cola", "methods_sst2")},
    "sdq_xglue": [f"data.dir={FIXTURES / 'xglue'}", "data.languages=[en,de]"],
    "ternarybert_squad": [f"data.dir={FIXTURES / 'squad'}"],
    **dict.fromkeys(("ti_vit_imagenet", "variation_aware_imagenet", "variation_aware_ablation"), IMAGES),
}


@pytest.fixture(scope="module")
def stand_ins(glue: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders that `NEEDS` names."""
    many = tmp_path_factory.mktemp("glue")
    for file in glue.glob("*/*.tsv"):
        lines = file.read_text().splitlines(keepends=True)
        header = 0 if file.parent.name == "CoLA" else 1
        (many / file.parent.name).mkdir(exist_ok=True)
        (many / file.parent.name / file.name).write_text("".join(lines[:header] + 400 * lines[header:]))
    return {"glue": many, "model": model_folder}


def jobs_of(name: str, stand_ins: dict[str, Path]) -> list[list[str]]:
    return C.expand(C.sweep_overrides(name, [need.format(**stand_ins) for need in NEEDS.get(name, [])]))


def covering(jobs: list[list[str]]) -> list[list[str]]:
    """Return the first job, the last, and as few in between as hold every value of every axis.

    Composing a config takes a quarter of a second, and a sweep has up to a hundred. In between, one seed will do, and
    one experiment: tests/config/test_shipped_files.py composes each of these.
    """
    axes = [list(dict.fromkeys(words)) for words in zip(*jobs, strict=True)]
    assert jobs == [list(job) for job in product(*axes)]
    covered = [axis for axis in axes if not axis[0].startswith(("seed=", "experiment="))]
    longest = max(2, *(len(axis) for axis in covered))
    return [
        [axis[-1 if place == longest - 1 else min(place, len(axis) - 1)] for axis in axes] for place in range(longest)
    ]


def stated_jobs(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"(\d+) jobs\b", header(name))]


@cache
def header(name: str) -> str:
    lines = (ROOT / "sweeps" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.startswith("#") and "@package" not in line)


@pytest.mark.parametrize("name", SWEEPS)
def test_sweep(name: str, stand_ins: dict[str, Path], run_ids: dict[str, Any]):
    """As many jobs as stated; those that hold every value of every axis are valid and have a cell in the table."""
    jobs = jobs_of(name, stand_ins)
    assert stated_jobs(name) == [len(jobs)]
    known = dict(zip(map(tuple, jobs), run_ids[name], strict=True))
    configs = check(name, covering(jobs), known, alone=1)
    for part in table(name, configs):
        for key, value in part.match.items():
            assert value == "*" or any(matches(config, {key: value}) for config in configs), f"no job has {key}={value}"


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_every_job_of_a_sweep(name: str, stand_ins: dict[str, Path], run_ids: dict[str, Any]):
    jobs = jobs_of(name, stand_ins)
    known = dict(zip(map(tuple, jobs), run_ids[name], strict=True))
    configs = check(name, jobs, known, alone=len(jobs))
    for part in table(name, configs):
        # Stored labels are somebody's own: their columns fill when the sweep is given a store.
        given = part.match.get("data.soft_labels") != "*"
        assert any(matches(config, part.match) for config in configs) == given, f"{part.label}: no job is there"


def check(name: str, jobs: list[list[str]], known: dict[tuple[str, ...], str], *, alone: int) -> list[dict[str, Any]]:
    """Assert that the jobs are valid, have the ids that they always had, and each a cell; return their configs.

    Of the first `alone` jobs `load_jobs`, which verbs of many jobs use, must return what Hydra composes.
    """
    loaded = [found for found in load_jobs(jobs) if not isinstance(found, ConfigError)]
    assert [identity.run_id(content) for content, _ in loaded] == [known[tuple(job)] for job in jobs]
    assert len(set(known.values())) == len(known)
    for job, found in zip(jobs[:alone], loaded, strict=False):
        cfg, config = load(job)
        assert found == (identity.resolved(cfg), config)
        assert identity.run_id(found[0]) == identity.run_id(cfg)
        assert identity.cached_teacher(found[0]) == identity.cached_teacher(cfg)
    assert {config.sweep for _, config in loaded} == {name}
    configs = [content for content, _ in loaded]
    layout = read_layout([ROOT / "sweeps" / f"{name}.yaml"])
    for axis in () if layout is None else (layout.rows, layout.columns):
        parts = parts_of(axis, [Cell(Path(), {}, "", config) for config in configs])
        for config in configs:
            assert placed(config, parts), f"no place for {config['method']['name']}, {config['quantizer']['name']}"
    return configs


def table(name: str, configs: list[dict[str, Any]]) -> list[Part]:
    """Return the rows and columns of a sweep's table; none where it has no layout."""
    layout = read_layout([ROOT / "sweeps" / f"{name}.yaml"])
    cells = [Cell(Path(), {}, "", config) for config in configs]
    return [] if layout is None else [*parts_of(layout.rows, cells), *parts_of(layout.columns, cells)]


def placed(config: dict[str, Any], parts: list[Part]) -> bool:
    return any(matches(config, part.match) and not part.teacher for part in parts)


@pytest.mark.parametrize("name", SWEEPS)
def test_header_says_what_it_costs(name: str):
    """What it is, its command, and how long it takes; what no machine here has run says so, and which data it needs."""
    text = header(name)
    assert text.startswith(f"# `lowbit sweep {name}")
    assert re.search(r"\b(minutes?|hours?|days?|weeks?|half an hour)\b", text)
    if "One GPU:" in text:
        assert "not measured" in text
        assert "# Data: " in text
        (twin,) = re.findall(r"Small twin: (\w+)", text)
        assert twin in SWEEPS
        assert not NEEDS.get(twin), f"{twin} needs data that a laptop has to fetch"
    assert max(map(len, text.splitlines())) <= 125


def test_docs_list_every_sweep():
    """With the number of jobs that its file states."""
    text = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    for name in SWEEPS:
        (jobs,) = stated_jobs(name)
        row = rf"\| `{name}` \|[^|]*\| {jobs} \|"
        assert re.search(rf"{row}|`{name}` \({jobs}\)", text), f"docs/sweeps.md does not list {name} with {jobs} jobs"


@pytest.mark.parametrize(
    ("override", "expected"),
    [("bit_w1a2", ("bit", 50)), ("bit_chain", ("bit_chain", 100))],
)
def test_quantizer_chooses_the_method(override: str, expected: tuple[str, float], stand_ins: dict[str, Path]):
    """A product of axes cannot say that only the chain's quantizer goes with the chain; the sweep's defaults do."""
    _, config = load(["+sweeps=bit_glue", f"quantizer={override}", f"data.dir={stand_ins['glue']}"])
    assert (config.method.name, config.budget.epochs) == expected
    assert (config.data.batch_size, config.optimizer.lr) == (16, 5e-4)


def test_task_without_published_settings(stand_ins: dict[str, Path]):
    """The table of `choose` names the tasks that it has."""
    with pytest.raises(ConfigError) as caught:
        load(["+sweeps=bit_glue", "data=wnli", f"data.dir={stand_ins['glue']}"])
    (problem,) = caught.value.problems
    assert "'wnli' has no value of its own here; those that have: cola, mnli" in problem
    assert "data.batch_size" in problem


def test_stored_labels_switch_the_loss(store: Path):
    """With a store the labels of crops are learned, without one the teacher's logits."""
    for folder, logits, labels in (("null", 1.0, 0.0), (str(store), 0.0, 1.0)):
        _, config = load(["+sweeps=variation_aware_digits", f"data.soft_labels={folder}"])
        losses = config.method.losses
        assert (losses["logits"].weight, losses["soft_labels"].weight) == (logits, labels)
        assert config.data.augment is config.method.stages["qat"].teacher is (folder == "null")


def test_gradient_scale_goes_with_plain_descent():
    """Under Adam the factor would cancel; enums are compared by their names."""
    for scale, activation, update, lr in (("none", "none", "same", None), ("l1", "vvtq_act", "sgd", 1e-3)):
        sweep = ["+sweeps=variation_aware_ablation_digits", "quantizer=lsq_per_head"]
        _, config = load([*sweep, f"quantizer.weight.grad_scale={scale}"])
        assert (config.optimizer.scale_update.name, config.optimizer.scale_lr) == (update, lr)
        weights = {rule.weight.grad_scale.name for rule in config.quantizer.rules[:-1] if rule.weight is not None}
        inputs = {rule.input.grad_scale.name for rule in config.quantizer.rules if rule.input is not None}
        assert (weights, inputs) == ({scale}, {activation})


def test_the_example_of_the_documentation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    page = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    file = tmp_path / "sweeps" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(page.split("```yaml\n")[1].split("```")[0])
    monkeypatch.chdir(tmp_path)
    jobs = load_jobs(C.expand(C.sweep_overrides("mine", [])))
    assert [(config.method.name, config.seed) for _, config in jobs] == [*product(("ti_o", "ti_g"), (1, 2))]
