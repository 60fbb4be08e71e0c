"""Settings of a model: its architecture, or whose weights it has."""

from dataclasses import dataclass
from enum import StrEnum, auto

from omegaconf import MISSING

from lowbit.settings.fields import Of, number, path_name, setting


class ModelKind(StrEnum):
    """How a model is built: three random-init architectures, a Hugging Face folder or hub name, a timm name."""

    bert = auto()
    vit = auto()
    timm_vit = auto()
    hf = auto()
    timm = auto()


class TeacherSource(StrEnum):
    """Where the teacher's weights come from."""

    finetune = auto()
    path = auto()
    hub = auto()


class Activation(StrEnum):
    """Activation function of the feed-forward layers."""

    gelu = auto()
    relu = auto()


_SIZED = Of("kind", (ModelKind.bert, ModelKind.vit, ModelKind.timm_vit), harmless=True)
_PATCHED = Of("kind", (ModelKind.vit, ModelKind.timm_vit, ModelKind.timm), harmless=True)
_HF = Of("kind", (ModelKind.hf,))
_TIMM = Of("kind", (ModelKind.timm,))


@dataclass
class ModelConfig:
    """An architecture; sizes apply to the random-init kinds, `path` to `hf`, `timm_name` to `timm`.

    `revision` is a commit, tag or branch of a hub model; null: the newest. `dropout: null` keeps the model's own rates.
    `depths` says how many layers a model of kind `hf` or `timm` has, per stage where it has stages (Swin): what refers
    to layers is then checked before anything is loaded. `family` names a record of your own for a class of transformers
    that lowbit does not know: `module.RECORD` in a module beside conf/.
    """

    name: str = path_name(MISSING)
    kind: ModelKind = MISSING
    hidden_size: int = number(64, above=0, of=_SIZED)
    num_layers: int = number(4, above=0, of=_SIZED)
    num_heads: int = number(4, above=0, of=_SIZED)
    intermediate_size: int = number(256, above=0, of=_SIZED)
    dropout: float | None = number(at_least=0, below=1)
    max_positions: int = number(64, above=0, of=Of("kind", (ModelKind.bert,)))
    patch_size: int = number(2, above=0, of=_PATCHED)
    path: str | None = setting(of=_HF)
    revision: str | None = setting(later=True)
    package: str | None = setting(of=_HF)
    timm_name: str | None = setting(of=_TIMM)
    pretrained: bool = setting(False, of=_TIMM)
    depths: list[int] | None = number(above=0)
    family: str | None = setting(of=_HF, later=True)

    def problems(self) -> list[str]:
        """Return what is wrong with the settings together."""
        problems = []
        if self.hidden_size % max(self.num_heads, 1):
            problems.append(f"hidden_size={self.hidden_size}: must be a multiple of num_heads={self.num_heads}")
        if self.kind == ModelKind.timm and self.timm_name is None:
            problems.append("timm_name: no value; set it, for example model.timm_name=deit_tiny_patch16_224")
        if self.revision is not None and (self.kind != ModelKind.hf or self.path is None):
            problems.append(f"revision={self.revision}: only applies to a hub model (path); set it to null")
        return problems
