"""Condition Preference Optimization: a picture's own map must explain it better than another.

Source: Lyu et al. 2025, "CPO: Condition Preference Optimization for Controllable Image Generation"
(arXiv 2511.04753). The winning map is the picture's own; the losing one is read from a picture that
the ControlNet drew for it before training, and so shows where that one strayed. With either the
same noised picture is predicted. Nothing is decoded, and no annotator gets gradients.
"""

from typing import NamedTuple

from torch import Tensor

BETA = 5000.0  # as published
MARGIN = 0.01


class Errors(NamedTuple):
    """The errors (P,) of a ControlNet's predictions for P pictures, with each of two maps."""

    winning: Tensor
    losing: Tensor

    @property
    def ahead(self) -> Tensor:
        """How much better the winning maps do."""
        return self.losing - self.winning


def preference_loss(trained: Errors, reference: Errors) -> Tensor:
    """The loss of a ControlNet beside the one that it began as.

    A pair counts until the winning map's error is below the losing map's by MARGIN, and the less,
    the better the trained ControlNet already tells them apart than the reference.
    """
    weight = (-BETA / 2 * (trained.ahead - reference.ahead)).detach().sigmoid()
    return (weight * (MARGIN - trained.ahead).clamp_min(0)).mean()
