"""The model families: the only files that know module names of transformers and timm.

A family is one record: which modules play which role, and how attention is routed through `attention.attend`.
`register_family` adds a record from any module.
"""

from __future__ import annotations

from torch import nn

from lowbit.modeling.families.family import LAYER_ROLES, QKV, ROLES, Family, LayerNames
from lowbit.modeling.families.hugging_face import HF_BERT, HF_ROBERTA, HF_VIT, route_attention_function
from lowbit.modeling.families.timm_models import TIMM_SWIN, TIMM_VIT, project_blocks
from lowbit.settings.fields import import_class

__all__ = [
    "FAMILIES",
    "HF_BERT",
    "LAYER_ROLES",
    "QKV",
    "ROLES",
    "TIMM_VIT",
    "Family",
    "LayerNames",
    "family_of",
    "import_family",
    "project_blocks",
    "register_family",
    "route_attention_function",
]

FAMILIES = [HF_BERT, HF_ROBERTA, HF_VIT, TIMM_VIT, TIMM_SWIN]


def register_family(family: Family) -> Family:
    """Make a family known to `prepare` and to every model that is built; return it.

    Raises:
        ValueError: If another family has its name or one of its classes.
    """
    for known in FAMILIES:
        if known == family:
            return family
        shared = set(known.class_names) & set(family.class_names) if known.library == family.library else set()
        if known.name == family.name or shared:
            what = ", ".join(sorted(shared)) or "this name"
            raise ValueError(f"family {family.name!r}: {what} belongs to the registered family {known.name!r}")
    FAMILIES.append(family)
    return family


def import_family(path: str) -> None:
    """Register the record that `model.family=module.RECORD` names, in a module beside the user's conf/.

    Raises:
        ValueError: If there is no such record.
    """
    try:
        record = import_class(path)
    except ValueError as error:
        raise ValueError(f"model.family={path}: {error}") from error
    if type(record) is not Family:
        raise ValueError(f"model.family={path}: is no Family of lowbit.modeling.families but a {type(record).__name__}")
    register_family(record)


def family_of(model: nn.Module) -> Family:
    """Return the family of a model.

    Raises:
        ValueError: If no family knows the model's class.
    """
    for cls in type(model).__mro__:
        for family in FAMILIES:
            if family.knows(cls):
                return family
    known = ", ".join(name for family in FAMILIES for name in family.class_names)
    raise ValueError(
        f"no model family for {type(model).__name__}: known classes are {known}. Describe another class in a "
        "Family and name it in model.family (docs/models.md)"
    )
