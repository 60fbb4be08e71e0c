"""A loss of your own: the angle between the attention contexts of student and teacher."""

import torch.nn.functional as F
from torch import Tensor

from lowbit.losses import LayerLoss
from lowbit.settings.losses import Comparison


class ContextCosine(LayerLoss):
    """One minus the cosine between context vectors, averaged over heads and real tokens, of every layer.

    With `options: {power: 2}` the distances are squared.
    """

    compares = Comparison.heads
    field = "context"

    def compare(self, student: Tensor, teacher: Tensor, mask_BL: Tensor | None) -> Tensor:
        """Return the loss of one layer; the contexts are BHLD.

        >>> import torch
        >>> from lowbit.losses import build_loss
        >>> from lowbit.settings.losses import LossConfig
        >>> loss = build_loss(LossConfig("own_losses.ContextCosine"))
        >>> student = torch.tensor([[[[3.0, 4.0], [1.0, 0.0]]]])
        >>> teacher = torch.tensor([[[[4.0, 3.0], [1.0, 0.0]]]])
        >>> round(loss.compare(student, teacher, None).item(), 4)  # cosines 24 / 25 and 1
        0.02
        >>> round(loss.compare(student, teacher, torch.tensor([[True, False]])).item(), 4)
        0.04
        """
        distances_BHL = (1 - F.cosine_similarity(student, teacher, dim=-1)) ** self.settings.options.get("power", 1)
        if mask_BL is None:
            return distances_BHL.mean()
        return (distances_BHL * mask_BL[:, None]).sum() / (mask_BL.sum() * distances_BHL.shape[1])
