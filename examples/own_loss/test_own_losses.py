"""The angle alone counts, and padding does not."""

import torch

from lowbit.losses import build_loss
from lowbit.settings.losses import LossConfig

LOSS = build_loss(LossConfig("own_losses.ContextCosine"))


def test_the_angle_alone_counts():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64).unbind()
    loss = LOSS.compare(student, teacher, None)
    torch.testing.assert_close(LOSS.compare(3 * student, 0.5 * teacher, None), loss)
    torch.testing.assert_close(LOSS.compare(student, -student, None), torch.tensor(2.0, dtype=torch.float64))


def test_padding_does_not_count():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, 3, 4, 5).unbind()
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    before = LOSS.compare(student, teacher, mask)
    student[0, :, 3] = 7.0
    student[1, :, 2:] = -7.0
    torch.testing.assert_close(LOSS.compare(student, teacher, mask), before)
