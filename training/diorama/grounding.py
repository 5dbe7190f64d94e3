"""Teaches cross-attention which words a place in the picture should listen to.

Which words name a thing and where it is seen are known of every rendered scene, so attention can be
told directly what it would otherwise have to find out from millions of pictures: that the colour
beside a word belongs to that thing alone. After Wang et al. 2024, "TokenCompose: Text-to-Image
Diffusion with Token-level Supervision".
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTokenizer

from training.diorama.dataset import Pictures
from training.diorama.world import MOST_THINGS, make_scene, phrases


class Grounding:
    """Where the words of captions belong.

    `words` (N, 77) int8 is the number of the phrase that each token stands in, from 1 on, and 0 for
    all other words; `places` (N, PLACES, PLACES) int8 is the phrase of what is seen there.
    """

    def __init__(self, data: Pictures, tokenizer: CLIPTokenizer, ids: Tensor) -> None:
        self.words = torch.zeros(ids.shape, dtype=torch.int8)
        seen = torch.from_numpy(data.things())
        self.places = torch.zeros(seen.shape, dtype=torch.int8)
        known: dict[str, list[int]] = {}
        for row, seed in enumerate(data.seeds):
            things = make_scene(seed).things
            caption, number = ids[row].tolist(), 0
            for name, phrase in phrases(things).items():
                if phrase not in known:
                    known[phrase] = tokenizer(phrase, add_special_tokens=False).input_ids
                start = _find(caption, known[phrase])
                if start is None or number == MOST_THINGS:  # a background building has no words
                    continue
                number += 1
                self.words[row, start : start + len(known[phrase])] = number
                for k, thing in enumerate(things):
                    if thing.words == name:
                        self.places[row][seen[row] == k] = number


def _find(tokens: list[int], part: list[int]) -> int | None:
    """Where `part` begins in `tokens`, or None."""
    for k in range(len(tokens) - len(part) + 1):
        if tokens[k : k + len(part)] == part:
            return k
    return None


def _keep(found: list[Tensor], out: Tensor) -> None:
    if torch.is_grad_enabled():
        found.append(out)


class WatchedAttention:
    """Remembers the queries and keys of every cross-attention in the networks' last pass.

    Passes without gradients, such as those that draw samples, are not remembered.
    """

    def __init__(self, *networks: nn.Module) -> None:
        self._queries: list[Tensor] = []
        self._keys: list[Tensor] = []
        self._heads: list[int] = []
        named = [pair for network in networks for pair in network.named_modules()]
        for module in (module for name, module in named if name.endswith("attn2")):
            module.to_q.register_forward_hook(lambda _m, _i, out: _keep(self._queries, out))
            module.to_k.register_forward_hook(lambda _m, _i, out: _keep(self._keys, out))
            self._heads.append(module.heads)

    def loss(self, words: Tensor, places: Tensor) -> Tensor:
        """How far the last pass was from listening to the right words, and forgets it.

        `words` (B, 77) and `places` (B, PLACES, PLACES) are rows of a `Grounding`. The mean
        negative logarithm of the attention (mean over heads) that each place gives to its own
        phrase, or to no phrase where nothing is named; things weigh as much as the rest.
        """
        member = functional.one_hot(words.long(), MOST_THINGS + 1).float()
        where = functional.one_hot(places.long(), MOST_THINGS + 1).permute(0, 3, 1, 2).float()
        things = rest = where.new_zeros(())
        for heads, query, key in zip(self._heads, self._queries, self._keys, strict=True):
            q, k = (x.float().view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (query, key))
            attention = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1).mean(1)
            side = math.isqrt(q.shape[2])
            wanted = functional.adaptive_avg_pool2d(where, side).flatten(2).transpose(1, 2)
            missed = -wanted * (attention @ member + 1e-4).log()
            things = things + missed[..., 1:].sum() / wanted[..., 1:].sum().clamp_min(1)
            rest = rest + missed[..., 0].sum() / wanted[..., 0].sum().clamp_min(1)
        count = len(self._queries)
        self._queries.clear()
        self._keys.clear()
        return (things + rest) / (2 * count)
