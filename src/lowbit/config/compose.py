"""Find the shipped config files, compose a run's config, and expand sweeps into jobs (imports no torch)."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from lowbit.settings.run import PATHS, Config

ROOT_CONFIG = "config"
TABLE = "table"  # key of the layout in a sweep's file
# Of a value, what Hydra's grammar reads without quotes, and what has a meaning in it.
_UNQUOTED = re.compile(r"[\w/+.$%*@?|: \\{}\[\](),='\"-]*", re.ASCII)
_MEANT = re.compile(r"[\\{}\[\]()='\"]")
_NOT_GROUPS = ("sweeps/wandb",)  # files of W&B's own format, for `wandb sweep`


def shipped_root() -> Path:
    """Return the folder that holds conf/ and sweeps/: the checkout, or the installed package."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parents[1]
    return checkout if (checkout / "conf" / "config.yaml").is_file() else package


class _LowbitFiles(FileConfigSource):
    """Config files as Hydra reads them, without the layout of a sweep's table, which is no setting of a run."""

    @staticmethod
    def scheme() -> str:
        return "lowbit"

    def load_config(self, config_path: str) -> ConfigResult:
        found = super().load_config(config_path)
        if config_path.startswith("sweeps/") and isinstance(found.config, DictConfig):
            found.config.pop(TABLE, None)
        return found


