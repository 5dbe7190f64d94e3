"""Condition Preference Optimization: a picture's own map must explain it better than another.

Source: Lyu et al. 2025, "CPO: Condition Preference Optimization for Controllable Image Generation"
(arXiv 2511.04753). The winning map is the picture's own; the losing one is read from a picture that
the ControlNet drew for it before training, and so shows where that one strayed. With either the
same noised picture is predicted. Nothing is decoded, and no annotator gets gradients.
"""

from typing import NamedTuple

from torch import Tensor


class Settings(NamedTuple):
    """How much better a winning map is wanted to do, in units of the prediction's squared error."""

    beta: float
    """Of the preference: the larger, the sooner what is ahead of the reference is enough."""
    margin: float
    """By which the winning map's error is to be below the losing map's."""


PUBLISHED = Settings(beta=5000.0, margin=0.01)
DIORAMA = Settings(beta=20.0, margin=0.3)
"""Diorama's errors are larger, and its winning maps ahead by 0.05 from the start: the published
settings are of no effect there."""


class Errors(NamedTuple):
    """The errors (P,) of a ControlNet's predictions for P pictures, with each of two maps."""

    winning: Tensor
    losing: Tensor

    @property
    def ahead(self) -> Tensor:
        """How much better the winning maps do."""
        return self.losing - self.winning


def preference_loss(trained: Errors, reference: Errors, settings: Settings) -> Tensor:
    """The loss of a ControlNet beside the one that it began as.

    A pair counts until the winning map is ahead by the margin, and the less, the better the trained
    ControlNet already tells the two apart than the reference.
    """
    gained = trained.ahead - reference.ahead
    weight = (-settings.beta / 2 * gained).detach().sigmoid()
    return (weight * (settings.margin - trained.ahead).clamp_min(0)).mean()
