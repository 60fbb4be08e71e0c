"""The logged ratio of a regularizer's gradient to that of all other losses."""

import torch

from lowbit.training.gradient_share import gradient_ratio


def test_ratio_of_two_gradients_by_hand():
    weight = torch.zeros(1, 2, requires_grad=True)
    regularizer = (weight * torch.tensor([[0.3, 0.4]])).sum()  # norm 0.5
    (regularizer + (weight * torch.tensor([[0.0, 2.0]])).sum()).backward(retain_graph=True)
    torch.testing.assert_close(gradient_ratio(regularizer, [weight]), torch.tensor(0.25))


def test_weights_that_the_regularizer_leaves_out_count_for_the_rest():
    first, second = (torch.zeros(1, requires_grad=True) for _ in range(2))
    (9.0 * first + 4.0 * second).sum().backward()
    torch.testing.assert_close(gradient_ratio(6.0 * first.sum(), [first, second]), torch.tensor(6.0 / 5.0))