class _LowbitSearchPath(SearchPathPlugin):
    """Make sweeps/ a config group, and let ./conf and ./sweeps of the working directory add choices."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        root, here = shipped_root(), Path.cwd()
        search_path.append("lowbit", f"lowbit://{root}")
        if here != root:
            for path in (here / "conf", here):
                if (path / "sweeps").is_dir() or (path.name == "conf" and path.is_dir()):
                    search_path.append("user", f"lowbit://{path}")


def register() -> None:
    """Tell Hydra about the root schema and the search path; safe to call twice."""
    store = ConfigStore.instance()
    if "base_config.yaml" not in store.repo:  # building the schema takes longer than reading a choice's file
        store.store(name="base_config", node=Config)
    Plugins.instance().register(_LowbitFiles)
    Plugins.instance().register(_LowbitSearchPath)


def _if_equal(value: object, other: object, then: object, otherwise: object) -> object:
    """Serve `${if_equal:a,b,then,otherwise}`: published rules that depend on the data set or the model."""
    return then if _plain(value) == other else otherwise


def _choose(value: object, table: dict[str, object]) -> object:
    """Serve `${choose:a,{b: 1, c: 2}}`: published settings of which each data set has its own."""
    key = _plain(value)
    if key not in table:
        raise ValueError(f"{key!r} has no value of its own here; those that have: {', '.join(map(str, table))}")
    return table[key]


def _plain(value: object) -> object:
    """Return the word that a config file writes for a value."""
    return value.name if isinstance(value, Enum) else value


# At import: the processes of Hydra's launchers compose configs before they call anything of ours.
OmegaConf.register_new_resolver("if_equal", _if_equal, replace=True)
OmegaConf.register_new_resolver("choose", _choose, replace=True)


@contextmanager
def hydra_session() -> Iterator[None]:
    """Initialise Hydra on the shipped config folder for the duration of the block.

    Raises:
        ValueError: the block follows defaults lists in a circle.
    """
    register()
    with initialize_config_dir(config_dir=str(shipped_root() / "conf"), version_base="1.3"):
        try:
            yield
        except RecursionError as error:
            raise ValueError("a defaults list leads back to itself") from error


def compose(overrides: list[str]) -> DictConfig:
    """Compose one run's config.

    Raises:
        hydra.errors.HydraException, omegaconf.errors.OmegaConfBaseException: see `problems.explain`.
    """
    with hydra_session():
        cfg = hydra_compose(ROOT_CONFIG, overrides=quoted(overrides))
    _expand_home(cfg)
    return cfg


def _expand_home(cfg: DictConfig) -> None:
    """Replace a leading `~` of every path by the home folder.

    Raises:
        ValueError: `~name`, and there is no such user.
    """
    for key in PATHS:
        path = OmegaConf.select(cfg, key)
        if isinstance(path, str) and path.startswith("~"):
            found = os.path.expanduser(path)  # noqa: PTH111 - a hub name may not become a Path
            if found.startswith("~"):
                raise ValueError(f"{key}={path}: no home folder of such a user; write the whole path, or ./{path}")
            OmegaConf.update(cfg, key, found)


def quoted(overrides: Sequence[str]) -> list[str]:
    """Put quotes around values that Hydra reads only so, for example `data.dir=daten/jürgen/a&b`; expand `~` in paths.

    Commas still separate the values of a sweep. Values that hold brackets, quotes or backslashes stay as they are,
    since these may be meant as Hydra's.
    """
    return [_quoted(text) for text in overrides]


def _quoted(text: str) -> str:
    key, equals, value = text.partition("=")
    if _UNQUOTED.fullmatch(value) or _MEANT.search(value):
        return text
    parts = value.split(",")
    if key.lstrip("+") in PATHS:
        parts = [os.path.expanduser(part) for part in parts]  # noqa: PTH111 - as above
    return f"{key}{equals}" + ",".join(part if _UNQUOTED.fullmatch(part) else f"'{part}'" for part in parts)


def to_config(cfg: DictConfig) -> Config:
    """Return the typed config object; `~` in paths is expanded, in `cfg` too."""
    _expand_home(cfg)
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    return config


def choices(group: str) -> list[str]:
    """Return the choices of a config group, nested ones as `folder/name`; names that start with _ are hidden."""
    # The sources themselves: the loader's get_group_options copies every schema first, for ten milliseconds a group.
    sources = [source for source in GlobalHydra.instance().config_loader().get_sources() if source.is_group(group)]
    found = {name for source in sources for name in source.list(group, ObjectType.CONFIG)}
    for folder in {name for source in sources for name in source.list(group, ObjectType.GROUP)}:
        if f"{group}/{folder}" not in _NOT_GROUPS:
            found |= {f"{folder}/{name}" for name in choices(f"{group}/{folder}")}
    return sorted(name for name in found if not name.rsplit("/", 1)[-1].startswith("_"))


def groups() -> list[str]:
    """Return the config groups of conf/, and `sweeps`."""
    return [*sorted(path.name for path in (shipped_root() / "conf").iterdir() if path.is_dir()), "sweeps"]


def expand(overrides: list[str]) -> list[list[str]]:
    """Expand `a=1,2`, `range` and `choice` into one override list per job, as Hydra's basic sweeper does.

    Of several overrides of one key the last one counts.
    """
    axes: dict[str, list[str]] = {}
    for override in OverridesParser.create().parse_overrides(quoted(overrides)):
        key = override.get_key_element()
        if override.is_interval_sweep():
            raise ValueError(f"{override.input_line}: the values of an interval cannot be listed; use `lowbit search`")
        if override.is_sweep_override():
            axes[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            axes[key] = [override.input_line or ""]
    return [list(job) for job in itertools.product(*axes.values())]


def sweep_overrides(name: str, overrides: list[str]) -> list[str]:
    """Return what `expand` turns into a sweep's jobs: its `hydra.sweeper.params` and `overrides`.

    An override of a swept key replaces the sweep's own values.
    """
    with hydra_session():
        cfg = hydra_compose(ROOT_CONFIG, overrides=[f"+sweeps={name}"], return_hydra_config=True)
    params = OmegaConf.to_container(cfg.hydra.sweeper.params or {}, resolve=False)
    assert isinstance(params, dict)
    swept = ["=".join(map(str, item)) for item in params.items()]
    return [f"+sweeps={name}", f"sweep={name}", *swept, *overrides]


def files_of(choice: str) -> list[Path]:
    """Return the files of a choice such as `method/ti_g`, ours and that of the working directory; the first counts."""
    roots = dict.fromkeys((shipped_root(), Path.cwd()))
    files = ((root if choice.startswith("sweeps/") else root / "conf") / f"{choice}.yaml" for root in roots)
    return [file for file in files if file.is_file()]


def first_comment(group: str, name: str) -> str:
    """Return the first comment line of a choice's file, without the package directive."""
    files = files_of(f"{group}/{name}")
    if not files:
        return ""
    lines = (line.strip() for line in files[0].read_text(encoding="utf-8").splitlines())
    return next((line[1:].strip() for line in lines if line.startswith("#") and "@package" not in line), "")
