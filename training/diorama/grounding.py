"""Supervises cross-attention: every pixel should attend to the words that name its thing.

A rendered scene says which words name each thing and where it is visible. So attention learns
directly what would otherwise take millions of pictures: that a colour word belongs to its thing
alone. After Wang et al. 2024, "TokenCompose: Text-to-Image Diffusion with Token-level Supervision".
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTokenizer

from training.diorama.dataset import Pictures
from training.diorama.world import MAX_THINGS, make_scene, phrases


class Grounding:
    """Which phrase of its caption each token and each pixel of a scene belongs to; 0 is none.

    `token_phrases` is (N, 77) int8, `pixel_phrases` (N, COARSE_SIDE, COARSE_SIDE) int8; phrases
    count from 1.
    """

    def __init__(self, data: Pictures, tokenizer: CLIPTokenizer, ids: Tensor) -> None:
        self.token_phrases = torch.zeros(ids.shape, dtype=torch.int8)
        visible = torch.from_numpy(data.things())
        self.pixel_phrases = torch.zeros(visible.shape, dtype=torch.int8)
        tokenized: dict[str, list[int]] = {}
        for row, seed in enumerate(data.seeds):
            things = make_scene(seed).things
            caption, number = ids[row].tolist(), 0
            for name, phrase in phrases(things).items():
                if phrase not in tokenized:
                    tokenized[phrase] = tokenizer(phrase, add_special_tokens=False).input_ids
                start = _find(caption, tokenized[phrase])
                if start is None or number == MAX_THINGS:  # captions omit background buildings
                    continue
                number += 1
                self.token_phrases[row, start : start + len(tokenized[phrase])] = number
                for k, thing in enumerate(things):
                    if thing.words == name:
                        self.pixel_phrases[row][visible[row] == k] = number


def _find(tokens: list[int], part: list[int]) -> int | None:
    """The index at which `part` starts in `tokens`, or None."""
    for k in range(len(tokens) - len(part) + 1):
        if tokens[k : k + len(part)] == part:
            return k
    return None


class AttentionRecorder:
    """Records the queries and keys of every cross-attention in the networks' forward pass.

    Only the first since the last loss; passes without gradients, such as those that sample, are
    not recorded.
    """

    def __init__(self, *networks: nn.Module) -> None:
        self._queries: list[Tensor] = []
        self._keys: list[Tensor] = []
        self._heads: list[int] = []
        named = [pair for network in networks for pair in network.named_modules()]
        for module in (module for name, module in named if name.endswith("attn2")):
            module.to_q.register_forward_hook(lambda _m, _i, out: self._record(self._queries, out))
            module.to_k.register_forward_hook(lambda _m, _i, out: self._record(self._keys, out))
            self._heads.append(module.heads)

    def _record(self, records: list[Tensor], output: Tensor) -> None:
        if torch.is_grad_enabled() and len(records) < len(self._heads):
            records.append(output)

    def loss(self, token_phrases: Tensor, pixel_phrases: Tensor) -> Tensor:
        """The grounding loss of the recorded pass, which is then forgotten.

        The arguments are rows of a `Grounding`. The loss is the mean negative log of the attention
        (mean over heads) that each pixel gives to its own phrase, or to no phrase where nothing is
        named; named things and the rest weigh the same.
        """
        member = functional.one_hot(token_phrases.long(), MAX_THINGS + 1).float()
        where = functional.one_hot(pixel_phrases.long(), MAX_THINGS + 1).permute(0, 3, 1, 2).float()
        things = rest = where.new_zeros(())
        for heads, query, key in zip(self._heads, self._queries, self._keys, strict=True):
            q, k = (x.float().view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (query, key))
            attention = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1).mean(1)
            side = math.isqrt(q.shape[2])
            target = functional.adaptive_avg_pool2d(where, side).flatten(2).transpose(1, 2)
            error = -target * (attention @ member + 1e-4).log()
            things = things + error[..., 1:].sum() / target[..., 1:].sum().clamp_min(1)
            rest = rest + error[..., 0].sum() / target[..., 0].sum().clamp_min(1)
        count = len(self._queries)
        self._queries.clear()
        self._keys.clear()
        return (things + rest) / (2 * count)
