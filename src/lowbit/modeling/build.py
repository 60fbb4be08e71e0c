"""Build the model that a config names, and load its weights, or those of a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from lowbit.config.model_files import MODEL_CONFIG, WEIGHTS, weight_file
from lowbit.hub import first_line, quiet_hub
from lowbit.modeling.families import HF_BERT, TIMM_VIT, Family, family_of, import_family
from lowbit.modeling.hub import NO_CODE, explain_load_errors, out_of_reach, setting_of, source_of
from lowbit.modeling.labels import name_labels, order_head, saved_labels, timm_labels
from lowbit.modeling.weights import not_finite, read_weights
from lowbit.settings.data import DataInfo
from lowbit.settings.model import ModelConfig, ModelKind

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_SMALL_IMAGE = 32  # pixels


@dataclass(frozen=True)
class Origin:
    """Where weights come from other than random numbers.

    Attributes:
        key: The setting that a message names.
        folder: Folder with weights of the config's architecture, which are loaded instead of those that the config
            names.
        trained_head: Whether the weights must include the head. Otherwise, a missing head is random.
    """

    key: str = "model.path"
    folder: Path | None = None
    trained_head: bool = False


def build_model(config: ModelConfig, info: DataInfo, seed: int, origin: Origin = Origin()) -> nn.Module:
    """Build a model with the head that the data set needs, in eval mode; `seed` determines its random weights.

    On the meta device no weights are read. The head's outputs are in the order of the data set's labels: those of a
    checkpoint that names the same labels in another order are reordered.

    Raises:
        OutOfReachError: If a model of the hub is neither cached nor reachable.
        ValueError: If a folder or name does not hold such a model, or holds one of other labels.
    """
    builders = {
        ModelKind.bert: _bert,
        ModelKind.vit: _vit,
        ModelKind.timm_vit: _timm_vit,
        ModelKind.hf: _hugging_face,
        ModelKind.timm: _timm,
    }
    if config.family is not None:
        import_family(config.family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = builders[config.kind](config, info, origin).eval()
    depths = family_of(model).depths(model)
    if config.depths not in (None, depths):
        raise ValueError(
            f"model.depths={config.depths}: this {type(model).__name__} has {depths} layers; set model.depths to that"
        )
    name_labels(model, info)
    return model


# --- transformers ---------------------------------------------------------------------------------------------------


def _bert(config: ModelConfig, info: DataInfo, origin: Origin) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    if info.max_length is not None and info.max_length > config.max_positions:
        raise ValueError(f"model.max_positions={config.max_positions}: the data needs {info.max_length} or more")
    text: dict[str, Any] = {"vocab_size": info.vocab_size, "max_position_embeddings": config.max_positions}
    described = BertConfig(**text, **_sizes(config, info))
    if origin.folder is None:
        return BertForSequenceClassification(described)
    return _hugging_face(config, info, origin, described)


def _vit(config: ModelConfig, info: DataInfo, origin: Origin) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    _check_patches(config, info)
    image: dict[str, Any] = {"image_size": info.image_size, "num_channels": info.channels}
    described = ViTConfig(**image, patch_size=config.patch_size, **_sizes(config, info))
    if origin.folder is None:
        return ViTForImageClassification(described)
    return _hugging_face(config, info, origin, described)


def _sizes(config: ModelConfig, info: DataInfo) -> dict[str, Any]:
    return {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "num_labels": info.num_labels,
        **HF_BERT.dropout_rates(config.dropout),
    }


def _check_patches(config: ModelConfig, info: DataInfo) -> None:
    if info.image_size is not None and config.patch_size > info.image_size:
        raise ValueError(
            f"model.patch_size={config.patch_size}: images of data={info.name} are {info.image_size} pixels wide; "
            "choose a patch of at most that size"
        )


def _hugging_face(
    config: ModelConfig, info: DataInfo, origin: Origin, described: PretrainedConfig | None = None
) -> nn.Module:
    """Load a model with transformers' own `from_pretrained`, and refuse what that accepts silently.

    The architecture is that of the config.json beside the weights; without one, `described` or that of `model.path`.
    """
    from transformers import AutoConfig

    auto = _auto_class(info)
    source = source_of(config) if origin.folder is None else str(origin.folder)
    where = f"{origin.key}={source}"
    hub = {"revision": config.revision or "main", **NO_CODE}
    with explain_load_errors(config, where=where):
        has_config = origin.folder is None or (origin.folder / MODEL_CONFIG).is_file()
        if has_config or described is None:
            architecture = source if has_config else source_of(config)
            described = AutoConfig.from_pretrained(architecture, num_labels=info.num_labels, **hub)
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            plan: PreTrainedModel = auto.from_config(described, dtype=torch.float32, **NO_CODE)
    family = _family(where, plan)
    _check_size(where, plan, info)
    if _on_meta():
        return plan
    for name, rate in family.dropout_rates(config.dropout).items():
        setattr(described, name, rate)
    _hide_loading_bar()
    with explain_load_errors(config, where=where):
        model: nn.Module
        # Sizes that differ are no error of the library, because the check below names the data set and the fix.
        checked = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, report = auto.from_pretrained(source, config=described, dtype=torch.float32, **hub, **checked)
    _check_loaded(where, model, info, report, origin)
    _check_positions(where, model, info)
    _check_finite(where, model, Path(source))
    if not report["missing_keys"]:
        order_head(where, model, cast("dict[int, str] | None", described.id2label), info)
    return model


def _auto_class(info: DataInfo) -> Any:
    import transformers

    if info.modality == "image":
        return transformers.AutoModelForImageClassification
    heads: dict[str, object] = {
        "span": transformers.AutoModelForQuestionAnswering,
        "tagging": transformers.AutoModelForTokenClassification,
    }
    return heads.get(info.task, transformers.AutoModelForSequenceClassification)


def _check_size(where: str, plan: nn.Module, info: DataInfo) -> None:
    """Send an image of the data's size through a model without weights, because no library compares the two."""
    if info.image_size is None:
        return
    try:
        plan(pixel_values=torch.empty(1, info.channels or 3, info.image_size, info.image_size, device="meta"))
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"{where}: it does not take the images of {info.image_size} pixels that its preprocessor_config.json, or "
            f"data={info.name}, makes ({first_line(error).rstrip('.')}); correct the size there, or image_size in its "
            "config.json"
        ) from error


