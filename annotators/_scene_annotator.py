"""The network of Diorama's annotator. Apart: what it is made of takes seconds to import."""

from itertools import pairwise

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional

from annotators._diorama import JOINTS, STRIDE, Prediction

HEAD_WIDTH = 64


class _Block(nn.Module):
    """A residual block of two 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        added: Tensor = x + self.conv2(functional.silu(self.norm2(h)))
        return added


class SceneAnnotator(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A U-Net from pictures to a `Prediction`.

    `classes` are the ADE20K indices it knows; `widths` the channels at each scale, from half the
    picture's size down.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, classes: tuple[int, ...], widths: tuple[int, ...] = (24, 48, 96, 160, 224)
    ) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.stem = nn.Conv2d(3, widths[0], 5, stride=STRIDE, padding=2)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairs)
        # One block at the largest scale, where it costs most.
        self.into = nn.ModuleList(
            nn.Sequential(*(_Block(b) for _ in range(min(k + 1, 2))))
            for k, (_, b) in enumerate(pairs)
        )
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairs)
        self.out = nn.ModuleList(_Block(a) for a, _ in pairs)
        # Wider than its input: so many outputs are not linear in so few channels.
        self.head = nn.Sequential(
            nn.Conv2d(widths[0], HEAD_WIDTH, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(HEAD_WIDTH, 1 + 1 + 3 + len(classes) + JOINTS + 2, 1),
        )

    def forward(self, pixels: Tensor) -> Prediction:
        """Predict from pictures (B, 3, H, W) in [-1, 1], sides multiples of GRID."""
        x = self.stem(pixels)
        skips = []
        for down, into in zip(self.down, self.into, strict=True):
            skips.append(x)
            x = into(down(functional.silu(x)))
        for up, out, skip in reversed(list(zip(self.up, self.out, skips, strict=True))):
            x = out(functional.interpolate(up(x), scale_factor=2.0) + skip)
        parts = self.head(functional.silu(x)).float()
        return Prediction(*parts.split([1, 1, 3, len(self.config.classes), JOINTS, 2], 1))
