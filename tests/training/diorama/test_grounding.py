"""Which words a place should listen to, and what it costs not to."""

import numpy as np
import torch
from torch import nn

from training.diorama.dataset import Pictures, render_scenes
from training.diorama.grounding import Grounding, WatchedAttention
from training.diorama.world import make_scene, phrases
from training.train_base import make_tokenizer, tokens


def test_equal_things_share_a_phrase():
    things = make_scene(0).things
    assert list(phrases([things[0], things[0]])) == [things[0].words]
    assert phrases([things[0], things[0]])[things[0].words].startswith("two ")


def test_tokens_and_places_of_one_thing_carry_one_number(tmp_path):
    render_scenes(6, 64, tmp_path)
    data = Pictures(tmp_path)
    tokenizer = make_tokenizer(data.captions)
    ids = tokens(tokenizer, data.captions)
    grounding = Grounding(data, tokenizer, ids)
    seen = data.things()
    assert seen.shape == (6, 32, 32)
    for row, seed in enumerate(data.seeds):
        things = make_scene(seed).things
        said = phrases(things)
        for number in range(1, int(grounding.words[row].max()) + 1):
            words = tokenizer.decode(ids[row][grounding.words[row] == number]).strip()
            assert words in said.values()
            mine = [k for k, thing in enumerate(things) if said[thing.words] == words]
            there = grounding.places[row].numpy() == number
            assert (there == np.isin(seen[row], mine)).all()
        assert int(grounding.words[row].max()) >= 1


class _Attention(nn.Module):
    """One head whose queries and keys are what comes in."""

    heads = 1

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k = nn.Identity(), nn.Identity()


def _loss(query: torch.Tensor, key: torch.Tensor) -> float:
    """The loss of a picture whose left half is thing 1, named by the second token of three."""
    network = nn.ModuleDict({"attn2": _Attention()})
    watched = WatchedAttention(network)
    network["attn2"].to_q(query)
    network["attn2"].to_k(key)
    words = torch.tensor([[0, 1, 0]])
    places = torch.zeros(1, 32, 32, dtype=torch.int8)
    places[:, :, :16] = 1
    found = float(watched.loss(words, places))
    network["attn2"].to_q(query)  # forgotten: what was seen before counts no more
    network["attn2"].to_k(key)
    assert float(watched.loss(words, places)) == found
    return found


def test_attention_to_the_right_words_costs_nothing():
    # Two by two places: the left ones point along x, the right ones along y.
    query = torch.tensor([[[40.0, 0], [0, 40.0], [40.0, 0], [0, 40.0]]])
    right = torch.tensor([[[0, 1.0], [1.0, 0], [0, 1.0]]])
    wrong = torch.tensor([[[1.0, 0], [0, 1.0], [1.0, 0]]])
    assert _loss(query, right) < 0.01
    assert _loss(query, wrong) > 5
    # Attention that does not care: 1/3 to the thing's word, 2/3 to the rest.
    even = -(np.log(1 / 3) + np.log(2 / 3)) / 2
    assert abs(_loss(query * 0, right) - even) < 0.01


def test_passes_without_gradients_are_not_remembered():
    network = nn.ModuleDict({"attn2": _Attention()})
    watched = WatchedAttention(network)
    with torch.no_grad():
        network["attn2"].to_q(torch.zeros(1, 4, 2))
    assert watched._queries == []