def _hide_loading_bar() -> None:
    """Switch off the bars of transformers for loading weights, but not those of downloads."""
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    enable_progress_bars()


def _check_loaded(where: str, model: nn.Module, info: DataInfo, report: dict[str, Any], origin: Origin) -> None:
    """Refuse cut models, and random weights anywhere but in the head, which a pre-trained encoder lacks."""
    family = family_of(model)
    head = tuple(f"{name}." for role in ("pooler", "classifier") for name in family.model_roles.get(role, ()))
    for key, theirs, ours in report["mismatched_keys"]:
        what = (
            f"{tuple(ours)} for the {info.num_labels} labels of data={info.name}; give a checkpoint of that task, or "
            "one without a head"
            if key.startswith(head)
            else f"{tuple(ours)} by its config; give both of one model"
        )
        raise ValueError(f"{where}: {key} is {tuple(theirs)} in the checkpoint, but {what}")
    missing = sorted(report["missing_keys"])
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
    more = sorted(key for key in report["unexpected_keys"] if key.startswith(layers))
    if more:
        raise ValueError(
            f"{where}: the checkpoint has {len(more)} tensors in layers that its config lacks, such as "
            f"{', '.join(more[:3])}; they would be left out. Give the config.json of this checkpoint"
        )


def _check_positions(where: str, model: nn.Module, info: DataInfo) -> None:
    """Refuse sequences that are longer than the model can count: they would fail in the middle of training."""
    for name in family_of(model).role_names(model).get("position_embedding", ()):
        table = cast("nn.Embedding", model.get_submodule(name))
        room = table.num_embeddings if table.padding_idx is None else table.num_embeddings - table.padding_idx - 1
        if info.max_length is not None and info.max_length > room:
            raise ValueError(f"data.max_length={info.max_length}: {where} has {room} positions; set {room} or less")


