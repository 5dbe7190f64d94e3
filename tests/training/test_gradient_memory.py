"""The count of what gradients keep in memory."""

import torch

from training.gradient_memory import KeptBytes, kept_for_reward


def test_each_kept_tensor_counts_once_and_weights_do_not():
    layer = torch.nn.Linear(8, 8, bias=False)
    given = torch.ones(4, 8, requires_grad=True)
    kept = KeptBytes(layer)
    with kept:
        first = layer(given)  # keeps what it was given, 4 x 8 numbers of 4 bytes
        first.exp().sum()  # keeps its result, as many
        with torch.no_grad():
            layer(given)
    assert kept.bytes == 2 * 4 * 8 * 4


def test_every_step_of_sampling_is_kept():
    one, two, three = (kept_for_reward(steps, 64) for steps in (1, 2, 3))
    assert one > two - one > 0, "the picture and the annotator come once"
    assert abs((three - two) - (two - one)) < 0.05 * (two - one)
