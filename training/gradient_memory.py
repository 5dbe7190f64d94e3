"""What rewarding a picture keeps in memory for its gradients, by the steps that it was sampled in.

ControlNet++ rewards a picture that is estimated in a single step: gradients need not go back
through sampling, which would take about 6.8 GB for each step of Stable Diffusion at 512 px (Li et
al. 2024, arXiv 2404.07987). Counted is what autograd keeps for the way back, to the byte, not what
a machine happens to use.
"""

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from annotators._diorama import load_network
from training.adapter import predict
from training.base import Base
from training.reward import Reward
from training.train_control import make_control


class KeptBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts, inside a `with` block, the memory that autograd keeps for a backward pass."""

    def __init__(self, *networks: nn.Module) -> None:
        """Leave out the weights of the networks, which are there anyway."""
        weights = (weight for network in networks for weight in network.parameters())
        self._weights = {weight.untyped_storage().data_ptr() for weight in weights}
        self._kept: dict[int, Tensor] = {}
        super().__init__(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in self._weights:  # kept alive, so that no later tensor takes its address
            self._kept.setdefault(address, tensor)
        return tensor

    @property
    def bytes(self) -> int:
        """Of all tensors so far, each storage once."""
        return sum(one.untyped_storage().nbytes() for one in self._kept.values())


def kept_for_reward(steps: int, size: int) -> int:
    """Return the bytes kept for the gradients of one picture's reward, sampled in so many steps.

    The picture is `size` pixels wide, drawn by Diorama with a new ControlNet, without guidance.
    """
    base = Base("diorama")
    networks = base.load()
    control = make_control(base, networks.unet, None)
    networks.place("cpu", torch.bfloat16)
    annotator = load_network().to("cpu")
    reward = Reward(networks.vae, annotator, ["edges"])
    scheduler = DDIMScheduler.from_config(base.scheduler.config)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    side = size // base.downscale
    latents = torch.randn(1, networks.unet.config.in_channels, side, side, generator=generator)
    text = torch.randn(1, 77, networks.unet.config.cross_attention_dim, generator=generator)
    maps = torch.rand(1, 3, size, size, generator=generator)
    picture = torch.zeros(1, size, size, 3, dtype=torch.uint8).numpy()
    kept = KeptBytes(control, networks.unet, networks.vae, annotator)
    with kept:
        for t in scheduler.timesteps:
            with torch.autocast("cpu", torch.bfloat16):
                prediction = predict(networks.unet, control, latents, t, text, maps)
            done = scheduler.step(prediction.float(), t, latents)
            latents = done.prev_sample
        reward.loss(done.pred_original_sample, picture)
    return kept.bytes