# --- timm -----------------------------------------------------------------------------------------------------------


def _timm_vit(config: ModelConfig, info: DataInfo, origin: Origin) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    _check_patches(config, info)
    settings = {"img_size": info.image_size, "in_chans": info.channels, **TIMM_VIT.dropout_rates(config.dropout)}
    model = VisionTransformer(
        **settings,
        patch_size=config.patch_size,
        num_classes=info.num_labels,
        embed_dim=config.hidden_size,
        depth=config.num_layers,
        num_heads=config.num_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
        weight_init="jax",  # Xavier: timm's default of 0.02 hardly moves at these widths
    )
    return _load_folder(model, info, origin)


def _timm(config: ModelConfig, info: DataInfo, origin: Origin) -> nn.Module:
    import timm

    assert config.timm_name is not None
    where, plan = setting_of(config), plan_timm(config)
    facts = plan.pretrained_cfg
    sizes: dict[str, Any] = {"img_size": info.image_size, "in_chans": info.channels, "num_classes": info.num_labels}
    if config.pretrained:
        sizes.pop("img_size")
    elif info.image_size is not None and info.image_size <= _SMALL_IMAGE:
        sizes["patch_size"] = config.patch_size  # timm's patches of 16 pixels would leave four tokens, or none
    weights = config.pretrained and origin.folder is None and not _on_meta()
    same_classes = facts["num_classes"] == info.num_labels
    if weights and origin.trained_head and not same_classes:
        raise ValueError(  # timm would replace the head by a random one
            f"teacher.source=hub: {config.timm_name} has a head of {facts['num_classes']} classes, data={info.name} "
            f"has {info.num_labels}; name a model of this data set in teacher.path, or set teacher=finetune"
        )
    sizes |= family_of(plan).dropout_rates(config.dropout)
    with explain_load_errors(config):
        model: nn.Module = timm.create_model(config.timm_name, pretrained=weights, **sizes)
    if weights:
        _check_finite(where, model, Path())
        if same_classes:
            order_head(where, model, timm_labels(facts, guess=origin.trained_head), info)
    return _load_folder(model, info, origin)


def plan_timm(config: ModelConfig) -> Any:
    """Return a timm model without weights.

    Raises:
        OutOfReachError: If a name of the hub is out of reach.
        ValueError: If timm does not know the name, or no family knows the model's class.
    """
    import timm

    assert config.timm_name is not None
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]), quiet_hub():
            model = timm.create_model(config.timm_name, pretrained=False)
    except OSError as error:
        raise out_of_reach(config, "it", error) from error
    except Exception as error:  # timm raises errors of many classes
        raise ValueError(f"{setting_of(config)}: {first_line(error)}; see timm.list_models('*vit*')") from error
    _family(setting_of(config), model)
    return model


def _load_folder(model: nn.Module, info: DataInfo, origin: Origin) -> nn.Module:
    """Load the weights of the origin's folder, if it has one, into a model of timm.

    Raises:
        ValueError: If they are not the weights of this model.
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
    order_head(where, model, saved_labels(origin.folder), info)
    return model


# --- both -----------------------------------------------------------------------------------------------------------


def _family(where: str, model: nn.Module) -> Family:
    """Return the family of a model; the error for a class that no family knows names the setting."""
    try:
        return family_of(model)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_finite(where: str, model: nn.Module, folder: Path) -> None:
    bad = not_finite(model.state_dict())
    if bad is not None:
        file = weight_file(folder) or "the checkpoint"
        raise ValueError(f"{where}: {file} holds weights that are not finite, {bad} for example; give another one")


def _on_meta() -> bool:
    """Whether only sizes and names are wanted."""
    return torch.get_default_device().type == "meta"
