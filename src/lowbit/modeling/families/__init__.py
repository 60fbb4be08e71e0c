"""The model families: the only files that know module names of transformers and timm.

A family says which modules play which role, and how its attention is routed through `attention.attend`.
"""

from __future__ import annotations

from torch import nn

from lowbit.modeling.families.family import LAYER_ROLES, QKV, ROLES, Family
from lowbit.modeling.families.hugging_face import HF_BERT, HF_ROBERTA, HF_VIT
from lowbit.modeling.families.timm_models import TIMM_SWIN, TIMM_VIT, project_blocks

__all__ = ["FAMILIES", "LAYER_ROLES", "QKV", "ROLES", "Family", "family_of", "project_blocks"]

FAMILIES = (HF_BERT, HF_ROBERTA, HF_VIT, TIMM_VIT, TIMM_SWIN)


def family_of(model: nn.Module) -> Family:
    """Return the family of a model.

    Raises:
        ValueError: no family knows the model's class.
    """
    for cls in type(model).__mro__:
        for family in FAMILIES:
            if cls.__name__ in family.class_names and cls.__module__.split(".")[0] in ("transformers", "timm"):
                return family
    known = ", ".join(name for family in FAMILIES for name in family.class_names)
    raise ValueError(f"no model family for {type(model).__name__}: known classes are {known}")
